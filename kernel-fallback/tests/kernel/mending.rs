//! Whatever another hand changes is put right, nothing that is right is touched, and in the end nothing is left.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use causeway_kernel_fallback::watch::{Watcher, Woken};
use causeway_kernel_fallback::{KernelDataplane, pod};
use causeway_model::{Dataplane, DataplaneError, Delta, Path, PortKind, TunnelOwner};
use std::os::fd::AsFd;

use crate::lab::{Lab, LabNode, LabPod, Namespace, UNDERLAY, ruleset, settings};

/// Everything of a namespace that could be left behind.
fn picture(ns: &Namespace) -> Vec<String> {
    // What was taken out of use has a second to go.
    for _ in 0..50 {
        if !ns.run("ip -br link").contains("cwx") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut picture: Vec<String> = [
        "ip -d link show",
        "ip address show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip rule",
        "ip -6 rule",
        "ip neigh show nud permanent",
        "bridge fdb show",
        "sysctl -a --pattern '^net.ipv[46].(conf|ip_forward)'",
    ]
    .iter()
    .flat_map(|command| {
        let said = ns.run(&format!("{command} 2>/dev/null"));
        said.lines().map(|line| format!("{command}: {}", line.trim())).collect::<Vec<_>>()
    })
    .chain(ruleset(ns).into_iter().map(|line| format!("nft: {line}")))
    // Lifetimes and a counter of the kernel's own tick between two looks.
    .filter(|line| !line.contains("valid_lft") && !line.contains("stable_secret"))
    .collect();
    picture.sort();
    picture
}

fn assert_same(before: &[String], after: &[String]) {
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
}

/// Listens to what changes in a namespace until it is asked.
struct Monitor(Vec<Child>);

impl Monitor {
    fn new(ns: &Namespace) -> Self {
        let listen = |command: &str| {
            let mut child = Command::new("timeout");
            child.args(["20", "ip", "netns", "exec", &ns.name]).args(command.split(' '));
            child.stdout(Stdio::piped()).spawn().unwrap()
        };
        let monitor =
            Self(vec![listen("ip monitor link address route neigh rule netconf"), listen("nft monitor")]);
        std::thread::sleep(Duration::from_millis(300));
        monitor
    }

    fn heard(self) -> String {
        std::thread::sleep(Duration::from_millis(200));
        let heard = self.0.into_iter().map(|mut child| {
            // `timeout` hands its own end on to what it runs; a kill would not be handed on.
            let end = Command::new("kill").arg(child.id().to_string()).status();
            assert!(end.is_ok_and(|status| status.success()));
            let mut said = String::new();
            std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
            let _ = child.wait();
            said
        });
        heard.collect()
    }
}

#[test]
fn what_is_right_is_not_touched() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    assert!(a.ns.ping(b.v4(), ""));
    let node = &mut lab.nodes[0];
    let monitor = Monitor::new(&node.ns);
    node.apply_whole();
    assert_eq!(node.mend(), Vec::<String>::new());
    node.apply(Delta::Endpoint(Box::new(a.endpoint.clone())));
    let heard = monitor.heard();
    // The kernel's own neighbours on the uplink come and go.
    let heard: Vec<_> = heard.lines().filter(|line| !line.contains("dev eth0")).collect();
    assert!(heard.is_empty(), "{heard:#?}");
}

#[test]
fn a_new_agent_touches_nothing_but_its_table() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let _pods = (lab.add_pod(0), lab.add_pod(1));
    let node = &mut lab.nodes[0];
    let before = picture(&node.ns);
    let monitor = Monitor::new(&node.ns);
    node.restart();
    assert_eq!(node.mend(), Vec::<String>::new(), "what it knows nothing of is not wrong");
    node.apply_whole();
    let heard = monitor.heard();
    let heard: Vec<_> =
        heard.lines().filter(|line| line.contains("cw-vxlan") || line.contains("dev cwp")).collect();
    assert!(heard.is_empty(), "{heard:#?}");
    assert_same(&before, &picture(&node.ns));
}

