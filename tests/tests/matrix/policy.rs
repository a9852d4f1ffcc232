//! Policy in force: before a pod's first packet, on what is established, through every restart, and told by name.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::policy::Verdict;
use causeway_model::why::{Judged, Why};
use causeway_model::{DropReason, Family, Path};
use causeway_tests::lab::{Lab, Node, Pod, PodSpec, Role};
use causeway_tests::traffic::{Flow, Responder, ask_udp, tcp_reaches};
use serde_json::{Value, json};

use super::capabilities::{mapped, outsider};
use super::connections::{Knocking, Talk, orders};
use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("a_change_stops_what_it_denies_and_nothing_else", a_change_stops_what_it_denies_and_nothing_else),
    ("a_pod_is_guarded_before_its_first_packet", a_pod_is_guarded_before_its_first_packet),
    ("nothing_denied_passes_while_anything_restarts", nothing_denied_passes_while_anything_restarts),
    ("f38_a_restarted_agent_has_what_changed_meanwhile", f38_a_restarted_agent_has_what_changed_meanwhile),
    ("f31_a_pod_reaches_itself_whatever_is_denied", f31_a_pod_reaches_itself_whatever_is_denied),
    (
        "what_a_node_forwards_is_judged_and_the_node_is_not",
        what_a_node_forwards_is_judged_and_the_node_is_not,
    ),
    ("every_denial_is_counted_by_its_rule", every_denial_is_counted_by_its_rule),
    ("why_says_what_packets_find", why_says_what_packets_find),
    ("flows_tell_what_became_of_connections", flows_tell_what_became_of_connections),
];

/// How soon a change of an object must be in force.
const SOON: Duration = Duration::from_secs(1);
/// How long a connection may take to go on: TCP's own timer doubles while nobody carries it.
const GOES_ON: Duration = Duration::from_secs(8);

/// A NetworkPolicy of the pods' namespace; its uid is its name.
fn apply(lab: &Lab, name: &str, spec: &Value) -> anyhow::Result<()> {
    put(
        lab,
        name,
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec
        }),
    )
}

fn put(lab: &Lab, name: &str, object: &Value) -> anyhow::Result<()> {
    let file = lab.manifests_of(1)?.join(format!("policy-{name}.yaml"));
    let aside = file.with_extension("new");
    fs::write(&aside, object.to_string())?;
    Ok(fs::rename(aside, file)?)
}

fn delete(lab: &Lab, name: &str) -> anyhow::Result<()> {
    Ok(fs::remove_file(lab.manifests_of(1)?.join(format!("policy-{name}.yaml")))?)
}

/// Lets pods of one label in, and nobody else, to those of another.
fn only_from(subject: &str, allowed: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": subject}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": allowed}}}]}]
    })
}

fn pod(name: &str) -> PodSpec {
    PodSpec::named(name).label("app", name)
}

fn a_change_stops_what_it_denies_and_nothing_else(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b) = (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?);
    let (c, d) = (lab.add_pod("n2", pod("c"))?, lab.add_pod("n2", pod("d"))?);
    for (allowed, denied) in [(&b, &c), (&c, &b)] {
        let flow =
            |from: &Pod, to: &Pod, family| Flow::start(from.namespace(), to.namespace(), to.address(family));
        let stays = flow(allowed, &a, Family::V4)?;
        // One whose data goes to the pod and one whose data comes from it; and two others, who have nothing to do with it.
        let stops = [flow(denied, &a, Family::V6)?, flow(denied, &a, Family::V4)?];
        let others = [flow(&a, allowed, Family::V6)?, flow(&d, denied, Family::V4)?];
        let talk = Talk::start(denied, &a)?;
        matrix
            .sabotage("policy-unsaid", || ())
            .map_or_else(|| apply(&lab, "web", &only_from("a", allowed.name())), |()| Ok(()))?;
        std::thread::sleep(SOON);
        for flow in &stops {
            ensure!(!flow.moves_within(SOON / 2), "{} still sends to a", denied.name());
        }
        ensure!(!talk.is_answered(), "datagrams of {} are still answered", denied.name());
        ensure!(stays.moves_within(SOON), "what {} may send to a stands", allowed.name());
        ensure!(others.iter().all(|flow| flow.moves_within(SOON)), "a flow that no policy is about stands");
        delete(&lab, "web")?;
        ensure!(
            within(GOES_ON, || talk.is_answered()),
            "datagrams are not answered once it is allowed again"
        );
        ensure!(stops.iter().all(|flow| flow.moves_within(GOES_ON)), "what is allowed again does not go on");
        for flow in others.into_iter().chain([stays]) {
            let gap = flow.finish()?.longest_gap;
            ensure!(gap < SOON, "a flow that stays allowed stood still for {gap:?}");
        }
    }
    Ok(())
}

