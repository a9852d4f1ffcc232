//! Ports of DPDK: any device by name, a receiving queue or several and a sending queue for every worker.

use std::sync::{Arc, Mutex, PoisonError};

use causeway_datapath::{Burst, Frame, Port as Egress};
use causeway_model::{DropReason, MacAddr};
use dpdk_sys::{Eal, Port, PortConfig, RxQueue, Started, SysError, TxOffloads, TxQueue};

use crate::packet::{Buffers, Packet};
use crate::table::{BOUND, queues_of};

/// A device of DPDK. Its queues lie here only while no worker has them.
#[derive(Debug)]
pub(crate) struct EthdevPort {
    /// The arguments it was attached by.
    pub(crate) arguments: String,
    /// The queues that were asked for.
    pub(crate) queues: u16,
    /// The hardware address frames of ours come from.
    pub(crate) mac: MacAddr,
    /// What it does less well than asked, in words.
    pub(crate) limits: Vec<String>,
    seats: Box<[Mutex<Option<Box<Seat>>>]>,
    _port: Port,
}

/// What one worker has of a device: its queues, and the frames that are on their way into one.
#[derive(Debug)]
pub(crate) struct Seat {
    rx: Vec<RxQueue>,
    tx: Sender,
    /// Whether the device sends chains as they are.
    chains: bool,
    inbound: dpdk_sys::Burst,
    outbound: dpdk_sys::Burst,
}

/// A queue to send on: each worker's own where there are enough.
#[derive(Debug)]
enum Sender {
    Own(TxQueue),
    Shared(Arc<Mutex<TxQueue>>),
}

impl Sender {
    #[inline]
    fn send(&mut self, burst: &mut dpdk_sys::Burst) -> usize {
        match self {
            Self::Own(queue) => queue.send(burst),
            Self::Shared(queue) => queue.lock().unwrap_or_else(PoisonError::into_inner).send(burst),
        }
    }
}

impl EthdevPort {
    /// Attaches and starts a device for so many workers.
    pub(crate) fn attach(
        eal: &Eal,
        buffers: &Buffers,
        arguments: &str,
        (queues, workers): (u16, u16),
    ) -> Result<Self, SysError> {
        Self::start(Port::attach(eal, arguments)?, buffers, arguments, (queues, workers))
    }

    /// Starts a device that is attached already.
    pub(crate) fn start(
        port: Port,
        buffers: &Buffers,
        arguments: &str,
        (queues, workers): (u16, u16),
    ) -> Result<Self, SysError> {
        let info = port.info()?;
        let config = PortConfig { rx_queues: queues, tx_queues: workers, ..PortConfig::new(queues) };
        let started = port.start(&config, buffers.for_mtu(info.mtu))?;
        let granted = started.granted;
        let chains = granted.tx_offloads.contains(TxOffloads::CHAINS);
        let limits = limits(port.name(), (queues, granted.rx_queues), (workers, granted.tx_queues));
        let seats = seats(started, workers, chains);
        let (arguments, mac) = (arguments.to_owned(), MacAddr(info.mac));
        Ok(Self { arguments, queues, mac, limits, seats, _port: port })
    }

    /// Hands a worker what is its own.
    pub(crate) fn take(&self, worker: usize) -> Option<Box<Seat>> {
        self.seats.get(worker)?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes it back.
    pub(crate) fn give_back(&self, worker: usize, seat: Box<Seat>) {
        if let Some(place) = self.seats.get(worker) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(seat);
        }
    }
}

/// What was asked of a device and is not there.
fn limits(name: &str, (asked, rx): (u16, u16), (workers, tx): (u16, u16)) -> Vec<String> {
    let mut limits =
        vec![format!("{name} has no descriptor to sleep on: an idle worker looks every {BOUND:?}")];
    if rx < asked {
        limits.push(format!("{name}: {asked} queues were asked for, {rx} are there"));
    }
    if rx < workers {
        limits.push(format!("{name}: {rx} of {workers} workers have a queue to receive on"));
    }
    if tx < workers {
        limits.push(format!("{name}: {workers} workers share {tx} sending queues"));
    }
    limits
}

