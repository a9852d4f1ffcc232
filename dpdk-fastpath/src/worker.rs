//! The poll loop.

use std::hint;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use causeway_datapath::{Burst, Port, Worker, fit, from_host, from_pod, from_uplink};
use causeway_model::DropReason;
use dpdk_sys::Eal;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;

use crate::packet::{Buffers, Packet};
use crate::table::{Shared, Table, queues_of};
use crate::tap::{Read, Spare};

/// How long a worker without work looks again and again.
const SPIN: Duration = Duration::from_micros(50);
/// How long after that it only naps between looks.
const NAP_UNTIL: Duration = Duration::from_micros(500);
const NAP: Duration = Duration::from_micros(20);
/// How long it sleeps when its descriptors say that something is broken, which would wake it at once again.
const BROKEN: Duration = Duration::from_millis(1);
/// Events taken at once; which they are does not matter, every port is looked at.
const EVENTS: usize = 16;

/// Starts a worker.
pub(crate) fn spawn(
    number: u16,
    cpu: Option<usize>,
    eal: &Eal,
    shared: &Arc<Shared>,
    buffers: &Buffers,
) -> anyhow::Result<()> {
    let (eal, shared, buffers) = (eal.clone(), Arc::clone(shared), buffers.clone());
    let run = move || {
        if let Some(cpu) = cpu
            && let Err(errno) = pin(cpu)
        {
            tracing::warn!("worker {number} runs where the system likes: CPU {cpu}: {errno}");
        }
        // Without it the pools' caches of this thread are not used: slower, not wrong.
        let registered = eal.register_thread();
        if let Err(error) = &registered {
            tracing::warn!("worker {number}: {error}");
        }
        Loop::new(number.into(), shared, buffers).run();
    };
    thread::Builder::new().name(format!("worker-{number}")).spawn(run).context("starting a worker")?;
    Ok(())
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

struct Loop {
    number: usize,
    shared: Arc<Shared>,
    buffers: Buffers,
    worker: Worker<Buffers>,
    burst: Burst<Packet>,
    spare: Spare,
    started: Instant,
}

impl Loop {
    fn new(number: usize, shared: Arc<Shared>, buffers: Buffers) -> Self {
        let worker = Worker::new(buffers.clone(), Arc::clone(&shared.workers[number].tally));
        let (burst, spare) = (Burst::new(), Spare::default());
        Self { number, shared, buffers, worker, burst, spare, started: Instant::now() }
    }

    fn run(mut self) {
        let mut seen = u64::MAX;
        let mut table = loop {
            // The first table is there before any worker.
            if let Some(table) = self.shared.take_up(self.number, &mut seen) {
                break table;
            }
        };
        let mut idle_since = None;
        loop {
            self.shared.report(self.number, seen);
            if self.poll(&table) {
                idle_since = None;
            } else {
                let since = *idle_since.get_or_insert_with(Instant::now);
                self.rest(since.elapsed(), &table);
            }
            if let Some(new) = self.shared.take_up(self.number, &mut seen) {
                table = new;
            }
        }
    }

    /// Looks at every queue of this worker once; true when any had a frame.
    fn poll(&mut self, table: &Table) -> bool {
        let mut busy = false;
        for (port, tap) in &table.ports {
            for queue in queues_of(self.number, self.shared.workers.len(), tap.queues.len()) {
                let (worker, port) = (&self.worker, *port);
                let refuse = |reason, bytes| worker.tally().dropped(reason, bytes, port);
                let read = tap.receive(queue, &mut self.burst, &mut self.spare, &self.buffers, refuse);
                if read == Read::NoBuffer {
                    self.worker.tally().dropped(DropReason::NoBuffer, 0, port);
                }
                if !self.burst.is_empty() {
                    busy = true;
                    self.forward(port, table);
                }
            }
        }
        busy
    }

    /// Runs the program over the burst of one port and sends what is left of it.
    fn forward(&mut self, port: Port, table: &Table) {
        let Some(world) = &table.world else {
            // No state yet: closed.
            for frame in self.burst.drain() {
                self.worker.tally().dropped(DropReason::NoSuchPort, frame.len(), port);
            }
            return;
        };
        let now = self.started.elapsed().as_nanos() as u64;
        match port {
            Port::Host => from_host(&mut self.burst, world, &mut self.worker, now),
            Port::Uplink => from_uplink(&mut self.burst, world, &mut self.worker, now),
            Port::Endpoint(slot) => from_pod(&mut self.burst, slot, world, &mut self.worker, now),
        }
        let (number, tally) = (self.number, Arc::clone(&self.shared.workers[self.number].tally));
        for frame in self.burst.drain() {
            let (egress, bytes) = (frame.egress, frame.len());
            let Some(tap) = table.port(egress) else {
                tally.dropped(DropReason::PortDown, bytes, egress);
                continue;
            };
            let fitted = fit(frame, tap.capabilities(), &mut self.worker.pool, |piece| {
                match tap.send(number, &piece) {
                    Ok(()) => tally.sent(egress, 1, piece.len() as u64),
                    Err(reason) => tally.dropped(reason, piece.len(), egress),
                }
            });
            if let Err(reason) = fitted {
                tally.dropped(reason, bytes, egress);
            }
        }
    }

    /// Rests the longer, the longer there was nothing to do.
    fn rest(&self, idle: Duration, table: &Table) {
        if idle < SPIN {
            hint::spin_loop();
        } else if idle < NAP_UNTIL {
            thread::sleep(NAP);
        } else if let Some(waits) = table.waits.get(self.number) {
            let mut events = [EpollEvent::empty(); EVENTS];
            let woken = waits.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            if events[..woken].iter().any(|event| event.events().contains(EpollFlags::EPOLLERR)) {
                thread::sleep(BROKEN);
            }
        }
    }
}
