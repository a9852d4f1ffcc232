//! Means of the fast path that are not there: the kernel carries the node's pods, status says why, and nothing goes round in
//! circles.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::{Family, Path, TunnelOwner};
use causeway_tests::hugepages::Hugepages;
use causeway_tests::lab::{Binaries, Lab, LabError, Node, PodSpec, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::process::Process;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("no_hugepages_mean_kernel", no_hugepages_mean_kernel),
    ("too_few_hugepages_mean_kernel", too_few_hugepages_mean_kernel),
    ("no_hugetlbfs_mount_is_needed", no_hugetlbfs_mount_is_needed),
    ("slow_memory_is_taken_only_when_asked_for", slow_memory_is_taken_only_when_asked_for),
    ("no_fast_path_process_means_kernel_or_waiting", no_fast_path_process_means_kernel_or_waiting),
    ("no_libdpdk_means_kernel", no_libdpdk_means_kernel),
    ("no_tun_means_kernel", no_tun_means_kernel),
    ("an_uplink_that_never_was_is_named", an_uplink_that_never_was_is_named),
    ("an_uplink_that_goes_is_missed_and_taken_back", an_uplink_that_goes_is_missed_and_taken_back),
    ("more_queues_than_can_be_asked_for_are_refused", more_queues_than_can_be_asked_for_are_refused),
    ("odd_queues_and_idle_workers_carry_on_and_are_said", odd_queues_and_idle_workers_carry_on_and_are_said),
];

/// How long a node is watched for going round in circles, and how many lines a process may log meanwhile.
const WATCHED: (Duration, usize) = (Duration::from_secs(2), 4);
/// What a process may log in all until then.
const LOGGED: usize = 60;

/// The pages that a machine without hugepages shows.
const WITHOUT_PAGES: &str = "mount -t tmpfs none /sys/kernel/mm/hugepages
mkdir /sys/kernel/mm/hugepages/hugepages-2048kB
cd /sys/kernel/mm/hugepages/hugepages-2048kB
for figure in nr free resv surplus nr_overcommit; do echo 0 >${figure}_hugepages; done
cd /";
const WITHOUT_HUGETLBFS: &str = "umount --all --types hugetlbfs";
const WITHOUT_TUN: &str = "mount -t tmpfs none /dev/net";
/// The libraries' directory again, as links, without DPDK's.
const WITHOUT_LIBDPDK: &str =
    "libraries=$(dirname \"$(ldd \"$0\" | sed -n 's,.*=> \\(.*/librte_eal[^ ]*\\) .*,\\1,p')\")
mount -t tmpfs none /mnt
mkdir /mnt/all /mnt/others
mount --bind \"$libraries\" /mnt/all
cp -as /mnt/all/. /mnt/others
rm /mnt/others/librte_*
mount --bind /mnt/others \"$libraries\"";

/// A node with a fast path of its own wishes.
struct Scene<'a> {
    matrix: &'a Matrix,
    lab: Lab,
    node: Node,
    before: Holdings,
}

impl<'a> Scene<'a> {
    /// A node that asks for a data path, with these options of its fast path; nothing runs yet.
    fn of(matrix: &'a Matrix, datapath: &str, fastpath: &str) -> anyhow::Result<Self> {
        // With every means there is no story to tell.
        let (datapath, fastpath) =
            matrix.sabotage("means-granted", || ("fast", "--memory slow")).unwrap_or((datapath, fastpath));
        let lab = matrix.lab(|spec| {
            (spec.nodes, spec.agents) = (1, false);
            spec.fastpath = fastpath.split_whitespace().map(str::to_owned).collect();
        })?;
        let node = lab.node("n1")?;
        // Its own addresses come a moment after the link.
        let settled = || node.exec("ip -6 addr show").is_ok_and(|shown| !shown.contains("tentative"));
        ensure!(within(Duration::from_secs(5), settled), "the node's own addresses do not settle");
        let before = Holdings::of(node.namespace())?;
        lab.configure(&node)?;
        let scene = Self { matrix, lab, node, before };
        scene.edit(|text| text.replace("datapath: fast", &format!("datapath: {datapath}")))?;
        Ok(scene)
    }

    fn edit(&self, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
        Ok(fs::write(self.node.config_file(), change(fs::read_to_string(self.node.config_file())?))?)
    }

    /// Starts a process whose view of the machine these commands narrow.
    fn start(&self, role: Role, without: &str) -> anyhow::Result<()> {
        let without = self.matrix.sabotage("means-granted", || "").unwrap_or(without);
        self.lab.spawn_in(&self.node, role, without)?;
        if role == Role::Agent {
            self.lab.await_ready(&self.node)?;
        }
        Ok(())
    }