/// Deals the queues out.
fn seats(started: Started, workers: u16, chains: bool) -> Box<[Mutex<Option<Box<Seat>>>]> {
    let workers = usize::from(workers);
    let mut rx: Vec<_> = started.rx.into_iter().map(Some).collect();
    let senders = senders(started.tx, workers);
    let seat = |(worker, tx)| {
        let own = queues_of(worker, workers, rx.len()).collect::<Vec<_>>();
        let rx = own.into_iter().filter_map(|queue| rx[queue].take()).collect();
        let (inbound, outbound) = (dpdk_sys::Burst::new(), dpdk_sys::Burst::new());
        Mutex::new(Some(Box::new(Seat { rx, tx, chains, inbound, outbound })))
    };
    senders.into_iter().enumerate().map(seat).collect()
}

fn senders(queues: Vec<TxQueue>, workers: usize) -> Vec<Sender> {
    if queues.len() >= workers {
        return queues.into_iter().take(workers).map(Sender::Own).collect();
    }
    let shared: Vec<_> = queues.into_iter().map(|queue| Arc::new(Mutex::new(queue))).collect();
    shared.iter().cycle().take(workers).map(|queue| Sender::Shared(Arc::clone(queue))).collect()
}

impl Seat {
    /// How many queues there are to receive on.
    pub(crate) fn queues(&self) -> usize {
        self.rx.len()
    }

    /// Fills a burst from one queue.
    #[inline]
    pub(crate) fn receive(
        &mut self,
        queue: usize,
        burst: &mut Burst<Packet>,
        refuse: impl Fn(DropReason, usize),
    ) {
        self.rx[queue].receive(&mut self.inbound, Burst::<Packet>::SIZE);
        for mbuf in self.inbound.drain() {
            let len = mbuf.len();
            match Packet::frame(mbuf) {
                Some(frame) => drop(burst.push(frame)),
                None => refuse(DropReason::Malformed, len),
            }
        }
    }

    /// Puts a frame among those that [`flush`](Self::flush) sends; sends them first when there is no more room.
    #[inline]
    pub(crate) fn stage(
        &mut self,
        frame: Frame<Packet>,
        buffers: &Buffers,
        count: &impl Fn(Sent),
    ) -> Result<(), DropReason> {
        let mbuf = buffers.outgoing(frame, self.chains).ok_or(DropReason::NoBuffer)?;
        if self.outbound.room() == 0 {
            self.flush(count);
        }
        self.outbound.push(mbuf).map_err(|_| DropReason::PortFull)
    }

    /// Sends a burst of frames all of which are plain.
    #[inline]
    pub(crate) fn send(&mut self, burst: &mut Burst<Packet>, count: &impl Fn(Sent)) {
        let mut mbufs = burst.drain().filter_map(Buffers::outgoing_plain);
        loop {
            self.outbound.fill(&mut mbufs);
            if self.outbound.is_empty() {
                return;
            }
            self.flush(count);
        }
    }

    /// Sends what was staged. What the device does not take is dropped and told.
    #[inline]
    pub(crate) fn flush(&mut self, count: &impl Fn(Sent)) {
        if self.outbound.is_empty() {
            return;
        }
        let bytes: usize = self.outbound.iter().map(dpdk_sys::Mbuf::len).sum();
        let packets = self.tx.send(&mut self.outbound) as u64;
        let mut unsent = 0;
        for mbuf in self.outbound.drain() {
            unsent += mbuf.len();
            count(Sent::Refused(mbuf.len()));
        }
        count(Sent::Taken { packets, bytes: (bytes - unsent) as u64 });
    }
}

/// What became of staged frames.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sent {
    /// The device has them.
    Taken { packets: u64, bytes: u64 },
    /// The device did not take one of so many bytes.
    Refused(usize),
}

impl Sent {
    /// Counts it for a port.
    #[inline]
    pub(crate) fn count(self, tally: &causeway_datapath::Tally, egress: Egress) {
        match self {
            Self::Taken { packets, bytes } => tally.sent(egress, packets, bytes),
            Self::Refused(bytes) => tally.dropped(DropReason::PortFull, bytes, egress),
        }
    }
}
