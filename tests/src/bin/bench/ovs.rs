//! A peer: Open vSwitch over DPDK doing the same job on one core, over the same devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_tests::command;

use super::scene::{Direction, Scene};
use super::scratch::{Background, Place, Scratch};
use super::testpmd;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// How long its parts may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Until every flow is in its caches.
const WARM: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(3);
/// Its memory in MiB: buffers for every frame of the largest file.
pub const MIB: u64 = 1024;

/// The rule for what is new.
const NEW: &str = "table=1,priority=9,ip,udp,tp_dst=80,ct_state=+trk+new";

/// The ports of the bridge that packets come in by and go out by.
fn way(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Encap => ("pod", "vx"),
        Direction::Decap => ("vx", "pod"),
    }
}

/// A switch between a pod's port and a tunnel.
pub struct Ovs {
    directory: PathBuf,
    // Processes before the namespace they are in.
    _switch: Background,
    _database: Background,
    place: Place,
}

impl Ovs {
    /// Millions of packets in a second that one core of it carries, with connections or without.
    pub fn measure(
        scratch: &Scratch,
        scene: &Scene,
        direction: Direction,
        tracked: bool,
        pcap: &Path,
    ) -> Result<f64> {
        let this = Self::start(scratch)?;
        this.configure(scene, direction, tracked, pcap)?;
        std::thread::sleep(WARM);
        if tracked {
            this.only_look_up(direction)?;
        }
        let way_out = match direction {
            Direction::Encap => ("br-phy", "up"),
            Direction::Decap => ("br-int", "pod"),
        };
        let (began, before) = (Instant::now(), this.sent(way_out)?);
        std::thread::sleep(SPAN);
        let (took, after) = (began.elapsed(), this.sent(way_out)?);
        let sent = after - before;
        if sent == 0 {
            bail!("it sent nothing:\n{}", this.ask("dpif-netdev/pmd-stats-show")?);
        }
        Ok(sent as f64 / took.as_secs_f64() / 1e6)
    }

    fn start(scratch: &Scratch) -> Result<Self> {
        let place = Place::new("ovs")?;
        let directory = scratch.file("ovs");
        std::fs::create_dir_all(&directory)?;
        let database_file = directory.join("conf.db");
        drop(std::fs::remove_file(&database_file));
        command::stdout(Command::new("ovsdb-tool").arg("create").arg(&database_file).arg(SCHEMA), b"")?;
        let socket = directory.join("db.sock");
        let mut command = Command::new("ovsdb-server");
        command.arg(&database_file).arg(format!("--remote=punix:{}", socket.display()));
        let database = background(&place, &directory, command, "db")?;
        database.until("ovsdb-server", PATIENCE, || socket.exists().then_some(()))?;
        let settings = [
            "other_config:dpdk-init=true".to_owned(),
            format!("other_config:dpdk-extra=--no-pci --no-telemetry --file-prefix={}", testpmd::prefix()),
            "other_config:dpdk-lcore-mask=0x2".to_owned(),
            "other_config:pmd-cpu-mask=0x1".to_owned(),
            format!("other_config:dpdk-socket-mem={MIB}"),
        ];
        let mut vsctl = vsctl(&directory);
        vsctl.args(["--no-wait", "--", "init", "--", "set", "Open_vSwitch", "."]).args(settings);
        command::stdout(&mut vsctl, b"")?;
        let mut command = Command::new(SWITCH);
        command.arg(format!("unix:{}", socket.display()));
        let switch = background(&place, &directory, command, "vs")?;
        let control = directory.join("vs.ctl");
        switch.until("ovs-vswitchd", PATIENCE, || control.exists().then_some(()))?;
        Ok(Self { directory, _switch: switch, _database: database, place })
    }