    /// What `causeway status` prints.
    fn page(&self) -> anyhow::Result<String> {
        let causeway = Binaries::find()?.get("causeway")?;
        let socket = self.node.api_socket();
        Ok(self.node.exec(&format!("{} status --socket {}", causeway.display(), socket.display()))?)
    }

    /// The kernel has the node, and the operator reads why.
    fn is_kernel(&self, why: &str) -> anyhow::Result<()> {
        let (path, page) = (self.node.status()?.path, self.page()?);
        ensure!((path.path, path.tunnel) == (Path::Kernel, TunnelOwner::Kernel), "{path:?}");
        ensure!(path.reason.contains(why), "the reason is {:?}, not {why:?}", path.reason);
        ensure!(page.contains(why), "the page does not say {why:?}:\n{page}");
        self.kernel_pods_work()?;
        self.is_calm()
    }

    /// Kernel pods of the node reach each other and their node.
    fn kernel_pods_work(&self) -> anyhow::Result<()> {
        let pod =
            |name| self.lab.add_pod("n1", PodSpec::named(name).annotation("causeway.dev/path", "kernel"));
        let (a, b) = (pod("a")?, pod("b")?);
        for family in Family::BOTH {
            ensure!(a.ping(b.address(family)), "kernel pods do not reach each other over {family}");
            ensure!(
                self.node.ping(a.address(family)),
                "the node does not reach its kernel pod over {family}"
            );
            ensure!(b.ping(self.node.address(family)), "a kernel pod does not reach its node over {family}");
        }
        self.lab.del_pod("a")?;
        Ok(self.lab.del_pod("b")?)
    }

    /// Whatever runs goes on without a word.
    fn is_calm(&self) -> anyhow::Result<()> {
        let running = || -> anyhow::Result<Vec<_>> {
            let of = |role| Ok(self.lab.process("n1", role)?.filter(|process| process.is_alive()));
            [Role::Agent, Role::Fastpath].into_iter().map(of).collect()
        };
        let (processes, lines) = (running()?, self.logged());
        std::thread::sleep(WATCHED.0);
        ensure!(running()? == processes, "{processes:?} ran, and now {:?}", running()?);
        for (role, before) in &lines {
            let (_, now) = self.logged().into_iter().find(|(other, _)| other == role).context("no log")?;
            ensure!(
                *before <= LOGGED && now <= before + WATCHED.1,
                "the {role} logged {before} lines, and {} more in {:?}",
                now - before,
                WATCHED.0
            );
        }
        Ok(())
    }

    fn log(&self, role: Role) -> String {
        fs::read_to_string(self.node.directory().join(format!("{role}.log"))).unwrap_or_default()
    }

    fn logged(&self) -> Vec<(Role, usize)> {
        [Role::Agent, Role::Fastpath].map(|role| (role, self.log(role).lines().count())).into()
    }

    /// Stops everything and takes Causeway off the node: nothing of it may be left.
    fn end(self) -> anyhow::Result<()> {
        for role in [Role::Agent, Role::Fastpath] {
            if self.lab.process("n1", role)?.is_some() {
                self.lab.kill("n1", role)?;
            }
        }
        let (causeway, config) = (Binaries::find()?.get("causeway")?, self.node.config_file());
        self.node.exec(&format!("{} uninstall --config {}", causeway.display(), config.display()))?;
        let left = Holdings::of(self.node.namespace())?.since(&self.before);
        ensure!(left == Leftovers::NONE, "{left}");
        Ok(())
    }
}

fn no_hugepages_mean_kernel(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix, "auto", "--memory hugepages --memory-mib 256")?;
    // The count is the machine's, and others may be using theirs: only this process sees none.
    scene.start(Role::Fastpath, WITHOUT_PAGES)?;
    scene.start(Role::Agent, "")?;
    scene.is_kernel("no fast path: hugepages: need 128, none reserved")?;
    // The same when the fast path is asked for by name, over a restart of either side.
    scene.edit(|text| text.replace("datapath: auto", "datapath: fast"))?;
    scene.lab.kill("n1", Role::Agent)?;
    scene.start(Role::Agent, "")?;
    scene.is_kernel("asked for fast, but hugepages: need 128, none reserved")?;
    scene.end()
}

fn too_few_hugepages_mean_kernel(matrix: &Matrix) -> anyhow::Result<()> {
    const PAGES: u64 = 8;
    let _some = Hugepages::reserve(PAGES)?;
    // 64 GiB.
    let scene = Scene::of(matrix, "auto", "--memory hugepages --memory-mib 65536")?;
    scene.start(Role::Fastpath, "")?;
    scene.start(Role::Agent, "")?;
    scene.is_kernel("no fast path: hugepages: need 32768, have ")?;
    scene.end()
}

