//! A rule as the kernel takes it: expressions over its registers. nft's own language cannot look up by what another look-up found.

use causeway_model::Family;

use crate::nfnetlink::{NESTED, attribute};

/// NFTA_LIST_ELEM.
const LIST_ELEMENT: u16 = 1 | NESTED;
/// NFTA_EXPR_…
const NAME: u16 = 1;
const DATA: u16 = 2 | NESTED;
/// NFTA_DATA_…
const VALUE: u16 = 1;
const VERDICT: u16 = 2 | NESTED;
/// NFTA_VERDICT_…
const CODE: u16 = 1;
const CHAIN: u16 = 2;
/// NFT_REG32_00; the verdict's own register is 0.
const FIRST_REGISTER: u32 = 8;
/// NFT_CT_MARK.
const CT_MARK: u32 = 3;
/// NFT_META_MARK.
const META_MARK: u32 = 3;

/// One of the sixteen registers of four bytes. What is longer goes on into those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    /// The one so many behind it.
    pub(crate) const fn plus(self, words: u32) -> Self {
        Self(self.0 + words)
    }

    fn number(self) -> [u8; 4] {
        (FIRST_REGISTER + self.0).to_be_bytes()
    }
}

/// What connection tracking knows of a packet (NFT_CT_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ct {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    Protocol = 10,
    SourcePort = 11,
    DestinationPort = 12,
    Source4 = 19,
    Destination4 = 20,
    Source6 = 21,
    Destination6 = 22,
}

/// Which of a connection's two tuples (IP_CT_DIR_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tuple {
    Original = 0,
    Reply = 1,
}

/// What belongs to no header (NFT_META_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
}

/// An end of a packet (NFTA_FIB_F_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source = 1,
    Destination = 2,
}

/// Which address of a packet is written over (NFT_NAT_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    Source = 0,
    Destination = 1,
}

/// Where a rule leads (NF_…, NFT_…).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    /// As data of an element or of an expression.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (code, chain) = match self {
            Self::Drop => (0_i32, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        let mut parts = attribute(CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            parts.extend(attribute(CHAIN, &text(chain)));
        }
        attribute(VERDICT, &parts)
    }
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Expressions in the order in which they are asked; the first that has no answer ends the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule(pub(crate) Vec<u8>);

impl Rule {
    fn then(mut self, name: &str, parts: &[(u16, &[u8])]) -> Self {
        let data: Vec<u8> = parts.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
        let whole = [attribute(NAME, &text(name)), attribute(DATA, &data)].concat();
        self.0.extend(attribute(LIST_ELEMENT, &whole));
        self
    }

    /// Loads what connection tracking knows of the packet or of its connection.
    pub(crate) fn ct(self, key: Ct, to: Register) -> Self {
        self.then("ct", &[(2, &(key as u32).to_be_bytes()), (1, &to.number())])
    }

    /// Loads a part of a tuple.
    pub(crate) fn tuple(self, key: Ct, tuple: Tuple, to: Register) -> Self {
        let key = (key as u32).to_be_bytes();
        self.then("ct", &[(2, &key), (1, &to.number()), (3, &[tuple as u8])])
    }

    pub(crate) fn meta(self, key: Meta, to: Register) -> Self {
        self.then("meta", &[(2, &(key as u32).to_be_bytes()), (1, &to.number())])
    }

    /// Goes on only if a packet comes or goes by the link of this name.
    pub(crate) fn by_link(self, end: Meta, name: &str, by: Register) -> Self {
        self.meta(end, by).equal(by, &[name.as_bytes(), &[0]].concat())
    }

    /// Goes on only if a packet comes or goes by a link whose name begins so.
    pub(crate) fn by_links(self, end: Meta, prefix: &str, by: Register) -> Self {
        self.meta(end, by).equal(by, prefix.as_bytes())
    }

    /// Loads bytes of the network header.
    pub(crate) fn header(self, offset: u32, length: u32, to: Register) -> Self {
        let [base, offset, length] = [1, offset, length].map(u32::to_be_bytes);
        self.then("payload", &[(1, &to.number()), (2, &base), (3, &offset), (4, &length)])
    }

