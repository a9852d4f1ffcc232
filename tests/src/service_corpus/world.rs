//! The topology of a case as it changes, and who is behind addresses and names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use causeway_model::{Family, PortProtocol};
use serde_json::{Value, json};

use super::format::{Act, Name, Topology, of_family};
use crate::corpus::ground::Scene;
use crate::corpus::{Node, Pod, Port, protocol};

/// Everything that exists in a case right now.
pub(super) struct Stage {
    topology: Topology,
    pods: BTreeMap<String, Pod>,
    /// Ready and terminating, by pod.
    states: BTreeMap<String, (bool, bool)>,
    /// Objects that came, by name.
    objects: BTreeMap<Name, Value>,
    /// What objects of nodes said that came.
    said: BTreeMap<String, Value>,
    /// Seconds that were waited for.
    pub clock: f64,
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Changed {
    /// An object that a case brings.
    Object(Name),
    /// A node.
    Node(String),
    /// A namespace.
    Namespace(String),
    /// A pod.
    Pod(String),
}

/// Somebody of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// A pod with addresses of its own.
    Pod(String),
    /// A node: its processes, those of pods that share its addresses included.
    Node(String),
    /// A host outside.
    Out(String),
}

impl Stage {
    /// The bare topology.
    pub fn new(topology: &Topology) -> Result<Self> {
        for pod in &topology.pods {
            let known = topology.nodes.contains_key(&pod.node);
            ensure!(known, "pod {} is on an unknown node {}", pod.id, pod.node);
        }
        Ok(Self {
            topology: topology.clone(),
            pods: topology.pods.iter().map(|pod| (pod.id.clone(), pod.clone())).collect(),
            states: BTreeMap::new(),
            objects: BTreeMap::new(),
            said: BTreeMap::new(),
            clock: 0.0,
        })
    }

    /// Does what a case asks for.
    pub fn act(&mut self, act: &Act) -> Result<Vec<Changed>> {
        match act {
            Act::Apply(objects) => objects.iter().map(|object| self.apply(object)).collect(),
            Act::Delete(names) => {
                let gone = |name: &Name| {
                    let object = self.objects.remove(name);
                    object.with_context(|| format!("no {} {} to delete", name.kind, name.name))?;
                    Ok(Changed::Object(name.clone()))
                };
                names.iter().map(gone).collect()
            }
            Act::PodState(changes) => {
                for (id, change) in changes {
                    ensure!(self.pods.contains_key(id), "no pod {id}");
                    if change.gone {
                        self.pods.remove(id);
                    }
                    let state = self.states.entry(id.clone()).or_insert((true, false));
                    state.0 = change.ready.unwrap_or(state.0);
                    state.1 = change.terminating.unwrap_or(state.1);
                }
                Ok(changes.keys().cloned().map(Changed::Pod).collect())
            }
            Act::Wait(seconds) => {
                self.clock += seconds;
                Ok(Vec::new())
            }
        }
    }

