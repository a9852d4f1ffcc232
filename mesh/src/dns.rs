//! Names under `clusterset.local`: the answers of the multicluster DNS specification, schema 1.0.0.
//!
//! Questions come and answers go as values; whoever has a socket asks here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::PortProtocol;

use crate::facts::{Port, ServiceName};
use crate::outcome::{Import, Pod};
use crate::world::World;

/// The zone.
pub const ZONE: &str = "clusterset.local";
/// The version of the schema that these names follow.
pub const SCHEMA: &str = "1.0.0";
/// How many seconds an answer may be kept.
pub const TTL: u32 = 5;
/// How long the schema's version may be kept.
const SCHEMA_TTL: u32 = 28_800;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports and who has them.
    Srv,
    /// Text.
    Txt,
    /// The name of an address.
    Ptr,
    /// Anything else: the name may exist, such a record does not.
    Other,
}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A port and the name of who has it. All have one priority and one weight.
    Srv {
        /// The port.
        port: u16,
        /// The name, without the dot at its end.
        target: String,
    },
    /// Text.
    Txt(String),
    /// A name.
    Ptr(String),
}

/// The priority and the weight of every SRV record.
pub const SRV_ORDER: (u16, u16) = (0, 100);

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Its name, in lower case and without the dot at its end.
    pub name: String,
    /// How many seconds it may be kept.
    pub ttl: u32,
    /// What it holds.
    pub data: Data,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// These records, and others that will be asked for next.
    Answer {
        /// What was asked for.
        answers: Vec<Record>,
        /// Addresses of the names in it.
        additional: Vec<Record>,
    },
    /// The name is there, such a record is not.
    NoData,
    /// There is no such name.
    NoName,
    /// The name is none of this zone's business.
    NotOurs,
}

/// Answers a question.
pub fn answer(world: &World, name: &str, kind: Kind) -> Reply {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if kind == Kind::Ptr
        && let Some(address) = reversed(&name)
    {
        return pointer(world, &name, address);
    }
    let Some(rest) = name.strip_suffix(ZONE) else { return Reply::NotOurs };
    let labels: Vec<_> = match rest.strip_suffix('.') {
        Some(inside) => inside.split('.').collect(),
        None if rest.is_empty() => Vec::new(),
        None => return Reply::NotOurs,
    };
    match &labels[..] {
        [] | ["svc"] => Reply::NoData,
        ["dns-version"] => match kind {
            Kind::Txt => found(vec![record(&name, SCHEMA_TTL, Data::Txt(SCHEMA.to_owned()))]),
            _ => Reply::NoData,
        },
        [namespace, "svc"] => match names_inside(world, namespace) {
            true => Reply::NoData,
            false => Reply::NoName,
        },
        [inside @ .., service, namespace, "svc"] => {
            let service = ServiceName { namespace: (*namespace).to_owned(), name: (*service).to_owned() };
            match world.imports().get(&service).filter(|import| exists(import)) {
                Some(import) => Zone { service, import }.answer(&name, inside, kind),
                None => Reply::NoName,
            }
        }
        _ => Reply::NoName,
    }
}

/// A headless service whose pods are all away has no name.
fn exists(import: &Import) -> bool {
    !import.headless || !import.pods.is_empty()
}

fn names_inside(world: &World, namespace: &str) -> bool {
    let first = ServiceName { namespace: namespace.to_owned(), name: String::new() };
    let from_there = world.imports().range(first..).take_while(|(name, _)| name.namespace == namespace);
    from_there.into_iter().any(|(_, import)| exists(import))
}

/// The names below a service's own.
struct Zone<'a> {
    service: ServiceName,
    import: &'a Import,
}

