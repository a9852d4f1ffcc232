//! The tables of a big world on either data path: told whole, and told a small change, without anything that reads objects.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use causeway_kernel_fallback::{KernelDataplane, KernelOptions};
use causeway_model::service::{Answer, At, Frontend, Services};
use causeway_model::{Dataplane, Delta, Family, HostServices, Snapshot, TunnelOwner, Update, UplinkKind};
use causeway_services::Compiler;

use super::super::fastpath::{FastPath, Options};
use super::super::finding::{Finding, Target};
use super::super::samples::{RUNS, Samples};
use super::super::scratch::{Place, Scratch};
use super::rig::{self, Ends, Rig};
use super::{BACKENDS, PROBES, change, finding, own_memory, slice};

/// How often a backend changes.
const CHANGES: usize = 4 * RUNS;

/// Runs the bench on what was compiled.
pub fn run(mut compiler: Compiler) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let fast = Fast::whole(compiler.services(), &mut findings)?;
    let kernel = Kernel::whole(compiler.services(), &mut findings)?;
    findings.extend(changes(&mut compiler, fast, kernel)?);
    Ok(findings)
}

/// A backend comes or goes: compiled, and told to each.
fn changes(compiler: &mut Compiler, mut fast: Fast, mut kernel: Kernel) -> Result<Vec<Finding>> {
    let (mut by_fast, mut by_kernel) = (Samples::default(), Samples::default());
    for run in 0..CHANGES {
        let changes = vec![change(&slice(77, BACKENDS - 1 - run % 2))?];
        let began = Instant::now();
        let moved = compiler.apply(changes);
        let deltas = moved.deltas(compiler.services());
        let compiled = began.elapsed();
        ensure!(!deltas.is_empty(), "nothing has moved");
        let began = Instant::now();
        fast.process.change(deltas.clone())?;
        by_fast.push((compiled + began.elapsed()).as_secs_f64() * 1e3);
        let began = Instant::now();
        kernel.change(&deltas)?;
        by_kernel.push((compiled + began.elapsed()).as_secs_f64() * 1e3);
    }
    kernel.prove(compiler.services())?;
    let [fast, kernel] =
        [("fast", by_fast, 10.0), ("kernel", by_kernel, 50.0)].map(|(path, samples, most)| {
            eprintln!("  services: one backend, compiled and told: {path} {:.3} ms", samples.median());
            of_path("one backend", path, ("compiled and told", "ms"), samples, vec![Target::AtMost(most)])
        });
    Ok(vec![fast, kernel])
}

fn of_path(
    what: &str,
    path: &'static str,
    metric: (&'static str, &'static str),
    samples: Samples,
    targets: Vec<Target>,
) -> Finding {
    let mut finding = finding(what, metric, samples, targets);
    finding.record.case.push(("path", path.into()));
    finding
}

/// The findings of one path's full load.
fn whole(path: &'static str, times: Samples, memory: Samples, of: &'static str) -> [Finding; 2] {
    eprintln!(
        "  services: {path}: everything told in {:.3} s, {of} {:.1} MiB",
        times.median(),
        memory.median()
    );
    [
        of_path("everything", path, ("full load of tables", "s"), times, vec![Target::AtMost(2.0)]),
        of_path("everything", path, (of, "MiB"), memory, Vec::new()),
    ]
}

/// A fast path that knows everything.
struct Fast {
    process: FastPath,
    _scratch: Scratch,
}

impl Fast {
    fn whole(services: &Services, findings: &mut Vec<Finding>) -> Result<Self> {
        let snapshot = rig::snapshot(services.clone())?;
        Self::prove(&snapshot)?;
        let (mut times, mut memory, mut told) = (Samples::default(), Samples::default(), None);
        for _ in 0..RUNS {
            drop(told.take());
            let scratch = Scratch::new()?;
            let mut process =
                FastPath::start(&scratch, Options::default(), rig::snapshot(Services::default())?)?;
            let (before, snapshot) = (process.resident()?, snapshot.clone());
            let began = Instant::now();
            process.tell(snapshot)?;
            times.push(began.elapsed().as_secs_f64());
            memory.push(process.resident()? - before);
            told = Some(Self { process, _scratch: scratch });
        }
        findings.extend(whole("fast", times, memory, "memory of the fast path"));
        told.context("no run")
    }

