//! What a runtime asks for beyond an attachment: ports of the node, bandwidth, and the plugins before and after ours.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use causeway_model::plugin::Failure;
use causeway_model::{Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, MacAddr};
use causeway_tests::command;
use causeway_tests::lab::{Binaries, Datapath, Lab, LabError, Node, Pod, PodSpec, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::namespace::Namespace;
use causeway_tests::traffic::{
    Answered, Responder, SctpEnd, UdpQuestioner, ask_tcp, ask_udp, associate, throughput,
};
use serde_json::{Value, json};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    (
        "a_port_of_the_node_leads_to_its_pod_from_everywhere",
        a_port_of_the_node_leads_to_its_pod_from_everywhere,
    ),
    ("a_port_of_sctp_leads_to_its_pod", a_port_of_sctp_leads_to_its_pod),
    (
        "a_port_at_one_address_answers_there_and_nowhere_else",
        a_port_at_one_address_answers_there_and_nowhere_else,
    ),
    ("a_port_that_is_held_is_refused_with_its_holder", a_port_that_is_held_is_refused_with_its_holder),
    ("a_udp_flow_follows_its_port_to_the_next_pod", a_udp_flow_follows_its_port_to_the_next_pod),
    ("ports_outlive_agents_and_tampering", ports_outlive_agents_and_tampering),
    ("no_pod_reaches_the_loopback_of_its_node", no_pod_reaches_the_loopback_of_its_node),
    ("a_pod_is_as_fast_as_its_limits_and_leaves_nothing", a_pod_is_as_fast_as_its_limits_and_leaves_nothing),
    ("plugins_before_and_after_ours_do_their_work", plugins_before_and_after_ours_do_their_work),
];

/// What pods listen at.
const INSIDE: u16 = 80;

/// A mapping as containerd writes it.
fn mapping(host_ip: &str, host_port: u16, protocol: &str) -> Value {
    json!({"HostPort": host_port, "ContainerPort": INSIDE, "Protocol": protocol, "HostIP": host_ip})
}

/// A port of TCP and UDP at all addresses, beside one that is mapped to none.
pub(super) fn mapped(name: &str, host_port: u16) -> PodSpec {
    let none = json!({"ContainerPort": 9, "Protocol": "tcp"});
    let mappings = json!([mapping("", host_port, "tcp"), mapping("", host_port, "udp"), none]);
    PodSpec::named(name).capability("portMappings", mappings)
}

/// A pod with a port of its node, and its server.
fn serve(lab: &Lab, node: &str, spec: PodSpec) -> anyhow::Result<(Pod, Responder)> {
    let pod = lab.add_pod(node, spec)?;
    let server = Responder::start(pod.namespace(), INSIDE, pod.name())?;
    Ok((pod, server))
}

/// Asks over TCP and UDP; both must be answered by the pod, to a sender for whom the test holds.
fn assert_answers(
    what: &str,
    from: &Namespace,
    target: SocketAddr,
    pod: &str,
    sender: impl Fn(IpAddr) -> bool,
) -> anyhow::Result<()> {
    for (protocol, ask) in [("TCP", ask_tcp as fn(&Namespace, SocketAddr) -> _), ("UDP", ask_udp)] {
        let Answered { by, to } =
            ask(from, target).with_context(|| format!("{what}, {protocol} to {target}"))?;
        ensure!(by == pod, "{what}, {protocol} to {target}: {by} answers instead of {pod}");
        ensure!(sender(to), "{what}, {protocol} to {target}: {pod} sees {to}");
    }
    Ok(())
}

/// A host on the wire that is no node: another address of a node, from which it speaks to the other.
pub(super) fn outsider(from: &Node, to: &Node) -> anyhow::Result<[IpAddr; 2]> {
    let addresses = ["192.0.2.201", "2001:db8::c9"];
    for (address, length, family) in [(addresses[0], 24, Family::V4), (addresses[1], 64, Family::V6)] {
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        from.exec(&format!("ip addr add {address}/{length} dev eth0{nodad}"))?;
        let to = to.address(family);
        from.exec(&format!("ip route replace {to} dev eth0 src {address}"))?;
    }
    Ok([addresses[0].parse()?, addresses[1].parse()?])
}

