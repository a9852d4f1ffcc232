use std::sync::Arc;

use causeway_model::DropReason;

use crate::burst::Kept;
use crate::datagrams::Datagrams;
use crate::limit::ErrorLimits;
use crate::policy::Refusal;
use crate::send::impassable;
use crate::{Frame, Pool, Port, Tally, Tracking, World, errors};

/// What one worker has of its own: where fresh buffers come from, what it has counted, and how many errors it may still send.
#[derive(Debug)]
pub struct Worker<P: Pool> {
    /// Where fresh buffers come from.
    pub pool: P,
    pub(crate) tally: Arc<Tally>,
    pub(crate) limits: ErrorLimits,
    pub(crate) tracking: Option<Tracking>,
    pub(crate) datagrams: Datagrams<P::Buffer>,
}

impl<P: Pool> Worker<P> {
    /// A worker that counts into `tally`, which is nobody else's to write.
    pub fn new(pool: P, tally: Arc<Tally>) -> Self {
        Self { pool, tally, limits: ErrorLimits::full(), tracking: None, datagrams: Datagrams::new() }
    }

    /// The same with connections. Without, every packet stands alone, and pods that refuse new connections get none at all.
    #[must_use]
    pub fn tracking(self, tracking: Tracking) -> Self {
        Self { tracking: Some(tracking), ..self }
    }

    /// Whether fragments wait for the first of their datagram: then [`let_go`](Self::let_go) wants to be called.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.datagrams.is_waiting()
    }

    /// Lets go of fragments that have waited too long.
    pub fn let_go(&mut self, now: u64) {
        self.datagrams.expire(now, &self.tally);
    }

    /// What it counts into.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether a frame goes on after a stage's verdict. One that does not is counted, with the pod it came from, or else
    /// the pod it was for; where its sender must hear of it, it goes on as the answer.
    #[inline]
    pub(crate) fn keeps(
        &mut self,
        verdict: Result<Kept, DropReason>,
        frame: &mut Frame<P::Buffer>,
        from: Port,
        world: &World,
        now: u64,
    ) -> bool {
        match verdict {
            Ok(kept) => kept == Kept::Whole,
            Err(reason) => self.refuse(reason, frame, from, world, now),
        }
    }

    #[cold]
    fn refuse(
        &mut self,
        reason: DropReason,
        frame: &mut Frame<P::Buffer>,
        from: Port,
        world: &World,
        now: u64,
    ) -> bool {
        let impassable = || impassable(frame, from, world);
        let reason = match reason {
            DropReason::InvalidConnection | DropReason::DeniedNew | DropReason::PolicyDenied => {
                impassable().unwrap_or(reason)
            }
            reason => reason,
        };
        let port = if matches!(from, Port::Endpoint(_)) { from } else { frame.egress };
        self.tally.refused(Refusal { reason, rule: frame.denied_by }, frame.len(), port);
        errors::tell_sender(frame, reason, from, world, &mut self.limits, now)
    }
}
