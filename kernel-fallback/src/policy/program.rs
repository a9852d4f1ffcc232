//! The table's chains: what never changes once it is loaded.
//!
//! `forward` lets pass what bears the stamps that hold. Everything else is judged: by the connection's first packet, whichever way
//! the packet at hand goes, as egress of who began it and as ingress of who answers, as far as they are endpoints of this
//! node. What is allowed gets their stamps.
//!
//! A judgement asks a dozen maps, and a change may come in the middle. So it notes the number of the last change at its beginning,
//! and at its end looks whether that is still the last; if not, the packet is dropped and the connection has not been judged.

use causeway_model::policy::{Direction, RuleNumber};
use causeway_model::{DropReason, Family, Identity, LinkName};

use super::entry::{ACCEPT, DENY, PASS, number_of, place};
use super::set::{NOBODY, PLACES, Set};
use super::stamps::{MARK, STAMPS, Stamp, field};
use crate::denials::{ANSWERS, ASKS, GROUP};
use crate::objects::UPLINK_LINK;
use crate::tables::{
    Chain, Ct, Definition, Hook, Kind, Meta, Named, Register, Rule, Tuple, Verdict, Way, words,
};

/// The chain in which what is denied ends.
const DROPPED: &str = "dropped";
/// What rules have denied, by number; packets fill it.
pub(super) const DENIED: &str = "denied";
/// How many numbers and addresses are counted, at most.
const COUNTED: u32 = 1 << 20;
/// So many changes in the middle of one judgement are told apart.
pub(super) const PHASES: u32 = 4;
/// IP_CT_… as `ct state` has them.
const INVALID: u32 = 1;
const RELATED: u32 = 4;
const UNTRACKED: u32 = 64;
/// The counters of the table.
pub(super) const COUNTERS: [DropReason; 2] = [DropReason::PolicyDenied, DropReason::InvalidConnection];

/// What was denied of each endpoint, by address; packets fill it.
pub(super) fn denied_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "denied4",
        Family::V6 => "denied6",
    }
}

/// Every set that packets fill.
pub(super) fn filled() -> impl Iterator<Item = (&'static str, Definition)> {
    let of = |family, kind| (denied_of(family), Definition::new(false, &[kind], &[]));
    [
        (DENIED, Definition::new(false, &[Kind::Word; 2], &[])),
        of(Family::V4, Kind::V4),
        of(Family::V6, Kind::V6),
    ]
    .into_iter()
    .map(|(name, definition)| (name, definition.filled(COUNTED)))
}

/// Chains in the order in which they can be made, and what is in them.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) chains: Vec<Chain>,
    pub(super) ways: Vec<Way>,
}

/// Where keys begin: two zero words of sixteen and eight bytes, overwritten from the second word on.
const KEY: Register = Register(0);
const FIRST: Register = Register(1);
const SECOND: Register = Register(2);
const THIRD: Register = Register(3);
/// Where keys begin that have an address first.
const ADDRESS: Register = Register(8);
const BY_IDENTITY: Register = Register(13);
const BY_ADDRESS: Register = Register(14);
/// The rule by identity, and the one by address: order, action, number.
const RULE_BY_IDENTITY: u32 = 6;
const RULE_BY_ADDRESS: u32 = 9;

/// What differs by family.
#[derive(Clone, Copy)]
struct Of(Family);

impl Of {
    fn source(self) -> Ct {
        match self.0 {
            Family::V4 => Ct::Source4,
            Family::V6 => Ct::Source6,
        }
    }

    /// What lies behind an address in a key.
    fn behind(self) -> Register {
        Register(ADDRESS.0 + self.words())
    }

    fn words(self) -> u32 {
        match self.0 {
            Family::V4 => 1,
            Family::V6 => 4,
        }
    }

    fn digit(self) -> char {
        match self.0 {
            Family::V4 => '4',
            Family::V6 => '6',
        }
    }