    /// Loads bytes of the transport header.
    pub(crate) fn transport(self, offset: u32, length: u32, to: Register) -> Self {
        let [base, offset, length] = [2, offset, length].map(u32::to_be_bytes);
        self.then("payload", &[(1, &to.number()), (2, &base), (3, &offset), (4, &length)])
    }

    /// Goes on only if an end of the packet is an address of this node, or only if it is not.
    pub(crate) fn local(self, end: End, is: bool, by: Register) -> Self {
        // NFT_FIB_RESULT_ADDRTYPE; RTN_LOCAL.
        let [result, flags] = [3, end as u32].map(u32::to_be_bytes);
        let kind = self.then("fib", &[(1, &by.number()), (2, &result), (3, &flags)]);
        kind.compare(u32::from(!is), by, &2_u32.to_ne_bytes())
    }

    /// Loads a random number below another, in the machine's own order.
    pub(crate) fn random(self, below: u32, to: Register) -> Self {
        let [below, kind] = [below, 1].map(u32::to_be_bytes);
        self.then("numgen", &[(1, &to.number()), (2, &below), (3, &kind)])
    }

    /// Writes an address of a connection's packets over, and a port if one is said.
    pub(crate) fn translate(
        self,
        what: Nat,
        family: Family,
        address: Register,
        port: Option<Register>,
    ) -> Self {
        let number = match family {
            Family::V4 => 2_u32,
            Family::V6 => 10,
        };
        let (what, family, address) = ((what as u32).to_be_bytes(), number.to_be_bytes(), address.number());
        let mut parts: Vec<(u16, &[u8])> = vec![(1, &what), (2, &family), (3, &address)];
        let port = port.map(Register::number);
        parts.extend(port.iter().map(|port| (5, port.as_slice())));
        self.then("nat", &parts)
    }

    /// Gives a connection the address of the link by which it leaves.
    pub(crate) fn masquerade(self) -> Self {
        self.then("masq", &[])
    }

    /// Answers with TCP RST.
    pub(crate) fn reset(self) -> Self {
        self.then("reject", &[(1, &1_u32.to_be_bytes()), (2, &[0])])
    }

    /// Answers with ICMP or ICMPv6: port unreachable.
    pub(crate) fn unreachable(self) -> Self {
        // NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH.
        self.then("reject", &[(1, &2_u32.to_be_bytes()), (2, &[1])])
    }

    pub(crate) fn constant(self, value: &[u8], to: Register) -> Self {
        let value = attribute(VALUE, value);
        self.then("immediate", &[(1, &to.number()), (2 | NESTED, &value)])
    }

    /// Keeps the bits of `mask`, then turns those of `flip` over.
    pub(crate) fn bits(self, from: Register, mask: u32, flip: u32, to: Register) -> Self {
        let [mask, flip] = [mask, flip].map(|bits| attribute(VALUE, &bits.to_ne_bytes()));
        let length = 4_u32.to_be_bytes();
        let parts: [(u16, &[u8]); 5] =
            [(1, &from.number()), (2, &to.number()), (3, &length), (4 | NESTED, &mask), (5 | NESTED, &flip)];
        self.then("bitwise", &parts)
    }

    pub(crate) fn copy(self, from: Register, to: Register) -> Self {
        self.bits(from, u32::MAX, 0, to)
    }

    /// Goes on only if a register begins with a value.
    pub(crate) fn equal(self, register: Register, value: &[u8]) -> Self {
        self.compare(0, register, value)
    }

    /// Goes on only if it does not.
    pub(crate) fn unequal(self, register: Register, value: &[u8]) -> Self {
        self.compare(1, register, value)
    }

    fn compare(self, operation: u32, register: Register, value: &[u8]) -> Self {
        let (operation, value) = (operation.to_be_bytes(), attribute(VALUE, value));
        self.then("cmp", &[(1, &register.number()), (2, &operation), (3 | NESTED, &value)])
    }

