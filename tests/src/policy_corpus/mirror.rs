//! Cases over IPv4 told over IPv6.
//!
//! Flows and packets change their family, and a block becomes the longest one over IPv6 that holds the IPv6 addresses of those of
//! the topology whose IPv4 addresses it held: everybody; or a network that is nobody's, if it held none that has one. A case whose
//! blocks cannot be told so (there would be somebody else in one) or that asks for what is not supported has no mirror. Who has no IPv6 address is not asserted of.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use causeway_policy::read;
use ipnetwork::{IpNetwork, Ipv6Network};
use serde_json::{Value, json};

use super::format::{Case, Corpus};

/// A network that is nobody's.
const NOBODYS: &str = "2001:db8:ffff::/48";

impl Corpus {
    /// So many of its cases over IPv6: first those that speak of blocks, then one of each kind.
    pub fn mirrored(&self, most: usize) -> Result<Vec<Case>> {
        let mut with_blocks = Vec::new();
        let mut others: Vec<Case> = Vec::new();
        for case in &self.cases {
            match self.mirror(case)? {
                Some((mirrored, true)) => with_blocks.push(mirrored),
                Some((mirrored, false)) if others.iter().all(|other| other.kind != case.kind) => {
                    others.push(mirrored);
                }
                _ => {}
            }
        }
        with_blocks.extend(others);
        with_blocks.truncate(most);
        Ok(with_blocks)
    }

    /// A case over IPv6, and whether it speaks of blocks.
    fn mirror(&self, case: &Case) -> Result<Option<(Case, bool)>> {
        let mut mirror = Mirror::new(self, case);
        let mut steps = Vec::new();
        for step in case.raw_steps() {
            match mirror.step(step)? {
                Some(step) => steps.push(step),
                None => return Ok(None),
            }
        }
        Ok(Some((case.told(format!("{}-v6", case.id), steps), mirror.blocks)))
    }
}

struct Mirror<'a> {
    endpoints: &'a [String],
    /// Everybody's addresses of either family, as far as they have them.
    owners: Vec<(IpAddr, Option<Ipv6Addr>)>,
    /// Who has an IPv6 address.
    reachable: Vec<bool>,
    blocks: bool,
}

impl<'a> Mirror<'a> {
    fn new(corpus: &'a Corpus, case: &'a Case) -> Self {
        let topology = &corpus.topology;
        let pods: Vec<_> = topology.pods.iter().cloned().chain(corpus.added_pods()).collect();
        let ips_of = |endpoint: &str| -> Vec<IpAddr> {
            let node = |name: &str| topology.nodes.get(name).map(|node| node.ips.clone());
            let found = if let Some(name) = endpoint.strip_prefix("node:") {
                node(name)
            } else if let Some(name) = endpoint.strip_prefix("ext:") {
                topology.externals.get(name).map(|host| host.ips.clone())
            } else {
                let pod = pods.iter().find(|pod| pod.id == endpoint);
                pod.and_then(|pod| if pod.host_network { node(&pod.node) } else { Some(pod.ips.clone()) })
            };
            found.unwrap_or_default()
        };
        let all = topology.nodes.values().map(|node| &node.ips);
        let all = all
            .chain(topology.externals.values().map(|host| &host.ips))
            .chain(pods.iter().map(|pod| &pod.ips));
        let owners = all.filter_map(|ips| Some((*ips.iter().find(|ip| ip.is_ipv4())?, v6(ips)))).collect();
        let endpoints = case.endpoints.as_deref().unwrap_or(&corpus.default_endpoints);
        let reachable = endpoints.iter().map(|endpoint| v6(&ips_of(endpoint)).is_some()).collect();
        Self { endpoints, owners, reachable, blocks: false }
    }

