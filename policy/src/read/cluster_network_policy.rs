//! ClusterNetworkPolicy as its published schema has it (policy.networking.k8s.io/v1alpha2, bundle v0.2.0).

use causeway_model::PortProtocol;
use causeway_model::policy::Action;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as WrittenSelector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parts::{port, prefix, selector};
use super::{Effect, Problems, Wrong};
use crate::policy::{Block, Peer, Policy, PolicyKey, PortMatch, Rule, Tier};
use crate::selector::{Namespaces, PodSelector};

/// The most rules of a direction, peers and protocols of a rule, and networks of a peer.
const MOST: usize = 25;
/// The longest name of a rule.
const LONGEST_NAME: usize = 100;
/// The greatest priority.
const LAST_PRIORITY: i64 = 1000;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    tier: String,
    priority: i64,
    subject: Subject,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Vec<Value>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<WrittenSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<NamespacedPod>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPod {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<WrittenSelector>,
    pod_selector: WrittenSelector,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IngressRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    action: String,
    from: Vec<IngressPeer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocols: Option<Vec<Protocol>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EgressRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    action: String,
    to: Vec<EgressPeer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocols: Option<Vec<Protocol>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IngressPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<WrittenSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<NamespacedPod>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EgressPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<WrittenSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<NamespacedPod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<WrittenSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    networks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain_names: Option<Vec<String>>,
}

