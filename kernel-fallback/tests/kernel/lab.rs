//! Nodes and pods as network namespaces, joined by a bridge in a namespace of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use causeway_kernel_fallback::{KernelDataplane, KernelOptions, namespace};
use causeway_model::{
    Dataplane, Delta, Endpoint, EndpointKey, Identity, MacAddr, NameServer, Node, NodeId, Overlay, Path,
    PortKind, Settings, Snapshot, TunnelOwner, Update,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace with a name of its own in the whole machine; it goes when this goes.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(thing: &str) -> Self {
        let name = format!("cwk-{}-{}-{thing}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.run("ip link set lo up");
        namespace
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub fn open(&self) -> File {
        File::open(self.path()).unwrap()
    }

    /// Runs a function on a thread in this namespace.
    pub fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        namespace::within(self.open().as_fd(), function).unwrap()
    }

    /// Runs a command that must succeed; returns what it said.
    pub fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Whether a command succeeds.
    pub fn succeeds(&self, command: &str) -> bool {
        output(&format!("ip netns exec {} {command}", self.name)).status.success()
    }

    pub fn ping(&self, to: IpAddr, more: &str) -> bool {
        self.succeeds(&format!("ping -n -c 1 -W 2 {more} {to}"))
    }
}

/// The nft rules of a namespace, but for what every change or every load of policy numbers anew.
pub fn ruleset(ns: &Namespace) -> Vec<String> {
    const NUMBERED: [&str; 5] = ["stamps4", "stamps6", "current4", "current6", "phase"];
    let mut numbered = false;
    let mut lines = Vec::new();
    for line in ns.run("nft -s list ruleset").lines().map(str::trim) {
        if let ["map" | "set", name, "{"] = line.split(' ').collect::<Vec<_>>()[..] {
            numbered = NUMBERED.contains(&name);
            lines.push(line.to_owned());
        } else if !numbered {
            lines.push(line.to_owned());
        }
    }
    lines
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = output(&format!("ip netns del {}", self.name));
    }
}

fn output(command: &str) -> Output {
    // A command with quotes goes through a shell, and none may hang the test.
    Command::new("timeout").args(["20", "sh", "-c", command]).output().unwrap()
}

pub fn run(command: &str) -> String {
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}: {said}{}(these tests need root and CAP_NET_ADMIN)",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A node: a namespace with an uplink, and its data path.
pub struct LabNode {
    pub ns: Namespace,
    pub dataplane: KernelDataplane,
    pub snapshot: Snapshot,
    pub state: tempfile::TempDir,
    number: u8,
    pods: u8,
}

/// A pod: a namespace with an endpoint.
pub struct LabPod {
    pub ns: Namespace,
    pub endpoint: Endpoint,
}

impl LabPod {
    pub fn v4(&self) -> IpAddr {
        self.endpoint.addresses[0]
    }

    pub fn v6(&self) -> IpAddr {
        self.endpoint.addresses[1]
    }
}

pub struct Lab {
    pub nodes: Vec<LabNode>,
    pub switch: Namespace,
}

/// The node of a number as everybody knows it.
pub fn node(number: u8, underlay: &[&str]) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: format!("n{number}").parse().unwrap() };
    Node {
        underlay: underlay.iter().map(|a| format!("{a}{number}").parse().unwrap()).collect(),
        vtep_mac: Node::derived_vtep_mac(&id),
        pod_prefixes: vec![
            format!("10.70.{number}.0/24").parse().unwrap(),
            format!("fd70:0:0:{number}::/64").parse().unwrap(),
        ],
        id,
    }
}

pub const UNDERLAY: [&str; 2] = ["192.0.2.", "2001:db8::"];

pub fn settings(node: Node, tunnel: TunnelOwner) -> Settings {
    let tunnel_address = node.underlay[0];
    Settings {
        overlay: Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
        uplink: causeway_model::UplinkKind::HostRouted,
        pod_mtu: if tunnel_address.is_ipv4() { 1450 } else { 1430 },
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: NameServer::default(),
        tunnel_address,
        node,
        tunnel,
    }
}

impl Lab {
    /// So many nodes that know each other; the first prefix of an address is the tunnel's.
    pub fn new(count: u8, underlay: &[&str]) -> Self {
        let mut lab = Self::bare(count, underlay);
        for index in 0..lab.nodes.len() {
            lab.nodes[index].apply_whole();
        }
        lab
    }

    /// The same, with nothing applied yet.
    pub fn bare(count: u8, underlay: &[&str]) -> Self {
        let switch = Namespace::new("switch");
        switch.run("ip link add br0 type bridge");
        switch.run("ip link set br0 up");
        let all: Vec<Node> = (1..=count).map(|number| node(number, underlay)).collect();
        let nodes = all.iter().map(|own| LabNode::new(own, &all, &switch)).collect();
        Self { nodes, switch }
    }

    pub fn add_pod(&mut self, node: usize) -> LabPod {
        self.nodes[node].add_pod()
    }
}