fn a_pod_is_guarded_before_its_first_packet(matrix: &Matrix) -> anyhow::Result<()> {
    const ADDRESS: &str = "10.70.1.77";
    let lab = matrix.lab(|_| {})?;
    apply(&lab, "shy", &only_from("shy", "nobody"))?;
    let (b, c) = (lab.add_pod("n1", pod("b"))?, lab.add_pod("n2", pod("c"))?);
    let target: SocketAddr = SocketAddr::new(ADDRESS.parse()?, 5000);
    let knockers = [&b, &c].map(|from| -> anyhow::Result<UdpSocket> {
        Ok(from.run(|| UdpSocket::bind(SocketAddr::new(from.address(Family::V4), 0)))?)
    });
    let knockers = knockers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let knocking = std::thread::spawn(move || {
        while stopped
            .recv_timeout(Duration::from_millis(1))
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            // Nobody has the address at first.
            knockers.iter().for_each(|socket| drop(socket.send_to(b"let me in", target)));
        }
    });
    let label = matrix.sabotage("shy-is-open", || "open").unwrap_or("shy");
    let spec = PodSpec::named("shy").label("app", label).annotation("causeway.dev/addresses", ADDRESS);
    let shy = lab.add_pod("n1", spec)?;
    let socket = shy.run(|| UdpSocket::bind(target))?;
    socket.set_read_timeout(Some(SOON))?;
    let heard = socket.recv(&mut [0; 16]);
    drop(stop);
    knocking.join().map_err(|_| anyhow::anyhow!("who knocked has died"))?;
    ensure!(heard.is_err(), "a datagram came in");
    // It is the policy that kept them out.
    delete(&lab, "shy")?;
    ensure!(within(GOES_ON, || tcp_reaches(
        c.namespace(),
        shy.namespace(),
        ADDRESS.parse().unwrap_or(IpAddr::from([0; 4]))
    )));
    Ok(())
}

fn nothing_denied_passes_while_anything_restarts(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b, c) =
        (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?, lab.add_pod("n2", pod("c"))?);
    apply(&lab, "web", &only_from("a", "b"))?;
    ensure!(within(GOES_ON, || !tcp_reaches(c.namespace(), a.namespace(), a.address(Family::V4))));
    let flow = Flow::start(b.namespace(), a.namespace(), a.address(Family::V4))?;
    for order in orders(&lab)? {
        order.iter().try_for_each(|role| lab.kill("n1", *role))?;
        let knocking = Knocking::start(&c, &a)?;
        order.iter().try_for_each(|role| lab.start("n1", *role))?;
        ensure!(flow.moves_within(GOES_ON), "an allowed flow stands after {order:?}");
        let got_in = knocking.finish()?;
        ensure!(got_in == 0, "{got_in} of those who knocked got in after {order:?}");
    }
    flow.finish()?;
    Ok(())
}

fn f38_a_restarted_agent_has_what_changed_meanwhile(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b) = (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?);
    let (c, d) = (lab.add_pod("n2", pod("c"))?, lab.add_pod("n2", pod("d"))?);
    let (n1, n3) = (lab.node("n1")?, lab.add_node(1)?);
    let e = lab.add_pod(n3.name(), pod("e"))?;
    let reaches = |from: &Pod| tcp_reaches(from.namespace(), a.namespace(), a.address(Family::V4));
    let pings_e = || Family::BOTH.map(|family| a.ping(e.address(family)));
    ensure!(within(GOES_ON, || pings_e() == [true; 2]), "the third node's pod is not reached");
    apply(&lab, "first", &only_from("a", "b"))?;
    ensure!(within(GOES_ON, || !reaches(&d)), "the first policy is not in force");
    let flow = Flow::start(a.namespace(), c.namespace(), c.address(Family::V4))?;
    lab.kill("n1", Role::Agent)?;
    let knocking = Knocking::start(&c, &a)?;
    apply(&lab, "second", &only_from("a", "d"))?;
    delete(&lab, "first")?;
    lab.set_known(n3.name(), false)?;
    std::thread::sleep(if matrix.full { Duration::from_secs(10) } else { Duration::from_secs(1) });
    ensure!(reaches(&b) && !reaches(&d), "without an agent the first policy holds");
    lab.start("n1", Role::Agent)?;
    ensure!(within(GOES_ON, || reaches(&d) && !reaches(&b)), "the second policy does not hold");
    let peers = n1.status()?.peers;
    ensure!(!peers.iter().any(|peer| peer.id.name.as_str() == n3.name()), "{peers:?}");
    ensure!(pings_e() == [false; 2], "a pod of a node that has gone is reached");
    let left: Vec<_> = denials(&n1)?.into_keys().filter(|rule| rule.starts_with("first/")).collect();
    ensure!(left.is_empty(), "rules of a policy that has gone: {left:?}");
    let got_in = knocking.finish()?;
    ensure!(got_in == 0, "{got_in} that neither policy allows got in");
    let gap = flow.finish()?.longest_gap;
    ensure!(gap < SOON, "a flow that no policy is about stood still for {gap:?}");
    Ok(())
}