    /// A step over IPv6; none if it cannot be told so.
    fn step(&mut self, step: &Value) -> Result<Option<Value>> {
        let mut step = step.clone();
        if step.get("rejected").is_some() {
            return Ok(None);
        }
        for grid in step.get_mut("expect").and_then(Value::as_array_mut).into_iter().flatten() {
            for flow in grid["flows"].as_array_mut().context("a grid without flows")? {
                match flow.as_str().and_then(|flow| flow.strip_prefix("4/")) {
                    Some(rest) => *flow = format!("6/{rest}").into(),
                    None => return Ok(None),
                }
            }
            for (source, letters) in grid["grid"].as_object_mut().context("no grid")? {
                let from = self.endpoints.iter().position(|endpoint| endpoint == source);
                let sees = from.is_none_or(|from| self.reachable[from]);
                let row = letters.as_str().unwrap_or_default().chars().zip(&self.reachable);
                let row = row.map(|(letter, there)| if sees && *there { letter } else { '-' });
                *letters = row.collect::<String>().into();
            }
        }
        for packet in step.get_mut("packets").and_then(Value::as_array_mut).into_iter().flatten() {
            for tuple in ["packet", "open"] {
                if let Some(tuple) = packet.get_mut(tuple).filter(|tuple| tuple.is_object()) {
                    tuple["family"] = json!(6);
                }
            }
        }
        for act in step.get_mut("do").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(objects) = act.get_mut("apply") else { continue };
            let one = std::slice::from_ref(&*objects);
            let unsupported = |object: &Value| read(object).is_ok_and(|read| read.report.is_unsupported());
            if objects.as_array().map_or(one, Vec::as_slice).iter().any(unsupported) || !self.tell(objects) {
                return Ok(None);
            }
        }
        Ok(Some(step))
    }

    /// Tells the blocks of an object over IPv6; whether that can be done.
    fn tell(&mut self, value: &mut Value) -> bool {
        let Value::Object(fields) = value else {
            return value.as_array_mut().into_iter().flatten().all(|item| self.tell(item));
        };
        fields.iter_mut().all(|(name, value)| match name.as_str() {
            "cidr" => self.tell_block(value),
            "networks" => value.as_array_mut().into_iter().flatten().all(|block| self.tell_block(block)),
            "except" => {
                let Value::Array(holes) = value else { return true };
                let told = holes.iter_mut().all(|hole| self.tell_block(hole));
                // A hole must lie in its block, and one with nobody in it is none.
                holes.retain(|hole| *hole != NOBODYS);
                told
            }
            _ => self.tell(value),
        })
    }

    fn tell_block(&mut self, block: &mut Value) -> bool {
        let Some(network) = block.as_str().and_then(|text| text.parse::<IpNetwork>().ok()) else {
            return true;
        };
        if !network.is_ipv4() {
            return false;
        }
        self.blocks = true;
        let (inside, outside): (Vec<_>, Vec<_>) =
            self.owners.iter().partition(|(v4, _)| network.contains(*v4));
        let inside: Vec<_> = inside.into_iter().filter_map(|(_, v6)| v6).collect();
        let told = match (network.prefix(), smallest(&inside)) {
            (0, _) => "::/0".to_owned(),
            (_, None) => NOBODYS.to_owned(),
            (_, Some(all)) if outside.iter().any(|(_, v6)| v6.is_some_and(|v6| all.contains(v6))) => {
                return false;
            }
            (_, Some(all)) => all.to_string(),
        };
        *block = told.into();
        true
    }
}

fn v6(ips: &[IpAddr]) -> Option<Ipv6Addr> {
    ips.iter().find_map(|ip| match ip {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    })
}

/// The longest prefix that holds them all.
fn smallest(addresses: &[Ipv6Addr]) -> Option<Ipv6Network> {
    let first = u128::from(*addresses.first()?);
    let differing = addresses.iter().fold(0, |bits, address| bits | (u128::from(*address) ^ first));
    let length = differing.leading_zeros();
    let base = first.checked_shr(128 - length).and_then(|kept| kept.checked_shl(128 - length)).unwrap_or(0);
    Ipv6Network::new(base.into(), u8::try_from(length).ok()?).ok()
}