/// What another hand may do to a node, as a command; `POD` stands for the pod's link.
const TAMPERING: [&str; 33] = [
    "ip link del cw-vxlan",
    "ip link set cw-vxlan down",
    "ip link set cw-vxlan address 02:00:00:00:00:77",
    "ip link set cw-vxlan mtu 1000",
    "ip link set cw-vxlan type vxlan ttl 3",
    "ip addr del 10.70.1.1/32 dev cw-vxlan",
    "ip addr add 10.99.0.1/32 dev cw-vxlan",
    "ip -6 addr flush dev cw-vxlan",
    "ip route del 10.70.2.0/24",
    "ip -6 route del fd70:0:0:2::/64",
    "ip route del unreachable 10.70.1.0/24 metric 51717",
    "ip route flush table 51717",
    "ip route add 10.98.0.0/24 dev cw-vxlan proto 202",
    "ip neigh del 10.70.2.1 dev cw-vxlan",
    "ip neigh replace 10.70.2.1 lladdr 02:00:00:00:00:66 dev cw-vxlan nud permanent",
    "bridge fdb del MAC dev cw-vxlan dst 192.0.2.2",
    "bridge fdb replace MAC dev cw-vxlan dst 192.0.2.77",
    "ip rule del priority 5170",
    "ip -6 rule del priority 5170",
    "sysctl -w net.ipv4.ip_forward=0",
    "sysctl -w net.ipv4.conf.cw-vxlan.rp_filter=1",
    "nft delete table inet causeway",
    "nft flush ruleset",
    "nft add element inet causeway pod_addresses4 { POD . 10.70.1.99 }",
    "nft flush set inet causeway inner4",
    "nft flush chain inet causeway from_pod",
    "nft delete table inet causeway-policy",
    "nft flush chain inet causeway-policy judge_ingress4",
    "nft insert rule inet causeway-policy forward accept",
    "nft add element inet causeway-policy peers4 { 10.70.1.99 : 0x00010000 }",
    "ip link set POD down",
    "ip link set POD address 02:00:00:00:00:55",
    "ip link del POD",
];

#[test]
fn whatever_another_hand_does_is_mended() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let mac = lab.nodes[1].snapshot.settings.node.vtep_mac.to_string();
    let link = a.endpoint.key.link_name();
    let node = &mut lab.nodes[0];
    let before = stable(&node.ns);
    for tampering in TAMPERING {
        let command = tampering.replace("POD", link.as_str()).replace("MAC", &mac);
        node.ns.run(&command.replace('{', "'{").replace('}', "}'"));
        assert_ne!(before, stable(&node.ns), "{command} does something");
        let mended = node.mend();
        assert!(!mended.is_empty(), "{command}");
        assert_same(&before, &stable(&node.ns));
        assert!(a.ns.ping(b.v4(), "") && a.ns.ping(b.v6(), ""), "{command}: {mended:?}");
        assert_eq!(node.mend(), Vec::<String>::new(), "{command}");
    }
}

#[test]
fn an_uplink_that_was_down_carries_the_tunnel_again() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let node = &mut lab.nodes[0];
    node.ns.run("ip link set eth0 down");
    node.mend();
    assert!(!a.ns.ping(b.v4(), ""));
    node.ns.run("ip link set eth0 up");
    assert_eq!(node.mend(), Vec::<String>::new(), "nothing of ours hangs on the uplink");
    assert!(a.ns.ping(b.v4(), "") && a.ns.ping(b.v6(), ""));
}

/// A picture without the numbers that the kernel gives anew to what is made anew.
fn stable(ns: &Namespace) -> Vec<String> {
    let numbered = |word: &&str| !word.ends_with(':') || word.parse::<u32>().is_err();
    let picture =
        picture(ns).into_iter().filter(|line| !line.contains("ip -d link show") || !line.contains("link/"));
    let strip = |line: String| {
        let line = line.split_once("show: ").map_or(line.clone(), |(command, rest)| {
            let rest = rest
                .split_once(": ")
                .filter(|(n, _)| n.parse::<u32>().is_ok())
                .map_or(rest, |(_, rest)| rest);
            format!("{command}: {rest}")
        });
        // A link counts its peer by number, and a pod that comes again has another one.
        line.split(' ').filter(numbered).filter(|word| !word.contains("@if")).collect::<Vec<_>>().join(" ")
    };
    let mut picture: Vec<String> = picture.map(strip).collect();
    picture.sort();
    picture
}

