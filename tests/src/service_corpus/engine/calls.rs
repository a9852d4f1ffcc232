//! Who asks whom, which nodes have a say in it, and whom those see who are asked.

use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::{Family, PortProtocol};
use causeway_services::Client;

use super::super::format::{Kind, Probe};
use super::super::world::{Party, Stage, known_by};
use crate::corpus::protocol;

/// A new connection.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Who begins it.
    pub client: Party,
    /// The address that it begins from.
    pub source: IpAddr,
    /// Whom it is for.
    pub target: IpAddr,
    /// The node through which a host outside routes that.
    pub via: Option<String>,
    /// The transport.
    pub protocol: PortProtocol,
    /// The port.
    pub port: u16,
}

/// A node that has a say in a call.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    /// Its name.
    pub node: String,
    /// What the caller is to it.
    pub client: Client,
    /// Whether the target is a node's address, as far as it concerns this one.
    pub of_node: bool,
}

impl Call {
    /// All connections of a probe.
    pub fn all(stage: &Stage, probe: &Probe) -> Result<Vec<Self>> {
        let client = stage.party(&probe.from)?;
        let addresses = stage.addresses(&client, Family::of(probe.to));
        let clients = probe.clients.unwrap_or(1).max(1);
        let missing = || format!("{} has not {clients} addresses to ask {} from", probe.from, probe.to);
        let (protocol, port) = match (probe.kind, &probe.proto, probe.port) {
            (Kind::Connect, Some(name), Some(port)) => (protocol(name)?, port),
            (Kind::Health, _, Some(port)) => (PortProtocol::Tcp, port),
            (Kind::Ping, ..) => return Ok(Vec::new()),
            _ => anyhow::bail!("a probe without protocol or port"),
        };
        let call = |number: usize| {
            let source = *addresses.get(number % clients).with_context(missing)?;
            let (client, via) = (client.clone(), probe.via.clone());
            Ok(Self { client, source, target: probe.to, via, protocol, port })
        };
        (0..probe.count).map(call).collect()
    }

    /// The nodes that have a say in it, in the order in which it comes to them.
    pub fn hops(&self, stage: &Stage) -> Vec<Hop> {
        let owner = match stage.owner(self.target) {
            Some(Party::Node(name)) => Some(name),
            _ => None,
        };
        let outside = |node: &String| {
            let of_node = owner.as_ref() == Some(node);
            Hop { node: node.clone(), client: Client::Outside, of_node }
        };
        match &self.client {
            Party::Pod(_) => {
                let node = stage.node_of(&self.client).unwrap_or_default().to_owned();
                vec![Hop { node, client: Client::Pod, of_node: owner.is_some() }]
            }
            Party::Node(name) => {
                let of_node = owner.as_ref() == Some(name);
                let own = Hop { node: name.clone(), client: Client::Process, of_node };
                let other = owner.as_ref().filter(|other| *other != name).map(outside);
                std::iter::once(own).chain(other).collect()
            }
            Party::Out(_) => self.via.as_ref().or(owner.as_ref()).map(outside).into_iter().collect(),
        }
    }

    /// Whether it comes to a node that has nobody to pass it to.
    pub fn is_lost(&self, stage: &Stage) -> bool {
        let target = stage.owner(self.target);
        let node = self.via.clone().map(Party::Node);
        node.is_some() && target != node
    }

    /// Whom the one who is asked sees.
    pub fn seen_as(&self, stage: &Stage, hop: Option<&Hop>, asked: &Party) -> Option<IpAddr> {
        let family = Family::of(self.source);
        let nodes = &stage.topology().nodes;
        let home = stage.node_of(asked);
        match (&self.client, hop) {
            // Through a node whose answer would not come back the same way: as that node.
            (_, Some(Hop { node, client: Client::Outside, .. })) if home != Some(node.as_str()) => {
                match asked {
                    Party::Pod(_) => overlay_host_address(stage, node, family),
                    _ => known_by(nodes.get(node)?, family),
                }
            }
            (_, Some(Hop { client: Client::Outside, .. })) => Some(self.source),
            (Party::Pod(_), Some(_)) if self.client == *asked => Some(match family {
                Family::V4 => IpAddr::from([169, 254, 1, 1]),
                Family::V6 => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]),
            }),
            (Party::Pod(_), _) if home.is_none() => {
                known_by(nodes.get(stage.node_of(&self.client)?)?, family)
            }
            (Party::Node(name), _) if matches!(asked, Party::Pod(_)) && home != Some(name.as_str()) => {
                overlay_host_address(stage, name, family)
            }
            _ => Some(self.source),
        }
    }
}

/// The address of a node among its pods'.
fn overlay_host_address(stage: &Stage, node: &str, family: Family) -> Option<IpAddr> {
    let prefixes = &stage.topology().nodes.get(node)?.pod_cidrs;
    let first = prefixes.iter().find(|prefix| Family::of(prefix.ip()) == family)?.network();
    Some(match first {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + 1).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + 1).into()),
    })
}
