//! Random policies over a file's topology: what they allow, the slow evaluator says, and every data path must say the same.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::format::{Case, Corpus};
use super::run::run;

/// The flows that every step is asked about.
const FLOWS: [&str; 8] =
    ["4/TCP/80", "4/TCP/81", "4/UDP/80", "4/UDP/81", "4/SCTP/80", "4/SCTP/81", "6/TCP/80", "6/UDP/81"];
const STEPS: usize = 3;

impl Corpus {
    /// So many random cases, the same for the same seed.
    pub fn random(&self, seed: u64, cases: usize) -> Result<Vec<Case>> {
        (0..cases).map(|number| self.random_case(seed, number)).collect()
    }

    fn random_case(&self, seed: u64, number: usize) -> Result<Case> {
        let mut draw = Draw { rng: Rng::with_seed(seed.wrapping_add(number as u64)), corpus: self };
        let mut acts: Vec<Vec<Value>> = Vec::new();
        for step in 0..STEPS {
            // Names come again: a later policy takes an earlier one's place.
            let applied = (0..draw.rng.usize(1..5)).map(|_| json!({"apply": draw.policy()})).collect();
            acts.push(applied);
            if step + 1 == STEPS {
                acts.push(draw.relabelled());
            }
        }
        let id = format!("random-{seed}-{number}");
        let all = self.asked(&id, &acts, &BTreeMap::new())?;
        // Whatever is not allowed shows as a failure of a case that wants everything.
        let report = run(self, &[&all], false, None)?;
        ensure!(
            report.tallies.disagreements == 0,
            "tables and slow evaluator: {:#?}",
            report.failures.first()
        );
        let mut denied: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for failure in report.failures {
            denied.entry(failure.step).or_default().push(failure.what);
        }
        self.asked(&id, &acts, &denied)
    }

    /// A case that wants everything but what is denied, by step.
    fn asked(&self, id: &str, acts: &[Vec<Value>], denied: &BTreeMap<usize, Vec<String>>) -> Result<Case> {
        let mut steps = Vec::new();
        for (number, acts) in acts.iter().enumerate() {
            let denied = denied.get(&number).map(Vec::as_slice).unwrap_or_default();
            let letter = |flow: &str, from: &str, to: &str| {
                if denied.contains(&format!("{flow} {from} -> {to}")) { '0' } else { '1' }
            };
            let ends = &self.default_endpoints;
            let grid = |flow: &str| -> Map<String, Value> {
                let row =
                    |from: &String| -> String { ends.iter().map(|to| letter(flow, from, to)).collect() };
                ends.iter().map(|from| (from.clone(), row(from).into())).collect()
            };
            let expect: Vec<_> =
                FLOWS.iter().map(|flow| json!({"flows": [flow], "grid": grid(flow)})).collect();
            steps.push(json!({"do": acts, "expect": expect}));
        }
        let case = json!({"id": id, "kind": "random", "title": "drawn", "steps": steps});
        serde_json::from_value(case).context("a drawn case")
    }
}

struct Draw<'a> {
    rng: Rng,
    corpus: &'a Corpus,
}