fn a_port_of_the_node_leads_to_its_pod_from_everywhere(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    // In a mixed lab the one is fast and the other the kernel's.
    let served = [serve(&lab, "n1", mapped("web", 8080))?, serve(&lab, "n1", mapped("api", 8081))?];
    let (near, far) = (lab.add_pod("n1", "near")?, lab.add_pod("n2", "far")?);
    let unmap = "nft flush map inet causeway ports4";
    matrix.sabotage("port-unmapped", || super::hosts::freeze(&lab, "n1", unmap)).transpose()?;
    for ((pod, _), port) in served.iter().zip([8080, 8081]) {
        for family in Family::BOTH {
            let target = SocketAddr::new(n1.address(family), port);
            let name = pod.name();
            let any = |_| true;
            assert_answers("another node", n2.namespace(), target, name, any)?;
            assert_answers("the node itself", n1.namespace(), target, name, any)?;
            let host = n1.overlay_host_address(family);
            assert_answers("a pod of the node", near.namespace(), target, name, any)?;
            assert_answers("a pod of another node", far.namespace(), target, name, any)?;
            // Whoever translates: the fast path shows it its gateway, the kernel its node.
            let gateway: IpAddr = if family == Family::V4 { GATEWAY_V4.into() } else { GATEWAY_V6.into() };
            let itself = |seen: IpAddr| seen == host || seen == gateway;
            assert_answers("the pod itself", pod.namespace(), target, name, itself)?;
        }
    }
    for ((pod, _), port) in served.iter().zip([8080, 8081]) {
        // Over IPv6 no packet leaves a node with its loopback's address.
        let (target, host) = (SocketAddr::from(([127, 0, 0, 1], port)), n1.overlay_host_address(Family::V4));
        assert_answers("the node's loopback", n1.namespace(), target, pod.name(), |seen| seen == host)?;
    }
    let addresses = outsider(&n2, &n1)?;
    for ((pod, _), port) in served.iter().zip([8080, 8081]) {
        for (family, address) in Family::BOTH.into_iter().zip(addresses) {
            // Nobody stands between: the pod sees who asks.
            let target = SocketAddr::new(n1.address(family), port);
            assert_answers("a host on the wire", n2.namespace(), target, pod.name(), |seen| seen == address)?;
        }
    }
    Ok(())
}

fn a_port_of_sctp_leads_to_its_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let mapped = |name: &str, port| {
        PodSpec::named(name).capability("portMappings", json!([mapping("", port, "sctp")]))
    };
    // In a mixed lab the one is fast and the other the kernel's.
    let served =
        [(lab.add_pod("n1", mapped("web", 9080))?, 9080), (lab.add_pod("n1", mapped("api", 9081))?, 9081)];
    let near = lab.add_pod("n1", "near")?;
    let outside = outsider(&n2, &n1)?;
    let mac = |place: &Namespace| Ok::<_, anyhow::Error>(MacAddr(super::spoof::mac(place, "eth0")?));
    let of_pod = |pod: &Pod, address, port| -> anyhow::Result<SctpEnd> {
        let macs = (mac(pod.namespace())?, GATEWAY_MAC);
        Ok(SctpEnd::open(pod.namespace(), "eth0", macs, SocketAddr::new(address, port))?)
    };
    for (pod, port) in &served {
        for (family, address) in Family::BOTH.into_iter().zip(outside) {
            let server = of_pod(pod, pod.address(family), INSIDE)?;
            let macs = (mac(n2.namespace())?, mac(n1.namespace())?);
            let who = SocketAddr::new(address, 40_000 + port);
            let client = SctpEnd::open(n2.namespace(), "eth0", macs, who)?;
            let target = SocketAddr::new(n1.address(family), *port);
            let what = format!("from outside to {} over {family}", pod.name());
            let seen = associate(&client, &server, target).with_context(|| what.clone())?;
            ensure!(seen.ip() == address, "{what}: the pod sees {seen}");
            let client = of_pod(&near, near.address(family), 41_000 + port)?;
            associate(&client, &server, target)
                .with_context(|| format!("from a pod to {}, {family}", pod.name()))?;
        }
    }
    Ok(())
}