impl Zone<'_> {
    fn answer(&self, name: &str, inside: &[&str], kind: Kind) -> Reply {
        match inside {
            [] => match kind {
                Kind::A | Kind::Aaaa => of_kind(name, kind, self.addresses()),
                Kind::Srv => self.ports(name, |port| !port.name.is_empty()),
                _ => Reply::NoData,
            },
            // Nobody is there, but names below may be.
            [protocol]
                if protocol_of(protocol).is_some_and(|it| self.has_port(|port| port.protocol == it)) =>
            {
                Reply::NoData
            }
            [port, protocol] if protocol_of(protocol).is_some() && port.starts_with('_') => {
                let (wanted, protocol) = (&port[1..], protocol_of(protocol));
                let is = |port: &Port| port.name == wanted && Some(port.protocol) == protocol;
                match kind {
                    _ if wanted.is_empty() || !self.has_port(is) => Reply::NoName,
                    Kind::Srv => self.ports(name, is),
                    _ => Reply::NoData,
                }
            }
            _ => self.pod(name, &inside.join("."), kind),
        }
    }

    fn name(&self) -> String {
        format!("{}.{}.svc.{ZONE}", self.service.name, self.service.namespace)
    }

    fn pod_name(&self, pod: &Pod) -> String {
        format!("{}.{}.{}", pod.hostname, pod.cluster, self.name())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        match self.import.headless {
            true => self.import.pods.iter().map(|pod| pod.address).collect(),
            false => self.import.addresses.clone(),
        }
    }

    fn has_port(&self, is: impl Fn(&Port) -> bool) -> bool {
        self.import.ports.iter().any(|port| !port.name.is_empty() && is(port))
    }

    /// The pods of a name below a headless service's; of any other service no cluster and no pod has a name.
    fn pod(&self, name: &str, below: &str, kind: Kind) -> Reply {
        let named = |pod: &&Pod| below == format!("{}.{}", pod.hostname, pod.cluster);
        let pods: Vec<_> = self.import.pods.iter().filter(named).map(|pod| pod.address).collect();
        // Each pod's cluster has names below it.
        let above = |pod: &Pod| {
            let cluster = pod.cluster.as_str();
            cluster == below || cluster.ends_with(&format!(".{below}"))
        };
        match kind {
            Kind::A | Kind::Aaaa if !pods.is_empty() => of_kind(name, kind, pods),
            _ if !pods.is_empty() || self.import.pods.iter().any(above) => Reply::NoData,
            _ => Reply::NoName,
        }
    }

    /// SRV records of the ports that are wanted, and the addresses of those who have them.
    fn ports(&self, name: &str, wanted: impl Fn(&Port) -> bool) -> Reply {
        let mut targets = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for (index, port) in self.import.ports.iter().enumerate().filter(|(_, port)| wanted(port)) {
            if !self.import.headless {
                targets.insert((port.number, self.name()));
                addresses.extend(self.import.addresses.iter().map(|address| (self.name(), *address)));
            }
            for pod in &self.import.pods {
                if let Some((_, number)) = pod.ports.iter().find(|(place, _)| *place == index) {
                    targets.insert((*number, self.pod_name(pod)));
                    addresses.insert((self.pod_name(pod), pod.address));
                }
            }
        }
        if targets.is_empty() {
            return Reply::NoData;
        }
        let target = |(port, target)| record(name, TTL, Data::Srv { port, target });
        let address = |(name, address): (String, IpAddr)| record(&name, TTL, address_data(address));
        Reply::Answer {
            answers: targets.into_iter().map(target).collect(),
            additional: addresses.into_iter().map(address).collect(),
        }
    }
}

fn address_data(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(address) => Data::A(address),
        IpAddr::V6(address) => Data::Aaaa(address),
    }
}

/// The addresses of one family, each once.
fn of_kind(name: &str, kind: Kind, addresses: Vec<IpAddr>) -> Reply {
    let of_family = |address: &IpAddr| address.is_ipv4() == (kind == Kind::A);
    let addresses: BTreeSet<_> = addresses.into_iter().filter(of_family).collect();
    found(addresses.into_iter().map(|address| record(name, TTL, address_data(address))).collect())
}

fn found(answers: Vec<Record>) -> Reply {
    if answers.is_empty() { Reply::NoData } else { Reply::Answer { answers, additional: Vec::new() } }
}

fn record(name: &str, ttl: u32, data: Data) -> Record {
    Record { name: name.to_owned(), ttl, data }
}

fn protocol_of(label: &str) -> Option<PortProtocol> {
    let name = label.strip_prefix('_')?;
    PortProtocol::ALL.into_iter().find(|protocol| protocol.as_str() == name)
}

/// The name of a cluster-set address. Pods have their names by their own clusters.
fn pointer(world: &World, name: &str, address: IpAddr) -> Reply {
    match world.holder(address) {
        Some(ServiceName { namespace, name: service }) => {
            let target = format!("{service}.{namespace}.svc.{ZONE}");
            found(vec![record(name, TTL, Data::Ptr(target))])
        }
        None if world.clusterset().iter().any(|prefix| prefix.contains(address)) => Reply::NoName,
        None => Reply::NotOurs,
    }
}

/// The address of a name under `in-addr.arpa` or `ip6.arpa`.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<_> = digits.split('.').rev().collect();
        return (parts.len() == 4).then(|| parts.join(".").parse().ok())?;
    }
    let nibbles: Vec<_> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    let bits = u128::from_str_radix(&nibbles.concat(), 16).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}
