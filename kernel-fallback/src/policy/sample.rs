//! Stages made of rules as a reader would write them, for tests of the kernel path and of its entries alike.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use causeway_model::policy::{Action, Class, Row, RowVerdicts, RuleNumber, Stage, StageRule, Traffic};
use causeway_model::{Identity, IpNetwork, PortProtocol};

/// A rule.
#[derive(Clone, Debug)]
pub struct Said {
    pub action: Action,
    pub number: u32,
    pub identities: Vec<Identity>,
    /// Blocks and the holes in each.
    pub blocks: Vec<(IpNetwork, Vec<IpNetwork>)>,
    /// None: all traffic.
    pub ports: Option<Vec<(PortProtocol, RangeInclusive<u16>)>>,
}

impl Said {
    /// A rule about nobody and all traffic.
    pub fn new(action: Action, number: u32) -> Self {
        Self { action, number, identities: Vec::new(), blocks: Vec::new(), ports: None }
    }

    pub fn of(mut self, identity: Identity) -> Self {
        self.identities.push(identity);
        self
    }

    pub fn block(mut self, block: &str, holes: &[&str]) -> Self {
        let holes = holes.iter().map(|hole| hole.parse().unwrap()).collect();
        self.blocks.push((block.parse().unwrap(), holes));
        self
    }

    pub fn port(mut self, protocol: PortProtocol, ports: RangeInclusive<u16>) -> Self {
        self.ports.get_or_insert_default().push((protocol, ports));
        self
    }

    fn has(&self, address: IpAddr) -> bool {
        self.blocks
            .iter()
            .any(|(block, holes)| block.contains(address) && !holes.iter().any(|hole| hole.contains(address)))
    }

    fn speaks_of(&self, traffic: Traffic) -> bool {
        let Some(ports) = &self.ports else { return true };
        let Traffic::To(protocol, port) = traffic else { return false };
        ports.iter().any(|(own, range)| *own == protocol && range.contains(&port))
    }
}

const PROTOCOLS: [PortProtocol; 3] = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];

/// Rules as a stage.
pub fn stage(rules: &[Said], otherwise: Option<u32>) -> Stage {
    let mut stage = Stage {
        rules: rules.iter().map(|r| StageRule { action: r.action, number: RuleNumber(r.number) }).collect(),
        otherwise: otherwise.map(RuleNumber),
        identities: Vec::new(),
        v4: Vec::new(),
        v6: Vec::new(),
        ports: Default::default(),
        rows: Vec::new(),
        verdicts: Vec::new(),
    };
    let mut classes = Vec::new();
    for (place, protocol) in PROTOCOLS.into_iter().enumerate() {
        let mut starts = BTreeSet::from([0]);
        for (own, range) in rules.iter().flat_map(|rule| rule.ports.iter().flatten()) {
            if *own == protocol {
                starts.insert(*range.start());
                starts.extend(range.end().checked_add(1));
            }
        }
        for start in starts {
            let said = rules.iter().any(|r| r.ports.is_some() && r.speaks_of(Traffic::To(protocol, start)));
            let class = if said { classes.len() as u32 + 1 } else { 0 };
            if said {
                classes.push(Traffic::To(protocol, start));
            }
            stage.ports[place].push((start, Class(class)));
        }
    }
    let mut row = |speaks: &dyn Fn(&Said) -> bool| {
        let spoken: Vec<_> = rules.iter().enumerate().filter(|(_, rule)| speaks(rule)).collect();
        if spoken.is_empty() && !stage.rows.is_empty() {
            return Row::NONE;
        }
        let first = |traffic| {
            let found = spoken.iter().find(|(_, rule)| rule.speaks_of(traffic));
            found.map_or(Stage::NO_RULE, |(place, _)| *place as u32)
        };
        let otherwise = first(Traffic::Portless);
        stage.rows.push(RowVerdicts { start: stage.verdicts.len() as u32, otherwise });
        let own =
            classes.iter().enumerate().map(|(class, traffic)| (Class(class as u32 + 1), first(*traffic)));
        stage.verdicts.extend(own.filter(|(_, place)| *place != otherwise));
        Row(stage.rows.len() as u32 - 1)
    };
    row(&|_| false);
    let identities: BTreeSet<Identity> = rules.iter().flat_map(|rule| rule.identities.clone()).collect();
    stage.identities =
        identities.into_iter().map(|i| (i, row(&|rule| rule.identities.contains(&i)))).collect();
    let mut starts = BTreeSet::from([IpAddr::from([0; 4]), IpAddr::from([0; 16])]);
    for (block, holes) in rules.iter().flat_map(|rule| &rule.blocks) {
        for prefix in [block].into_iter().chain(holes) {
            starts.insert(prefix.network());
            starts.extend(match prefix.broadcast() {
                IpAddr::V4(last) => u32::from(last).checked_add(1).map(|n| IpAddr::V4(n.into())),
                IpAddr::V6(last) => u128::from(last).checked_add(1).map(|n| IpAddr::V6(n.into())),
            });
        }
    }
    for start in starts {
        let of = row(&|rule| rule.has(start));
        match start {
            IpAddr::V4(start) => stage.v4.push((start, of)),
            IpAddr::V6(start) => stage.v6.push((start, of)),
        }
    }
    stage
}
