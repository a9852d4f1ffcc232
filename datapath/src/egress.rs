use causeway_model::DropReason;

use crate::offload::{Checksum, Segments, complete};
use crate::{Buffer, Frame, Pool, segment};

/// What a port does itself with the frames it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Computes checksums that are partial.
    pub checksum: bool,
    /// Cuts TCP over IPv4.
    pub tcp4: bool,
    /// Cuts TCP over IPv6.
    pub tcp6: bool,
    /// Cuts UDP.
    pub udp: bool,
    /// Does all of the above inside of a tunnel, too.
    pub tunnel: bool,
}

impl Capabilities {
    fn takes<B: Buffer>(self, frame: &Frame<B>) -> bool {
        let cuts = match frame.offload.gso.map(|gso| gso.kind) {
            None => true,
            Some(Segments::Tcp4) => self.tcp4,
            Some(Segments::Tcp6) => self.tcp6,
            Some(Segments::Udp) => self.udp,
        };
        let sums = self.checksum || !matches!(frame.offload.checksum, Checksum::Partial { .. });
        cuts && sums && (self.tunnel || frame.outer_len() == 0)
    }
}

/// Does what a port cannot, if a sender left anything undone: hands `sink` the frame itself, with its checksum complete if need be, or the segments it stands for.
#[inline(always)]
pub fn fit<P: Pool>(
    frame: Frame<P::Buffer>,
    port: Capabilities,
    pool: &mut P,
    mut sink: impl FnMut(Frame<P::Buffer>),
) -> Result<(), DropReason> {
    if frame.offload.is_none() || port.takes(&frame) {
        sink(frame);
        return Ok(());
    }
    finish(frame, pool, &mut sink)
}

#[inline(never)]
fn finish<P: Pool>(
    mut frame: Frame<P::Buffer>,
    pool: &mut P,
    sink: &mut dyn FnMut(Frame<P::Buffer>),
) -> Result<(), DropReason> {
    if frame.offload.gso.is_some() {
        return segment::segment(&frame, pool, |segment, _| {
            sink(segment);
            Ok(())
        });
    }
    complete(&mut frame)?;
    sink(frame);
    Ok(())
}
