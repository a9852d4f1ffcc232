use causeway_model::DropReason;

use crate::{Buffer, Frame};

/// Frames that a burst takes in at once.
pub(crate) const SIZE: usize = 32;

/// Where a frame comes from or goes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Port {
    /// The node's own stack.
    Host,
    /// Where tunnel frames come and go.
    Uplink,
    /// A pod, by its [slot](crate::Slots).
    Endpoint(u16),
}

/// What became of a frame that a stage did not refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// It goes on.
    Whole,
    /// Others go on in its place.
    Replaced,
}

/// Frames on their way through a pipeline, which owns them.
#[derive(Debug)]
pub struct Burst<B> {
    frames: Vec<Frame<B>>,
    // What a stage made of one frame; it joins `frames` when the stage is through.
    pub(crate) pieces: Pieces<B>,
}

/// Frames that take the place of one that was too big.
#[derive(Debug)]
pub(crate) struct Pieces<B>(Vec<Frame<B>>);

impl<B: Buffer> Burst<B> {
    /// Frames a burst takes in at once.
    pub const SIZE: usize = SIZE;
    /// Frames that may be made of those that are too big; beyond that they are dropped for want of a buffer.
    pub const PIECES: usize = 1024;

    /// An empty burst with all the memory it will ever use.
    pub fn new() -> Self {
        let frames = Vec::with_capacity(Self::SIZE + Self::PIECES);
        Self { frames, pieces: Pieces(Vec::with_capacity(Self::PIECES)) }
    }

    /// How many frames are in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True when no frame is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes a frame in; one too many comes back.
    #[inline]
    pub fn push(&mut self, frame: Frame<B>) -> Result<(), Frame<B>> {
        if self.frames.len() >= Self::SIZE {
            return Err(frame);
        }
        self.frames.push(frame);
        Ok(())
    }

    /// The frames.
    #[inline]
    pub fn frames(&self) -> &[Frame<B>] {
        &self.frames
    }

    /// Gives all frames up, in order.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = Frame<B>> + '_ {
        self.frames.drain(..)
    }

    /// Where all frames go, if that is one port, all are in one segment and nothing is left to do on any. Mostly it is so.
    #[inline]
    pub fn plain_way(&self) -> Option<Port> {
        let egress = self.frames.first()?.egress;
        let is_plain =
            |frame: &Frame<B>| frame.egress == egress && frame.offload.is_none() && frame.is_in_one();
        self.frames.iter().all(is_plain).then_some(egress)
    }

    /// Bytes of all frames.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len() as u64).sum()
    }

    /// Runs one stage: keeps what it keeps, frees what it refuses.
    #[inline]
    pub(crate) fn sift(&mut self, mut stage: impl FnMut(&mut Frame<B>, &mut Pieces<B>) -> bool) {
        // Nearly always every frame is kept, and closing gaps is another loop's work.
        let mut refused = 0;
        for frame in &mut self.frames {
            frame.refused = !stage(frame, &mut self.pieces);
            refused += usize::from(frame.refused);
        }
        if refused > 0 {
            self.frames.retain(|frame| !frame.refused);
        }
        if !self.pieces.0.is_empty() {
            // Both vectors are sized so that this never allocates.
            self.frames.append(&mut self.pieces.0);
        }
    }
}

impl<B: Buffer> Default for Burst<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Buffer> Pieces<B> {
    /// Adds one.
    pub(crate) fn push(&mut self, frame: Frame<B>) -> Result<(), DropReason> {
        if self.0.len() == Burst::<B>::PIECES {
            return Err(DropReason::NoBuffer);
        }
        self.0.push(frame);
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes back what was added beyond `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}
