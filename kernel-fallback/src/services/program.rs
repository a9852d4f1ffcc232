//! The table's chains.
//!
//! A connection's first packet is looked up by where it goes: the frontend says what becomes of clients from inside and from outside,
//! by the number of a way and the number of the backends. A way is a refusal, a drop, or a chain that chooses one of so many slots,
//! since the number to choose below is part of a rule: there is one chain for each number of slots, whoever has so many, and
//! for each time that clients stick. That chain looks the frontend up again (nothing is handed from rule to rule), takes a random
//! slot, and what the slot has. A change may come in the middle, and the slot be there no more; the first one is, then.

use std::net::{IpAddr, Ipv6Addr};

use causeway_model::{DropReason, Family, HostServices, LinkName, NameServer, Settings, TunnelOwner};

use super::choice::first;
use super::lookup::{
    By, FIRST, FOUND, FRONTEND, Headers, SOURCES, Side, about, chain, digit, find, words_of, zeros,
};
use super::set::{Set, way};
use crate::element::address_bytes;
use crate::objects::{HOST_LINK, TUNNEL_LINK};
use crate::tables::{Chain, Ct, End, Hook, Meta, Named, Nat, Rule, Tuple, Verdict, Way};

/// NF_INET_…
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// Behind the ports of the node that lead to pods (-105), before kube-proxy (-100).
const BEFORE_ROUTING: i32 = -104;
/// Before the node's own packets are translated.
const BEFORE_TRANSLATION: i32 = -105;
/// Behind the answers of those ports (95), before whoever else masquerades (100).
const BEHIND_ROUTING: i32 = 96;
/// Before whatever judges a packet as one of a connection.
const FILTER: i32 = -7;
/// IPS_DST_NAT.
const TRANSLATED: u32 = 0x20;
/// IP_CT_… as `ct state` has them.
const INVALID: u32 = 1;
const NEW: u32 = 8;

/// The counters of the table.
pub(super) const COUNTERS: [DropReason; 5] = [
    DropReason::NoLocalBackend,
    DropReason::ServiceSource,
    DropReason::NoSuchService,
    DropReason::ServiceRefused,
    DropReason::InvalidConnection,
];

/// The ways that there always are.
pub(super) const REFUSED: u32 = 1;
pub(super) const DROPPED: u32 = 2;
/// The first one that leads to backends.
pub(super) const FIRST_WAY: u32 = 3;

/// The map that leads refusals alone.
const REFUSING: &str = "refusing";

/// What the chains depend on; while it is the same, only entries change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    own: bool,
    tunnel: &'static str,
    host: [Option<IpAddr>; 2],
    masquerade: bool,
    names: NameServer,
}

