//! Limits of bandwidth: a token bucket filter on the node's end of a veth for what goes to the pod, and one on an intermediate
//! device of its own for what comes from the pod, into which nft leads that.

use std::collections::BTreeMap;

use causeway_model::{Endpoint, RateLimit};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::error::KernelError;
use crate::install::index;
use crate::netlink::Netlink;
use crate::nfnetlink::attributes;
use crate::nft::{list, run};
use crate::objects::{LinkState, Object, Sysctl, is_limit_link};
use crate::observe::Link;

/// The table of the chains that lead what pods send to where it is limited.
pub(crate) const TABLE: &str = "causeway-limits";
/// TCA_TBF_…
const PARAMETERS: u16 = 1;
const RATE_64: u16 = 4;
const BURST: u16 = 6;
/// TC_LINKLAYER_ETHERNET.
const ETHERNET: u8 = 1;
/// What waits in a filter is as much as passes in a twentieth of a second, and this at least.
const LEAST_QUEUE: u64 = 64 << 10;
/// A tick of the packet scheduler is so many nanoseconds.
const TICK: u64 = 64;

/// A token bucket filter: the queueing discipline of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bucket {
    pub(crate) link: String,
    /// Bytes per second.
    pub(crate) rate: u64,
    /// Bytes.
    pub(crate) burst: u32,
}

impl Bucket {
    fn new(link: &str, limit: RateLimit, mtu: u16) -> Self {
        // A frame that does not fit would never pass.
        let least = u64::from(mtu) + 14;
        let burst = u32::try_from(limit.burst_bytes().max(least)).unwrap_or(u32::MAX);
        Self { link: link.to_owned(), rate: limit.bytes_per_second(), burst }
    }

    fn queue(&self) -> u32 {
        u32::try_from((self.rate / 20).max(LEAST_QUEUE)).unwrap_or(u32::MAX)
    }

    /// How long an empty one takes to fill, in ticks.
    fn depth(&self) -> u64 {
        let nanoseconds = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1));
        u64::try_from(nanoseconds / u128::from(TICK)).unwrap_or(u64::MAX)
    }

    fn message(&self) -> Result<TcMessage, KernelError> {
        let mut message = root(&self.link)?;
        // `struct tc_tbf_qopt`: two `tc_ratespec` of 12 bytes, limit, buffer, mtu. The burst is told in bytes beside it.
        let slow = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        parameters.extend(slow.to_ne_bytes());
        parameters.extend([0; 12]);
        parameters.extend(self.queue().to_ne_bytes());
        parameters.extend([0; 8]);
        let mut options = vec![
            TcOption::Other(DefaultNla::new(PARAMETERS, parameters)),
            TcOption::Other(DefaultNla::new(BURST, self.burst.to_ne_bytes().to_vec())),
        ];
        if u64::from(slow) < self.rate {
            options.push(TcOption::Other(DefaultNla::new(RATE_64, self.rate.to_ne_bytes().to_vec())));
        }
        message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)];
        Ok(message)
    }
}

fn root(link: &str) -> Result<TcMessage, KernelError> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index(link)?).unwrap_or(i32::MAX);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    Ok(message)
}

/// What the limits of an endpoint with a veth ask for.
pub(crate) fn objects(endpoint: &Endpoint) -> Vec<Object> {
    let (link, device) = (endpoint.key.link_name(), endpoint.key.limit_name());
    let mut objects = Vec::new();
    if let Some(limit) = endpoint.bandwidth.to_pod {
        objects.push(Object::Bucket(Bucket::new(link.as_str(), limit, endpoint.mtu)));
    }
    if let Some(limit) = endpoint.bandwidth.from_pod {
        let name = device.as_str();
        let path = format!("net/ipv6/conf/{name}/disable_ipv6");
        objects.extend([
            Object::Intermediate(name.to_owned()),
            // It carries packets and has no address, not even one that the kernel makes up.
            Object::Sysctl(Sysctl { link: Some(name.to_owned()), path, value: "1".into() }),
            Object::Link(LinkState { name: name.to_owned(), mac: None, mtu: endpoint.mtu }),
            Object::Bucket(Bucket::new(name, limit, endpoint.mtu)),
            Object::Redirect { link: link.to_string(), to: name.to_owned() },
        ]);
    }
    objects
}

/// Gives a link its filter.
pub(crate) fn install_bucket(netlink: &mut Netlink, bucket: &Bucket) -> Result<(), KernelError> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(bucket.message()?);
    netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE, || {
        format!("making {}", Object::Bucket(bucket.clone()))
    })
}

/// Has a link of this thread's namespace that is not up yet keep no packets in front of its driver, which has a queue itself.
/// A TAP of several queues has 256 of them to the kernel, for each of which a filter of the usual kind holds 24 KiB: most of the time
/// that bringing it up takes, and 6 MiB a pod.
pub fn without_queue(name: &str) -> Result<(), KernelError> {
    let mut message = root(name)?;
    message.attributes = vec![TcAttribute::Kind("noqueue".to_owned())];
    Netlink::route()?.request(
        RouteNetlinkMessage::NewQueueDiscipline(message),
        NLM_F_CREATE | NLM_F_REPLACE,
        || format!("doing without a queue before {name}"),
    )
}

