use causeway_model::policy::Action;
use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::parts::{ALL_PORTS, block, port, port_name, protocol, selector};
use super::{Effect, MOST_RULES, Problems, Wrong};
use crate::policy::{Peer, Policy, PolicyKey, PortMatch, Rule, Tier};
use crate::selector::{LabelSelector, Namespaces, PodSelector};

/// Reads a NetworkPolicy. With anything wrong in it, it still isolates whom it selects (the whole namespace, if that cannot be
/// read) in the directions it is for (both, if that cannot be read), and allows nothing: to ignore it would open what its
/// author meant to close.
pub(super) fn read(
    key: PolicyKey,
    uid: String,
    spec: &Value,
    problems: &mut Problems,
) -> (Option<Policy>, Effect) {
    if spec.is_null() {
        problems.add("spec", Wrong::Missing);
    }
    let typed: Option<NetworkPolicySpec> = problems.typed("spec", spec);
    let (pods, types, rules) = match typed {
        Some(typed) => {
            let written = typed.pod_selector.clone().unwrap_or_default();
            let pods = selector("spec.podSelector", &written, problems);
            let types = directions(&typed, problems);
            (pods, types, Some(rules(&key.namespace, &typed, problems)))
        }
        None => (lone_selector(spec), lone_directions(spec), None),
    };
    let whole = problems.0.is_empty();
    let [ingress, egress] = rules.filter(|_| whole).unwrap_or_default();
    let [for_ingress, for_egress] = types.unwrap_or([true, true]);
    let namespaces = Namespaces::Own(key.namespace.clone());
    let subject = PodSelector { namespaces, pods: pods.unwrap_or_default() };
    let policy = Policy {
        key,
        uid,
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject,
        ingress: for_ingress.then_some(ingress),
        egress: for_egress.then_some(egress),
    };
    (Some(policy), if whole { Effect::Whole } else { Effect::IsolatesOnly })
}

/// The selector of a spec that cannot be read as a whole; what is wrong is said already.
fn lone_selector(spec: &Value) -> Option<LabelSelector> {
    let mut unheard = Problems::default();
    let written: v1::LabelSelector = unheard.typed("", spec.get("podSelector")?)?;
    selector("", &written, &mut unheard).filter(|_| unheard.0.is_empty())
}

/// Its directions, if they are all that is said.
fn lone_directions(spec: &Value) -> Option<[bool; 2]> {
    let types: Vec<String> = serde_json::from_value(spec.get("policyTypes")?.clone()).ok()?;
    let spec = NetworkPolicySpec { policy_types: Some(types), ..NetworkPolicySpec::default() };
    directions(&spec, &mut Problems::default())
}

/// Whether it is for ingress and for egress: what it says, else ingress always and egress where it has such rules.
fn directions(spec: &NetworkPolicySpec, problems: &mut Problems) -> Option<[bool; 2]> {
    let types = spec.policy_types.iter().flatten();
    let has = types.clone().count();
    if has > 2 {
        problems.add("spec.policyTypes", Wrong::TooMany { what: "policy types", has, most: 2 });
    }
    let mut said = [false, false];
    for (index, name) in types.enumerate() {
        match name.as_str() {
            "Ingress" => said[0] = true,
            "Egress" => said[1] = true,
            other => {
                let wrong = Wrong::Unknown { what: "policy type", value: other.to_owned() };
                problems.add(format!("spec.policyTypes[{index}]"), wrong);
                return None;
            }
        }
    }
    let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    Some(if said == [false, false] { [true, has_egress] } else { said })
}

/// The rules of both lists.
fn rules(namespace: &str, spec: &NetworkPolicySpec, problems: &mut Problems) -> [Vec<Rule>; 2] {
    let ingress = spec.ingress.iter().flatten().map(|rule| (&rule.from, &rule.ports));
    let egress = spec.egress.iter().flatten().map(|rule| (&rule.to, &rule.ports));
    [
        list(namespace, ["ingress", "from"], ingress, problems),
        list(namespace, ["egress", "to"], egress, problems),
    ]
}