impl Program {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            own: settings.host_services == HostServices::Own,
            tunnel: match settings.tunnel {
                TunnelOwner::Kernel => TUNNEL_LINK,
                TunnelOwner::FastPath => HOST_LINK,
            },
            host: Family::BOTH.map(|of| settings.node.overlay_host_address(of)),
            masquerade: settings.masquerade.is_some(),
            names: settings.names.clone(),
        }
    }

    /// Every chain but those that choose.
    pub(super) fn chains(&self) -> Vec<Chain> {
        let mut chains = ends();
        for of in Family::BOTH {
            for side in Side::BOTH {
                chains.extend([By::Address, By::Nodes].map(|by| look(of, side, by)));
            }
            chains.extend([nobody(of), pods(of), own(of), others(of)]);
        }
        chains.extend(Side::BOTH.map(first));
        chains.extend([self.before_routing(), self.going_out(), self.behind_routing(), self.leaving()]);
        if self.own {
            chains.extend(Family::BOTH.map(refused_own));
            chains.extend([refusing(), self.stray()]);
        }
        chains
    }

    /// The maps that lead by ways, with the ways that there always are.
    pub(super) fn ways() -> Vec<Way> {
        let leads = || {
            let refuse = Verdict::Goto("refuse".into());
            let drop = Verdict::Goto(drop_chain(DropReason::NoLocalBackend));
            vec![(way(REFUSED), refuse), (way(DROPPED), drop)]
        };
        let map =
            |side: Side| Way { name: side.name().into(), definition: super::set::ways(), leads: leads() };
        let [inside, outside] = Side::BOTH.map(map);
        let refused = Way { name: REFUSING.into(), leads: inside.leads[..1].into(), ..inside.clone() };
        vec![inside, outside, refused]
    }

    /// What is for where names are answered is for no service.
    fn spared(&self) -> Vec<Rule> {
        let to = |address: &IpAddr| {
            let of = Family::of(*address);
            about(of).destination(of, FRONTEND).equal(FRONTEND, &address_bytes(*address)).leave()
        };
        self.names.addresses.iter().map(to).collect()
    }

    /// Where packets come in: of pods, and of all others.
    fn before_routing(&self) -> Chain {
        let pods = |rule: Rule| rule.by_links(Meta::InputName, LinkName::POD_PREFIX, FRONTEND);
        let mut rules = self.spared();
        rules.extend(Family::BOTH.map(|of| pods(about(of)).goto(format!("pods{}", digit(of)))));
        if self.own {
            rules.push(pods(Rule::default()).leave());
            rules.extend(Family::BOTH.map(|of| about(of).goto(format!("others{}", digit(of)))));
        }
        let hook = Hook { kind: "nat", number: PREROUTING, priority: BEFORE_ROUTING };
        Chain { name: "before_routing".into(), hook: Some(hook), rules }
    }

    /// What the node's own processes send.
    fn going_out(&self) -> Chain {
        let of = Family::BOTH.map(|of| about(of).goto(format!("own{}", digit(of))));
        let hook = Hook { kind: "nat", number: OUTPUT, priority: BEFORE_ROUTING };
        let rules = self.spared().into_iter().chain(of).filter(|_| self.own).collect();
        Chain { name: "going_out".into(), hook: Some(hook), rules }
    }

    /// Who sends in another's name, so that answers come back here.
    fn behind_routing(&self) -> Chain {
        let mut rules = Vec::new();
        for (of, host) in Family::BOTH.into_iter().zip(self.host) {
            // A pod that is its own backend would answer itself.
            let both = translated(of).source(of, FRONTEND).destination(of, FRONTEND.plus(words_of(of)));
            rules.push(as_node(both.within(Set::Selves(of).name(), FRONTEND), of, host));
            if self.own {
                // The tunnel takes nothing from strangers, and their answers would not come this way.
                let through = translated(of).by_link(Meta::OutputName, self.tunnel, FRONTEND);
                rules.push(as_node(elsewhere(stranger(through, of), of), of, host));
                for by in [By::Address, By::Nodes] {
                    let out = stranger(outward(self.tunnel, translated(of)), of);
                    let out = asked(out.local(End::Source, false, FIRST), of, by);
                    rules.push(out.masquerade());
                }
            }
            if self.masquerade {
                let out = outward(self.tunnel, about(of)).source(of, FRONTEND);
                let out = out.within(Set::Pods(of).name(), FRONTEND).destination(of, FRONTEND);
                rules.push(out.without(Set::Kept(of).name(), FRONTEND).masquerade());
            }
        }
        let hook = Hook { kind: "nat", number: POSTROUTING, priority: BEHIND_ROUTING };
        Chain { name: "behind_routing".into(), hook: Some(hook), rules }
    }

    /// What is still for a service's address when it is about to leave the node is of no connection that was ever served.
    fn leaving(&self) -> Chain {
        let rules = Family::BOTH.map(|of| {
            let all = about(of);
            let whose =
                if self.own { all } else { all.by_links(Meta::InputName, LinkName::POD_PREFIX, FRONTEND) };
            let nobodys = whose.destination(of, FRONTEND).within(Set::Prefixes(of).name(), FRONTEND);
            nobodys.goto(drop_chain(DropReason::NoSuchService))
        });
        let hook = Hook { kind: "filter", number: FORWARD, priority: FILTER };
        Chain { name: "leaving".into(), hook: Some(hook), rules: rules.into() }
    }

    /// What a backend sends out of its connection's window is not translated, and the node would answer it with a reset.
    fn stray(&self) -> Chain {
        let tunnel = Rule::default().by_link(Meta::InputName, self.tunnel, FRONTEND);
        let invalid = tunnel.ct(Ct::State, FIRST).bits(FIRST, INVALID, 0, FIRST).unequal(FIRST, &[0; 4]);
        let hook = Hook { kind: "filter", number: INPUT, priority: FILTER };
        let rules = vec![invalid.goto(drop_chain(DropReason::InvalidConnection))];
        Chain { name: "stray".into(), hook: Some(hook), rules }
    }
}