    fn configure(&self, scene: &Scene, direction: Direction, tracked: bool, pcap: &Path) -> Result<()> {
        let (here, there) = (Scene::tunnel_address(&scene.here)?, Scene::tunnel_address(&scene.there)?);
        let source = format!("options:dpdk-devargs=eth_pcap0,rx_pcap={},infinite_rx=1", pcap.display());
        let sink = "options:dpdk-devargs=eth_null0,no-rx=1".to_owned();
        let (pod, up) = match direction {
            Direction::Encap => (source, sink),
            Direction::Decap => (sink, source),
        };
        let (mac, vni) = (Scene::uplink_mac(), u32::from(scene.vni()));
        for words in [
            format!("add-br br-phy -- set bridge br-phy datapath_type=netdev other_config:hwaddr={mac}"),
            "add-br br-int -- set bridge br-int datapath_type=netdev".to_owned(),
            format!(
                "add-port br-int vx -- set interface vx type=vxlan options:remote_ip={there} options:key={vni} \
                 options:local_ip={here}"
            ),
        ] {
            self.vsctl(&words)?;
        }
        let namespace = &self.place.namespace;
        namespace.ip(&format!("addr replace {here}/24 dev br-phy"))?;
        namespace.ip("link set br-phy up")?;
        self.vsctl(&format!("add-port br-int pod -- set interface pod type=dpdk {pod}"))?;
        self.vsctl(&format!("add-port br-phy up -- set interface up type=dpdk {up}"))?;
        self.flows("br-phy", &["in_port=LOCAL,actions=output:up", "in_port=up,actions=LOCAL"])?;
        let (way_in, way_out) = way(direction);
        if tracked {
            self.flows(
                "br-int",
                &[
                    &format!(
                        "table=0,priority=10,in_port={way_in},ip,ct_state=-trk,actions=ct(table=1,zone=1)"
                    ),
                    &format!("table=1,priority=10,ip,ct_state=+trk+est,actions=output:{way_out}"),
                    &format!("{NEW},actions=ct(commit,zone=1),output:{way_out}"),
                ],
            )?;
        } else {
            self.flows("br-int", &[&format!("in_port={way_in},actions=output:{way_out}")])?;
        }
        self.ask(&format!("tnl/arp/set br-phy {there} {}", Scene::peer_mac()))?;
        Ok(())
    }

    /// Datagrams that nobody answers stay new: once all flows are known nothing is committed any more, so that the look-up alone
    /// is measured.
    fn only_look_up(&self, direction: Direction) -> Result<()> {
        let rule = format!("--strict br-int {NEW},actions=output:{}", way(direction).1);
        let bridge = format!("unix:{}", self.directory.join("br-int.mgmt").display());
        command::run(&format!("timeout 20 ovs-ofctl mod-flows {}", rule.replace("br-int", &bridge)))?;
        std::thread::sleep(WARM);
        Ok(())
    }

    fn vsctl(&self, words: &str) -> Result<()> {
        let mut vsctl = vsctl(&self.directory);
        vsctl.args(words.split_whitespace());
        command::stdout(&mut vsctl, b"")?;
        Ok(())
    }

    fn flows(&self, bridge: &str, flows: &[&str]) -> Result<()> {
        self.openflow("del-flows", bridge, "")?;
        flows.iter().try_for_each(|flow| self.openflow("add-flow", bridge, flow).map(drop))
    }

    fn openflow(&self, verb: &str, bridge: &str, word: &str) -> Result<String> {
        let bridge = format!("unix:{}", self.directory.join(format!("{bridge}.mgmt")).display());
        let words = [verb, &bridge, word].join(" ");
        Ok(command::run(&format!("timeout 20 ovs-ofctl {words}"))?)
    }

    fn ask(&self, words: &str) -> Result<String> {
        let control = self.directory.join("vs.ctl");
        Ok(command::run(&format!("timeout 20 ovs-appctl -t {} {words}", control.display()))?)
    }

    /// The packets that a port has sent so far.
    fn sent(&self, (bridge, port): (&str, &str)) -> Result<u64> {
        let said = self.openflow("dump-ports", bridge, port)?;
        let sent = said.split_once("tx pkts=").and_then(|(_, rest)| rest.split(',').next());
        sent.and_then(|digits| digits.parse().ok())
            .with_context(|| format!("no figures of port {port}: {said}"))
    }
}

fn vsctl(directory: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["20", "ovs-vsctl", &format!("--db=unix:{}", directory.join("db.sock").display())]);
    command
}

fn background(place: &Place, directory: &Path, mut command: Command, name: &str) -> Result<Background> {
    let file = |end: &str| directory.join(format!("{name}.{end}"));
    command.arg(format!("--unixctl={}", file("ctl").display()));
    command.arg(format!("--log-file={}", file("log").display()));
    for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"] {
        command.env(variable, directory);
    }
    place.namespace.run(|| Background::start(&mut command, &file("out")))
}
