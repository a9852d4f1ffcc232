//! Why a connection is allowed or denied: asked of the very tables that the data paths have.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::policy::{
    Decision, Direction, RuleId, RuleIndex, RuleNumber, Rulebook, Table, Traffic, Verdict,
};
use causeway_model::why::{Judged, Outcome, Party, Side, Through, Why, WhyQuery};
use causeway_model::{Endpoint, Family, Identity, PodName, PortProtocol, Snapshot};

use super::connections::Unanswered;
use super::through::of_all;
use super::{Core, Engine};

/// An end as it was named.
#[derive(Clone, Debug)]
struct End {
    addresses: Vec<IpAddr>,
    /// Whoever is outside, whose address is looked for.
    world: bool,
}

impl Engine {
    /// Judges a connection that nobody has begun.
    pub(crate) fn why(&self, query: &WhyQuery) -> Result<Why, Unanswered> {
        let core = self.lock();
        let why = core.why(query).map_err(Unanswered::Question)?;
        drop(core);
        if query.probe { self.probe(why) } else { Ok(why) }
    }
}

impl Core {
    fn why(&self, query: &WhyQuery) -> Result<Why, String> {
        let Some(desired) = &self.desired else {
            return Err(format!("waiting for {}", self.missing().unwrap_or_default()));
        };
        let traffic = traffic(query)?;
        let ends = [self.end("from", &query.from, desired)?, self.end("to", &query.to, desired)?];
        let [from, to] = addresses(&ends, desired)?;
        let traffic = match traffic {
            Traffic::Portless => self.first_port(to).unwrap_or(traffic),
            told => told,
        };
        let party = |address| Party { address, who: self.who(desired, address) };
        let why = Why {
            from: party(from),
            to: party(to),
            traffic,
            verdict: None,
            sides: Vec::new(),
            through: None,
            across: self.across(to, traffic).map(Box::new),
            probe: None,
        };
        let names = &desired.settings.names;
        if names.has(to) && !names.hears(to, traffic) {
            return Ok(Why { through: Some(Box::new(nothing_but_names(to))), ..why });
        }
        Ok(match self.through(desired, (from, to), traffic)? {
            Some(through) => {
                Why { verdict: of_all(&through.behind), through: Some(Box::new(through)), ..why }
            }
            None => {
                let (verdict, sides) = self.sides(desired, from, to, traffic, false);
                Why { verdict, sides, ..why }
            }
        })
    }

    /// What the two sides say, and what comes of it. A pod that asks for its own address (not `served` to it) asks nobody else.
    pub(super) fn sides(
        &self,
        desired: &Snapshot,
        from: IpAddr,
        to: IpAddr,
        traffic: Traffic,
        served: bool,
    ) -> (Option<Verdict>, Vec<Side>) {
        let mut sides = Vec::new();
        for (direction, own, peer) in [(Direction::Egress, from, to), (Direction::Ingress, to, from)] {
            sides.push(Side {
                direction,
                judged: self.judge(desired, direction, (own, peer), traffic, served),
            });
        }
        let verdicts: Vec<_> = sides
            .iter()
            .filter_map(|side| match side.judged {
                Judged::Here { verdict, .. } => Some(verdict),
                Judged::Elsewhere { .. } | Judged::Nowhere => None,
            })
            .collect();
        let verdict = match &verdicts[..] {
            [] => None,
            all if all.contains(&Verdict::Deny) => Some(Verdict::Deny),
            _ => Some(Verdict::Allow),
        };
        (verdict, sides)
    }

    /// What one side says; `own` is its address.
    fn judge(
        &self,
        desired: &Snapshot,
        direction: Direction,
        (own, peer): (IpAddr, IpAddr),
        traffic: Traffic,
        served: bool,
    ) -> Judged {
        let Some(endpoint) = desired.endpoints.values().find(|e| e.addresses.contains(&own)) else {
            let node = desired.peers.values().find(|node| {
                node.pod_prefixes.iter().any(|prefix| prefix.contains(own)) && !is_stack(desired, own)
            });
            return node.map_or(Judged::Nowhere, |node| Judged::Elsewhere { node: node.id.clone() });
        };
        let table = endpoint.policy.of(direction);
        let book = &desired.policy;
        let asks_names = direction == Direction::Egress && desired.settings.names.hears(peer, traffic);
        let decision = match endpoint.deny_new {
            true => Decision { verdict: Verdict::Deny, rule: RuleNumber::DEFAULT },
            false if !served && endpoint.addresses.contains(&peer) => {
                Decision { verdict: Verdict::Allow, rule: RuleNumber::SELF }
            }
            false if asks_names => Decision { verdict: Verdict::Allow, rule: RuleNumber::HOST },
            false => book.decide((direction, table), peer, traffic),
        };
        let allowed = decision.verdict == Verdict::Allow;
        let audit = if allowed { self.roster.audit(own, direction, peer, traffic) } else { None };
        let rule = book.rules.get(&decision.rule).cloned();
        let policy = rule.as_ref().and_then(|rule| self.policy_of(rule));
        let peer = self.who(desired, peer);
        let case = Case { endpoint, table, direction, peer, traffic, asks_names };
        let (reason, remedy) = case.explain(decision, rule.as_ref(), policy.as_deref());
        Judged::Here { path: endpoint.path, verdict: decision.verdict, rule, policy, audit, reason, remedy }
    }

