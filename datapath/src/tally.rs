use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use causeway_model::policy::RuleNumber;
use causeway_model::{Count, DropReason, EndpointCounters};

use crate::Port;
use crate::policy::Refusal;

/// Packets and bytes with one writer and any number of readers. No read-modify-write instruction is needed for that.
#[derive(Debug, Default)]
struct Counter {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    #[inline]
    fn add(&self, packets: u64, bytes: u64) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(packets), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
    }

    fn read(&self) -> Count {
        Count { packets: self.packets.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    fn clear(&self) {
        self.packets.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
    }
}

#[derive(Debug)]
struct Drops([Counter; DropReason::COUNT]);

impl Drops {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }

    fn read(&self) -> BTreeMap<DropReason, Count> {
        let counts = DropReason::ALL.iter().map(|reason| (*reason, self.0[reason.index()].read()));
        counts.filter(|(_, count)| *count != Count::default()).collect()
    }
}

#[derive(Debug)]
struct Endpoint {
    from_pod: Counter,
    to_pod: Counter,
    drops: Drops,
}

/// Rules in a chunk of counters, and the most chunks.
const CHUNK: usize = 1024;
const CHUNKS: usize = 4096;

/// Counters by rule, in chunks: there can be more of them while their worker counts.
#[derive(Debug)]
struct Rules(Box<[OnceLock<Box<[Counter]>>]>);

impl Rules {
    fn new() -> Self {
        Self((0..CHUNKS).map(|_| OnceLock::new()).collect())
    }

    fn of(&self, rule: RuleNumber) -> Option<&Counter> {
        self.0.get(rule.0 as usize / CHUNK)?.get()?.get(rule.0 as usize % CHUNK)
    }
}

/// What one worker has counted. The worker writes, anybody reads, and the packet path does not notice.
#[derive(Debug)]
pub struct Tally {
    tunnel_sent: Counter,
    tunnel_received: Counter,
    drops: Drops,
    endpoints: Box<[Endpoint]>,
    rules: Rules,
}

impl Tally {
    /// A tally of nothing, for this many [slots](crate::Slots).
    pub fn new(slots: u16) -> Self {
        let endpoint =
            |_| Endpoint { from_pod: Counter::default(), to_pod: Counter::default(), drops: Drops::new() };
        Self {
            tunnel_sent: Counter::default(),
            tunnel_received: Counter::default(),
            drops: Drops::new(),
            endpoints: (0..slots).map(endpoint).collect(),
            rules: Rules::new(),
        }
    }

    /// Makes room for rules up to this number. What is denied by one beyond, or beyond four millions, is counted by its reason alone.
    pub fn make_room(&self, last: RuleNumber) {
        for chunk in self.rules.0.iter().take(last.0 as usize / CHUNK + 1) {
            chunk.get_or_init(|| (0..CHUNK).map(|_| Counter::default()).collect());
        }
    }

    /// Notes what came from a pod or out of the tunnel.
    #[inline]
    pub(crate) fn received(&self, port: Port, packets: u64, bytes: u64) {
        match port {
            Port::Host => {}
            Port::Uplink => self.tunnel_received.add(packets, bytes),
            Port::Endpoint(slot) => {
                if let Some(endpoint) = self.endpoints.get(usize::from(slot)) {
                    endpoint.from_pod.add(packets, bytes);
                }
            }
        }
    }

    /// Notes what a port has really sent.
    #[inline]
    pub fn sent(&self, port: Port, packets: u64, bytes: u64) {
        match port {
            Port::Host => {}
            Port::Uplink => self.tunnel_sent.add(packets, bytes),
            Port::Endpoint(slot) => {
                if let Some(endpoint) = self.endpoints.get(usize::from(slot)) {
                    endpoint.to_pod.add(packets, bytes);
                }
            }
        }
    }

    /// Notes a dropped frame, and the pod it came from or was for.
    pub fn dropped(&self, reason: DropReason, bytes: usize, port: Port) {
        self.drops.0[reason.index()].add(1, bytes as u64);
        if let Port::Endpoint(slot) = port
            && let Some(endpoint) = self.endpoints.get(usize::from(slot))
        {
            endpoint.drops.0[reason.index()].add(1, bytes as u64);
        }
    }

    /// The same with the rule that denies it, where one does.
    pub(crate) fn refused(&self, Refusal { reason, rule }: Refusal, bytes: usize, port: Port) {
        self.dropped(reason, bytes, port);
        if reason == DropReason::PolicyDenied
            && let Some(counter) = self.rules.of(rule)
        {
            counter.add(1, bytes as u64);
        }
    }

    /// What a rule has denied.
    pub fn rule(&self, rule: RuleNumber) -> Count {
        self.rules.of(rule).map(Counter::read).unwrap_or_default()
    }

    /// Tunnel frames sent.
    pub fn tunnel_sent(&self) -> Count {
        self.tunnel_sent.read()
    }

    /// Tunnel frames received.
    pub fn tunnel_received(&self) -> Count {
        self.tunnel_received.read()
    }

    /// Drops by reason; reasons that never occurred are left out.
    pub fn drops(&self) -> BTreeMap<DropReason, Count> {
        self.drops.read()
    }

    /// What passed through one slot.
    pub fn endpoint(&self, slot: u16) -> EndpointCounters {
        self.endpoints.get(usize::from(slot)).map_or_else(EndpointCounters::default, |endpoint| {
            EndpointCounters {
                from_pod: endpoint.from_pod.read(),
                to_pod: endpoint.to_pod.read(),
                drops: endpoint.drops.read(),
            }
        })
    }

    /// Begins anew for a slot, before another endpoint takes it and while no worker serves it.
    pub fn clear(&self, slot: u16) {
        if let Some(endpoint) = self.endpoints.get(usize::from(slot)) {
            endpoint.from_pod.clear();
            endpoint.to_pod.clear();
            endpoint.drops.0.iter().for_each(Counter::clear);
        }
    }
}