fn no_hugetlbfs_mount_is_needed(matrix: &Matrix) -> anyhow::Result<()> {
    let _enough = Hugepages::reserve(128)?;
    let scene = Scene::of(matrix, "auto", "--memory hugepages --memory-mib 256")?;
    scene.start(Role::Fastpath, WITHOUT_HUGETLBFS)?;
    scene.start(Role::Agent, "")?;
    let (path, page) = (scene.node.status()?.path, scene.page()?);
    ensure!((path.path, path.tunnel) == (Path::Fast, TunnelOwner::FastPath), "{path:?}");
    ensure!(page.contains(", hugepages, ") && !page.contains("slow memory"), "{page}");
    let (a, b) = (scene.lab.add_pod("n1", "a")?, scene.lab.add_pod("n1", "b")?);
    ensure!(
        Family::BOTH.iter().all(|family| a.ping(b.address(*family))),
        "fast pods do not reach each other"
    );
    scene.lab.del_pod("a")?;
    scene.lab.del_pod("b")?;
    scene.kernel_pods_work()?;
    scene.is_calm()?;
    scene.end()
}

fn slow_memory_is_taken_only_when_asked_for(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix, "auto", "--memory slow")?;
    scene.start(Role::Fastpath, "")?;
    scene.start(Role::Agent, "")?;
    scene.is_kernel("no fast path: it runs in slow memory, without hugepages")?;
    scene.lab.kill("n1", Role::Agent)?;
    scene.edit(|text| text.replace("datapath: auto", "datapath: fast"))?;
    scene.start(Role::Agent, "")?;
    let (path, page) = (scene.node.status()?.path, scene.page()?);
    ensure!(path.path == Path::Fast && path.reason == "the fast path was asked for", "{path:?}");
    ensure!(page.contains("the fast path runs in slow memory: no hugepages"), "{page}");
    scene.kernel_pods_work()?;
    scene.is_calm()?;
    scene.end()
}

fn no_fast_path_process_means_kernel_or_waiting(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix, "auto", "")?;
    scene.start(Role::Agent, "")?;
    scene.is_kernel("no fast path: no fast path connected within 2s")?;
    scene.lab.kill("n1", Role::Agent)?;
    scene.edit(|text| text.replace("datapath: auto", "datapath: fast"))?;
    scene.start(Role::Agent, "")?;
    let (path, page) = (scene.node.status()?.path, scene.page()?);
    ensure!((path.path, path.tunnel) == (Path::Fast, TunnelOwner::FastPath), "{path:?}");
    ensure!(page.contains("the fast path is not connected: its pods stand still"), "{page}");
    match scene.lab.add_pod("n1", "f") {
        Err(LabError::Cni { failure, .. }) => {
            let said = format!("{} {}", failure.msg, failure.details);
            ensure!(failure.code == 11 && said.contains("the fast path is not there"), "{failure:?}");
        }
        other => anyhow::bail!("a pod of a fast path that is not there: {other:?}"),
    }
    scene.kernel_pods_work()?;
    scene.is_calm()?;
    scene.end()
}

fn no_libdpdk_means_kernel(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix, "auto", "--memory slow")?;
    scene.start(Role::Fastpath, WITHOUT_LIBDPDK)?;
    let dies = || scene.lab.process("n1", Role::Fastpath).is_ok_and(|p| !p.is_some_and(Process::is_alive));
    ensure!(
        within(Duration::from_secs(5), dies),
        "it runs without its library: {}",
        scene.log(Role::Fastpath)
    );
    let said = scene.log(Role::Fastpath);
    ensure!(
        said.contains("librte_") && said.contains("No such file"),
        "it does not name the library: {said}"
    );
    scene.start(Role::Agent, "")?;
    scene.is_kernel("no fast path: no fast path connected within 2s")?;
    scene.end()
}

fn no_tun_means_kernel(matrix: &Matrix) -> anyhow::Result<()> {
    for (asked, why) in [("auto", "no fast path: "), ("fast", "asked for fast, but ")] {
        let scene = Scene::of(matrix, asked, "--memory slow")?;
        scene.start(Role::Fastpath, WITHOUT_TUN)?;
        scene.start(Role::Agent, WITHOUT_TUN)?;
        scene.is_kernel(&format!("{why}/dev/net/tun: No such file or directory"))?;
        scene.end()?;
    }
    Ok(())
}

fn an_uplink_that_never_was_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix, "fast", "--memory slow")?;
    let uplink = matrix.sabotage("means-granted", || "eth0").unwrap_or("eth7");
    scene.edit(|text| text.replace("uplink: eth0", &format!("uplink: {uplink}")))?;
    scene.start(Role::Fastpath, "")?;
    scene.lab.spawn(&scene.node, Role::Agent)?;
    let ends = || scene.lab.process("n1", Role::Agent).is_ok_and(|p| !p.is_some_and(Process::is_alive));
    ensure!(within(Duration::from_secs(5), ends), "it serves without its uplink: {}", scene.log(Role::Agent));
    let said = scene.log(Role::Agent);
    ensure!(said.contains("eth7") && said.lines().count() <= 3, "{said}");
    scene.is_calm()?;
    let left = Holdings::of(scene.node.namespace())?.since(&scene.before);
    ensure!(left == Leftovers::NONE, "it has half begun: {left}");
    Ok(())
}