    fn apply(&mut self, object: &Value) -> Result<Changed> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name").to_owned());
        let namespace = text("/metadata/namespace").to_owned();
        ensure!(!kind.is_empty() && !name.is_empty(), "an object without kind or name: {object}");
        let labels =
            || serde_json::from_value(object.pointer("/metadata/labels").cloned().unwrap_or(json!({})));
        let key = Name { kind: kind.to_owned(), namespace, name: name.clone() };
        match kind {
            // These are there from the beginning: what comes says what is other than it was.
            "Node" => {
                let node = self.topology.nodes.get_mut(&name).with_context(|| format!("no node {name}"))?;
                node.labels = labels()?;
                self.said.insert(name.clone(), object.clone());
                Ok(Changed::Node(name))
            }
            "Namespace" => {
                self.topology.namespaces.entry(name.clone()).or_default().labels = labels()?;
                Ok(Changed::Namespace(name))
            }
            "Pod" | "Cluster" => bail!("{kind} {name}: pods and clusters are the topology's"),
            _ => {
                self.objects.insert(key.clone(), object.clone());
                Ok(Changed::Object(key))
            }
        }
    }

    /// An object that a case brought and that is there.
    pub fn object(&self, name: &Name) -> Option<&Value> {
        self.objects.get(name)
    }

    /// What there is besides pods and objects, as it is now.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// All pods, by `namespace/name`.
    pub fn pods(&self) -> &BTreeMap<String, Pod> {
        &self.pods
    }

    /// All of it as objects tell it.
    pub fn scene(&self) -> Scene<'_> {
        let state = |id: &String| {
            let (ready, terminating) = self.states.get(id).copied().unwrap_or((true, false));
            let word = if ready { "True" } else { "False" };
            let conditions = json!([{"type": "Ready", "status": word}]);
            let mut said = json!({"status": {"conditions": conditions}});
            if terminating {
                said["metadata"] =
                    json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3600});
            }
            (("Pod", id.clone()), said)
        };
        let nodes = self.said.iter().map(|(name, said)| (("Node", name.clone()), said.clone()));
        let prefixes = |node: &Node| node.pod_cidrs.clone();
        let pods: Vec<_> = self.topology.nodes.values().flat_map(prefixes).collect();
        Scene {
            nodes: &self.topology.nodes,
            namespaces: &self.topology.namespaces,
            pods: &self.pods,
            said: self.pods.keys().map(state).chain(nodes).collect(),
            cluster: json!({"spec": {"podCIDRs": pods, "serviceCIDRs": self.topology.service_cidrs}}),
            others: self.objects.values().cloned().collect(),
        }
    }

    /// Who `pod:ID`, `node:NAME` or `out:NAME` is.
    pub fn party(&self, name: &str) -> Result<Party> {
        let topology = &self.topology;
        let found = match name.split_once(':') {
            Some(("pod", id)) => self.pods.get(id).map(|pod| self.party_of(pod)),
            Some(("node", node)) => topology.nodes.contains_key(node).then(|| Party::Node(node.to_owned())),
            Some(("out", host)) => topology.outside.contains_key(host).then(|| Party::Out(host.to_owned())),
            _ => None,
        };
        found.with_context(|| format!("{name:?} is nobody"))
    }

    fn party_of(&self, pod: &Pod) -> Party {
        if pod.host_network { Party::Node(pod.node.clone()) } else { Party::Pod(pod.id.clone()) }
    }

    /// Whose an address is.
    pub fn owner(&self, address: IpAddr) -> Option<Party> {
        let topology = &self.topology;
        let pod = self.pods.values().find(|pod| !pod.host_network && pod.ips.contains(&address));
        let node = || topology.nodes.iter().find(|(_, node)| own(node).any(|ip| ip == address));
        let family = Family::of(address);
        let host = || topology.outside.iter().find(|(_, host)| host.addresses(family).contains(&address));
        let pod = pod.map(|pod| Party::Pod(pod.id.clone()));
        let pod = pod.or_else(|| node().map(|(name, _)| Party::Node(name.clone())));
        pod.or_else(|| host().map(|(name, _)| Party::Out(name.clone())))
    }

    /// The node that somebody is on.
    pub fn node_of(&self, party: &Party) -> Option<&str> {
        match party {
            Party::Pod(id) => self.pods.get(id).map(|pod| pod.node.as_str()),
            Party::Node(name) => self.topology.nodes.get_key_value(name).map(|(name, _)| name.as_str()),
            Party::Out(_) => None,
        }
    }

    /// Somebody's own addresses of a family, the usual one first.
    pub fn addresses(&self, party: &Party, family: Family) -> Vec<IpAddr> {
        let ips: Vec<IpAddr> = match party {
            Party::Pod(id) => self.pods.get(id).map(|pod| pod.ips.clone()).unwrap_or_default(),
            Party::Node(name) => self.topology.nodes.get(name).into_iter().flat_map(own).collect(),
            Party::Out(name) => {
                return self.topology.outside.get(name).map_or_else(Vec::new, |host| host.addresses(family));
            }
        };
        ips.into_iter().filter(|ip| Family::of(*ip) == family).collect()
    }

    /// Who serves ports at somebody's addresses, and which.
    pub fn servers(&self, party: &Party) -> Vec<(String, &[Port])> {
        match party {
            Party::Pod(id) => self.pods.get(id).map(|pod| (id.clone(), &*pod.ports)).into_iter().collect(),
            Party::Node(name) => {
                let here = self.pods.values().filter(|pod| pod.host_network && pod.node == *name);
                here.map(|pod| (pod.id.clone(), &*pod.ports)).collect()
            }
            Party::Out(name) => {
                let host = self.topology.outside.get(name);
                host.map(|host| (format!("out:{name}"), &*host.ports)).into_iter().collect()
            }
        }
    }

    /// Who answers at an address, as `NAME:PORT`; none if nobody does.
    pub fn answers(&self, party: &Party, of: PortProtocol, port: u16) -> Option<String> {
        let serves = |one: &Port| one.port == port && protocol(&one.protocol).ok() == Some(of);
        let servers = self.servers(party);
        let found = servers.iter().find(|(_, ports)| ports.iter().any(serves));
        found.map(|(id, _)| format!("{id}:{port}"))
    }

    /// Everybody.
    pub fn parties(&self) -> Vec<Party> {
        let topology = &self.topology;
        let pods = self.pods.values().filter(|pod| !pod.host_network).map(|pod| Party::Pod(pod.id.clone()));
        let nodes = topology.nodes.keys().cloned().map(Party::Node);
        pods.chain(nodes).chain(topology.outside.keys().cloned().map(Party::Out)).collect()
    }

    /// Whether an address is a node's: one of its own, one of its pods' prefixes that is no pod's, or, for one of its own pods, a
    /// link-local one.
    pub fn is_of_node(&self, address: IpAddr, name: &str, backend: Option<&Party>) -> bool {
        let Some(node) = self.topology.nodes.get(name) else { return false };
        let of_pod = matches!(backend, Some(Party::Pod(_)));
        let here = of_pod && backend.and_then(|party| self.node_of(party)) == Some(name);
        own(node).any(|ip| ip == address)
            || is_link_local(address) && here
            || node.pod_cidrs.iter().any(|prefix| prefix.contains(address)) && self.owner(address).is_none()
    }
}

/// All addresses of a node.
pub(super) fn own(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    node.ips.iter().chain(&node.second_ips).copied()
}

/// The address that a node is known by.
pub(super) fn known_by(node: &Node, family: Family) -> Option<IpAddr> {
    of_family(&node.ips, family)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
