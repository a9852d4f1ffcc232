//! The poll loop.

use std::hint;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use causeway_datapath::{Burst, Capabilities, Port, Tracking, Worker, fit, from_host, from_pod, from_uplink};
use causeway_model::DropReason;
use dpdk_sys::Eal;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;

use crate::clock;
use crate::ethdev::{Seat, Sent};
use crate::packet::{Buffers, Packet};
use crate::table::{Served, Shared, Table, WAKE_UP, Wait, queues_of};
use crate::tap::{Read, Spare, TapPort};

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
    (eal, buffers, tracking): (&Eal, &Buffers, Option<Tracking>),
    shared: &Arc<Shared>,
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
        Loop::new(number.into(), shared, buffers, tracking).run();
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
    /// Its queues of devices, by the index of the port.
    seats: Vec<Option<Box<Seat>>>,
}

impl Loop {
    fn new(number: usize, shared: Arc<Shared>, buffers: Buffers, tracking: Option<Tracking>) -> Self {
        let worker = Worker::new(buffers.clone(), Arc::clone(&shared.workers[number].tally));
        let worker = match tracking {
            Some(tracking) => worker.tracking(tracking),
            None => worker,
        };
        let (burst, spare) = (Burst::new(), Spare::default());
        Self { number, shared, buffers, worker, burst, spare, seats: Vec::new() }
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
            let busy = self.poll(&table);
            if self.worker.is_waiting() {
                self.worker.let_go(clock::now());
            }
            if busy {
                idle_since = None;
            } else {
                let since = *idle_since.get_or_insert_with(Instant::now);
                self.rest(since.elapsed(), &table);
            }
            if let Some(new) = self.shared.take_up(self.number, &mut seen) {
                self.change_seats(&table, &new);
                table = new;
            }
        }
    }

    /// Gives back its queues of devices and takes those that the next table has.
    fn change_seats(&mut self, old: &Table, new: &Table) {
        for ((_, served), seat) in old.ports.iter().zip(self.seats.drain(..)) {
            if let (Served::Ethdev(device), Some(seat)) = (served, seat) {
                device.give_back(self.number, seat);
            }
        }
        let seat = |(_, served): &(Port, Served)| match served {
            Served::Tap(_) => None,
            Served::Ethdev(device) => device.take(self.number),
        };
        self.seats.extend(new.ports.iter().map(seat));
    }

    /// Looks at every queue of this worker once; true when any had a frame.
    fn poll(&mut self, table: &Table) -> bool {
        let mut busy = false;
        for (index, (port, served)) in table.ports.iter().enumerate() {
            busy |= match served {
                Served::Tap(tap) => self.poll_tap(*port, tap, table),
                Served::Ethdev(_) => self.poll_ethdev(*port, index, table),
            };
        }
        busy
    }

    fn poll_tap(&mut self, port: Port, tap: &TapPort, table: &Table) -> bool {
        let mut busy = false;
        for queue in queues_of(self.number, self.shared.workers.len(), tap.queues.len()) {
            let worker = &self.worker;
            let refuse = |reason, bytes| worker.tally().dropped(reason, bytes, port);
            let read = tap.receive(queue, &mut self.burst, &mut self.spare, &self.buffers, refuse);
            if read == Read::NoBuffer {
                self.worker.tally().dropped(DropReason::NoBuffer, 0, port);
            }
            busy |= self.forward(port, table);
        }
        busy
    }

    fn poll_ethdev(&mut self, port: Port, index: usize, table: &Table) -> bool {
        let mut busy = false;
        for queue in 0..self.seats[index].as_ref().map_or(0, |seat| seat.queues()) {
            let worker = &self.worker;
            let refuse = |reason, bytes| worker.tally().dropped(reason, bytes, port);
            if let Some(seat) = &mut self.seats[index] {
                seat.receive(queue, &mut self.burst, refuse);
            }
            busy |= self.forward(port, table);
        }
        busy
    }

    /// Runs the program over the burst of one port and sends what is left of it; false when there was nothing in it.
    fn forward(&mut self, port: Port, table: &Table) -> bool {
        if self.burst.is_empty() {
            return false;
        }
        self.shared.workers[self.number].takes_in(self.burst.len());
        let Some(world) = &table.world else {
            // No state yet: closed.
            for frame in self.burst.drain() {
                self.worker.tally().dropped(DropReason::NoSuchPort, frame.len(), port);
            }
            return true;
        };
        let now = clock::now();
        match port {
            Port::Host => from_host(&mut self.burst, world, &mut self.worker, now),
            Port::Uplink => from_uplink(&mut self.burst, world, &mut self.worker, now),
            Port::Endpoint(slot) => from_pod(&mut self.burst, slot, world, &mut self.worker, now),
        }
        self.send(table);
        true
    }

    /// Sends each frame of the burst where the program said.
    fn send(&mut self, table: &Table) {
        let tally = &*self.shared.workers[self.number].tally;
        let (number, buffers) = (self.number, &self.buffers);
        for frame in self.burst.drain() {
            let (egress, bytes) = (frame.egress, frame.len());
            let sent = match table.port(egress) {
                Some((_, Served::Tap(tap))) => {
                    fit(frame, tap.capabilities(), &mut self.worker.pool, |piece| {
                        match tap.send(number, &piece) {
                            Ok(()) => tally.sent(egress, 1, piece.len() as u64),
                            Err(reason) => tally.dropped(reason, piece.len(), egress),
                        }
                    })
                }
                Some((index, Served::Ethdev(_))) => match &mut self.seats[index] {
                    Some(seat) => fit(frame, Capabilities::default(), &mut self.worker.pool, |piece| {
                        let bytes = piece.len();
                        let staged = seat.stage(piece, buffers, &|sent: Sent| sent.count(tally, egress));
                        if let Err(reason) = staged {
                            tally.dropped(reason, bytes, egress);
                        }
                    }),
                    None => Err(DropReason::PortDown),
                },
                None => Err(DropReason::PortDown),
            };
            if let Err(reason) = sent {
                tally.dropped(reason, bytes, egress);
            }
        }
        for index in &table.ethdevs {
            let egress = table.ports[*index].0;
            if let Some(seat) = &mut self.seats[*index] {
                seat.flush(&|sent: Sent| sent.count(tally, egress));
            }
        }
    }

    /// Rests the longer, the longer there was nothing to do.
    fn rest(&self, idle: Duration, table: &Table) {
        if idle < SPIN {
            hint::spin_loop();
        } else if idle < NAP_UNTIL {
            thread::sleep(NAP);
        } else if let Some(Wait { epoll, at_most }) = table.waits.get(self.number) {
            let mut events = [EpollEvent::empty(); EVENTS];
            // Fragments that wait are let go in time.
            let at_most = if self.worker.is_waiting() { EpollTimeout::from(1_u8) } else { *at_most };
            let woken = epoll.wait(&mut events, at_most).unwrap_or(0);
            if events[..woken].iter().any(|event| event.data() == WAKE_UP) {
                self.shared.hear(self.number);
            }
            if events[..woken].iter().any(|event| event.events().contains(EpollFlags::EPOLLERR)) {
                thread::sleep(BROKEN);
            }
        }
    }
}