    /// NFPROTO_IPV4 and …_IPV6.
    fn number(self) -> u8 {
        match self.0 {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// Where source and destination begin in the header, and how long they are.
    fn header(self) -> [(u32, u32); 2] {
        match self.0 {
            Family::V4 => [(12, 4), (16, 4)],
            Family::V6 => [(8, 16), (24, 16)],
        }
    }
}

/// Who is judged: who answers is the source of the answers, whatever was written over.
fn judged(direction: Direction) -> Tuple {
    match direction {
        Direction::Egress => Tuple::Original,
        Direction::Ingress => Tuple::Reply,
    }
}

fn peer(direction: Direction) -> Tuple {
    match direction {
        Direction::Egress => Tuple::Reply,
        Direction::Ingress => Tuple::Original,
    }
}

/// Which of the two rules that speak of a peer is the one.
#[derive(Clone, Copy)]
enum By {
    Identity,
    Address,
}

impl By {
    /// The rule that decides, and the other one.
    fn rules(self) -> (u32, u32) {
        match self {
            Self::Identity => (RULE_BY_IDENTITY, RULE_BY_ADDRESS),
            Self::Address => (RULE_BY_ADDRESS, RULE_BY_IDENTITY),
        }
    }

    fn order(self) -> [Register; 2] {
        let (first, second) = self.rules();
        [Register(first), Register(second)]
    }

    fn action(self) -> Register {
        Register(self.rules().0 + 1)
    }

    fn number(self) -> Register {
        Register(self.rules().0 + 2)
    }
}

/// Loads the endpoint that is judged and a number behind it.
fn endpoint(rule: Rule, of: Of, direction: Direction, number: u32) -> Rule {
    rule.tuple(of.source(), judged(direction), ADDRESS).constant(&words([number]), of.behind())
}

/// Goes on only if the endpoint has a stage at a place; loads it.
fn stage(rule: Rule, of: Of, direction: Direction, at: u32) -> Rule {
    let table = Set::Tables(of.0).name();
    endpoint(rule, of, direction, place(direction, at)).look_up(table, ADDRESS, FIRST)
}

/// Loads the peer's identity.
fn identity(rule: Rule, of: Of, direction: Direction) -> Rule {
    rule.tuple(of.source(), peer(direction), ADDRESS).look_up(Set::Peers(of.0).name(), ADDRESS, SECOND)
}

fn zeros(of: Of) -> Rule {
    let rule = Rule::default().constant(&[0; 16], KEY);
    match of.0 {
        Family::V4 => rule,
        Family::V6 => rule.constant(&[0; 8], Register(4)),
    }
}

/// Asks the stage at a place; goes on only if the rule that decides is the one by identity, or by address.
fn ask(of: Of, direction: Direction, at: u32, by: By) -> Rule {
    let [first, second] = by.order();
    let verdicts = Set::Verdicts.name();
    identity(stage(zeros(of), of, direction, at), of, direction)
        .look_up(Set::Rows.name(), KEY, BY_IDENTITY)
        .tuple(of.source(), peer(direction), SECOND)
        .look_up(Set::Pieces(of.0).name(), KEY, BY_ADDRESS)
        // The port in truth: that of who answers.
        .tuple(Ct::Protocol, Tuple::Original, SECOND)
        .tuple(Ct::SourcePort, Tuple::Reply, THIRD)
        .look_up(Set::Classes.name(), KEY, THIRD)
        .copy(BY_IDENTITY, SECOND)
        .look_up(verdicts, KEY, Register(RULE_BY_IDENTITY))
        .copy(BY_ADDRESS, SECOND)
        .look_up(verdicts, KEY, Register(RULE_BY_ADDRESS))
        .copy(first, FIRST)
        .copy(second, SECOND)
        .within(Set::Earlier.name(), KEY)
}

impl Program {
    pub(super) fn new() -> Self {
        let mut program = Self::default();
        program.chain(DROPPED, [Rule::default().count(DropReason::PolicyDenied.label()).drop()]);
        program.marks();
        for family in Family::BOTH {
            for direction in Direction::BOTH {
                program.judge(Of(family), direction);
            }
            program.judge_both(Of(family));
        }
        program.judge_in_one_phase();
        program.stray();
        program.forward();
        program
    }

    fn chain(&mut self, name: impl Into<String>, rules: impl IntoIterator<Item = Rule>) {
        let name = name.into();
        let hook = (name == FORWARD).then_some(JUDGED);
        self.chains.push(Chain { name, hook, rules: rules.into_iter().collect() });
    }

    fn way(&mut self, name: impl Into<String>, leads: impl IntoIterator<Item = (u32, Verdict)>) {
        let leads = leads.into_iter().map(|(number, verdict)| (words([0, number]), verdict)).collect();
        self.ways.push(Way { name: name.into(), definition: Definition::leading(&[Kind::Word; 2]), leads });
    }

    /// Writes a stamp into the mark: a chain for each, since two values of the packet cannot be put together.
    fn marks(&mut self) {
        for direction in Direction::BOTH {
            let all = (1..=STAMPS).map(Stamp);
            let chain = |stamp: Stamp| format!("mark_{direction}_{}", stamp.0);
            for stamp in all.clone() {
                let rule = Rule::default().ct(Ct::Mark, FIRST);
                let rule = rule.bits(FIRST, !field(direction), stamp.as_mark(direction), FIRST);
                self.chain(chain(stamp), [rule.set_mark(FIRST)]);
            }
            let leads = all.map(|stamp| (u32::from(stamp.0), Verdict::Jump(chain(stamp))));
            self.way(format!("mark_{direction}"), leads);
        }
    }

    /// Judges a connection in one direction: drops the packet, or returns.
    fn judge(&mut self, of: Of, direction: Direction) {
        let what = format!("{direction}{}", of.digit());
        let drop = format!("drop_{what}");
        let counted = endpoint(Rule::default(), of, direction, 0).count_in(denied_of(of.0), ADDRESS);
        self.chain(&drop, [counted, Rule::default().goto(DROPPED)]);

        // Nobody sees its mark any more but who is told.
        let told = format!("told_{what}");
        let asks = Rule::default().ct(Ct::Direction, FIRST).equal(FIRST, &[Tuple::Original as u8]);
        let tell = |rule: Rule, prefix| rule.log(GROUP, prefix).goto(&drop);
        self.chain(&told, [tell(asks, ASKS), tell(Rule::default(), ANSWERS)]);

        let unknown = format!("unknown_{what}");
        let number = words([RuleNumber::unknown(direction).0]);
        let counted = zeros(of).constant(&number, FIRST).count_in(DENIED, KEY).set_packet_mark(FIRST);
        self.chain(&unknown, [counted.goto(told), Rule::default().goto(&drop)]);

        // A chain goes to the next one, which must be there first.
        for at in (0..PLACES).rev() {
            self.ask_one(of, direction, at, &what, &drop);
        }
        let has_stages = || identity(stage(zeros(of), of, direction, 0), of, direction);
        let rules = [
            identity(zeros(of), of, direction).equal(SECOND, &words([Identity::HOST.0])).leave(),
            has_stages().equal(SECOND, &words([Identity::UNKNOWN.0])).goto(&unknown),
            has_stages()
                .equal(SECOND, &words([NOBODY]))
                .within(Set::Clusters(of.0).name(), ADDRESS)
                .goto(&unknown),
            Rule::default().goto(format!("stage_{what}_0")),
        ];
        self.chain(format!("judge_{what}"), rules);
    }

    /// Asks the stage at one place of the endpoint's table: drops, returns, or goes on to the next place.
    fn ask_one(&mut self, of: Of, direction: Direction, at: u32, what: &str, drop: &str) {
        let deny = format!("deny_{what}_{at}");
        let counted = |by: By| {
            let counted = ask(of, direction, at, by).copy(by.number(), FIRST).count_in(DENIED, KEY);
            counted.set_packet_mark(FIRST).goto(format!("told_{what}"))
        };
        let rules = [counted(By::Identity), counted(By::Address), Rule::default().goto(drop)];
        self.chain(&deny, rules);

        let next = match at + 1 {
            PLACES => Verdict::Return,
            next => Verdict::Goto(format!("stage_{what}_{next}")),
        };
        let way = format!("actions_{what}_{at}");
        self.way(&way, [(ACCEPT, Verdict::Return), (DENY, Verdict::Goto(deny)), (PASS, next)]);
        let decided = |by: By| ask(of, direction, at, by).copy(by.action(), FIRST).lead(&way, KEY);
        // A stage that has no answer is not whole.
        let amiss = stage(zeros(of), of, direction, at).goto(drop);
        self.chain(format!("stage_{what}_{at}"), [decided(By::Identity), decided(By::Address), amiss]);
    }

    /// Judges a connection as far as its ends are endpoints, and marks it.
    fn judge_both(&mut self, of: Of) {
        let mut rules = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            let stamp = |rule| {
                let stamps = Set::Stamps(of.0).name();
                endpoint(rule, of, direction, number_of(direction)).look_up(stamps, ADDRESS, FIRST)
            };
            rules.push(stamp(Rule::default()).jump(format!("judge_{direction}{}", of.digit())));
            rules.push(stamp(zeros(of)).lead(&format!("mark_{direction}"), KEY));
        }
        self.chain(format!("both{}", of.digit()), rules);
    }

    /// Judges a connection as one state has it, and not half by one and half by another.
    fn judge_in_one_phase(&mut self) {
        let both = Family::BOTH.map(Of).map(|of| {
            let family = Rule::default().meta(Meta::Family, FIRST).equal(FIRST, &[of.number()]);
            family.jump(format!("both{}", of.digit()))
        });
        self.chain("both", both);
        let phase = || Rule::default().constant(&[0; 16], KEY).look_up(Set::Phase.name(), KEY, FIRST);
        let chain = |number| format!("phase_{number}");
        for number in 0..PHASES {
            let unmark = Rule::default().ct(Ct::Mark, FIRST).bits(FIRST, !MARK, 0, FIRST).set_mark(FIRST);
            let rules = [
                Rule::default().jump("both"),
                phase().equal(FIRST, &words([number])).leave(),
                unmark,
                Rule::default().goto(DROPPED),
            ];
            self.chain(chain(number), rules);
        }
        self.way("phases", (0..PHASES).map(|number| (number, Verdict::Goto(chain(number)))));
        self.chain("judge", [phase().lead("phases", KEY), Rule::default().goto(DROPPED)]);
    }

    /// What belongs to no connection that could be judged: it does not pass where anything applies.
    fn stray(&mut self) {
        let dropped = Rule::default().count(DropReason::InvalidConnection.label()).drop();
        self.chain("drop_stray", [dropped]);
        // Invalid packets of pods' links are refused, and counted by pod, in the other table.
        let mut rules: Vec<Rule> = [Meta::InputName, Meta::OutputName]
            .map(|end| {
                let invalid = Rule::default().ct(Ct::State, FIRST).bits(FIRST, INVALID, 0, FIRST);
                invalid.unequal(FIRST, &[0; 4]).by_links(end, LinkName::POD_PREFIX, ADDRESS).leave()
            })
            .into();
        for of in Family::BOTH.map(Of) {
            let ends = [Direction::Egress, Direction::Ingress].into_iter().zip(of.header());
            rules.extend(ends.map(|(direction, (offset, length))| {
                Rule::default()
                    .meta(Meta::Family, FIRST)
                    .equal(FIRST, &[of.number()])
                    .header(offset, length, ADDRESS)
                    .constant(&words([place(direction, 0)]), of.behind())
                    .look_up(Set::Tables(of.0).name(), ADDRESS, FIRST)
                    .goto("drop_stray")
            }));
        }
        self.chain("stray", rules);
    }

    fn forward(&mut self) {
        for of in Family::BOTH.map(Of) {
            let check = |direction, next: Option<String>| {
                // What connection tracking expected has its parent's mark, under which it was not judged.
                let related = Rule::default().ct(Ct::State, FIRST).bits(FIRST, RELATED, 0, FIRST);
                let current = related
                    .equal(FIRST, &[0; 4])
                    .tuple(of.source(), judged(direction), ADDRESS)
                    .ct(Ct::Mark, of.behind())
                    .bits(of.behind(), field(direction), 0, of.behind())
                    .within(Set::Current(of.0).name(), ADDRESS);
                let passed = match &next {
                    Some(next) => current.goto(next),
                    None => current.leave(),
                };
                let stamps = Set::Stamps(of.0).name();
                let own = endpoint(Rule::default(), of, direction, number_of(direction));
                let unjudged = own.look_up(stamps, ADDRESS, FIRST).goto("judge");
                [passed, unjudged].into_iter().chain(next.map(|next| Rule::default().goto(next)))
            };
            let ingress = format!("ingress{}", of.digit());
            let rules: Vec<Rule> = check(Direction::Ingress, None).collect();
            self.chain(&ingress, rules);
            let rules: Vec<Rule> = check(Direction::Egress, Some(ingress)).collect();
            self.chain(format!("egress{}", of.digit()), rules);
        }
        // The fast path's tunnel goes from node to node.
        let tunnel = Rule::default().by_link(Meta::InputName, UPLINK_LINK, ADDRESS).leave();
        let stray = Rule::default().ct(Ct::State, FIRST).bits(FIRST, INVALID | UNTRACKED, 0, FIRST);
        let mut rules = vec![tunnel, stray.unequal(FIRST, &[0; 4]).goto("stray")];
        rules.extend(Family::BOTH.map(Of).map(|of| {
            let family = Rule::default().meta(Meta::Family, FIRST).equal(FIRST, &[of.number()]);
            family.goto(format!("egress{}", of.digit()))
        }));
        self.chain(FORWARD, rules);
    }
}

/// The chain that packets come to, beside the chains that refuse, before they count a connection as one that a pod has.
const FORWARD: &str = "forward";
const JUDGED: Hook = Hook { kind: "filter", number: HOOK_FORWARD, priority: -6 };
/// NF_INET_FORWARD.
const HOOK_FORWARD: u32 = 2;
