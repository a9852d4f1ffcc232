//! The loop of a worker: frames in, the program over them, frames out.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use causeway_datapath::{Burst, Capabilities, Port, Tracking, Worker, fit, from_host, from_pod, from_uplink};
use causeway_model::DropReason;
use dpdk_sys::Eal;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl;

use crate::ethdev::{Seat, Sent};
use crate::idleness::Idleness;
use crate::packet::{Buffers, Packet};
use crate::table::{Served, Shared, Table, Wait, queue_of};
use crate::tap::{Read, Spare, TapPort};
use crate::{clock, cpus};

/// Events taken at once: those that do not fit come first next time.
const EVENTS: usize = 32;
/// How long a worker rests whose descriptors would wake it at once again although it can do nothing: something is broken, or no
/// buffer is free.
const STUCK: Duration = Duration::from_millis(1);
/// While devices keep a worker busy and its TAPs had nothing, these are asked for once in so many turns.
const TURNS: u32 = 8;

/// Starts a worker.
pub(crate) fn spawn(
    number: u16,
    (cpu, spin): (Option<usize>, Duration),
    (eal, buffers, tracking): (&Eal, &Buffers, Option<Tracking>),
    shared: &Arc<Shared>,
) -> anyhow::Result<()> {
    let (eal, shared, buffers) = (eal.clone(), Arc::clone(shared), buffers.clone());
    let run = move || {
        if let Some(cpu) = cpu
            && let Err(errno) = cpus::pin(cpu)
        {
            tracing::warn!("worker {number} runs where the system likes: CPU {cpu}: {errno}");
        }
        // Without it the pools' caches of this thread are not used: slower, not wrong.
        let registered = eal.register_thread();
        if let Err(error) = &registered {
            tracing::warn!("worker {number}: {error}");
        }
        // A nap is 50 µs longer than it should be otherwise.
        if let Err(errno) = prctl::set_timerslack(1) {
            tracing::warn!("worker {number} naps longer than it should: {errno}");
        }
        Loop::new(number.into(), (shared, buffers, tracking), Idleness::new(spin)).run();
    };
    thread::Builder::new().name(format!("worker-{number}")).spawn(run).context("starting a worker")?;
    Ok(())
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
    idleness: Idleness,
    /// Turns since a TAP had something.
    without_tap: u32,
}

impl Loop {
    fn new(
        number: usize,
        (shared, buffers, tracking): (Arc<Shared>, Buffers, Option<Tracking>),
        idleness: Idleness,
    ) -> Self {
        let worker = Worker::new(buffers.clone(), Arc::clone(&shared.workers[number].tally));
        let worker = match tracking {
            Some(tracking) => {
                let tracking = tracking.of_worker(number as u16, shared.workers.len() as u16);
                worker.tracking(tracking.telling(shared.workers[number].events))
            }
            None => worker,
        };
        let (burst, spare) = (Burst::new(), Spare::default());
        Self { number, shared, buffers, worker, burst, spare, seats: Vec::new(), idleness, without_tap: 0 }
    }

    fn run(mut self) {
        let mut seen = u64::MAX;
        let mut table = loop {
            // The first table is there before any worker.
            if let Some(table) = self.shared.take_up(self.number, &mut seen) {
                break table;
            }
        };
        loop {
            self.shared.report(self.number, seen);
            self.turn(&table);
            if self.worker.is_waiting() {
                self.worker.let_go(clock::now());
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

    /// Serves the TAPs that have something and looks at every device once; waits before, if there was nothing for long.
    fn turn(&mut self, table: &Table) {
        let Some(wait) = table.waits.get(self.number) else { return };
        let mut rest = self.idleness.rest(wait);
        if self.worker.is_waiting() && rest != EpollTimeout::ZERO {
            // Fragments that wait are let go in time.
            rest = EpollTimeout::from(1_u8);
        }
        let mut busy = self.asks_taps(wait, rest) && self.poll_taps(table, rest);
        for index in &table.ethdevs {
            busy |= self.poll_ethdev(table.ports[*index].0, *index, table);
        }
        self.idleness.note(busy);
    }

    /// Whether to ask in this turn which TAPs have something: a call into the kernel, which devices need not wait for each time.
    fn asks_taps(&mut self, wait: &Wait, rest: EpollTimeout) -> bool {
        self.without_tap = self.without_tap.wrapping_add(1);
        let due = self.idleness.is_idle() || self.without_tap < 2 || self.without_tap.is_multiple_of(TURNS);
        rest != EpollTimeout::ZERO || (wait.taps && due)
    }

    /// Waits for TAPs, and serves those that have something; true when any had a frame.
    fn poll_taps(&mut self, table: &Table, rest: EpollTimeout) -> bool {
        let mut events = [EpollEvent::empty(); EVENTS];
        let named = self.shared.epoll(self.number).wait(&mut events, rest).unwrap_or(0);
        let (mut busy, mut stuck) = (false, false);
        for event in &events[..named] {
            let Some((port, queue)) = queue_of(event.data()) else {
                self.shared.hear(self.number);
                continue;
            };
            let Some((_, Served::Tap(tap))) = table.port(port) else {
                // Of a table to come.
                stuck = true;
                continue;
            };
            let read = self.read_tap(port, tap, queue);
            stuck |= read == Read::NoBuffer || event.events().contains(EpollFlags::EPOLLERR);
            busy |= self.forward(port, table);
        }
        if busy {
            self.without_tap = 0;
        } else if stuck {
            thread::sleep(STUCK);
        }
        busy
    }

    fn read_tap(&mut self, port: Port, tap: &TapPort, queue: usize) -> Read {
        let worker = &self.worker;
        let refuse = |reason, bytes| worker.tally().dropped(reason, bytes, port);
        tap.receive(queue, &mut self.burst, &mut self.spare, &self.buffers, refuse)
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
        if let Some(egress) = self.burst.plain_way()
            && let Some((index, Served::Ethdev(_))) = table.port(egress)
            && let Some(seat) = &mut self.seats[index]
        {
            seat.send(&mut self.burst, &|sent: Sent| sent.count(tally, egress));
            return;
        }
        self.send_each(table);
    }

    /// Sends frames that go different ways, or on which something is left to do.
    fn send_each(&mut self, table: &Table) {
        let tally = &*self.shared.workers[self.number].tally;
        let (number, buffers) = (self.number, &self.buffers);
        let (mut egress, mut way) = (Port::Host, table.port(Port::Host));
        for frame in self.burst.drain() {
            if frame.egress != egress {
                // Mostly a burst goes one way.
                (egress, way) = (frame.egress, table.port(frame.egress));
            }
            let bytes = frame.len();
            let sent = match way {
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
}