/// Leads what comes from a link elsewhere.
pub(crate) fn install_redirect(link: &str, to: &str) -> Result<(), KernelError> {
    let text = format!(
        "add table netdev {TABLE}
add chain netdev {TABLE} {link} {{ type filter hook ingress device \"{link}\" priority -310; policy accept; }}
flush chain netdev {TABLE} {link}
add rule netdev {TABLE} {link} fwd to \"{to}\"
"
    );
    run(&text, &format!("limiting what comes from {link}"))
}

/// Takes that back; the last one takes the table along.
pub(crate) fn remove_redirect(link: &str) -> Result<(), KernelError> {
    let there = redirects()?;
    let text = if there.iter().all(|(other, _)| other == link) {
        format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\n")
    } else if there.iter().any(|(other, _)| other == link) {
        format!("flush chain netdev {TABLE} {link}\ndelete chain netdev {TABLE} {link}\n")
    } else {
        return Ok(());
    };
    run(&text, &format!("limiting no more what comes from {link}"))
}

/// From which links it is led elsewhere, and whither.
pub(crate) fn redirects() -> Result<Vec<(String, String)>, KernelError> {
    let listing = list(&["-s", "list", "table", "netdev", TABLE])?.unwrap_or_default();
    let chains = listing.split("\tchain ").skip(1).filter_map(|part| {
        let (link, body) = part.split_once(" {")?;
        let to = body.split_once("fwd to \"").and_then(|(_, to)| to.split_once('"'));
        Some((link.to_owned(), to.map_or_else(String::new, |(to, _)| to.to_owned())))
    });
    Ok(chains.collect())
}

/// A filter that is there.
#[derive(Debug)]
pub(crate) struct Found {
    index: i32,
    rate: u64,
    queue: u32,
    depth: u64,
    /// Packets that it had no room for.
    pub(crate) dropped: u64,
}

impl Found {
    fn of(message: &TcMessage) -> Option<Self> {
        let is_tbf = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "tbf");
        if message.header.parent != TcHandle::ROOT || !message.attributes.iter().any(is_tbf) {
            return None;
        }
        let mut found = Self { index: message.header.index, rate: 0, queue: 0, depth: 0, dropped: 0 };
        for attribute in &message.attributes {
            match attribute {
                TcAttribute::Options(options) => options.iter().for_each(|option| found.learn(option)),
                TcAttribute::Stats(stats) => found.dropped = stats.drops.into(),
                _ => {}
            }
        }
        Some(found)
    }

    /// Takes in the options of a discipline whose own ones the records do not know: all of them, unread.
    fn learn(&mut self, options: &TcOption) {
        let mut bytes = vec![0; options.value_len()];
        options.emit_value(&mut bytes);
        for option in attributes(&bytes) {
            let value = option.value();
            let word = |at: usize| {
                value.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
            };
            match option.kind() {
                PARAMETERS => {
                    (self.queue, self.depth) = (word(24), word(28).into());
                    self.rate = self.rate.max(word(8).into());
                }
                RATE_64 => self.rate = value.try_into().map_or(self.rate, u64::from_ne_bytes),
                _ => {}
            }
        }
    }

    /// Whether it is as it was made; the kernel tells of its depth in ticks, and of long ones wrongly.
    fn is(&self, bucket: &Bucket) -> bool {
        let expected = bucket.depth();
        let near = expected.abs_diff(self.depth) <= 2 + expected / 1000 || expected > u64::from(u32::MAX);
        self.rate == bucket.rate && self.queue == bucket.queue() && near
    }
}

/// The filters of all links.
pub(crate) fn filters(netlink: &mut Netlink) -> Result<Vec<Found>, KernelError> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let records = netlink.dump(&question, "queueing disciplines")?;
    let found = records.iter().filter_map(|record| match record {
        RouteNetlinkMessage::NewQueueDiscipline(message) => Found::of(message),
        _ => None,
    });
    Ok(found.collect())
}

/// The filter of a link.
pub(crate) fn of_link(filters: &[Found], link: u32) -> Option<&Found> {
    filters.iter().find(|found| u32::try_from(found.index) == Ok(link))
}

/// What of limits is there, ours and what is left of ours; a filter that nobody wanted is somebody else's.
pub(crate) fn observe<'a>(
    netlink: &mut Netlink,
    links: &BTreeMap<String, Link>,
    wanted: impl Iterator<Item = &'a Object>,
) -> Result<Vec<Object>, KernelError> {
    let intermediates = links.keys().filter(|name| is_limit_link(name));
    let mut found: Vec<Object> = intermediates.cloned().map(Object::Intermediate).collect();
    let (mut buckets, mut redirected) = (Vec::new(), !found.is_empty());
    for object in wanted {
        match object {
            Object::Bucket(bucket) => buckets.push(bucket),
            Object::Redirect { .. } => redirected = true,
            _ => {}
        }
    }
    if redirected {
        found.extend(redirects()?.into_iter().map(|(link, to)| Object::Redirect { link, to }));
    }
    if !buckets.is_empty() {
        let filters = filters(netlink)?;
        let right = buckets.into_iter().filter(|bucket| {
            let link = links.get(&bucket.link);
            link.and_then(|link| of_link(&filters, link.index)).is_some_and(|filter| filter.is(bucket))
        });
        found.extend(right.cloned().map(Object::Bucket));
    }
    Ok(found)
}

/// Takes everything away that is not a link.
pub(crate) fn remove_all() -> Result<(), KernelError> {
    run(&format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\n"), "removing limits")
}