    /// The policy that a rule is of, as kind/namespace/name.
    pub(super) fn policy_of(&self, rule: &RuleId) -> Option<String> {
        let policies = self.world.as_ref()?.policies.values();
        let mut taken_up = policies.filter_map(|read| read.policy.as_ref());
        taken_up.find(|policy| policy.uid == rule.policy).map(|policy| policy.key.to_string())
    }

    fn end(&self, what: &str, name: &str, desired: &Snapshot) -> Result<End, String> {
        let of = |addresses| Ok(End { addresses, world: false });
        if let Ok(address) = name.parse() {
            return of(vec![address]);
        }
        let node = &desired.settings.node;
        match name {
            "world" => return Ok(End { addresses: Vec::new(), world: true }),
            "host" => return of(node.underlay.clone()),
            _ => {}
        }
        if let Some(addresses) = self.addresses_of_name(name).filter(|_| what == "to") {
            return of(addresses.map_err(|why| format!("{what}: {why}"))?);
        }
        let Some((namespace, pod)) = name.split_once('/') else {
            return Err(format!(
                "{what}: {name:?} is no address, no namespace/name of a pod or service, no name under clusterset.local, not host and not world"
            ));
        };
        let service = || self.addresses_of_service(namespace, pod).filter(|_| what == "to");
        let pod = PodName { namespace: namespace.to_owned(), name: pod.to_owned() };
        let here = desired.endpoints.values().filter(|endpoint| endpoint.pod.as_ref() == Some(&pod));
        let mut addresses: Vec<_> = here.flat_map(|endpoint| endpoint.addresses.clone()).collect();
        if addresses.is_empty() {
            addresses.extend(self.roster.addresses_of(&pod));
        }
        match addresses.is_empty() {
            true => match service() {
                Some(addresses) => of(addresses),
                None => Err(format!("{what}: pod {pod} has no address that is known here")),
            },
            false => of(addresses),
        }
    }

    /// Who has an address, in words.
    pub(super) fn who(&self, desired: &Snapshot, address: IpAddr) -> String {
        let endpoint = desired.endpoints.values().find(|endpoint| endpoint.addresses.contains(&address));
        if let Some(endpoint) = endpoint {
            return endpoint
                .pod
                .as_ref()
                .map_or_else(|| endpoint.key.to_string(), |pod| format!("pod {pod}"));
        }
        if desired.services.addresses.contains(&address) {
            return "a service's address".to_owned();
        }
        if desired.settings.names.has(address) {
            return "where this node answers names".to_owned();
        }
        match desired.policy.peers.identity(address) {
            Identity::HOST => "this node".to_owned(),
            Identity::REMOTE_HOST => {
                let node = desired.peers.values().find(|node| node.stack().any(|own| own == address));
                node.map_or_else(|| "another node".to_owned(), |node| format!("node {}", node.id))
            }
            Identity::WORLD => "the world".to_owned(),
            Identity::UNKNOWN => "unknown: an address of a known cluster that no known pod has".to_owned(),
            _ => self.roster.describe(address),
        }
    }
}

/// What is there beside answers to names.
fn nothing_but_names(to: IpAddr) -> Through {
    let reason = format!("names are answered at {to}, and nothing else is there: ask for udp/53 or tcp/53");
    Through { service: None, outcome: Outcome::Refused, reason, behind: Vec::new() }
}

/// What is to be explained of one side.
struct Case<'a> {
    endpoint: &'a Endpoint,
    table: &'a Table,
    direction: Direction,
    peer: String,
    traffic: Traffic,
    asks_names: bool,
}