/// Field report F41 lets ten seconds pass.
fn an_uplink_that_goes_is_missed_and_taken_back(matrix: &Matrix) -> anyhow::Result<()> {
    const SOON: Duration = Duration::from_secs(10);
    let lab = matrix.lab(|_| {})?;
    let (a, b, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    let reaches =
        || Family::BOTH.iter().all(|family| a.ping(c.address(*family)) && c.ping(a.address(*family)));
    ensure!(reaches(), "before");
    if matrix.sabotage("means-granted", || ()).is_none() {
        lab.set_wired("n1", false)?;
    }
    let said = "the uplink eth0: this machine has no such interface";
    let misses = || n1.status().is_ok_and(|status| status.waiting_for.iter().any(|what| what.contains(said)));
    ensure!(within(SOON, misses), "{:?}", n1.status()?);
    ensure!(Family::BOTH.iter().all(|family| a.ping(b.address(*family))), "pods of the node part with it");
    lab.set_wired("n1", true)?;
    ensure!(within(SOON, reaches), "the overlay stays dead: {:?}\n{}", n1.status()?, n1.log_tail(20));
    let whole =
        || n1.status().is_ok_and(|status| status.waiting_for.is_empty() && status.problems.is_empty());
    ensure!(within(SOON, whole), "{:?}", n1.status()?);
    Ok(())
}

fn more_queues_than_can_be_asked_for_are_refused(matrix: &Matrix) -> anyhow::Result<()> {
    for queues in ["0", "17"] {
        let scene = Scene::of(matrix, "fast", "--memory slow")?;
        let asked = matrix.sabotage("means-granted", || "1").unwrap_or(queues);
        scene.edit(|text| text + &format!("fastpath_queues: {asked}\n"))?;
        scene.lab.spawn(&scene.node, Role::Agent)?;
        let ends = || scene.lab.process("n1", Role::Agent).is_ok_and(|p| !p.is_some_and(Process::is_alive));
        ensure!(within(Duration::from_secs(5), ends), "it serves with {queues} queues");
        let (said, allowed) = (scene.log(Role::Agent), "a number from 1 to 16");
        ensure!(
            said.contains("fastpath_queues: ") && said.contains(queues) && said.contains(allowed),
            "{said}"
        );
    }
    for workers in ["0", "17"] {
        let scene = Scene::of(matrix, "fast", &format!("--workers {workers}"))?;
        scene.lab.spawn(&scene.node, Role::Fastpath)?;
        let ends =
            || scene.lab.process("n1", Role::Fastpath).is_ok_and(|p| !p.is_some_and(Process::is_alive));
        ensure!(within(Duration::from_secs(5), ends), "it runs with {workers} workers");
        let said = scene.log(Role::Fastpath);
        ensure!(said.contains("--workers") && said.contains("1..=16"), "{said}");
    }
    Ok(())
}

/// Field report F40: more queues than anybody serves, an odd number of them, more workers than queues.
fn odd_queues_and_idle_workers_carry_on_and_are_said(matrix: &Matrix) -> anyhow::Result<()> {
    let idle = "3 of the fast path's 4 workers have no queue (fastpath_queues: 1)";
    for (workers, queues, limit) in [(1, 16, None), (2, 3, None), (4, 1, Some(idle))] {
        let scene = Scene::of(matrix, "fast", &format!("--memory slow --workers {workers}"))?;
        scene.edit(|text| text + &format!("fastpath_queues: {queues}\n"))?;
        scene.start(Role::Fastpath, "")?;
        scene.start(Role::Agent, "")?;
        let (a, b) = (scene.lab.add_pod("n1", "a")?, scene.lab.add_pod("n1", "b")?);
        for family in Family::BOTH {
            let talks = a.ping(b.address(family)) && scene.node.ping(a.address(family));
            ensure!(talks, "{workers} workers, {queues} queues: nothing over {family}");
        }
        let (status, page) = (scene.node.status()?, scene.page()?);
        let said = status.limits.iter().find(|limit| limit.contains("have no queue")).map(String::as_str);
        ensure!(said == limit, "{workers} workers, {queues} queues: {:?}", status.limits);
        ensure!(limit.is_none_or(|limit| page.contains(limit)), "{page}");
        scene.lab.del_pod("a")?;
        scene.lab.del_pod("b")?;
        scene.is_calm()?;
        scene.end()?;
    }
    Ok(())
}