/// A rule about packets that leave by none of our links, nor by the loopback.
fn outward(tunnel: &str, rule: Rule) -> Rule {
    let rule = rule.meta(Meta::OutputName, FRONTEND).unequal(FRONTEND, LinkName::POD_PREFIX.as_bytes());
    let names = [tunnel, HOST_LINK, "lo"].map(|name| [name.as_bytes(), &[0]].concat());
    names.iter().fold(rule, |rule, name| rule.unequal(FRONTEND, name))
}

/// A rule about packets whose destination was written over.
fn translated(of: Family) -> Rule {
    about(of).ct(Ct::Status, FIRST).bits(FIRST, TRANSLATED, 0, FIRST).unequal(FIRST, &[0; 4])
}

/// … that come from nobody of this node.
fn stranger(rule: Rule, of: Family) -> Rule {
    rule.source(of, FRONTEND).without(Set::Local(of).name(), FRONTEND)
}

/// … that go to nobody of this node.
fn elsewhere(rule: Rule, of: Family) -> Rule {
    rule.destination(of, FRONTEND).without(Set::Local(of).name(), FRONTEND)
}

/// … that were for a frontend.
fn asked(rule: Rule, of: Family, by: By) -> Rule {
    let behind = FRONTEND.plus(words_of(of));
    let (key, zeros) = match of {
        Family::V4 => (Ct::Destination4, vec![0; 4]),
        Family::V6 => (Ct::Destination6, vec![0; 16]),
    };
    let at = match by {
        By::Address => rule.tuple(key, Tuple::Original, FRONTEND),
        By::Nodes => rule.constant(&zeros, FRONTEND),
    };
    let port = at.tuple(Ct::Protocol, Tuple::Original, behind);
    let port = port.tuple(Ct::DestinationPort, Tuple::Original, behind.plus(1));
    port.look_up(Set::Frontends(of).name(), FRONTEND, FOUND)
}

/// Sends as the node itself.
fn as_node(rule: Rule, of: Family, host: Option<IpAddr>) -> Rule {
    match host {
        Some(host) => rule.constant(&address_bytes(host), FOUND).translate(Nat::Source, of, FOUND, None),
        None => rule.masquerade(),
    }
}

fn drop_chain(reason: DropReason) -> String {
    format!("drop_{}", reason.label().replace('-', "_"))
}

/// The chains in which what is not served ends.
fn ends() -> Vec<Chain> {
    let counted = |rule: Rule, reason: DropReason| rule.count(reason.label());
    let ends = |reason: DropReason, last: &[Rule]| {
        Family::BOTH.map(|of| of_pod(of, reason)).into_iter().chain(last.iter().cloned()).collect::<Vec<_>>()
    };
    let tcp = Rule::default().meta(Meta::Protocol, FIRST).equal(FIRST, &[6]);
    let refused = DropReason::ServiceRefused;
    let refuse = [counted(tcp, refused).reset(), counted(Rule::default(), refused).unreachable()];
    let drops = COUNTERS.into_iter().filter(|reason| *reason != refused);
    let drops = drops
        .map(|reason| chain(drop_chain(reason), ends(reason, &[counted(Rule::default(), reason).drop()])));
    drops.chain([chain("refuse", ends(refused, &refuse))]).collect()
}

/// Counts a packet of a pod of this node that is about to be dropped.
fn of_pod(of: Family, reason: DropReason) -> Rule {
    let whose =
        zeros(about(of), FRONTEND, 1 + words_of(of)).constant(&(reason as u32).to_be_bytes(), FRONTEND);
    whose.source(of, FRONTEND.plus(1)).within(Set::Dropped(of).name(), FRONTEND)
}

