//! What workers read, and how a new one reaches them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use causeway_datapath::connection::OWNERS;
use causeway_datapath::{Events, Port, Tally, World};
use causeway_model::Count;
use causeway_model::policy::RuleNumber;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ethdev::EthdevPort;
use crate::tap::TapPort;

/// How many endpoints a fast path can carry at once.
pub(crate) const SLOTS: u16 = OWNERS;
/// How many events of connections a worker keeps until somebody asks, 72 bytes each.
const EVENTS: usize = 8192;
/// The mark of a wake-up call among the events of a worker's descriptors.
const WAKE_UP: u64 = u64::MAX;
/// The upper halves of the marks of ports that are no endpoint's.
const HOST: u64 = 1 << 16;
const UPLINK: u64 = HOST + 1;
/// How long an idle worker leaves a port alone that has no descriptor to wait on.
pub(crate) const BOUND: Duration = Duration::from_millis(1);
/// How long a worker may take to notice a new table: it is in the middle of a burst, or waking.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a port is made of.
#[derive(Clone, Debug)]
pub(crate) enum Served {
    Tap(Arc<TapPort>),
    Ethdev(Arc<EthdevPort>),
}

/// For what a worker waits, and how long at most.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) at_most: EpollTimeout,
    /// Whether there are TAPs among what it waits for.
    pub(crate) taps: bool,
    /// Whether there are devices that have no descriptor.
    pub(crate) devices: bool,
}

/// Everything that a worker reads; never changed, only replaced.
#[derive(Debug)]
pub(crate) struct Table {
    /// The lookup tables; none before the agent has told a state.
    pub(crate) world: Option<Arc<World>>,
    /// The ports, in no order that means anything.
    pub(crate) ports: Vec<(Port, Served)>,
    /// The devices of DPDK among them, by index.
    pub(crate) ethdevs: Vec<usize>,
    /// The index of the node's own stack.
    host: Option<usize>,
    /// The index of where tunnel frames go.
    uplink: Option<usize>,
    /// Pods by slot: where among the ports they are.
    pods: Vec<Option<usize>>,
    /// For what each worker waits.
    pub(crate) waits: Vec<Wait>,
}

impl Table {
    /// A table of these ports for so many workers.
    pub(crate) fn new(world: Option<Arc<World>>, ports: Vec<(Port, Served)>, workers: usize) -> Self {
        let (mut host, mut uplink, mut ethdevs, mut queues) = (None, None, Vec::new(), 0);
        let mut pods = vec![None; usize::from(SLOTS)];
        for (index, (port, served)) in ports.iter().enumerate() {
            match port {
                Port::Host => host = Some(index),
                Port::Uplink => uplink = Some(index),
                Port::Endpoint(slot) => pods[usize::from(*slot)] = Some(index),
            }
            match served {
                Served::Ethdev(_) => ethdevs.push(index),
                Served::Tap(tap) => queues = queues.max(tap.queues.len()),
            }
        }
        let devices = !ethdevs.is_empty();
        let bound = EpollTimeout::try_from(BOUND).unwrap_or(EpollTimeout::ZERO);
        let at_most = if devices { bound } else { EpollTimeout::NONE };
        let taps = |worker| queues_of(worker, workers, queues).next().is_some();
        let waits = (0..workers).map(|worker| Wait { at_most, taps: taps(worker), devices }).collect();
        Self { world, ports, ethdevs, host, uplink, pods, waits }
    }

    /// The port behind a way out, and its index.
    #[inline]
    pub(crate) fn port(&self, port: Port) -> Option<(usize, &Served)> {
        let index = match port {
            Port::Host => self.host,
            Port::Uplink => self.uplink,
            Port::Endpoint(slot) => *self.pods.get(usize::from(slot))?,
        }?;
        Some((index, &self.ports.get(index)?.1))
    }
}

/// What one worker and the control thread share.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The number of the table it runs on.
    seen: AtomicU64,
    /// How often it has begun anew: what it had in hand before, it has no more.
    turn: AtomicU64,
    /// Ends its sleep.
    wake: EventFd,
    /// What it waits on: that, and its queues of the TAPs. It lasts: a set made anew for every port that comes would cost
    /// what all ports cost.
    epoll: Epoll,
    /// What it has counted.
    pub(crate) tally: Arc<Tally>,
    /// What it tells of connections.
    pub(crate) events: &'static Events,
    /// Frames it took in; written by the worker alone.
    taken_in: AtomicU64,
}