impl Case<'_> {
    /// The reason for a decision, and what it would take to allow what it denies.
    fn explain(
        &self,
        decision: Decision,
        rule: Option<&RuleId>,
        policy: Option<&str>,
    ) -> (String, Option<String>) {
        let (direction, peer) = (self.direction, &self.peer);
        let towards = if direction == Direction::Ingress { "from" } else { "to" };
        let wanted = format!("{direction} {towards} {peer}{}", on(self.traffic));
        let policy = policy.unwrap_or("a policy that is no more");
        match (decision.verdict, decision.rule) {
            (Verdict::Deny, _) if self.endpoint.deny_new => {
                let remedy = "take the annotation causeway.dev/deny-new off the pod".to_owned();
                ("the pod takes and begins no new connections".to_owned(), Some(remedy))
            }
            (Verdict::Allow, RuleNumber::SELF) => ("a pod always reaches itself".to_owned(), None),
            (Verdict::Allow, RuleNumber::HOST) if self.asks_names => {
                ("names are answered there, to every pod of this node: no policy is asked".to_owned(), None)
            }
            (Verdict::Allow, RuleNumber::HOST) => {
                ("a node always reaches its pods, and they it".to_owned(), None)
            }
            (Verdict::Allow, _) if rule.is_none() => (self.without_a_rule(), None),
            (Verdict::Deny, number) if number == RuleNumber::unknown(direction) => {
                let reason = "policies apply, and nobody known has the peer's address".to_owned();
                let remedy =
                    "a pod object with that address, or another address: no rule admits an unknown one";
                (reason, Some(remedy.to_owned()))
            }
            (Verdict::Allow, _) => (format!("{} of {policy} accepts it", place(rule)), None),
            (Verdict::Deny, _) if rule.is_some_and(|rule| rule.index == RuleIndex::Isolation) => {
                let reason = format!("{policy} isolates the pod, and no NetworkPolicy allows this");
                (reason, Some(format!("a NetworkPolicy that selects the pod and allows {wanted}")))
            }
            (Verdict::Deny, _) => {
                let reason = format!("{} of {policy} denies it", place(rule));
                let remedy = format!("a rule before it, in its tier, that accepts {wanted}");
                (reason, Some(remedy))
            }
        }
    }

    fn without_a_rule(&self) -> String {
        match self.table.stages.is_empty() {
            true => format!("no policy speaks of the pod's {}", self.direction),
            false => "no rule speaks of it, and no NetworkPolicy isolates the pod".to_owned(),
        }
    }
}

fn place(rule: Option<&RuleId>) -> String {
    match rule.map(|rule| (rule.direction, rule.index)) {
        Some((direction, RuleIndex::Rule(index))) => format!("{direction} rule {index}"),
        _ => "the isolation".to_owned(),
    }
}

fn on(traffic: Traffic) -> String {
    match traffic {
        Traffic::To(protocol, port) => format!(" on {}/{port}", protocol.to_string().to_uppercase()),
        Traffic::Portless => " without regard to ports".to_owned(),
    }
}

fn traffic(query: &WhyQuery) -> Result<Traffic, String> {
    match (query.protocol.as_deref(), query.port) {
        (None, None) => Ok(Traffic::Portless),
        (Some(name), Some(port)) => {
            let known = PortProtocol::ALL.into_iter().find(|p| p.to_string().eq_ignore_ascii_case(name));
            let protocol = known.ok_or_else(|| format!("protocol {name:?} is none of tcp, udp, sctp"))?;
            Ok(Traffic::To(protocol, port))
        }
        (Some(name), None) => Err(format!("{name} without a port")),
        (None, Some(port)) => Err(format!("port {port} without a protocol")),
    }
}

/// One address for each end, of one family: the first of the first end's that the other has, too.
fn addresses(ends: &[End; 2], desired: &Snapshot) -> Result<[IpAddr; 2], String> {
    let [from, to] = ends;
    let of = |end: &End, family| match end.world {
        true => Some(outside(&desired.policy, family)),
        false => end.addresses.iter().copied().find(|address| Family::of(*address) == family),
    };
    let both = |family| Some([of(from, family)?, of(to, family)?]);
    let given = [&from.addresses, &to.addresses].into_iter().flatten().map(|address| Family::of(*address));
    given
        .chain(Family::BOTH)
        .find_map(both)
        .ok_or_else(|| "the two have no family of addresses in common".to_owned())
}

/// An address of the world: in the middle of the widest piece that no rule cuts.
fn outside(book: &Rulebook, family: Family) -> IpAddr {
    let in_use = book.stages.values();
    let mut edges: BTreeMap<u128, ()> = match family {
        Family::V4 => in_use
            .flat_map(|stage| stage.v4.iter().map(|(start, _)| u32::from(*start).into()))
            .map(|e| (e, ()))
            .collect(),
        Family::V6 => in_use
            .flat_map(|stage| stage.v6.iter().map(|(start, _)| u128::from(*start)))
            .map(|e| (e, ()))
            .collect(),
    };
    // Global unicast alone: neither this network, nor loopback, nor multicast.
    let (first, last) = match family {
        Family::V4 => (0x0100_0000, 0xdfff_ffff),
        Family::V6 => (0x2000 << 112, (0x4000 << 112) - 1),
    };
    edges.extend([(first, ()), (last, ())]);
    let edges: Vec<u128> = edges.into_keys().filter(|edge| (first..=last).contains(edge)).collect();
    let address = |number: u128| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    };
    let middles =
        edges.windows(2).map(|pair| (pair[1] - pair[0], address(pair[0] + (pair[1] - pair[0]) / 2)));
    let outside = middles.filter(|(_, middle)| book.peers.identity(*middle) == Identity::WORLD);
    outside.max_by_key(|(width, _)| *width).map_or(address(first), |(_, middle)| middle)
}

fn is_stack(desired: &Snapshot, address: IpAddr) -> bool {
    desired.peers.values().any(|node| node.stack().any(|own| own == address))
}