fn f31_a_pod_reaches_itself_whatever_is_denied(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", pod("a"))?, lab.add_pod("n2", pod("c"))?);
    let itself = |family| tcp_reaches(a.namespace(), a.namespace(), a.address(family));
    let own_namespace =
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]});
    let nobody = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    for (spec, other) in [(None, true), (Some(&own_namespace), true), (Some(&nobody), false)] {
        if let Some(spec) = spec {
            apply(&lab, "own", spec)?;
        }
        let reaches = || tcp_reaches(c.namespace(), a.namespace(), a.address(Family::V4));
        ensure!(within(GOES_ON, || reaches() == other), "another pod, under {spec:?}");
        ensure!(Family::BOTH.into_iter().all(itself), "itself, under {spec:?}");
    }
    delete(&lab, "own")?;
    put(
        &lab,
        "cluster",
        &json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "cluster"},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                     "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}
        }),
    )?;
    ensure!(
        within(GOES_ON, || !tcp_reaches(c.namespace(), a.namespace(), a.address(Family::V4))),
        "the cluster's policy is not in force"
    );
    ensure!(Family::BOTH.into_iter().all(itself), "itself, denied by the cluster");
    Ok(())
}

fn what_a_node_forwards_is_judged_and_the_node_is_not(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let outside = outsider(&n2, &n1)?;
    // In a mixed lab the one is fast and the other the kernel's.
    for (name, port) in [("web", 9080), ("api", 9081)] {
        let pod = lab.add_pod("n1", mapped(name, port).label("app", name))?;
        let inside = 80;
        let _server = Responder::start(pod.namespace(), inside, pod.name())?;
        for (family, client) in Family::BOTH.into_iter().zip(outside) {
            let target = SocketAddr::new(n1.address(family), port);
            let answered = || ask_udp(n2.namespace(), target).is_ok();
            ensure!(within(GOES_ON, answered), "{client} is not answered by {name} without a policy");
            apply(&lab, name, &only_from(name, "nobody"))?;
            ensure!(within(GOES_ON, || !answered()), "{client} reaches the isolated {name} through its node");
            let own = SocketAddr::new(pod.address(family), inside);
            ensure!(
                ask_udp(n1.namespace(), own).is_ok(),
                "{name}'s own node does not reach it over {family}"
            );
            let block = format!("{client}/{}", family.host_length());
            apply(
                &lab,
                name,
                &json!({
                    "podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"ipBlock": {"cidr": block}}]}]
                }),
            )?;
            ensure!(within(GOES_ON, answered), "{client} is not who it is to the policy of {name}");
            delete(&lab, name)?;
        }
    }
    Ok(())
}

/// What each rule has denied, by the text of its id.
fn denials(node: &Node) -> anyhow::Result<BTreeMap<String, u64>> {
    let rules = node.status()?.rules;
    Ok(rules.into_iter().map(|rule| (rule.rule.to_string(), rule.denied.packets)).collect())
}

fn every_denial_is_counted_by_its_rule(matrix: &Matrix) -> anyhow::Result<()> {
    const MANY: u64 = 20;
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let (a, b, c) =
        (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?, lab.add_pod("n2", pod("c"))?);
    apply(&lab, "web", &only_from("a", "nobody"))?;
    apply(
        &lab,
        "out",
        &json!({"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Egress"], "egress": []}),
    )?;
    ensure!(
        within(GOES_ON, || !b.ping(a.address(Family::V4)) && !c.ping(b.address(Family::V4))),
        "the policies are not in force"
    );
    for family in Family::BOTH {
        for (from, node, rule) in [(&b, &n1, "web/ingress/isolation"), (&c, &n2, "out/egress/isolation")] {
            let (before, drops) = (denials(node)?, node.drops(DropReason::PolicyDenied)?);
            for number in 0..MANY {
                let own = SocketAddr::new(from.address(family), 0);
                let socket = from.run(|| UdpSocket::bind(own))?;
                let _ = socket.send_to(b"no", SocketAddr::new(a.address(family), 7000 + number as u16));
            }
            let counted = || -> anyhow::Result<(u64, u64)> {
                let of = |all: &BTreeMap<String, u64>| all.get(rule).copied().unwrap_or_default();
                Ok((of(&denials(node)?) - of(&before), node.drops(DropReason::PolicyDenied)? - drops))
            };
            ensure!(
                within(GOES_ON, || counted().is_ok_and(|both| both == (MANY, MANY))),
                "{MANY} of {} were denied over {family}; counted by rule and reason: {:?}",
                from.name(),
                counted()?
            );
        }
    }
    let policies: Vec<_> = n1.status()?.rules.into_iter().filter_map(|rule| rule.policy).collect();
    ensure!(policies == ["NetworkPolicy/default/web"], "{policies:?}");
    Ok(())
}