type Written<'a> = (&'a Option<Vec<NetworkPolicyPeer>>, &'a Option<Vec<NetworkPolicyPort>>);

fn list<'a>(
    namespace: &str,
    [name, side]: [&str; 2],
    written: impl Iterator<Item = Written<'a>>,
    problems: &mut Problems,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut has = 0;
    for (place, (peers, ports)) in written.enumerate() {
        has = place + 1;
        let Ok(index) = u16::try_from(place) else { continue };
        let at = format!("spec.{name}[{place}]");
        let peers = match peers.as_deref() {
            None | Some([]) => vec![Peer::Any],
            Some(written) => {
                let peers = written.iter().enumerate();
                let read = |(i, written)| peer(namespace, &format!("{at}.{side}[{i}]"), written, problems);
                peers.filter_map(read).collect()
            }
        };
        let ports = match ports.as_deref() {
            None | Some([]) => None,
            Some(written) => {
                let ports = written.iter().enumerate();
                let read = |(i, written)| port_match(&format!("{at}.ports[{i}]"), written, problems);
                Some(ports.filter_map(read).collect())
            }
        };
        rules.push(Rule { index, action: Action::Accept, peers, ports });
    }
    if has > MOST_RULES {
        problems.add(format!("spec.{name}"), Wrong::TooMany { what: "rules", has, most: MOST_RULES });
    }
    rules
}

fn peer(namespace: &str, at: &str, written: &NetworkPolicyPeer, problems: &mut Problems) -> Option<Peer> {
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = written;
    let pods = match pod_selector {
        Some(written) => selector(&format!("{at}.podSelector"), written, problems),
        None => Some(LabelSelector::default()),
    };
    let namespaces = match namespace_selector {
        Some(written) => {
            selector(&format!("{at}.namespaceSelector"), written, problems).map(Namespaces::Selected)
        }
        None => Some(Namespaces::Own(namespace.to_owned())),
    };
    match ip_block {
        Some(_) if namespace_selector.is_some() || pod_selector.is_some() => {
            problems.add(at, Wrong::BlockWithSelector);
            None
        }
        Some(written) => block(&format!("{at}.ipBlock"), written, problems).map(Peer::Block),
        None if namespace_selector.is_none() && pod_selector.is_none() => {
            problems.add(at, Wrong::NotOne(0));
            None
        }
        None => Some(Peer::Pods(PodSelector { namespaces: namespaces?, pods: pods? })),
    }
}

fn port_match(at: &str, written: &NetworkPolicyPort, problems: &mut Problems) -> Option<PortMatch> {
    let NetworkPolicyPort { end_port, port: number, protocol: name } = written;
    let protocol = problems.take(&format!("{at}.protocol"), protocol(name.as_deref()))?;
    let end_at = format!("{at}.endPort");
    let port_at = format!("{at}.port");
    match (number, end_port) {
        (None, None) => Some(PortMatch::Range(protocol, ALL_PORTS)),
        (Some(IntOrString::Int(number)), None) => {
            let port = problems.take(&port_at, port(i64::from(*number)))?;
            Some(PortMatch::Range(protocol, port..=port))
        }
        (Some(IntOrString::Int(number)), Some(end)) => {
            let start = problems.take(&port_at, port(i64::from(*number)))?;
            if *end < i32::from(start) {
                problems.add(end_at, Wrong::EndBelowStart { port: start, end: *end });
                return None;
            }
            let end = problems.take(&end_at, port(i64::from(*end)))?;
            Some(PortMatch::Range(protocol, start..=end))
        }
        (Some(IntOrString::String(name)), None) => {
            let name = problems.take(&port_at, port_name(name))?;
            Some(PortMatch::Named(Some(protocol), name))
        }
        (Some(IntOrString::String(_)) | None, Some(_)) => {
            problems.add(end_at, Wrong::EndWithoutNumber);
            None
        }
    }
}