impl Draw<'_> {
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())].clone()
    }

    fn several(&mut self, most: usize, mut draw: impl FnMut(&mut Self) -> Value) -> Vec<Value> {
        (0..self.rng.usize(1..=most)).map(|_| draw(self)).collect()
    }

    fn namespace(&mut self) -> String {
        let names: Vec<_> = self.corpus.topology.namespaces.keys().cloned().collect();
        self.one(&names)
    }

    /// Some of the labels of somebody, or nobody's.
    fn labels(&mut self, of: &[BTreeMap<String, String>]) -> Value {
        let labels: Vec<_> = self.one(of).into_iter().collect();
        match (labels.is_empty(), self.rng.u8(..4)) {
            (true, _) | (_, 0) => json!({}),
            (_, 1) => {
                let (key, value) = self.one(&labels);
                let operator = self.one(&["In", "NotIn"]);
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]})
            }
            _ => {
                let (key, value) = self.one(&labels);
                json!({"matchLabels": {key: value}})
            }
        }
    }

    fn pods(&mut self) -> Value {
        let all: Vec<_> = self.corpus.topology.pods.iter().map(|pod| pod.labels.clone()).collect();
        self.labels(&all)
    }

    fn namespaces(&mut self) -> Value {
        if self.rng.bool() {
            return json!({"matchLabels": {"kubernetes.io/metadata.name": self.namespace()}});
        }
        let all: Vec<_> = self.corpus.topology.namespaces.values().map(|one| one.labels.clone()).collect();
        self.labels(&all)
    }

    /// A block around somebody, with a hole around somebody else in it, perhaps.
    fn block(&mut self) -> Value {
        let v4 = |ips: &[std::net::IpAddr]| ips.iter().find(|ip| ip.is_ipv4()).map(ToString::to_string);
        let all: Vec<_> = self.corpus.topology.pods.iter().filter_map(|pod| v4(&pod.ips)).collect();
        let (somebody, other) = (self.one(&all), self.one(&all));
        match self.rng.u8(..3) {
            0 => json!({"cidr": format!("{somebody}/32")}),
            1 => json!({"cidr": "0.0.0.0/0", "except": [format!("{other}/32")]}),
            _ => json!({"cidr": "10.70.0.0/16", "except": [format!("{other}/30"), format!("{somebody}/32")]}),
        }
    }

    fn policy(&mut self) -> Value {
        let name = format!("p{}", self.rng.u8(..4));
        if self.rng.u8(..3) == 0 { self.cluster_policy(&name) } else { self.network_policy(&name) }
    }

    fn network_policy(&mut self, name: &str) -> Value {
        let mut spec = json!({"podSelector": self.pods(), "policyTypes": self.one(&[
            json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])
        ])});
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            let of_this =
                |value: &Value| value.as_str().is_some_and(|word| word.eq_ignore_ascii_case(direction));
            if spec["policyTypes"].as_array().is_some_and(|types| types.iter().any(of_this))
                && self.rng.u8(..4) > 0
            {
                spec[direction] = json!(self.several(3, |draw| draw.network_rule(peers)));
            }
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": self.namespace()}, "spec": spec
        })
    }

    fn network_rule(&mut self, peers: &str) -> Value {
        let mut rule = json!({});
        if self.rng.u8(..5) > 0 {
            rule[peers] = json!(self.several(2, |draw| match draw.rng.u8(..4) {
                0 => json!({"ipBlock": draw.block()}),
                1 => json!({"podSelector": draw.pods()}),
                2 => json!({"namespaceSelector": draw.namespaces()}),
                _ => json!({"namespaceSelector": draw.namespaces(), "podSelector": draw.pods()}),
            }));
        }
        if self.rng.bool() {
            rule["ports"] = json!(self.several(2, |draw| draw.one(&[
                json!({"port": 80}),
                json!({"port": 80, "endPort": 81, "protocol": "UDP"}),
                json!({"port": "tcp-81"}),
                json!({"protocol": "SCTP"}),
                json!({"port": 81, "protocol": "SCTP"}),
            ])));
        }
        rule
    }

    fn cluster_policy(&mut self, name: &str) -> Value {
        let subject = match self.rng.bool() {
            true => json!({"namespaces": self.namespaces()}),
            false => json!({"pods": {"namespaceSelector": self.namespaces(), "podSelector": self.pods()}}),
        };
        let (tier, priority) = (self.one(&["Admin", "Baseline"]), self.rng.u16(..1000));
        let mut spec = json!({"tier": tier, "priority": priority, "subject": subject});
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.rng.bool() {
                spec[direction] = json!(self.several(3, |draw| draw.cluster_rule(direction, peers)));
            }
        }
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name}, "spec": spec
        })
    }

    fn cluster_rule(&mut self, direction: &str, peers: &str) -> Value {
        let mut rule = json!({"action": self.one(&["Accept", "Deny", "Pass"])});
        rule[peers] = json!(self.several(2, |draw| match draw.rng.u8(..3) {
            0 if direction == "egress" => json!({"networks": [draw.block()["cidr"].clone()]}),
            0 | 1 => json!({"namespaces": draw.namespaces()}),
            _ => json!({"pods": {"namespaceSelector": draw.namespaces(), "podSelector": draw.pods()}}),
        }));
        if self.rng.bool() {
            let port = self.one(&[80, 81]);
            rule["protocols"] = json!(self.several(2, |draw| draw.one(&[
                json!({"tcp": {"destinationPort": {"number": port}}}),
                json!({"udp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}),
                json!({"sctp": {"destinationPort": {"number": port}}}),
            ])));
        }
        rule
    }

    /// Somebody gets somebody else's labels.
    fn relabelled(&mut self) -> Vec<Value> {
        let pods: Vec<_> =
            self.corpus.topology.pods.iter().filter(|pod| !pod.host_network).cloned().collect();
        let (whose, like) = (self.one(&pods), self.one(&pods));
        vec![json!({"label_pod": {"pod": whose.id, "set": like.labels}})]
    }
}