impl From<IngressPeer> for EgressPeer {
    fn from(IngressPeer { namespaces, pods }: IngressPeer) -> Self {
        Self { namespaces, pods, nodes: None, networks: None, domain_names: None }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sctp: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_named_port: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transport {
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_port: Option<DestinationPort>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DestinationPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<Range>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    start: i64,
    end: i64,
}

/// Reads a ClusterNetworkPolicy. Where it stands and to whom it applies must be right, or nothing of it is taken up; a rule that
/// is not right fails closed by itself, as upstream wants it: an Accept matches nothing, a Deny or Pass denies everything.
pub(super) fn read(
    key: PolicyKey,
    uid: String,
    spec: &Value,
    problems: &mut Problems,
) -> (Option<Policy>, Effect) {
    let frame = frame(spec, problems);
    let Some((tier, priority, subject, spec)) = frame.filter(|_| problems.0.is_empty()) else {
        return (None, Effect::None);
    };
    let ingress = list("ingress", spec.ingress.as_deref(), problems, ingress_rule);
    let egress = list("egress", spec.egress.as_deref(), problems, egress_rule);
    let effect = if problems.0.is_empty() { Effect::Whole } else { Effect::InPart };
    (Some(Policy { key, uid, tier, priority, subject, ingress, egress }), effect)
}

/// Everything but the rules.
fn frame(spec: &Value, problems: &mut Problems) -> Option<(Tier, u16, PodSelector, Spec)> {
    if spec.is_null() {
        problems.add("spec", Wrong::Missing);
        return None;
    }
    let spec: Spec = problems.typed("spec", spec)?;
    for (name, rules) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
        let has = rules.as_ref().map_or(0, Vec::len);
        if has > MOST {
            problems.add(format!("spec.{name}"), Wrong::TooMany { what: "rules", has, most: MOST });
        }
    }
    let tier = match spec.tier.as_str() {
        "Admin" => Ok(Tier::Admin),
        "Baseline" => Ok(Tier::Baseline),
        other => Err(Wrong::Unknown { what: "tier", value: other.to_owned() }),
    };
    let tier = problems.take("spec.tier", tier);
    let priority = u16::try_from(spec.priority).ok().filter(|_| spec.priority <= LAST_PRIORITY);
    let priority = problems.take("spec.priority", priority.ok_or(Wrong::NoPriority(spec.priority)));
    let Subject { namespaces, pods } = &spec.subject;
    let subject = match (namespaces, pods) {
        (Some(namespaces), None) => of_namespaces("spec.subject.namespaces", namespaces, problems),
        (None, Some(pods)) => of_pods("spec.subject.pods", pods, problems),
        (namespaces, _) => {
            problems.add("spec.subject", Wrong::NotOne(if namespaces.is_some() { 2 } else { 0 }));
            None
        }
    };
    Some((tier?, priority?, subject?, spec))
}

fn of_namespaces(at: &str, written: &WrittenSelector, problems: &mut Problems) -> Option<PodSelector> {
    let namespaces = Namespaces::Selected(selector(at, written, problems)?);
    Some(PodSelector { namespaces, pods: Default::default() })
}

fn of_pods(at: &str, written: &NamespacedPod, problems: &mut Problems) -> Option<PodSelector> {
    let namespaces = written.namespace_selector.clone().unwrap_or_default();
    let namespaces = selector(&format!("{at}.namespaceSelector"), &namespaces, problems);
    let pods = selector(&format!("{at}.podSelector"), &written.pod_selector, problems);
    Some(PodSelector { namespaces: Namespaces::Selected(namespaces?), pods: pods? })
}

type ReadRule = fn(&str, u16, &Value, &mut Problems) -> Option<Rule>;

/// One list of rules. No rules say nothing of their direction.
fn list(name: &str, written: Option<&[Value]>, problems: &mut Problems, read: ReadRule) -> Option<Vec<Rule>> {
    let written = written.filter(|rules| !rules.is_empty())?;
    let mut rules = Vec::new();
    for (index, written) in (0u16..).zip(written) {
        let mut wrong = Problems::default();
        let rule = read(&format!("spec.{name}[{index}]"), index, written, &mut wrong);
        let supported = |problem: &super::Problem| !matches!(problem.wrong, Wrong::NotSupported(_));
        let is_right = !wrong.0.iter().any(supported);
        problems.0.append(&mut wrong.0);
        match rule.filter(|_| is_right) {
            Some(rule) => rules.push(rule),
            None => rules.extend(closed(index, written)),
        }
    }
    Some(rules)
}

/// What a rule becomes that is not right.
fn closed(index: u16, written: &Value) -> Option<Rule> {
    let is_accept = written.get("action").and_then(Value::as_str) == Some("Accept");
    (!is_accept).then(|| Rule { index, action: Action::Deny, peers: vec![Peer::Any], ports: None })
}

fn ingress_rule(at: &str, index: u16, written: &Value, problems: &mut Problems) -> Option<Rule> {
    let IngressRule { name, action, from, protocols } = problems.typed(at, written)?;
    length(at, name.as_deref(), problems);
    let peers = from.into_iter().map(EgressPeer::from).collect();
    rule(at, "from", index, (&action, peers, protocols), problems)
}

fn egress_rule(at: &str, index: u16, written: &Value, problems: &mut Problems) -> Option<Rule> {
    let EgressRule { name, action, to, protocols } = problems.typed(at, written)?;
    length(at, name.as_deref(), problems);
    rule(at, "to", index, (&action, to, protocols), problems)
}

/// A rule's name, if it has one, is not too long.
fn length(at: &str, name: Option<&str>, problems: &mut Problems) {
    let has = name.map_or(0, |name| name.chars().count());
    if has > LONGEST_NAME {
        let wrong = Wrong::TooMany { what: "characters", has, most: LONGEST_NAME };
        problems.add(format!("{at}.name"), wrong);
    }
}

fn rule(
    at: &str,
    side: &str,
    index: u16,
    (action, written, protocols): (&str, Vec<EgressPeer>, Option<Vec<Protocol>>),
    problems: &mut Problems,
) -> Option<Rule> {
    let action = match action {
        "Accept" => Action::Accept,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        other => {
            let wrong = Wrong::Unknown { what: "action", value: other.to_owned() };
            problems.add(format!("{at}.action"), wrong);
            return None;
        }
    };
    count(&format!("{at}.{side}"), "peers", written.len(), problems);
    let names_ports = protocols.iter().flatten().any(|protocol| protocol.destination_named_port.is_some());
    let mut peers = Vec::new();
    for (i, written) in written.iter().enumerate() {
        peer(&format!("{at}.{side}[{i}]"), written, action, names_ports, &mut peers, problems);
    }
    let ports = protocols.map(|protocols| {
        count(&format!("{at}.protocols"), "protocols", protocols.len(), problems);
        let protocols = protocols.iter().enumerate();
        protocols
            .filter_map(|(i, written)| port_match(&format!("{at}.protocols[{i}]"), written, problems))
            .collect()
    });
    Some(Rule { index, action, peers, ports })
}

/// A list that is there has one item at least, and not too many.
fn count(at: &str, what: &'static str, has: usize, problems: &mut Problems) {
    match has {
        0 => problems.add(at, Wrong::Empty),
        has if has > MOST => problems.add(at, Wrong::TooMany { what, has, most: MOST }),
        _ => {}
    }
}

fn peer(
    at: &str,
    written: &EgressPeer,
    action: Action,
    names_ports: bool,
    peers: &mut Vec<Peer>,
    problems: &mut Problems,
) {
    let EgressPeer { namespaces, pods, nodes, networks, domain_names } = written;
    let set =
        [namespaces.is_some(), pods.is_some(), nodes.is_some(), networks.is_some(), domain_names.is_some()];
    let set = set.into_iter().filter(|set| *set).count();
    if set != 1 {
        return problems.add(at, Wrong::NotOne(set));
    }
    if names_ports && namespaces.is_none() && pods.is_none() {
        problems.add(at, Wrong::NameWithoutPod);
    }
    if let Some(written) = namespaces {
        peers.extend(of_namespaces(&format!("{at}.namespaces"), written, problems).map(Peer::Pods));
    }
    if let Some(written) = pods {
        peers.extend(of_pods(&format!("{at}.pods"), written, problems).map(Peer::Pods));
    }
    if let Some(written) = nodes {
        peers.extend(selector(&format!("{at}.nodes"), written, problems).map(Peer::Nodes));
    }
    if let Some(networks) = networks {
        let at = format!("{at}.networks");
        count(&at, "networks", networks.len(), problems);
        for (i, text) in networks.iter().enumerate() {
            if networks[..i].contains(text) {
                problems.add(format!("{at}[{i}]"), Wrong::Twice(text.clone()));
            }
            let prefix = problems.take(&format!("{at}[{i}]"), prefix(text));
            peers.extend(prefix.map(|prefix| Peer::Block(Block::whole(prefix))));
        }
    }
    if domain_names.is_some() {
        let wrong = match action {
            // As a peer it is nobody; the others of the rule stand.
            Action::Accept => Wrong::NotSupported("domainNames"),
            Action::Deny | Action::Pass => Wrong::Unreadable("domainNames goes with Accept only".to_owned()),
        };
        problems.add(format!("{at}.domainNames"), wrong);
    }
}

fn port_match(at: &str, written: &Protocol, problems: &mut Problems) -> Option<PortMatch> {
    let Protocol { tcp, udp, sctp, destination_named_port } = written;
    let destination_named_port = destination_named_port.as_ref().filter(|name| !name.is_empty());
    let transports = [
        (PortProtocol::Tcp, "tcp", tcp),
        (PortProtocol::Udp, "udp", udp),
        (PortProtocol::Sctp, "sctp", sctp),
    ];
    let said: Vec<_> = transports
        .into_iter()
        .filter_map(|(protocol, name, t)| Some((protocol, name, t.as_ref()?)))
        .collect();
    match (said.as_slice(), destination_named_port) {
        ([], Some(name)) => {
            // The schema takes any text here: what is no port's name names no port.
            Some(PortMatch::Named(None, name.clone()))
        }
        ([(protocol, name, transport)], None) => {
            let at = format!("{at}.{name}");
            let Some(port) = &transport.destination_port else {
                problems.add(at, Wrong::NotOne(0));
                return None;
            };
            let range = problems.take(&format!("{at}.destinationPort"), range(port))?;
            Some(PortMatch::Range(*protocol, range))
        }
        (said, name) => {
            problems.add(at, Wrong::NotOne(said.len() + usize::from(name.is_some())));
            None
        }
    }
}

fn range(written: &DestinationPort) -> Result<std::ops::RangeInclusive<u16>, Wrong> {
    match (written.number, &written.range) {
        (Some(number), None) => {
            let port = port(number)?;
            Ok(port..=port)
        }
        (None, Some(Range { start, end })) => {
            let (start, end) = (port(*start)?, port(*end)?);
            if start < end { Ok(start..=end) } else { Err(Wrong::NoRange { start, end }) }
        }
        (number, _) => Err(Wrong::NotOne(if number.is_some() { 2 } else { 0 })),
    }
}
