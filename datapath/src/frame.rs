use causeway_model::DropReason;
use causeway_model::policy::RuleNumber;
use causeway_wire::Ethernet;
use causeway_wire::checksum::Sum;
use zerocopy::IntoBytes;

use crate::{Offload, Port};

/// Bytes that every fresh buffer keeps free before its frame: enough for an answer's headers and for a tunnel's.
pub const HEADROOM: usize = 128;

/// Where the bytes of a frame lie: one segment that holds all headers, and perhaps a second one with the rest of a long
/// payload. Dropping a buffer gives its memory back.
pub trait Buffer {
    /// The first segment whole, the room before and behind the frame included.
    fn head(&self) -> &[u8];
    /// The first segment, to write.
    fn head_mut(&mut self) -> &mut [u8];
    /// The second segment; empty when there is none.
    fn tail(&self) -> &[u8];
}

/// Where fresh buffers come from.
pub trait Pool {
    /// What comes from it.
    type Buffer: Buffer;

    /// A buffer whose first segment has [`HEADROOM`] and `len` bytes behind it, or nothing when none is free.
    fn take(&mut self, len: usize) -> Option<Self::Buffer>;
}

/// One frame: a buffer, where in it the frame lies, and what is noted about it on its way.
#[derive(Debug)]
pub struct Frame<B> {
    buffer: B,
    start: u32,
    head: u32,
    tail: u32,
    /// What was left to do when it came, and what is left when it goes.
    pub offload: Offload,
    /// Where it goes; means something when a pipeline has let it through.
    pub egress: Port,
    /// The peer whose tunnel it takes or came from.
    pub(crate) peer: u16,
    /// Bytes of tunnel headers in front of the inner frame.
    pub(crate) outer: u8,
    /// A stage did not keep it.
    pub(crate) refused: bool,
    /// The rule that denied it, where one did.
    pub(crate) denied_by: RuleNumber,
}

impl<B: Buffer> Frame<B> {
    /// A frame of `head` bytes from `start` on in the first segment and `tail` bytes of the second; nothing when they do not
    /// lie inside of the buffer.
    #[inline]
    pub fn new(buffer: B, start: usize, head: usize, tail: usize) -> Option<Self> {
        let fits = tail <= buffer.tail().len();
        let frame = Self { tail: tail.try_into().ok()?, ..Self::whole(buffer, start, head)? };
        fits.then_some(frame)
    }

    /// The same all in the first segment.
    #[inline]
    pub fn whole(buffer: B, start: usize, head: usize) -> Option<Self> {
        let fits = start.checked_add(head)? <= buffer.head().len();
        let (start, head) = (start.try_into().ok()?, head.try_into().ok()?);
        let (offload, egress, denied_by) = (Offload::NONE, Port::Host, RuleNumber::DEFAULT);
        fits.then_some(Self {
            buffer,
            start,
            head,
            tail: 0,
            offload,
            egress,
            peer: 0,
            outer: 0,
            refused: false,
            denied_by,
        })
    }

    /// An unwritten frame of `len` bytes in a buffer fresh from the pool.
    pub(crate) fn fresh(pool: &mut impl Pool<Buffer = B>, len: usize) -> Result<Self, DropReason> {
        let buffer = pool.take(len).ok_or(DropReason::NoBuffer)?;
        Self::new(buffer, HEADROOM, len, 0).ok_or(DropReason::NoBuffer)
    }

    /// Bytes of the frame.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "no frame that anybody receives is empty")]
    pub fn len(&self) -> usize {
        self.head as usize + self.tail as usize
    }

    /// Bytes of the frame in the first segment.
    #[inline]
    pub fn head_len(&self) -> usize {
        self.head as usize
    }

    /// Whether all of it is in the first segment.
    #[inline]
    pub(crate) fn is_in_one(&self) -> bool {
        self.tail == 0
    }

    /// The room before the frame.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// The frame's bytes in the first segment.
    #[inline]
    pub fn head(&self) -> &[u8] {
        let (start, len) = (self.start as usize, self.head as usize);
        self.buffer.head().get(start..start + len).unwrap_or_default()
    }

    /// The frame's bytes in the first segment, to write.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.start as usize, self.head as usize);
        self.buffer.head_mut().get_mut(start..start + len).unwrap_or_default()
    }

    /// The frame's bytes in the second segment.
    #[inline]
    pub fn tail(&self) -> &[u8] {
        self.buffer.tail().get(..self.tail as usize).unwrap_or_default()
    }

    /// The buffer.
    pub fn buffer(&self) -> &B {
        &self.buffer
    }

    /// The buffer alone; whoever takes it has asked for [`headroom`](Self::headroom) and lengths before.
    pub fn into_buffer(self) -> B {
        self.buffer
    }

    /// Bytes of tunnel headers before the inner frame: 0 without a tunnel, else 50 over IPv4 and 70 over IPv6.
    pub fn outer_len(&self) -> usize {
        usize::from(self.outer)
    }

    /// Lets the frame begin `len` bytes earlier.
    #[inline]
    pub(crate) fn push(&mut self, len: usize) -> Result<(), DropReason> {
        let len = len as u32;
        self.start = self.start.checked_sub(len).ok_or(DropReason::NoHeadroom)?;
        self.head += len;
        Ok(())
    }

    /// Lets the frame begin `len` bytes later.
    #[inline]
    pub(crate) fn pull(&mut self, len: usize) -> Result<(), DropReason> {
        let len = len as u32;
        self.head = self.head.checked_sub(len).ok_or(DropReason::Malformed)?;
        self.start += len;
        Ok(())
    }

    /// Cuts the frame off behind `len` bytes; a shorter one stays as it is.
    #[inline]
    pub(crate) fn truncate(&mut self, len: usize) {
        let len = len.min(self.len()) as u32;
        self.head = self.head.min(len);
        self.tail = len - self.head;
    }

    /// Makes it another frame in the same buffer, with the work that was left undone forgotten.
    pub(crate) fn replace(&mut self, ethernet: Ethernet, payload: &[u8]) -> Result<(), DropReason> {
        let len = Ethernet::LEN + payload.len();
        self.push(len.saturating_sub(self.head as usize))?;
        self.truncate(len);
        let (header, rest) = self.head_mut().split_at_mut(Ethernet::LEN);
        header.copy_from_slice(ethernet.as_bytes());
        rest.copy_from_slice(payload);
        self.offload = Offload::NONE;
        Ok(())
    }

    /// Fills `out` with the bytes from `offset` on; false when the frame ends before.
    pub(crate) fn copy_out(&self, offset: usize, out: &mut [u8]) -> bool {
        let (head, tail) = (self.head(), self.tail());
        let from_head = head.get(offset..).unwrap_or_default();
        let (first, second) = out.split_at_mut(from_head.len().min(out.len()));
        first.copy_from_slice(&from_head[..first.len()]);
        let skipped = offset.saturating_sub(head.len());
        match tail.get(skipped..skipped + second.len()) {
            Some(bytes) => second.copy_from_slice(bytes),
            None => return second.is_empty(),
        }
        true
    }

    /// An Internet sum with all bytes from `offset` on behind it.
    pub(crate) fn add_from(&self, offset: usize, sum: Sum) -> Sum {
        let (head, tail) = (self.head(), self.tail());
        let skipped = offset.saturating_sub(head.len());
        sum.bytes(head.get(offset..).unwrap_or_default()).bytes(tail.get(skipped..).unwrap_or_default())
    }
}
