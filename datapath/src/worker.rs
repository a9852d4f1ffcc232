use std::sync::Arc;

use causeway_model::DropReason;

use crate::limit::ErrorLimits;
use crate::{Buffer, Frame, Pool, Port, Tally};

/// What one worker has of its own: where fresh buffers come from, what it has counted, and how many errors it may still send.
#[derive(Debug)]
pub struct Worker<P> {
    /// Where fresh buffers come from.
    pub pool: P,
    pub(crate) tally: Arc<Tally>,
    pub(crate) limits: ErrorLimits,
}

impl<P: Pool> Worker<P> {
    /// A worker that counts into `tally`, which is nobody else's to write.
    pub fn new(pool: P, tally: Arc<Tally>) -> Self {
        Self { pool, tally, limits: ErrorLimits::full() }
    }

    /// What it counts into.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Counts a frame that is dropped, with the pod it came from, or else the pod it was for.
    #[cold]
    pub(crate) fn drop<B: Buffer>(&self, reason: DropReason, frame: &Frame<B>, from: Port) {
        let port = if matches!(from, Port::Endpoint(_)) { from } else { frame.egress };
        self.tally.dropped(reason, frame.len(), port);
    }

    /// Whether a stage's verdict lets a frame go on; a drop is counted.
    #[inline]
    pub(crate) fn keeps<B: Buffer>(
        &self,
        verdict: Result<(), DropReason>,
        frame: &Frame<B>,
        from: Port,
    ) -> bool {
        match verdict {
            Ok(()) => true,
            Err(reason) => {
                self.drop(reason, frame, from);
                false
            }
        }
    }
}
