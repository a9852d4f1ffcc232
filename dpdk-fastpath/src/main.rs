//! Poll loops on queues: bursts in, the packet program over them, bursts out.

mod clock;
mod control;
mod cpus;
mod ethdev;
mod idleness;
mod memory;
mod packet;
mod sweeper;
mod table;
mod tap;
mod virtio;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use causeway_datapath::Tracking;
use causeway_model::fastpath;
use clap::{Parser, ValueEnum};
use dpdk_sys::{Eal, EalConfig, Memory};
use tracing_subscriber::filter::LevelFilter;

use control::{Control, Means};
use packet::Buffers;
use table::Shared;

/// The fast path of a Causeway node.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Where the agent listens.
    #[arg(long, default_value = fastpath::SOCKET)]
    agent: PathBuf,
    /// Where packets live: hugepages, or slow for ordinary pages.
    #[arg(long, value_enum, default_value_t = MemoryKind::Hugepages)]
    memory: MemoryKind,
    /// MiB of it.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(128..))]
    memory_mib: u32,
    /// Poll loops.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    workers: u16,
    /// The CPUs the poll loops run on, one each in turn, as in 2,3; without, one each of those this process may run on.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// The file that remembers connections over a restart; one beside it, ending in .clients, remembers which backends clients had.
    #[arg(long, default_value = fastpath::CONNECTIONS)]
    connections: PathBuf,
    /// How many connections it has room for, 288 bytes each; 0 for none, which leaves every packet alone.
    #[arg(long, default_value_t = 1 << 18, value_parser = clap::value_parser!(u32).range(..=1 << 24))]
    max_connections: u32,
    /// What is logged: error, warn, info, debug.
    #[arg(long, default_value = "info")]
    log: LevelFilter,
}

#[derive(Clone, Copy, ValueEnum)]
enum MemoryKind {
    Hugepages,
    Slow,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let mib = arguments.memory_mib;
    let (memory, kind) = match arguments.memory {
        MemoryKind::Hugepages => (Memory::Hugepages { mib }, fastpath::Memory::Hugepages),
        MemoryKind::Slow => (Memory::Slow { mib }, fastpath::Memory::Slow),
    };
    // Started before any other thread: DPDK reads the environment.
    let means = match start(memory, &arguments) {
        Ok(means) => Ok(means),
        Err(error) => {
            tracing::error!("{error:#}");
            Err(format!("{error:#}"))
        }
    };
    Control::new(arguments.agent, kind, arguments.workers, means).serve()
}

/// Everything that packets need: memory, tables, workers.
fn start(memory: Memory, arguments: &Arguments) -> anyhow::Result<Means> {
    let eal = Eal::start(&EalConfig::new(memory))?;
    let buffers = Buffers::new(&eal)?;
    let shared = Arc::new(Shared::new(arguments.workers).context("making the workers' wake-up calls")?);
    let (tracking, limit) = remember(arguments)?;
    let allowed = cpus::allowed().context("asking which CPUs there are")?;
    let spin = idleness::spin(arguments.workers, allowed.len());
    for (number, cpu) in (0..).zip(cpus::of_workers(arguments.workers, &arguments.cpus, &allowed)) {
        worker::spawn(number, (cpu, spin), (&eal, &buffers, tracking), &shared)?;
    }
    sweeper::spawn(tracking, Arc::clone(&shared))?;
    Ok(Means { eal, buffers, shared, tracking, limits: limit.into_iter().collect() })
}

/// The connections, and why those of the process before are not among them.
fn remember(arguments: &Arguments) -> anyhow::Result<(Option<Tracking>, Option<String>)> {
    if arguments.max_connections == 0 {
        return Ok((None, Some("no connections are remembered: --max-connections is 0".to_owned())));
    }
    let (connections, limit) = memory::open(&arguments.connections, arguments.max_connections)?;
    if let Some(limit) = &limit {
        tracing::warn!("{limit}");
    }
    let clients = memory::clients(&arguments.connections)?;
    Ok((Some(Tracking::new(connections).remembering(clients)), limit))
}