fn a_port_at_one_address_answers_there_and_nowhere_else(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let [v4, v6] = Family::BOTH.map(|family| n1.address(family));
    let mappings = json!([
        mapping(&v4.to_string(), 7001, "tcp"),
        mapping("::", 7002, "tcp"),
        mapping("127.0.0.1", 7003, "tcp"),
        mapping(&v6.to_string(), 7004, "udp"),
    ]);
    let (pod, _server) = serve(&lab, "n1", PodSpec::named("web").capability("portMappings", mappings))?;
    let answered = |from: &Namespace, address: IpAddr, port: u16| {
        let target = SocketAddr::new(address, port);
        let answer = if port == 7004 { ask_udp(from, target) } else { ask_tcp(from, target) };
        answer.is_ok_and(|answer| answer.by == pod.name())
    };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    for (from, address, port, expected) in [
        (&n2, v4, 7001, true),
        (&n2, v6, 7001, false),
        (&n1, loopback, 7001, false),
        (&n2, v6, 7002, true),
        (&n2, v4, 7002, false),
        (&n1, loopback, 7003, true),
        (&n2, v4, 7003, false),
        (&n2, v6, 7004, true),
        (&n2, v4, 7004, false),
    ] {
        let answers = answered(from.namespace(), address, port);
        ensure!(answers == expected, "{} to {address} port {port}: answered {answers}", from.name());
    }
    Ok(())
}

/// The code and words of a refused ADD.
fn refused(added: Result<Pod, LabError>) -> anyhow::Result<Failure> {
    match added {
        Err(LabError::Cni { failure, .. }) => Ok(failure),
        Err(other) => Err(other.into()),
        Ok(pod) => bail!("{} was added", pod.name()),
    }
}

fn a_port_that_is_held_is_refused_with_its_holder(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let (first, _server) = serve(&lab, "n1", mapped("first", 8080))?;
    let before = Holdings::of(n1.namespace())?;
    let failure = refused(lab.add_pod("n1", mapped("second", 8080)))?;
    ensure!(failure.code == Failure::HOST_PORT_TAKEN, "{failure:?}");
    let holder = first.key().to_string();
    ensure!(failure.msg.contains(&holder) && failure.msg.contains("8080/tcp"), "{failure:?}");
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "of the refused pod {left}");
    let icmp = PodSpec::named("icmp").capability("portMappings", json!([mapping("", 8082, "icmp")]));
    let failure = refused(lab.add_pod("n1", icmp))?;
    ensure!(failure.code == Failure::INVALID_CONFIG && failure.msg.contains("icmp"), "{failure:?}");
    lab.del_pod("first")?;
    let (_, _server) = serve(&lab, "n1", mapped("third", 8080))?;
    assert_answers("the node", n1.namespace(), SocketAddr::new(n1.address(Family::V4), 8080), "third", |_| {
        true
    })
}

fn a_udp_flow_follows_its_port_to_the_next_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let (before, patience) = (Holdings::of(n1.namespace())?, Duration::from_secs(5));
    for family in Family::BOTH {
        // One flow with the same ports throughout, that never pauses long enough to be forgotten by age.
        let flow = UdpQuestioner::open(n2.namespace(), SocketAddr::new(n1.address(family), 5353))?;
        let answered_by = |name: &str| within(patience, || flow.ask().is_ok_and(|answer| answer.by == name));
        ensure!(flow.ask().is_err(), "an answer before there is anybody");
        for name in ["one", "two"] {
            let (_pod, server) = serve(&lab, "n1", mapped(name, 5353))?;
            ensure!(answered_by(name), "the flow over {family} does not reach pod {name}");
            drop(server);
            lab.del_pod(name)?;
            ensure!(flow.ask().is_err(), "{name} is gone and answers");
        }
    }
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

fn ports_outlive_agents_and_tampering(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let (_pod, _server) = serve(&lab, "n1", mapped("web", 8080))?;
    let target = SocketAddr::new(n1.address(Family::V4), 8080);
    let answers = |what: &str| assert_answers(what, n2.namespace(), target, "web", |_| true);
    answers("at first")?;
    let before = Holdings::of(n1.namespace())?;
    lab.kill("n1", Role::Agent)?;
    answers("with the agent dead")?;
    lab.start("n1", Role::Agent)?;
    answers("after a restart")?;
    let changed = Holdings::of(n1.namespace())?.since(&before);
    ensure!(changed == Leftovers::NONE, "a restart is a change: {changed}");
    let held = refused(lab.add_pod("n1", mapped("second", 8080)))?;
    ensure!(held.code == Failure::HOST_PORT_TAKEN, "after a restart: {held:?}");
    for harm in [
        "nft flush map inet causeway ports4",
        "nft flush chain inet causeway ports",
        "nft delete table inet causeway",
    ] {
        n1.exec(harm)?;
        let mended = within(Duration::from_secs(10), || answers(harm).is_ok());
        ensure!(mended, "not mended: {harm}: {:?}", answers(harm));
    }
    Ok(())
}