    /// The program leads connections to the backends of whatever they ask.
    fn prove(snapshot: &Snapshot) -> Result<()> {
        let mut snapshot = snapshot.clone();
        // Those backends are pods of the other node.
        snapshot.peers.values_mut().try_for_each(|peer| -> Result<()> {
            peer.pod_prefixes.push("10.128.0.0/12".parse()?);
            Ok(())
        })?;
        let mut rig = Rig::new(&snapshot)?;
        let mut random = fastrand::Rng::with_seed(7);
        let services = &snapshot.services;
        let frontends: Vec<&Frontend> =
            services.frontends.keys().filter(|one| matches!(one.at, At::Address(_))).collect();
        for flow in 0..PROBES {
            let frontend = frontends[random.usize(..frontends.len())];
            let At::Address(address) = frontend.at else { continue };
            let from = SocketAddr::new(rig::address(1, 0, Family::V4), 1024 + flow as u16);
            let ends = Ends { from, to: SocketAddr::new(address, frontend.port) };
            let frame = rig::from_here(&ends.packet(true)?, 0);
            rig.pass_and(Some(0), &[frame], |met| {
                let Answer::Backends(id) = services.frontends[frontend].inside else {
                    bail!("nobody serves")
                };
                let all = &services.backends[&id].chosen;
                let served = all.iter().any(|one| SocketAddr::new(one.address, one.port) == met.to);
                ensure!(served, "{ends:?} arrives as {met:?}");
                Ok(())
            })?;
        }
        ensure!(rig.begun() == PROBES as u64, "{} connections begun, not {PROBES}", rig.begun());
        Ok(())
    }
}

/// A kernel that knows everything, in a namespace of its own.
struct Kernel {
    dataplane: KernelDataplane,
    place: Place,
    _scratch: Scratch,
}

impl Kernel {
    fn whole(services: &Services, findings: &mut Vec<Finding>) -> Result<Self> {
        let mut snapshot = rig::snapshot(services.clone())?;
        snapshot.endpoints.clear();
        snapshot.settings.tunnel = TunnelOwner::Kernel;
        snapshot.settings.uplink = UplinkKind::HostRouted;
        snapshot.settings.host_services = HostServices::Own;
        let (mut times, mut in_kernel, mut here) =
            (Samples::default(), Samples::default(), Samples::default());
        let mut told = None;
        for _ in 0..RUNS {
            drop(told.take());
            let (place, scratch) = (Place::new("services")?, Scratch::new()?);
            place.namespace.ip_batch(
                "link add eth0 type veth peer name eth1\naddr add 192.0.2.1/24 dev eth0\nlink set eth0 up\nlink set eth1 up\n",
            )?;
            let options = KernelOptions { state: scratch.file("sysctls.json"), mask_reserved_bits: false };
            let dataplane = place.namespace.run(|| KernelDataplane::new(options))?;
            let mut this = Self { dataplane, place, _scratch: scratch };
            let before = (slab()?, own_memory()?);
            let began = Instant::now();
            let Self { dataplane, place, .. } = &mut this;
            place.namespace.run(|| dataplane.apply(Update::Whole(&snapshot)))?;
            times.push(began.elapsed().as_secs_f64());
            in_kernel.push(slab()? - before.0);
            here.push(own_memory()? - before.1);
            told = Some(this);
        }
        let mut this = told.context("no run")?;
        this.prove(services)?;
        findings.extend(whole("kernel", times, in_kernel, "memory of the kernel"));
        findings.push(of_path("everything", "kernel", ("memory of the agent", "MiB"), here, Vec::new()));
        Ok(this)
    }

    fn change(&mut self, deltas: &[Delta]) -> Result<()> {
        let Self { dataplane, place, .. } = self;
        Ok(place.namespace.run(|| dataplane.apply(Update::Changes(deltas)))?)
    }

    /// The kernel has every frontend, and nothing that was not told.
    fn prove(&mut self, services: &Services) -> Result<()> {
        let Self { dataplane, place, .. } = self;
        let (known, wanted) =
            (place.namespace.run(|| dataplane.counters())?.services.len(), services.frontends.len());
        ensure!(known == wanted, "{known} frontends, not {wanted}");
        let mended = place.namespace.run(|| dataplane.mend())?;
        ensure!(mended.is_empty(), "{mended:?}");
        Ok(())
    }
}

/// What the kernel has given out of its own memory, in MiB: of everything that runs.
fn slab() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Slab:")).context("no slab in /proc/meminfo")?;
    let kib = line.trim().strip_suffix(" kB").context("no kB")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}
