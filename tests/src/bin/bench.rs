//! The benches: ourselves beside our peers, in one run on one machine.

mod bench {
    pub mod chart;
    pub mod cni;
    pub mod connections;
    pub mod fastpath;
    pub mod finding;
    pub mod flows;
    pub mod hugepages;
    pub mod idle;
    pub mod in_force;
    pub mod mesh;
    pub mod ovs;
    pub mod pipeline;
    pub mod plain;
    pub mod pods;
    pub mod policy;
    pub mod restart;
    pub mod rules;
    pub mod samples;
    pub mod scene;
    pub mod scratch;
    pub mod services;
    pub mod soak;
    pub mod stand;
    pub mod testpmd;
    pub mod tsc;
    pub mod undo;
}

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use bench::finding::{Finding, Record, Table};
use bench::hugepages::Priority;
use bench::{cni, idle, mesh, pipeline, pods, policy, restart, services, soak, undo};

/// Measures Causeway beside its peers and says which of its targets it meets. Every figure is the median of five runs in turn with
/// the peers', and every bench proves first that what it measures does its work.
#[derive(Parser)]
#[command(name = "bench", version, max_term_width = 120)]
struct Arguments {
    /// What to measure.
    #[arg(required = true)]
    names: Vec<Name>,
    /// Write the figures there, too, as a list of records.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the pipeline's picture is drawn.
    #[arg(long, value_name = "FILE", default_value = "pipeline.svg")]
    picture: PathBuf,
    /// How long the soak takes.
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u64,
    /// Soak fast paths that have hugepages; else they have what the machine gives anybody.
    #[arg(long)]
    hugepages: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// One worker from queue to queue, beside OVS-DPDK and testpmd.
    Pipeline,
    /// Streams, questions and datagrams between pods, beside the kernel's VXLAN.
    Pods,
    /// What two nodes cost that have nothing to do.
    Idle,
    /// ADD and DEL, beside the bridge plugin.
    Cni,
    /// How long packets stand still when a process is killed.
    Restart,
    /// The policy compiler: a big world at once, and small changes of it; and how soon a change is in force.
    Policy,
    /// The compiler of services: a big world at once, and small changes of it.
    Services,
    /// Services across clusters: a big mesh at once, and one backend of it until that is in force.
    Mesh,
    /// Everything at once for as long as is said, until all is accounted for.
    Soak,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let started = Instant::now();
    match measure(&arguments) {
        Ok(()) => {
            eprintln!("measured in {:.0} s", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nthe bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "devices and namespaces are made by root only");
    undo::guard().context("hearing signals")?;
    let _priority = Priority::most()?;
    let mut all = Vec::new();
    for name in &arguments.names {
        let word = name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        eprintln!("{word}");
        let findings = match name {
            Name::Pipeline => pipeline::run(&arguments.picture),
            Name::Pods => pods::run(),
            Name::Idle => idle::run(),
            Name::Cni => cni::run(),
            Name::Restart => restart::run(),
            Name::Policy => policy::run(),
            Name::Services => services::run(),
            Name::Mesh => mesh::run(),
            Name::Soak => soak::run(Duration::from_secs(60 * arguments.minutes), arguments.hugepages),
        };
        let findings = findings.with_context(|| word.clone())?;
        println!("\n## {word}\n\n{}", Table(&findings));
        all.extend(findings);
        // What is measured so far is there even when the next one fails.
        if let Some(file) = &arguments.json {
            write(file, &all)?;
        }
    }
    Ok(())
}

fn write(file: &PathBuf, findings: &[Finding]) -> Result<()> {
    let records: Vec<&Record> = findings.iter().map(|finding| &finding.record).collect();
    let lines = records.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