fn no_pod_reaches_the_loopback_of_its_node(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    // Its own mapping is what lets packets of 127.0.0.0/8 through its link at all.
    let pods = [serve(&lab, "n1", mapped("web", 8080))?, serve(&lab, "n1", mapped("api", 8081))?];
    let secret = Responder::start(n1.namespace(), 9999, "n1")?;
    let target: SocketAddr = "127.0.0.1:9999".parse()?;
    ensure!(ask_udp(n1.namespace(), target).is_ok(), "the node does not reach itself");
    for (pod, _) in &pods {
        // A pod with a free hand sends to 127.0.0.1 by its gateway.
        pod.exec("ip link set lo down")?;
        pod.namespace().sysctl("net/ipv4/conf/all/route_localnet", "1")?;
        pod.exec("ip route replace table 9 default via 169.254.1.1 dev eth0 onlink")?;
        pod.exec("ip rule del pref 0")?;
        pod.exec("ip rule add pref 1 to 127.0.0.1 lookup 9")?;
        pod.exec("ip rule add pref 2 lookup local")?;
        let before = n1.drops(causeway_model::DropReason::NoRoute)?;
        let answer = ask_udp(pod.namespace(), target);
        ensure!(answer.is_err(), "{} reaches its node's loopback: {answer:?}", pod.name());
        let counted = within(Duration::from_secs(3), || {
            n1.drops(causeway_model::DropReason::NoRoute).is_ok_and(|now| now > before)
        });
        ensure!(counted, "{}: nothing was sent, or nothing was counted", pod.name());
    }
    drop(secret);
    Ok(())
}

/// Bits a second, and as many as pass in three tenths of one: what is dropped on the fast path must not outlast TCP's patience.
const RATE: u64 = 80_000_000;
const BURST: u64 = RATE / 10 * 3;

fn a_pod_is_as_fast_as_its_limits_and_leaves_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, far) = (lab.node("n1")?, lab.add_pod("n2", "far")?);
    let before = Holdings::of(n1.namespace())?;
    let limits =
        json!({"ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE / 2, "egressBurst": BURST / 2});
    // In a mixed lab the one is fast and the other the kernel's.
    for name in ["first", "second"] {
        let pod = lab.add_pod("n1", PodSpec::named(name).capability("bandwidth", limits.clone()))?;
        matrix.sabotage("limit-missing", || unlimit(&lab, &pod)).transpose()?;
        // A full segment's share of payload in its frame, with timestamps.
        let payload = (1450.0 - 52.0) / (1450.0 + 14.0);
        for (what, from, to, rate) in [("to", &far, &pod, RATE), ("from", &pod, &far, RATE / 2)] {
            let address = to.address(Family::V4);
            let span = Duration::from_secs(if matrix.full { 20 } else { 8 });
            let measured = throughput(from.namespace(), to.namespace(), address, 1, span)?;
            let share = measured / (rate as f64 * payload);
            ensure!(
                (0.95..=1.05).contains(&share),
                "{what} pod {name}: {measured:.0} bit/s are {share:.3} of its limit"
            );
        }
    }
    let fast = n1.endpoints()?.iter().any(|endpoint| endpoint.endpoint.path == causeway_model::Path::Fast);
    ensure!(!fast || n1.drops(causeway_model::DropReason::RateLimited)? > 0, "nothing was counted");
    lab.del_pod("first")?;
    lab.del_pod("second")?;
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

/// Puts a pod without limits in the place of one with.
fn unlimit(lab: &Lab, pod: &Pod) -> anyhow::Result<()> {
    let node = lab.node("n1")?;
    super::hosts::freeze(lab, "n1", "true")?;
    drop(node.exec(&format!("tc qdisc del dev {} root", pod.link())));
    Ok(())
}

/// A chain of plugins as libcni runs it: in order, each with what the one before said.
struct Chain<'a> {
    node: &'a Node,
    pod: Namespace,
    container: String,
}

impl Chain<'_> {
    /// Calls one plugin; its result, or its error.
    fn call(&self, verb: &str, config: &Value, previous: &Value) -> anyhow::Result<Result<Value, Value>> {
        let kind = config["type"].as_str().context("a plugin without a type")?;
        let binary = match kind {
            "causeway-cni" => Binaries::find()?.get(kind)?,
            other => std::path::PathBuf::from("/usr/lib/cni").join(other),
        };
        let mut config = config.clone();
        (config["cniVersion"], config["name"]) = ("1.0.0".into(), "pods".into());
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let mut command = std::process::Command::new(binary);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &self.container).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", self.pod.path()).env("CNI_PATH", "/usr/lib/cni");
        let output = self.node.run(|| command::output(&mut command, config.to_string().as_bytes()))?;
        let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok(if output.status.success() { Ok(said) } else { Err(said) })
    }

    /// ADD by all, in order.
    fn add(&self, plugins: &[Value]) -> anyhow::Result<Value> {
        let mut result = Value::Null;
        for plugin in plugins {
            result = self
                .call("ADD", plugin, &result)?
                .map_err(|error| anyhow::anyhow!("ADD by {}: {error}", plugin["type"]))?;
        }
        Ok(result)
    }

    /// DEL by all, in reverse.
    fn del(&self, plugins: &[Value], result: &Value) -> anyhow::Result<()> {
        for plugin in plugins.iter().rev() {
            self.call("DEL", plugin, result)?
                .map_err(|error| anyhow::anyhow!("DEL by {}: {error}", plugin["type"]))?;
        }
        Ok(())
    }
}

