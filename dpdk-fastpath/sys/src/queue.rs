//! Queues: bursts in, bursts out.

use crate::{
    burst::Burst,
    error::{Reason, SysError, hear},
    ffi,
    mbuf::Mbuf,
    offload::TxOffloads,
    port::Life,
};
use std::{cell::Cell, cmp::Ordering, marker::PhantomData, mem, os::fd::BorrowedFd, sync::Arc};

/// A port's queue to receive on. It may move to another thread, and is used by one at a time.
#[derive(Debug)]
pub struct RxQueue {
    port: u16,
    queue: u16,
    life: Arc<Life>,
    _one_thread: PhantomData<Cell<()>>,
}

/// A port's queue to send on. It may move to another thread, and is used by one at a time.
#[derive(Debug)]
pub struct TxQueue {
    port: u16,
    queue: u16,
    granted: TxOffloads,
    life: Arc<Life>,
    _one_thread: PhantomData<Cell<()>>,
}

/// Why a port cannot send a frame, now or ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The port takes no chains, and this one does not fit its first buffer.
    #[error("the port sends single buffers, and the chain does not fit one")]
    Chain,
    /// The frame asks for work that the port does not do.
    #[error("the port does not do what the frame asks for")]
    Offload(TxOffloads),
    /// The driver will not have it.
    #[error("the driver refuses the frame: {0}")]
    Driver(Reason),
}

impl RxQueue {
    pub(crate) fn new(life: &Arc<Life>, queue: u16) -> Self {
        Self { port: life.id, queue, life: Arc::clone(life), _one_thread: PhantomData }
    }

    /// The queue's number.
    pub fn id(&self) -> u16 {
        self.queue
    }

    /// Adds up to `max` received frames to the burst, as many as it has room for, and says how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst, max: usize) -> usize {
        let n = max.min(burst.room());
        if n == 0 {
            return 0;
        }
        // SAFETY: the port runs as long as `life` does, the queue is ours alone, and the burst has
        // room for `n` frames; those received have no other owner.
        unsafe {
            let received = ffi::cw_rx_burst(self.port, self.queue, burst.spare_ptr(), n as u16).into();
            burst.grow(received);
            received
        }
    }

    /// The descriptor that becomes readable when a frame arrives after `set_interrupt(true)`. The
    /// port must have been configured with `interrupts`; many drivers have none.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>, SysError> {
        // SAFETY: the port is attached and configured.
        match crate::log::hear(|| unsafe { ffi::cw_rx_descriptor(self.port, self.queue) }).0 {
            // SAFETY: the driver keeps the descriptor open until the port is closed, which cannot
            // happen while `self` is borrowed.
            fd if fd >= 0 => Ok(unsafe { BorrowedFd::borrow_raw(fd) }),
            _ => Err(SysError::NoDescriptor { port: self.life.name.clone(), queue: self.queue }),
        }
    }

    /// Arms the descriptor, or disarms it. After arming poll once more: a frame may have come before.
    pub fn set_interrupt(&mut self, on: bool) -> Result<(), SysError> {
        // SAFETY: the port runs.
        hear(|| unsafe { ffi::cw_rx_interrupt(self.port, self.queue, on.into()) }).map_err(|reason| {
            SysError::Port { port: self.life.name.clone(), step: "arming its interrupt", reason }
        })
    }
}

impl TxQueue {
    pub(crate) fn new(life: &Arc<Life>, queue: u16, granted: TxOffloads) -> Self {
        Self { port: life.id, queue, granted, life: Arc::clone(life), _one_thread: PhantomData }
    }

    /// The queue's number.
    pub fn id(&self) -> u16 {
        self.queue
    }

    /// The name of its port.
    pub fn port_name(&self) -> &str {
        &self.life.name
    }

    /// Readies frames for this port: chains become single buffers where it takes no others, the
    /// driver sees to what frames ask for. Those that cannot be sent go to `refuse` with the reason.
    pub fn prepare(&mut self, burst: &mut Burst, mut refuse: impl FnMut(Mbuf, Refusal)) {
        let granted = self.granted;
        let mut asked = false;
        burst.sift(
            |frame| {
                if frame.segments() > 1 && !granted.contains(TxOffloads::CHAINS) {
                    frame.linearise().map_err(|_| Refusal::Chain)?;
                }
                let needed = TxOffloads::needed_for(frame.flags());
                asked |= needed != TxOffloads::NONE;
                if granted.contains(needed) { Ok(()) } else { Err(Refusal::Offload(needed.without(granted))) }
            },
            &mut refuse,
        );
        if asked {
            self.ask_driver(burst, refuse);
        }
    }

    /// Shows the driver every frame, again from behind each one that it will not have.
    fn ask_driver(&mut self, burst: &mut Burst, mut refuse: impl FnMut(Mbuf, Refusal)) {
        let mut rest = mem::take(burst);
        loop {
            let (n, mut error) = (rest.len() as u16, 0);
            // SAFETY: the port runs, the queue is ours alone, `rest` holds `n` frames, and the
            // driver keeps none of them.
            let fit = usize::from(unsafe {
                ffi::cw_tx_prepare(self.port, self.queue, rest.as_mut_ptr(), n, &raw mut error)
            });
            let mut behind = Burst::new();
            for (at, frame) in rest.drain().enumerate() {
                match at.cmp(&fit) {
                    Ordering::Less => keep(burst, frame),
                    Ordering::Equal => refuse(frame, Refusal::Driver(Reason::new(error, Vec::new()))),
                    Ordering::Greater => keep(&mut behind, frame),
                }
            }
            if behind.is_empty() {
                return;
            }
            rest = behind;
        }
    }

    /// Sends from the front; the unsent stay in the burst, and dropping it frees them. What
    /// `prepare` would refuse as a chain is not sent, nor is what stands behind it.
    #[inline]
    pub fn send(&mut self, burst: &mut Burst) -> usize {
        let n = self.sendable(burst);
        if n == 0 {
            return 0;
        }
        // SAFETY: the slots are live frames owned by the burst; the driver takes the first `sent`,
        // and `forget_front` gives up exactly those, so each frame has one owner throughout.
        unsafe {
            let sent = ffi::cw_tx_burst(self.port, self.queue, burst.as_mut_ptr(), n as u16).into();
            burst.forget_front(sent);
            sent
        }
    }

    /// A driver that takes no chains would send a chain's first segment as if it were all.
    #[inline]
    fn sendable(&self, burst: &Burst) -> usize {
        if self.granted.contains(TxOffloads::CHAINS) {
            return burst.len();
        }
        burst.iter().position(|frame| frame.segments() > 1).unwrap_or(burst.len())
    }
}

fn keep(burst: &mut Burst, frame: Mbuf) {
    if burst.push(frame).is_err() {
        unreachable!("frames that came out of one burst fit into one");
    }
}