fn why_says_what_packets_find(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let (a, b, c) =
        (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?, lab.add_pod("n2", pod("c"))?);
    apply(&lab, "web", &only_from("a", "b"))?;
    ensure!(within(GOES_ON, || !c.ping(a.address(Family::V4))), "the policy is not in force");
    let why = |node: &Node, words: &str| node.why(words).context("asking why");
    let open = why(&n1, "default/b default/a tcp/5000 --probe")?;
    ensure!(open.verdict == Some(Verdict::Allow), "{open:?}");
    ensure!(open.probe.as_ref().is_some_and(|probe| probe.outcome.starts_with("refused")), "{open:?}");
    let closed: Why = why(&n1, "default/c default/a tcp/5000")?;
    let Judged::Here { rule, policy, .. } = &closed.sides[1].judged else { anyhow::bail!("{closed:?}") };
    ensure!(rule.as_ref().is_some_and(|rule| rule.to_string() == "web/ingress/isolation"), "{closed:?}");
    ensure!(policy.as_deref() == Some("NetworkPolicy/default/web"), "{closed:?}");
    let elsewhere = why(&n2, "default/c default/a tcp/5000")?;
    ensure!(matches!(elsewhere.sides[1].judged, Judged::Elsewhere { .. }), "{elsewhere:?}");
    apply(
        &lab,
        "out",
        &json!({"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Egress"], "egress": []}),
    )?;
    ensure!(within(GOES_ON, || !c.ping(b.address(Family::V4))), "the second policy is not in force");
    let probed = why(&n2, "default/c default/b udp/5000 --probe")?;
    let probe = probed.probe.clone().context("no probe")?;
    ensure!(probed.verdict == Some(Verdict::Deny) && probe.outcome.starts_with("no answer"), "{probed:?}");
    let rules: Vec<_> = probe.rules.iter().map(|(rule, count)| (rule.to_string(), count.packets)).collect();
    ensure!(rules == [("out/egress/isolation".to_owned(), 1)], "{probed:?}");
    ensure!(probe.drops.iter().any(|(reason, _)| *reason == DropReason::PolicyDenied), "{probed:?}");
    Ok(())
}

fn flows_tell_what_became_of_connections(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let n1 = lab.node("n1")?;
    let (a, b, c) =
        (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?, lab.add_pod("n2", pod("c"))?);
    apply(&lab, "web", &only_from("a", "b"))?;
    ensure!(within(GOES_ON, || !c.ping(a.address(Family::V4))), "the policy is not in force");
    let path_of_a =
        n1.endpoints()?.into_iter().find(|one| one.endpoint.addresses.contains(&a.address(Family::V4)));
    let path_of_a = path_of_a.context("a is no endpoint")?.endpoint.path;
    for (from, verdict, side) in
        [(&b, Verdict::Allow, "web/ingress/0"), (&c, Verdict::Deny, "web/ingress/isolation")]
    {
        let own = SocketAddr::new(from.address(Family::V4), 0);
        let socket = from.run(|| UdpSocket::bind(own))?;
        let port = socket.local_addr()?.port();
        let _ = socket.send_to(b"hello", SocketAddr::new(a.address(Family::V4), 5353));
        let begun = (from.address(Family::V4), port);
        let found = || {
            let flows = n1.flows("--port 5353").unwrap_or_default();
            flows.into_iter().find(|event| event.from == begun && event.path == path_of_a)
        };
        ensure!(within(GOES_ON, || found().is_some()), "nothing is told of what {} began", from.name());
        let event = found().context("it is not told any more")?;
        ensure!(event.verdict == verdict && event.protocol == 17, "{event:?}");
        ensure!(event.to_pod.as_ref().is_some_and(|pod| pod.name == a.name()), "{event:?}");
        // Of what it lets through the kernel path knows neither.
        if path_of_a == Path::Kernel && verdict == Verdict::Allow {
            continue;
        }
        ensure!(event.ingress.as_ref().is_some_and(|rule| rule.to_string() == side), "{event:?}");
        ensure!(event.bytes == 20 + 8 + 5, "{event:?}");
        ensure!(n1.flows("--rule web/ingress")?.contains(&event), "not found by its rule");
    }
    Ok(())
}
