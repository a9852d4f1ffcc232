//! One real fast path of one worker, to which the bench plays the agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use causeway_model::fastpath::{Answer, Device, Hello, Memory, Order, Outcome, PortName, Tally, Task};
use causeway_model::{Delta, MacAddr, Snapshot};
use causeway_socket::{Channel, Listener};
use causeway_tests::lab::Binaries;

use super::flows::Flows;
use super::scratch::{Background, Scratch};
use super::undo::Undo;

/// How long its memory and its hello may take.
const START: Duration = Duration::from_secs(10);
/// How long an order may take: opening a device reads a whole file.
const PATIENCE: Duration = Duration::from_secs(5);
/// The processor of the worker; peers have the same one.
const CPU: &str = "0";

/// A fast path under test.
pub struct FastPath {
    // First, so that the connection ends before the process does.
    channel: Channel,
    number: u64,
    epoch: u64,
    process: Background,
    _undo: Undo,
}

/// How it is started.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// MiB of hugepages; none: slow memory, where no packet is carried.
    pub mib: u64,
    /// How many connections it remembers.
    pub connections: u32,
    /// A source that it brings along.
    pub flows: Option<&'a Flows>,
}

impl FastPath {
    /// Starts it and tells it a state.
    pub fn start(scratch: &Scratch, options: Options<'_>, snapshot: Snapshot) -> Result<Self> {
        let socket = scratch.file("fastpath.sock");
        let listener = Listener::bind(&socket)?;
        let mut command = Command::new(Binaries::find()?.get("causeway-fastpath")?);
        let (mib, most) = (options.mib.to_string(), options.connections.to_string());
        let memory = if options.mib > 0 { Memory::Hugepages } else { Memory::Slow };
        command.arg("--agent").arg(&socket);
        match memory {
            Memory::Hugepages => command.args(["--memory", "hugepages", "--memory-mib", &mib]),
            Memory::Slow => command.args(["--memory", "slow"]),
        };
        command.args(["--workers", "1", "--cpus", CPU, "--log", "warn"]);
        // In memory, as /run is on most machines.
        let table = PathBuf::from(format!("/dev/shm/causeway-bench-{}-connections", std::process::id()));
        command.arg("--connections").arg(&table).args(["--max-connections", &most]);
        if let Some(flows) = options.flows {
            flows.preload(&mut command);
        }
        let undo = Undo::with(move || {
            let clients = table.with_extension("clients");
            [table, clients].iter().for_each(|file| drop(std::fs::remove_file(file)));
        });
        let process = Background::start(&mut command, &scratch.file("fastpath.log"))?;
        let (sender, connections) = mpsc::channel();
        // A thread, since waiting for a connection has no end of its own; that of the bench is its end.
        std::thread::spawn(move || drop(sender.send(listener.accept())));
        let channel = process.until("the fast path connects", START, || connections.try_recv().ok())??;
        let mut this = Self { channel, number: 0, epoch: 0, process, _undo: undo };
        let (hello, _) = this.channel.receive::<Hello>(Some(START))?;
        if let Some(why) = hello.unable {
            bail!("the fast path cannot run: {why}");
        }
        ensure!(hello.memory == memory && hello.workers == 1, "the fast path runs otherwise");
        this.tell(snapshot)?;
        Ok(this)
    }

    /// Tells it another state.
    pub fn tell(&mut self, snapshot: Snapshot) -> Result<()> {
        self.epoch += 1;
        self.order(Task::Snapshot { epoch: self.epoch, snapshot: Box::new(snapshot) })
    }

    /// Tells it what has changed.
    pub fn change(&mut self, deltas: Vec<Delta>) -> Result<()> {
        self.epoch += 1;
        self.order(Task::Deltas { epoch: self.epoch, deltas })
    }

    /// The memory that it holds, in MiB.
    pub fn resident(&self) -> Result<f64> {
        self.process.resident()
    }

    /// Tells it where tunnel frames go.
    pub fn next_hop(&mut self, node: IpAddr, mac: MacAddr) -> Result<()> {
        self.order(Task::NextHops { macs: vec![(node, mac)] })
    }

    /// Has it serve a device.
    pub fn plug(&mut self, port: PortName, arguments: &str) -> Result<()> {
        let device = Device::Ethdev { arguments: arguments.to_owned(), queues: 1 };
        let answer = self.ask(Task::Plug { port, device });
        match answer.with_context(|| format!("plugging {arguments}"))? {
            Outcome::Plugged { .. } => Ok(()),
            other => bail!("the fast path answered a plug with {other:?}"),
        }
    }

    /// Has it leave a device alone.
    pub fn unplug(&mut self, port: PortName) -> Result<()> {
        self.order(Task::Unplug { port })
    }

    /// Asks what it counted.
    pub fn count(&mut self) -> Result<Tally> {
        match self.ask(Task::Count)? {
            Outcome::Counted(tally) => Ok(*tally),
            other => bail!("the fast path answered a count with {other:?}"),
        }
    }

    fn order(&mut self, task: Task) -> Result<()> {
        match self.ask(task)? {
            Outcome::Done => Ok(()),
            other => bail!("the fast path answered an order with {other:?}"),
        }
    }

    fn ask(&mut self, what: Task) -> Result<Outcome> {
        self.number += 1;
        self.channel.send(&Order { number: self.number, what }, &[], PATIENCE)?;
        let (answer, _) = self.channel.receive::<Answer>(Some(PATIENCE))?;
        ensure!(answer.number == self.number, "the fast path answered another order");
        match answer.what {
            Outcome::Failed(why) => bail!("the fast path: {why}"),
            outcome => Ok(outcome),
        }
    }
}