    /// Goes on only if a set has the key.
    pub(crate) fn within(self, set: &str, key: Register) -> Self {
        self.then("lookup", &[(1, &text(set)), (2, &key.number())])
    }

    /// Goes on only if a set does not have the key.
    pub(crate) fn without(self, set: &str, key: Register) -> Self {
        // NFT_LOOKUP_F_INV.
        self.then("lookup", &[(1, &text(set)), (2, &key.number()), (5, &1_u32.to_be_bytes())])
    }

    /// Loads what a map has for the key.
    pub(crate) fn look_up(self, map: &str, key: Register, to: Register) -> Self {
        self.then("lookup", &[(1, &text(map)), (2, &key.number()), (3, &to.number())])
    }

    /// Goes where a map says.
    pub(crate) fn lead(self, map: &str, key: Register) -> Self {
        self.then("lookup", &[(1, &text(map)), (2, &key.number()), (3, &[0; 4])])
    }

    /// Counts the packet in a set, by key. Ends the rule when the set is full.
    pub(crate) fn count_in(self, set: &str, key: Register) -> Self {
        let expression = Self::counter();
        let update = 1_u32.to_be_bytes();
        let parts: [(u16, &[u8]); 4] =
            [(1, &text(set)), (3, &update), (4, &key.number()), (7 | NESTED, &expression)];
        self.then("dynset", &parts)
    }

    /// Puts into a map what a key leads to, for so many seconds; what has the key already stays, and its time begins anew. Ends the
    /// rule when the map is full.
    pub(crate) fn put(self, map: &str, key: Register, data: Register, seconds: u32) -> Self {
        let (update, timeout) = (1_u32.to_be_bytes(), (u64::from(seconds) * 1000).to_be_bytes());
        let parts: [(u16, &[u8]); 5] =
            [(1, &text(map)), (3, &update), (4, &key.number()), (5, &data.number()), (6, &timeout)];
        self.then("dynset", &parts)
    }

    /// Takes a key out of a map that packets fill. The kernel asks for data, and does not look at them.
    pub(crate) fn take(self, map: &str, key: Register, data: Register) -> Self {
        let delete = 2_u32.to_be_bytes();
        let parts: [(u16, &[u8]); 4] =
            [(1, &text(map)), (3, &delete), (4, &key.number()), (5, &data.number())];
        self.then("dynset", &parts)
    }

    /// The expression that counts.
    pub(super) fn counter() -> Vec<u8> {
        [attribute(NAME, b"counter\0"), attribute(DATA, &[])].concat()
    }

    /// Counts the packet in a counter with a name.
    pub(crate) fn count(self, counter: &str) -> Self {
        self.then("objref", &[(1, &1_u32.to_be_bytes()), (2, &text(counter))])
    }

    /// Writes the connection's mark.
    pub(crate) fn set_mark(self, from: Register) -> Self {
        self.then("ct", &[(2, &CT_MARK.to_be_bytes()), (4, &from.number())])
    }

    /// Writes the packet's own mark.
    pub(crate) fn set_packet_mark(self, from: Register) -> Self {
        self.then("meta", &[(2, &META_MARK.to_be_bytes()), (3, &from.number())])
    }

    /// Tells whoever listens to a group of nflog, if anybody does.
    pub(crate) fn log(self, group: u16, prefix: &str) -> Self {
        self.then("log", &[(1, &group.to_be_bytes()), (2, &text(prefix))])
    }

    pub(crate) fn verdict(self, verdict: &Verdict) -> Self {
        self.then("immediate", &[(1, &[0; 4]), (2 | NESTED, &verdict.bytes())])
    }

    pub(crate) fn goto(self, chain: impl Into<String>) -> Self {
        self.verdict(&Verdict::Goto(chain.into()))
    }

    pub(crate) fn jump(self, chain: impl Into<String>) -> Self {
        self.verdict(&Verdict::Jump(chain.into()))
    }

    pub(crate) fn leave(self) -> Self {
        self.verdict(&Verdict::Return)
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(&Verdict::Drop)
    }
}