fn plugins_before_and_after_ours_do_their_work(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let conflist: Value = serde_json::from_slice(&std::fs::read(lab.conflist_file(&n1))?)?;
    let pod = Namespace::create(format!("{}-chained", n1.namespace().name()))?;
    let chain = Chain { node: &n1, pod: pod.clone(), container: "c".repeat(64) };
    let told = || -> anyhow::Result<()> {
        let tuned = |key: &str| json!({"type": "tuning", "sysctl": {key: "1"}});
        let mappings = json!({"portMappings": [mapping("", 8080, "tcp")]});
        let limits = json!({"bandwidth": {"ingressRate": RATE, "ingressBurst": BURST}});
        let ours = conflist["plugins"][0].clone();
        // Those before have nothing to do but to pass on what came in; those after work on what ours made.
        let first = [
            json!({"type": "loopback"}),
            json!({"type": "portmap"}),
            json!({"type": "bandwidth"}),
            tuned("net.ipv4.conf.all.log_martians"),
            ours,
            tuned("net.ipv4.conf.eth0.log_martians"),
            json!({"type": "portmap", "runtimeConfig": mappings}),
        ];
        let result = chain.add(&first)?;
        let interfaces = result["interfaces"].as_array().context("no interfaces")?;
        ensure!(
            interfaces[0]["name"] == "lo" && interfaces.iter().any(|link| link["name"] == "eth0"),
            "{result}"
        );
        for link in ["all", "eth0"] {
            let set = pod.exec(&format!("sysctl -n net.ipv4.conf.{link}.log_martians"))?;
            ensure!(set.trim() == "1", "tuning did not tune {link}");
        }
        let server = Responder::start(&pod, INSIDE, "chained")?;
        let answer = ask_tcp(n2.namespace(), SocketAddr::new(n1.address(Family::V4), 8080));
        ensure!(answer.as_ref().is_ok_and(|answer| answer.by == "chained"), "by portmap: {answer:?}");
        drop(server);
        // A fast pod has no end on the node that others could limit; ours can, by a capability of its own.
        let limited = chain.call("ADD", &json!({"type": "bandwidth", "runtimeConfig": limits}), &result)?;
        match (matrix.mode, limited) {
            (Datapath::Kernel, Ok(_)) => {}
            (Datapath::Fast | Datapath::Mixed, Err(error)) if error["msg"].to_string().contains("veth") => {}
            (mode, other) => bail!("plugin bandwidth after ours, {mode}: {other:?}"),
        }
        chain.del(&first, &result)
    };
    let done = told();
    pod.delete()?;
    done
}