impl Slot {
    /// Notes frames of a burst.
    #[inline]
    pub(crate) fn takes_in(&self, frames: usize) {
        let before = self.taken_in.load(Ordering::Relaxed);
        self.taken_in.store(before + frames as u64, Ordering::Relaxed);
    }

    /// Frames taken in so far.
    pub(crate) fn taken_in(&self) -> u64 {
        self.taken_in.load(Ordering::Relaxed)
    }
}

/// What all workers and the control thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    newest: AtomicU64,
    table: Mutex<Arc<Table>>,
    /// Tables that a worker was too slow to leave; freed once all run on a later one.
    retired: Mutex<Vec<Arc<Table>>>,
    pub(crate) workers: Vec<Slot>,
}

impl Shared {
    pub(crate) fn new(workers: u16) -> nix::Result<Self> {
        let slot = |_| {
            let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_UP))?;
            let (seen, taken_in) = (AtomicU64::new(0), AtomicU64::new(0));
            let turn = AtomicU64::new(0);
            // As long as the process lives, workers do.
            let events = Box::leak(Box::new(Events::new(EVENTS)));
            Ok(Slot { seen, turn, wake, epoll, tally: Arc::new(Tally::new(SLOTS)), events, taken_in })
        };
        let workers = (0..workers).map(slot).collect::<nix::Result<Vec<_>>>()?;
        let first = Table::new(None, Vec::new(), workers.len());
        let (newest, retired) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        Ok(Self { newest, table: Mutex::new(Arc::new(first)), retired, workers })
    }

    /// Has the workers serve a TAP whenever it has something. For one that is in the newest table: of others they can make nothing.
    pub(crate) fn listen(&self, port: Port, tap: &TapPort) -> nix::Result<()> {
        for (number, worker) in self.workers.iter().enumerate() {
            for queue in queues_of(number, self.workers.len(), tap.queues.len()) {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, mark_of(port, queue));
                worker.epoll.add(&tap.queues[queue], event)?;
            }
        }
        Ok(())
    }

    /// Has them look at it no more. Needed although the descriptors are closed: the agent has others of the same queues.
    pub(crate) fn ignore(&self, tap: &TapPort) {
        for (number, worker) in self.workers.iter().enumerate() {
            for queue in queues_of(number, self.workers.len(), tap.queues.len()) {
                // Fails where it was not listened to.
                let _ = worker.epoll.delete(&tap.queues[queue]);
            }
        }
    }

    /// Takes up the newest table if it is another one than `seen`; the old one is the control thread's to free.
    #[inline]
    pub(crate) fn take_up(&self, worker: usize, seen: &mut u64) -> Option<Arc<Table>> {
        let newest = self.newest.load(Ordering::Acquire);
        if newest == *seen {
            return None;
        }
        // The wake-up call has been heard, before looking: one that comes after is for the next table.
        let _ = self.workers[worker].wake.read();
        let newest = self.newest.load(Ordering::Acquire);
        // Only here, when there is something new, a worker takes the lock, which the control thread holds for a copy of a pointer.
        let table = Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner));
        *seen = newest;
        Some(table)
    }

    /// What a worker waits on.
    pub(crate) fn epoll(&self, worker: usize) -> &Epoll {
        &self.workers[worker].epoll
    }

    /// Notes that a worker has heard its wake-up call; what it is for, it sees for itself.
    pub(crate) fn hear(&self, worker: usize) {
        let _ = self.workers[worker].wake.read();
    }

    /// The lookup tables in force.
    pub(crate) fn world(&self) -> Option<Arc<World>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).world.clone()
    }

    /// What a rule's number has denied, on all workers.
    pub(crate) fn denied(&self, rule: RuleNumber) -> Count {
        let of_all = self.workers.iter().map(|worker| worker.tally.rule(rule));
        of_all.fold(Count::default(), |mut sum, count| {
            sum += count;
            sum
        })
    }

    /// Says that a worker has let go of every older table.
    #[inline]
    pub(crate) fn report(&self, worker: usize, seen: u64) {
        let slot = &self.workers[worker];
        slot.turn.store(slot.turn.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        slot.seen.store(seen, Ordering::Release);
    }

    /// The workers' turns; who rests is called to take another.
    pub(crate) fn turns(&self) -> Vec<u64> {
        let turns = self.workers.iter().map(|worker| worker.turn.load(Ordering::Acquire)).collect();
        for worker in &self.workers {
            let _ = worker.wake.write(1);
        }
        turns
    }

    /// Whether every worker has begun anew since.
    pub(crate) fn have_turned(&self, since: &[u64]) -> bool {
        self.workers.iter().zip(since).all(|(worker, turn)| worker.turn.load(Ordering::Acquire) != *turn)
    }

    /// Puts a table in force; returns once every worker runs on it. The old one is freed here. An error names the worker that
    /// has not taken it up yet: it will, and the old table is kept until then.
    pub(crate) fn publish(&self, table: Table) -> Result<(), String> {
        let old = {
            let mut current = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::new(table))
        };
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(old);
        let number = self.newest.fetch_add(1, Ordering::AcqRel) + 1;
        for worker in &self.workers {
            // It fails only when so many calls are unheard that one more changes nothing.
            let _ = worker.wake.write(1);
        }
        let until = Instant::now() + PATIENCE;
        for (index, worker) in self.workers.iter().enumerate() {
            while worker.seen.load(Ordering::Acquire) < number {
                // A process that was stopped meanwhile finds its time over before a worker had any.
                if Instant::now() > until && worker.seen.load(Ordering::Acquire) < number {
                    return Err(format!("worker {index} did not take up a new table within {PATIENCE:?}"));
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        retired.clear();
        Ok(())
    }
}

/// The mark of a TAP's queue among the events of a worker's descriptors.
fn mark_of(port: Port, queue: usize) -> u64 {
    let port = match port {
        Port::Host => HOST,
        Port::Uplink => UPLINK,
        Port::Endpoint(slot) => u64::from(slot),
    };
    port << 32 | queue as u64
}

/// The port and the queue that an event is about; none when it is a wake-up call.
pub(crate) fn queue_of(mark: u64) -> Option<(Port, usize)> {
    let port = match mark >> 32 {
        HOST => Port::Host,
        UPLINK => Port::Uplink,
        slot => Port::Endpoint(u16::try_from(slot).ok()?),
    };
    Some((port, mark as u32 as usize))
}

/// The queues of a port that one of several workers serves: dealt in turn, each to one.
pub(crate) fn queues_of(worker: usize, workers: usize, queues: usize) -> impl Iterator<Item = usize> {
    (worker..queues).step_by(workers.max(1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use causeway_model::MacAddr;
    use causeway_model::fastpath::Tap;

    use super::*;

    #[test]
    fn a_queue_is_listened_to_until_it_is_ignored_whoever_else_holds_it() {
        let shared = Shared::new(2).expect("descriptors");
        let (queue, agents) = UnixDatagram::pair().expect("a pair of sockets");
        let held = queue.try_clone().expect("the agent has one of its own");
        let device = Tap { queues: 1, header: 10, offloads: 0, mac: MacAddr::ZERO };
        let tap = TapPort { queues: vec![queue.into()], tap: device };
        let told = |worker: usize| {
            let mut events = [EpollEvent::empty(); 2];
            let named = shared.epoll(worker).wait(&mut events, EpollTimeout::ZERO).expect("events");
            events[..named].iter().map(|event| queue_of(event.data())).collect::<Vec<_>>()
        };
        shared.listen(Port::Endpoint(3), &tap).expect("it can be listened to");
        agents.send(&[0; 60]).expect("a frame is sent");
        assert_eq!((told(0), told(1)), (vec![Some((Port::Endpoint(3), 0))], Vec::new()));
        shared.ignore(&tap);
        drop(tap);
        assert_eq!(told(0), Vec::new());
        assert_eq!(held.recv(&mut [0; 100]).expect("nobody has read it"), 60);
    }

    #[test]
    fn an_event_names_its_port_and_queue() {
        for port in [Port::Host, Port::Uplink, Port::Endpoint(0), Port::Endpoint(u16::MAX)] {
            for queue in [0, 15] {
                assert_eq!(queue_of(mark_of(port, queue)), Some((port, queue)));
            }
        }
        assert_eq!(queue_of(WAKE_UP), None);
    }

    #[test]
    fn every_queue_has_one_worker_however_many_there_are() {
        for workers in 1..5 {
            for queues in 0..9 {
                let mut dealt: Vec<_> = (0..workers).flat_map(|w| queues_of(w, workers, queues)).collect();
                dealt.sort_unstable();
                assert_eq!(dealt, (0..queues).collect::<Vec<_>>(), "{workers} workers");
            }
        }
    }
}