impl LabNode {
    fn new(own: &Node, all: &[Node], switch: &Namespace) -> Self {
        let number = own.id.name.as_str()[1..].parse().unwrap();
        let ns = Namespace::new(&format!("n{number}"));
        switch.run(&format!("ip link add p{number} type veth peer name eth0 netns {}", ns.name));
        switch.run(&format!("ip link set p{number} master br0 up"));
        for address in &own.underlay {
            let options = if address.is_ipv4() { "" } else { "nodad" };
            let length = if address.is_ipv4() { 24 } else { 64 };
            ns.run(&format!("ip addr add {address}/{length} dev eth0 {options}"));
        }
        // No address that comes up a second later, in the middle of a comparison.
        ns.run("ip link set eth0 addrgenmode none up");
        let mut snapshot = Snapshot::new(settings(own.clone(), TunnelOwner::Kernel));
        let peers = all.iter().filter(|peer| peer.id != own.id).cloned();
        snapshot.peers = peers.map(|peer| (peer.id.clone(), peer)).collect();
        let state = tempfile::tempdir().unwrap();
        let options = KernelOptions { state: state.path().join("sysctls.json"), mask_reserved_bits: false };
        let dataplane = ns.inside(|| KernelDataplane::new(options)).unwrap();
        Self { ns, dataplane, snapshot, state, number, pods: 0 }
    }

    /// A data path that has just been started, and knows nothing of the one before.
    pub fn restart(&mut self) {
        self.start(false);
    }

    /// The same, on a kernel that seems to know less.
    pub fn restart_masked(&mut self) {
        self.start(true);
    }

    fn start(&mut self, mask_reserved_bits: bool) {
        let options = KernelOptions { state: self.state.path().join("sysctls.json"), mask_reserved_bits };
        self.dataplane = self.ns.inside(|| KernelDataplane::new(options)).unwrap();
    }

    pub fn on<T: Send>(&mut self, function: impl FnOnce(&mut KernelDataplane) -> T + Send) -> T {
        let dataplane = &mut self.dataplane;
        self.ns.inside(|| function(dataplane))
    }

    pub fn apply_whole(&mut self) {
        let snapshot = self.snapshot.clone();
        self.on(|dataplane| dataplane.apply(Update::Whole(&snapshot))).unwrap();
    }

    pub fn apply(&mut self, delta: Delta) {
        self.snapshot.apply(delta.clone());
        self.on(|dataplane| dataplane.apply(Update::Changes(&[delta]))).unwrap();
    }

    pub fn mend(&mut self) -> Vec<String> {
        self.on(Dataplane::mend).unwrap()
    }

    /// An endpoint of this node that nothing knows yet.
    pub fn new_endpoint(&mut self) -> Endpoint {
        self.pods += 1;
        let (node, host) = (self.number, self.pods + 2);
        Endpoint {
            key: EndpointKey {
                network: "pods".into(),
                container: format!("c{node}-{host}"),
                interface: "eth0".into(),
            },
            pod: None,
            addresses: vec![
                format!("10.70.{node}.{host}").parse().unwrap(),
                format!("fd70:0:0:{node}::{host:x}").parse().unwrap(),
            ],
            mac: MacAddr([2, 0xca, 0x5e, 1, node, host]),
            mtu: self.snapshot.settings.pod_mtu,
            labels: BTreeMap::new(),
            identity: Identity(Identity::FIRST_INTERNED),
            path: Path::Kernel,
            routes: None,
            path_reason: "the lab says so".into(),
            port: PortKind::Veth,
            port_mappings: Vec::new(),
            bandwidth: Default::default(),
            deny_new: false,
            policy: Default::default(),
        }
    }

    pub fn add_pod(&mut self) -> LabPod {
        let endpoint = self.new_endpoint();
        let ns = Namespace::new("pod");
        self.plug(&endpoint, &ns);
        LabPod { ns, endpoint }
    }

    /// Adds an endpoint as the agent does.
    pub fn plug(&mut self, endpoint: &Endpoint, ns: &Namespace) {
        self.apply(Delta::Endpoint(Box::new(endpoint.clone())));
        let file = ns.open();
        self.on(|dataplane| dataplane.attach(endpoint, file.as_fd())).unwrap();
        let metadata = file.metadata().unwrap();
        self.dataplane.remember_netns(&endpoint.key, &ns.path(), metadata.dev(), metadata.ino());
    }

    pub fn unplug(&mut self, endpoint: &Endpoint) {
        self.on(|dataplane| dataplane.detach(&endpoint.key)).unwrap();
        self.apply(Delta::EndpointGone(endpoint.key.clone()));
    }

    pub fn underlay(&self, family: usize) -> IpAddr {
        self.snapshot.settings.node.underlay[family]
    }

    pub fn overlay(&self, family: causeway_model::Family) -> IpAddr {
        self.snapshot.settings.node.overlay_host_address(family).unwrap()
    }
}