/// What becomes of who asks a frontend; returns where there is none.
fn look(of: Family, side: Side, by: By) -> Chain {
    let refused = find(of, by, FOUND, &[(SOURCES, 1 + words_of(of))])
        .unequal(SOURCES, &[0; 4])
        .source(of, SOURCES.plus(1))
        .without(Set::Sources(of).name(), SOURCES)
        .goto(drop_chain(DropReason::ServiceSource));
    let led = find(of, by, FOUND, &[(side.way(), 1)]).lead(side.name(), side.way());
    chain(look_chain(of, side, by), [refused, led])
}

fn look_chain(of: Family, side: Side, by: By) -> String {
    let at = match by {
        By::Address => "at",
        By::Nodes => "ports",
    };
    format!("{at}_{}{}", side.name(), digit(of))
}

/// Addresses of services where nobody is served.
fn nobody(of: Family) -> Chain {
    let within = |set: Set| about(of).destination(of, FRONTEND).within(set.name(), FRONTEND);
    let rules = [
        within(Set::Addresses(of)).goto("refuse"),
        within(Set::Prefixes(of)).goto(drop_chain(DropReason::NoSuchService)),
    ];
    chain(format!("nobody{}", digit(of)), rules)
}

fn jump(rule: Rule, of: Family, side: Side, by: By) -> Rule {
    rule.jump(look_chain(of, side, by))
}

fn pods(of: Family) -> Chain {
    let node = about(of).destination(of, FRONTEND).within(Set::Nodes(of).name(), FRONTEND);
    let rules = [
        jump(Rule::default(), of, Side::Inside, By::Address),
        jump(node, of, Side::Inside, By::Nodes),
        jump(Rule::default().local(End::Destination, true, FIRST), of, Side::Inside, By::Nodes),
        Rule::default().goto(format!("nobody{}", digit(of))),
    ];
    chain(format!("pods{}", digit(of)), rules)
}

/// The node's own processes.
fn own(of: Family) -> Chain {
    let rules = [
        jump(Rule::default(), of, Side::Inside, By::Address),
        jump(at_this_node(of), of, Side::Inside, By::Nodes),
    ];
    chain(format!("own{}", digit(of)), rules)
}

/// A rule about packets to an address of this node. The loopback is none for others.
fn at_this_node(of: Family) -> Rule {
    let not_loopback = match of {
        Family::V4 => about(of).header(16, 1, FRONTEND).unequal(FRONTEND, &[127]),
        Family::V6 => about(of).destination(of, FRONTEND).unequal(FRONTEND, &Ipv6Addr::LOCALHOST.octets()),
    };
    not_loopback.local(End::Destination, true, FIRST)
}

/// What the node's own processes are refused: where connections are translated, the kernel would not let them know.
fn refusing() -> Chain {
    let old = Rule::default().ct(Ct::State, FIRST).bits(FIRST, NEW, 0, FIRST).equal(FIRST, &[0; 4]).leave();
    let of = Family::BOTH.map(|of| about(of).goto(refused_chain(of)));
    let hook = Hook { kind: "filter", number: OUTPUT, priority: BEFORE_TRANSLATION };
    Chain { name: REFUSING.into(), hook: Some(hook), rules: [old].into_iter().chain(of).collect() }
}

fn refused_chain(of: Family) -> String {
    format!("refused{}", digit(of))
}

fn refused_own(of: Family) -> Chain {
    let way = Side::Inside.way();
    let ports = at_this_node(of).constant(&[0; 4], way).frontend(of, By::Nodes);
    let rules = [
        find(of, By::Address, FOUND, &[(way, 1)]).lead(REFUSING, way),
        find(of, By::Address, FOUND, &[]).leave(),
        ports.look_up(Set::Frontends(of).name(), FRONTEND, FOUND).lead(REFUSING, way),
        Rule::default().goto(format!("nobody{}", digit(of))),
    ];
    chain(refused_chain(of), rules)
}

fn others(of: Family) -> Chain {
    let rules = [
        jump(Rule::default(), of, Side::Outside, By::Address),
        jump(Rule::default().local(End::Destination, true, FIRST), of, Side::Outside, By::Nodes),
        Rule::default().goto(format!("nobody{}", digit(of))),
    ];
    chain(format!("others{}", digit(of)), rules)
}
