//! `lab`: nodes as network namespaces on this machine, each with a real agent, to try things on.

mod lab {
    pub mod report;
}

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use causeway_tests::lab::{self as labs, Datapath, Lab, LabSpec, PodSpec, Role, Underlay, WireKind};
use causeway_tests::namespace::Namespace;
use causeway_tests::{command, switch};
use clap::{Parser, Subcommand};
use serde_json::json;

use crate::lab::report;

/// Nodes as network namespaces on this machine, each with a real agent, joined by a wire.
#[derive(Parser)]
#[command(name = "lab", version, max_term_width = 120)]
struct Arguments {
    /// Which lab; several can be up at once.
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a lab.
    Up {
        /// How many nodes: n1, n2, …
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// How many clusters they are dealt to in turn: c1, c2, …
        #[arg(long, default_value_t = 1)]
        clusters: usize,
        /// fast, kernel, or mixed: odd nodes fast with alternating pods, even nodes kernel.
        #[arg(long, default_value_t = Datapath::Kernel)]
        datapath: Datapath,
        /// bridge, or userspace: a switch that `lab wire` can spoil.
        #[arg(long, default_value_t = WireKind::Bridge)]
        wire: WireKind,
        /// Nodes know each other by their IPv6 addresses alone, so that tunnels go over IPv6.
        #[arg(long)]
        ipv6_underlay: bool,
        /// The MTU of the wire.
        #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..=9216))]
        mtu: u16,
        /// One more line for every agent's configuration; may be said again.
        #[arg(long = "config", value_name = "KEY: VALUE")]
        config: Vec<String>,
        /// More options for every fast path, as in "--workers 2"; may be said again.
        #[arg(long = "fastpath", value_name = "OPTIONS", allow_hyphen_values = true)]
        fastpath: Vec<String>,
    },
    /// Add or delete a pod.
    #[command(subcommand)]
    Pod(PodVerb),
    /// Run a command in a node or pod; ends with its status.
    Exec {
        /// The node or pod.
        target: String,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Show what is needed to call the plugin by hand on a node.
    Env {
        /// The node.
        node: String,
    },
    /// Change what the user-space wire does to frames; without SET, show it.
    #[command(after_help = switch::GRAMMAR)]
    Wire {
        /// Words such as delay=20ms, n1:loss=1%, n1>n2:rate=10mbit, cut=n1>n2, clear.
        set: Vec<String>,
    },
    /// Kill a process of a node without warning.
    Kill {
        /// The node.
        node: String,
        /// agent or fastpath.
        process: Role,
    },
    /// Start a process of a node again.
    Start {
        /// The node.
        node: String,
        /// agent or fastpath.
        process: Role,
    },
    /// Show a lab, or every lab when no name is given.
    Status,
    /// Take a lab down; one that is not there is down.
    Down,
    /// Be the user-space wire.
    #[command(hide = true)]
    Switch {
        /// Where it is asked.
        #[arg(long)]
        socket: PathBuf,
    },
}

#[derive(Subcommand)]
enum PodVerb {
    /// Add a pod to a node by a CNI call.
    Add {
        /// The node.
        node: String,
        /// The pod's name.
        pod: String,
        /// A label; may be said again.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
        labels: Vec<(String, String)>,
        /// An annotation; may be said again.
        #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = pair)]
        annotations: Vec<(String, String)>,
    },
    /// Delete a pod from its node by CNI calls.
    Del {
        /// The node.
        node: String,
        /// The pod's name.
        pod: String,
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match carry_out(arguments) {
        Ok(code) => code,
        Err(error) if json => {
            println!("{}", json!({"error": format!("{error:#}")}));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { name, json, verb } = arguments;
    match verb {
        Verb::Up { nodes, clusters, datapath, wire, ipv6_underlay, mtu, config, fastpath } => {
            let underlay = if ipv6_underlay { Underlay::V6 } else { Underlay::Both };
            let mut spec =
                LabSpec { nodes, clusters, datapath, wire, underlay, mtu, config, ..LabSpec::named(name) };
            let options = fastpath.iter().flat_map(|options| options.split_whitespace());
            spec.fastpath.extend(options.map(str::to_owned));
            let lab = Lab::up(spec)?.keep()?;
            report::labs(&[lab], json)?;
        }
        Verb::Pod(verb) => pod(&Lab::open(&name)?, verb, json)?,
        Verb::Exec { target, command } => return exec(&Lab::open(&name)?, &target, &command, json),
        Verb::Env { node } => report::environment(&Lab::open(&name)?, &node, json)?,
        Verb::Wire { set } => {
            let words: Vec<_> = set.iter().map(String::as_str).collect();
            report::wire(&Lab::open(&name)?.wire(&words)?, json)?;
        }
        Verb::Kill { node, process } => {
            Lab::open(&name)?.kill(&node, process)?;
            report::done(&format!("killed the {process} of node {node}"), json);
        }
        Verb::Start { node, process } => {
            Lab::open(&name)?.start(&node, process)?;
            report::done(&format!("the {process} of node {node} serves"), json);
        }
        Verb::Status => {
            let named = std::env::args().any(|word| word == "--name" || word.starts_with("--name="));
            let names = if named { vec![name] } else { labs::names() };
            let labs: Result<Vec<_>, _> = names.iter().map(|name| Lab::open(name)).collect();
            report::labs(&labs?, json)?;
        }
        Verb::Down => {
            labs::remove(&name)?;
            report::done(&format!("lab {name} is down"), json);
        }
        Verb::Switch { socket } => switch::serve(&socket).context("the user-space wire")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pod(lab: &Lab, verb: PodVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        PodVerb::Add { node, pod, labels, annotations } => {
            let spec = labels.iter().fold(PodSpec::named(pod), |spec, (key, value)| spec.label(key, value));
            let spec = annotations.iter().fold(spec, |spec, (key, value)| spec.annotation(key, value));
            report::pod(&lab.add_pod(&node, spec)?, json)
        }
        PodVerb::Del { node, pod } => {
            let there = lab.pod(&pod)?.record.node;
            lab.node(&node)?;
            if there != node {
                bail!("pod {pod} is on node {there} of lab {}, not on {node}", lab.name());
            }
            lab.del_pod(&pod)?;
            report::done(&format!("pod {pod} is gone from node {node}"), json);
            Ok(())
        }
    }
}

/// Runs a command in a node or pod: with our own streams, or into JSON.
fn exec(lab: &Lab, target: &str, words: &[String], json: bool) -> anyhow::Result<ExitCode> {
    let record = lab.record()?;
    let namespace: Namespace = match (record.node(target), record.pod(target)) {
        (Ok(_), _) | (_, Ok(_)) => lab.namespace(target),
        (Err(node), Err(pod)) => bail!("{node}; {pod}"),
    };
    let mut command = std::process::Command::new(&words[0]);
    command.args(&words[1..]);
    let status = if json {
        let output = namespace.run(|| command::output(&mut command, b""))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        println!("{}", json!({"code": output.status.code(), "stdout": stdout, "stderr": stderr}));
        output.status
    } else {
        let ran = namespace.run(|| command.status());
        ran.with_context(|| format!("running {} in {target}", words[0]))?
    };
    // As a shell tells of signals.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
