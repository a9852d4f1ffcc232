//! The main job, shown and checked: two clusters of one node each in one state, two pods on each, and a service of both.

mod demo {
    pub mod mesh;
}

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_model::{Family, Path};
use causeway_tests::lab::{Datapath, Lab, LabSpec, Node, Pod, PodSpec};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::namespace::Namespace;
use causeway_tests::traffic::{bulk, echo_sizes, http, pings, throughput, too_big};
use clap::Parser;
use demo::mesh;

/// What the bulk transfer carries.
const BULK: u64 = 64 << 20;
/// How long a sample of TCP lasts.
const SAMPLE: Duration = Duration::from_secs(3);
/// What IPv4 and UDP headers take of a packet; IPv6 takes twenty more.
const UDP_HEADERS: usize = 28;

/// Two clusters, four pods: who talks to whom by which path, checked with figures.
#[derive(Parser)]
struct Arguments {
    /// fast, kernel, or mixed: the first node fast, its pods fast and kernel in turn, the second node kernel.
    #[arg(long, default_value = "mixed")]
    datapath: Datapath,
    /// Leave everything standing; `scripts/lab down --lab demo` removes it.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let started = Instant::now();
    match show(&arguments) {
        Ok(()) => {
            println!("\nall good in {:.1} s", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(arguments: &Arguments) -> Result<()> {
    causeway_tests::lab::remove("demo").context("removing an earlier demo")?;
    let before = Holdings::of_machine()?;
    let scene = Scene::build(arguments.datapath)?;
    scene.introduce()?;
    let checked = scene.check();
    scene.counters()?;
    checked?;
    if arguments.keep {
        scene.lab.keep()?;
        println!("\nkept: scripts/lab status --lab demo, scripts/lab down --lab demo");
        return Ok(());
    }
    scene.strike(&before)
}

/// The lab of the demo.
struct Scene {
    lab: Lab,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
}

impl Scene {
    fn build(datapath: Datapath) -> Result<Self> {
        heading("building two clusters of one node each, two pods on each");
        let config = vec![mesh::CONFIG.to_owned()];
        let spec = LabSpec { clusters: 2, datapath, config, ..LabSpec::named("demo") };
        let lab = Lab::up(spec)?;
        let nodes = vec![lab.node("n1")?, lab.node("n2")?];
        let mut pods = Vec::new();
        for (node, name) in [("n1", "anna"), ("n1", "bert"), ("n2", "cleo"), ("n2", "dora")] {
            let began = Instant::now();
            pods.push(lab.add_pod(node, name)?);
            println!("  CNI ADD of {name} on {node}: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(Self { lab, nodes, pods })
    }

    /// Who is there, and by which path each talks to the others.
    fn introduce(&self) -> Result<()> {
        heading("who is there");
        for node in &self.nodes {
            let status = node.status()?;
            let id = &node.plan.node.id;
            println!("  node {id}: {} path: {}", status.path.path, status.path.reason);
            for limit in &status.limits {
                println!("    limit: {limit}");
            }
            for endpoint in node.endpoints()? {
                let endpoint = endpoint.endpoint;
                let name = endpoint.pod.map_or_else(|| "?".to_owned(), |pod| pod.to_string());
                let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
                println!(
                    "    {name:<14} {:<36} {} on {}",
                    addresses.join(", "),
                    endpoint.path,
                    endpoint.port
                );
            }
            ensure!(status.problems.is_empty(), "{id}: {}", status.problems.join("; "));
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        heading("checks");
        let [anna, bert, cleo, _] = self.pods.as_slice() else { unreachable!("four pods were added") };
        for (what, from, to) in [("on one node", anna, bert), ("between clusters", anna, cleo)] {
            for family in Family::BOTH {
                self.pair(&format!("{what}, {family}"), from, to, family)?;
            }
        }
        self.too_big(anna, cleo)?;
        self.nodes_and_pods(anna, cleo)?;
        mesh::Call { lab: &self.lab, client: anna, near: bert, far: cleo }.show()?;
        self.samples()
    }

    /// One stream over each path, pods of one node and of two.
    fn samples(&self) -> Result<()> {
        heading("three seconds of TCP, one stream, on this machine");
        let [anna, bert, cleo, dora] = self.pods.as_slice() else { unreachable!("four pods were added") };
        // Where only one of the first node's pods is on the fast path, another one comes for it to talk to.
        let alone = self.path_of(anna)? != self.path_of(bert)?;
        let fast = PodSpec::named("emma").annotation("causeway.dev/path", "fast");
        let emma = alone.then(|| self.lab.add_pod("n1", fast)).transpose()?;
        let near = emma.as_ref().unwrap_or(bert);
        let routes =
            [("on one node", anna, near), ("on one node", cleo, dora), ("between clusters", anna, cleo)];
        let mut told = BTreeSet::new();
        for (what, from, to) in routes {
            let paths = format!("{} to {}", self.path_of(from)?, self.path_of(to)?);
            if !told.insert((what, paths.clone())) {
                continue;
            }
            let bits = throughput(from.namespace(), to.namespace(), to.address(Family::V4), 1, SAMPLE)
                .with_context(|| format!("{what}, {paths}: TCP"))?;
            let names = format!("{paths} ({} to {})", from.name(), to.name());
            line(what, &names, &format!("{:.1} Gbit/s", bits / 1e9));
        }
        emma.map_or(Ok(()), |emma| Ok(self.lab.del_pod(emma.name())?))
    }

    /// The path that a pod hangs on.
    fn path_of(&self, pod: &Pod) -> Result<Path> {
        for node in &self.nodes {
            let found = node.endpoints()?.into_iter().find(|endpoint| endpoint.endpoint.key == pod.key());
            if let Some(found) = found {
                return Ok(found.endpoint.path);
            }
        }
        bail!("no node has pod {}", pod.name())
    }

    /// Everything that two pods say to each other.
    fn pair(&self, what: &str, from: &Pod, to: &Pod, family: Family) -> Result<()> {
        let address = to.address(family);
        let (here, there) = (from.namespace(), to.namespace());
        let answers = pings(here, address, 10, 0.02);
        ensure!(answers.received == answers.sent, "{what}: {} of 10 pings answered", answers.received);
        line(what, &format!("ping {address}"), &format!("10 of 10, {:.3} ms", answers.average));
        let sent = bulk(here, there, address, BULK).with_context(|| format!("{what}: TCP"))?;
        ensure!(sent.is_intact() && sent.bytes == BULK, "{what}: TCP carried something else: {sent:?}");
        line(what, "TCP, 64 MiB, equal SHA-256", &format!("{:.1} Gbit/s", sent.mbit() / 1e3));
        let most = usize::from(self.pod_mtu()?) - UDP_HEADERS - if family == Family::V6 { 20 } else { 0 };
        let sizes: Vec<_> = (0..=most).step_by(97).chain([most]).collect();
        echo_sizes(here, there, address, sizes.iter().copied()).with_context(|| format!("{what}: UDP"))?;
        line(what, "UDP there and back", &format!("{} sizes, 0 to {most} bytes", sizes.len()));
        let (_, client) = http(here, there, address).with_context(|| format!("{what}: HTTP"))?;
        ensure!(client == from.address(family), "{what}: the server saw {client} ask");
        line(what, "HTTP", &format!("the server sees {client}"));
        Ok(())
    }

    /// What is too big for the tunnel is answered with the MTU that fits.
    fn too_big(&self, from: &Pod, to: &Pod) -> Result<()> {
        let mtu = self.pod_mtu()?;
        from.exec("ip link set eth0 mtu 1500")?;
        for family in Family::BOTH {
            let named = too_big(from.namespace(), to.address(family), 1500).map_err(anyhow::Error::msg)?;
            ensure!(named == u32::from(mtu), "too big over {family}: answered with MTU {named}, not {mtu}");
            line(&family.to_string(), "1500 bytes, do not fragment", &format!("answered: MTU {named}"));
        }
        from.exec(&format!("ip link set eth0 mtu {mtu}"))?;
        Ok(())
    }

    fn nodes_and_pods(&self, near: &Pod, far: &Pod) -> Result<()> {
        let (node, other) = (&self.nodes[0], &self.nodes[1]);
        for family in Family::BOTH {
            let ways: [(&str, &Namespace, IpAddr); 4] = [
                ("node to own pod", node.namespace(), near.address(family)),
                ("node to remote pod", node.namespace(), far.address(family)),
                ("pod to own node", near.namespace(), node.address(family)),
                ("pod to remote node", near.namespace(), other.address(family)),
            ];
            for (what, from, to) in ways {
                let answers = pings(from, to, 3, 0.02);
                ensure!(answers.received == answers.sent, "{what}: {to} does not answer");
                line(what, &format!("ping {to}"), &format!("3 of 3, {:.3} ms", answers.average));
            }
        }
        Ok(())
    }

    fn counters(&self) -> Result<()> {
        heading("counters");
        for node in &self.nodes {
            let status = node.status()?;
            let (sent, received) = (status.tunnel_sent, status.tunnel_received);
            println!(
                "  {}: tunnel sent {} packets, {} MB; received {} packets, {} MB",
                node.plan.node.id,
                sent.packets,
                sent.bytes / 1_000_000,
                received.packets,
                received.bytes / 1_000_000
            );
            for (reason, count) in &status.drops {
                println!("    dropped {reason}: {} packets", count.packets);
            }
        }
        Ok(())
    }

    /// Removes everything as a runtime and an operator would, and looks whether anything is left.
    fn strike(self, before: &Holdings) -> Result<()> {
        heading("removing everything");
        for pod in &self.pods {
            self.lab.del_pod(pod.name())?;
        }
        self.lab.down()?;
        let left = Holdings::of_machine()?.since(before).without_other_labs("demo");
        ensure!(left == Leftovers::NONE, "left behind:\n{left}");
        println!("  links, namespaces, nft, mounts, /run and sysctls are as they were");
        Ok(())
    }

    fn pod_mtu(&self) -> Result<u16> {
        Ok(self.nodes[0].status()?.node.context("node n1 is not known to its agent")?.pod_mtu)
    }
}

fn heading(text: &str) {
    println!("\n{text}");
    // A pipe shows each step as it begins.
    drop(std::io::stdout().flush());
}

fn line(where_: &str, what: &str, result: &str) {
    println!("  {where_:<24} {what:<40} {result}");
}
