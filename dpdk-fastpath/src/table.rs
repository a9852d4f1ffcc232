//! What workers read, and how a new one reaches them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use causeway_datapath::connection::OWNERS;
use causeway_datapath::{Port, Tally, World};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ethdev::EthdevPort;
use crate::tap::TapPort;

/// How many endpoints a fast path can carry at once.
pub(crate) const SLOTS: u16 = OWNERS;
/// The mark of a wake-up call among the events of a worker's descriptors.
const WAKE_UP: u64 = u64::MAX;
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

/// Where a worker waits, and how long at most.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) epoll: Epoll,
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
    /// Where each worker waits.
    pub(crate) waits: Vec<Wait>,
}

impl Table {
    /// A table of these ports for so many workers.
    pub(crate) fn new(
        world: Option<Arc<World>>,
        ports: Vec<(Port, Served)>,
        shared: &Shared,
    ) -> nix::Result<Self> {
        let (mut host, mut uplink, mut ethdevs) = (None, None, Vec::new());
        let mut pods = vec![None; usize::from(SLOTS)];
        for (index, (port, served)) in ports.iter().enumerate() {
            match port {
                Port::Host => host = Some(index),
                Port::Uplink => uplink = Some(index),
                Port::Endpoint(slot) => pods[usize::from(*slot)] = Some(index),
            }
            if matches!(served, Served::Ethdev(_)) {
                ethdevs.push(index);
            }
        }
        let waits = (0..shared.workers.len()).map(|worker| shared.waits_of(worker, &ports));
        let waits = waits.collect::<nix::Result<_>>()?;
        Ok(Self { world, ports, ethdevs, host, uplink, pods, waits })
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
    /// What it has counted.
    pub(crate) tally: Arc<Tally>,
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
            let (seen, taken_in) = (AtomicU64::new(0), AtomicU64::new(0));
            let turn = AtomicU64::new(0);
            Ok(Slot { seen, turn, wake, tally: Arc::new(Tally::new(SLOTS)), taken_in })
        };
        let workers = (0..workers).map(slot).collect::<nix::Result<Vec<_>>>()?;
        let nothing = Table {
            world: None,
            ports: Vec::new(),
            ethdevs: Vec::new(),
            host: None,
            uplink: None,
            pods: Vec::new(),
            waits: Vec::new(),
        };
        let (newest, retired) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let mut shared = Self { newest, table: Mutex::new(Arc::new(nothing)), retired, workers };
        let first = Table::new(None, Vec::new(), &shared)?;
        shared.table = Mutex::new(Arc::new(first));
        Ok(shared)
    }

    /// The descriptors that a worker waits on: its queue of every port, and its wake-up call.
    fn waits_of(&self, worker: usize, ports: &[(Port, Served)]) -> nix::Result<Wait> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.workers[worker].wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_UP))?;
        let (mut taps, mut devices) = (false, false);
        for (index, (_, served)) in ports.iter().enumerate() {
            let Served::Tap(tap) = served else {
                devices = true;
                continue;
            };
            for queue in queues_of(worker, self.workers.len(), tap.queues.len()) {
                taps = true;
                let mark = mark_of(index, queue);
                epoll.add(&tap.queues[queue], EpollEvent::new(EpollFlags::EPOLLIN, mark))?;
            }
        }
        let bound = EpollTimeout::try_from(BOUND).unwrap_or(EpollTimeout::ZERO);
        Ok(Wait { epoll, at_most: if devices { bound } else { EpollTimeout::NONE }, taps, devices })
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

    /// Notes that a worker has heard its wake-up call; what it is for, it sees for itself.
    pub(crate) fn hear(&self, worker: usize) {
        let _ = self.workers[worker].wake.read();
    }

    /// The lookup tables in force.
    pub(crate) fn world(&self) -> Option<Arc<World>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).world.clone()
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
fn mark_of(index: usize, queue: usize) -> u64 {
    (index as u64) << 32 | queue as u64
}

/// The index of the port, and the queue, that an event is about; none when it is a wake-up call.
pub(crate) fn queue_of(mark: u64) -> Option<(usize, usize)> {
    (mark != WAKE_UP).then_some(((mark >> 32) as usize, mark as u32 as usize))
}

/// The queues of a port that one of several workers serves: dealt in turn, each to one.
pub(crate) fn queues_of(worker: usize, workers: usize, queues: usize) -> impl Iterator<Item = usize> {
    (worker..queues).step_by(workers.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

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
