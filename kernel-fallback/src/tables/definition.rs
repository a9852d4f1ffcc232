//! What sets and maps are made of.

/// NFT_SET_…
const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const EVALUATED: u32 = 0x20;
/// The type of verdicts.
const VERDICTS: u32 = 0xffff_ff00;

/// nft's numbers for types, for whoever lists the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    V4,
    V6,
    /// A transport's number, as part of a key.
    Protocol,
    /// A port, as part of a key.
    Port,
    /// A number.
    Word,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::V4 => 7,
            Self::V6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Word => 19,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::V6 => 16,
            _ => 4,
        }
    }
}

/// What a set is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) flags: u32,
    pub(crate) key: (u32, u32),
    /// In a map, the type and length of what keys lead to.
    pub(crate) data: Option<(u32, u32)>,
    /// How many elements it may have, where packets fill it.
    pub(crate) size: Option<u32>,
    /// Each element counts the look-ups that find it.
    pub(crate) counted: bool,
}

impl Definition {
    pub(crate) fn new(interval: bool, key: &[Kind], data: &[Kind]) -> Self {
        let of = |kinds: &[Kind]| {
            (
                kinds.iter().fold(0, |all, kind| all << 6 | kind.number()),
                kinds.iter().map(|kind| kind.length()).sum(),
            )
        };
        let map = !data.is_empty();
        let mut key = of(key);
        if interval {
            // An integer of any length: what lies between two of them does not care for parts.
            key.0 = 4;
        }
        let flags = if interval { INTERVAL } else { 0 } | if map { MAP } else { 0 };
        Self { flags, key, data: map.then(|| of(data)), size: None, counted: false }
    }

    /// A map that leads to chains.
    pub(crate) fn leading(key: &[Kind]) -> Self {
        let mut definition = Self::new(false, key, &[]);
        definition.flags |= MAP;
        definition.data = Some((VERDICTS, 0));
        definition
    }

    /// Packets fill it, up to a size.
    pub(crate) fn filled(mut self, size: u32) -> Self {
        self.flags |= EVALUATED;
        self.size = Some(size);
        self
    }

    /// What packets put into it goes after a time.
    pub(crate) fn ageing(mut self) -> Self {
        self.flags |= TIMEOUT;
        self
    }

    pub(crate) fn counted(mut self) -> Self {
        self.counted = true;
        self
    }
}

/// Numbers, one after the other.
pub(crate) fn words<const N: usize>(numbers: [u32; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}