#[test]
fn a_pods_inside_is_checked_and_configured_again() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let a = lab.add_pod(0);
    let check = |pod: &LabPod| pod::check(pod.ns.open().as_fd(), "eth0", &pod.endpoint).unwrap();
    assert_eq!(check(&a), Vec::<String>::new());
    for tampering in [
        "ip route del default",
        "ip -6 route del default",
        "ip addr flush dev eth0",
        "ip link set eth0 down",
        "ip link set eth0 mtu 1400",
        "ip link set eth0 address 02:00:00:00:00:44",
        "ip neigh del 169.254.1.1 dev eth0",
    ] {
        a.ns.run(tampering);
        assert!(!check(&a).is_empty(), "{tampering}");
        pod::configure(a.ns.open().as_fd(), "eth0", &a.endpoint).unwrap();
        // What one step undoes of another (a new hardware address forgets neighbours) is right after the second.
        pod::configure(a.ns.open().as_fd(), "eth0", &a.endpoint).unwrap();
        assert_eq!(check(&a), Vec::<String>::new(), "{tampering}");
    }
    assert!(a.ns.ping(lab.nodes[0].underlay(0), ""));
}

#[test]
fn everything_of_ours_can_be_taken_away() {
    for record in [true, false] {
        let mut lab = Lab::bare(2, &UNDERLAY);
        lab.nodes[0].ns.run("sysctl -w net.ipv4.conf.all.accept_redirects=0");
        lab.nodes[0].ns.run("sysctl -w net.ipv6.conf.eth0.accept_ra=1");
        lab.nodes[0].ns.run("sysctl -w net.ipv4.conf.eth0.forwarding=1");
        let before = picture(&lab.nodes[0].ns);
        lab.nodes[0].apply_whole();
        let a = lab.add_pod(0);
        let accepts = lab.nodes[0].ns.run("sysctl -n net.ipv6.conf.eth0.accept_ra");
        assert_eq!(accepts.trim(), "2", "a node that forwards still hears its routers");
        lab.nodes[0].ns.run("nft add table netdev causeway");
        assert_ne!(before, picture(&lab.nodes[0].ns));
        let state = lab.nodes[0].state.path().join("sysctls.json");
        let kept = std::fs::read(&state).unwrap();
        if !record {
            // Every object goes without any record; only what settings were is not known then.
            std::fs::remove_file(&state).unwrap();
        }
        lab.nodes[0].ns.inside(|| KernelDataplane::remove_all(&state)).unwrap();
        if !record {
            std::fs::write(&state, kept).unwrap();
            lab.nodes[0].ns.inside(|| KernelDataplane::remove_all(&state)).unwrap();
        }
        assert_same(&before, &picture(&lab.nodes[0].ns));
        assert!(!state.exists());
        assert!(!a.ns.succeeds("ip link show eth0"), "the pod's end goes with the node's");
        lab.nodes[0].ns.inside(|| KernelDataplane::remove_all(&state)).unwrap();
    }
}

fn attach(node: &mut LabNode, pod: &LabPod) -> Result<(), DataplaneError> {
    let file = pod.ns.open();
    node.on(|dataplane| dataplane.attach(&pod.endpoint, file.as_fd()))
}

#[test]
fn a_taken_interface_name_is_refused_and_nothing_left() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let node = &mut lab.nodes[0];
    let pod = LabPod { ns: Namespace::new("taken"), endpoint: node.new_endpoint() };
    pod.ns.run("ip link add eth0 type veth peer name other");
    node.apply(Delta::Endpoint(Box::new(pod.endpoint.clone())));
    let before = picture(&node.ns);
    match attach(node, &pod) {
        Err(DataplaneError::Refused(text)) => assert!(text.contains("eth0"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_same(&before, &picture(&node.ns));
    pod.ns.run("ip link del eth0");
    attach(node, &pod).unwrap();
    assert!(node.ns.ping(pod.v4(), ""));
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let node = &mut lab.nodes[0];
    let mut pod = LabPod { ns: Namespace::new("bad"), endpoint: node.new_endpoint() };
    // A multicast hardware address is none that an interface can have.
    pod.endpoint.mac.0[0] = 3;
    node.apply(Delta::Endpoint(Box::new(pod.endpoint.clone())));
    let before = picture(&node.ns);
    attach(node, &pod).unwrap_err();
    assert_same(&before, &picture(&node.ns));
    assert!(!pod.ns.succeeds("ip link show eth0"));
}

#[test]
fn detaching_is_idempotent_and_needs_no_namespace() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let LabPod { ns, endpoint } = lab.add_pod(0);
    let node = &mut lab.nodes[0];
    drop(ns);
    for _ in 0..2 {
        node.on(|dataplane| dataplane.detach(&endpoint.key)).unwrap();
        assert!(!node.ns.succeeds(&format!("ip link show {}", endpoint.key.link_name())));
    }
    assert_eq!(node.mend(), Vec::<String>::new(), "a pod that has gone is not missed");
}

#[test]
fn on_a_fast_node_everything_goes_through_the_host_port() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let a = lab.add_pod(0);
    let node = &mut lab.nodes[0];
    let fast = settings(node.snapshot.settings.node.clone(), TunnelOwner::FastPath);
    node.apply(Delta::Settings(Box::new(fast)));
    assert!(!node.ns.succeeds("ip link show cw-vxlan"));
    assert!(node.ns.ping(a.v4(), ""), "a kernel pod needs no host port to talk to its node");
    let mut tap_pod = node.new_endpoint();
    (tap_pod.path, tap_pod.port) = (Path::Fast, PortKind::Tap);
    node.apply(Delta::Endpoint(Box::new(tap_pod.clone())));
    // The host port comes later, as a TAP would.
    node.ns.run("ip link add cw-host type veth peer name far");
    assert!(!node.mend().is_empty());
    for to in [tap_pod.addresses[0].to_string(), "10.70.2.9".into(), "fd70:0:0:2::9".into()] {
        let route = node.ns.run(&format!("ip route get {to}"));
        assert!(
            route.contains("dev cw-host")
                && route.contains(if to.contains(':') { "src fd70:0:0:1::1" } else { "src 10.70.1.1" }),
            "{route}"
        );
    }
    let to_node =
        node.ns.run(&format!("ip route get 192.0.2.2 from {} iif {}", a.v4(), a.endpoint.key.link_name()));
    assert!(to_node.contains("dev cw-host"), "{to_node}");
    assert!(
        node.ns.run("ip route get 192.0.2.2").contains("dev eth0"),
        "the node's own traffic stays outside"
    );
    assert_eq!(node.mend(), Vec::<String>::new());
    let back = settings(node.snapshot.settings.node.clone(), TunnelOwner::Kernel);
    node.apply(Delta::Settings(Box::new(back)));
    assert!(node.ns.succeeds("ip link show cw-vxlan"));
}

#[test]
fn a_change_that_fails_leaves_the_old_state_in_force() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let node = &mut lab.nodes[0];
    // Somebody else's device has the identifier that ours shall have.
    node.ns.run("ip link add taken type vxlan id 99 dstport 4789 local 192.0.2.1");
    let mut settings = node.snapshot.settings.clone();
    settings.overlay.vni = 99.try_into().unwrap();
    let delta = Delta::Settings(Box::new(settings));
    match node.on(|dataplane| dataplane.apply(causeway_model::Update::Changes(&[delta]))) {
        Err(DataplaneError::Refused(text)) => {
            assert!(text.contains("99") && text.contains("taken"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(a.ns.ping(b.v4(), ""), "the old tunnel is there again");
}

#[test]
fn the_watcher_hears_what_concerns_us_and_nothing_else() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let a = lab.add_pod(0);
    let node = &mut lab.nodes[0];
    let watcher = node.ns.inside(Watcher::new).unwrap();
    // Making the lab is heard as well, on a busy machine for a while.
    let quiet = || node.ns.inside(|| watcher.wait(Duration::from_millis(300))).unwrap() == Woken::TimedOut;
    assert!((0..50).any(|_| quiet()), "it is never quiet");
    node.ns.run("ip route add 198.51.100.0/24 via 192.0.2.9");
    node.ns.run("ip neigh add 192.0.2.50 lladdr 02:00:00:00:00:01 dev eth0");
    node.ns.run("ip link add other type veth peer name other2");
    assert_eq!(node.ns.inside(|| watcher.wait(Duration::from_millis(300))).unwrap(), Woken::TimedOut);
    let link = a.endpoint.key.link_name();
    for tampering in [
        "ip link set cw-vxlan down".to_owned(),
        "ip addr add 10.99.0.1/32 dev cw-vxlan".into(),
        "ip route del 10.70.1.3/32".into(),
        format!("ip neigh del {} dev {link}", a.v4()),
        "ip rule del priority 5170".into(),
        "nft add table inet somebody".into(),
        "sysctl -w net.ipv4.ip_forward=0".into(),
        format!("ip link del {link}"),
    ] {
        node.ns.run(&tampering);
        let woken = node.ns.inside(|| watcher.wait(Duration::from_secs(2))).unwrap();
        assert_eq!(woken, Woken::Changed, "{tampering}");
    }
    let stop = watcher.stop();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| watcher.wait(Duration::from_secs(20)));
        stop.stop();
        assert_eq!(waiting.join().unwrap().unwrap(), Woken::Stopped);
    });
}
