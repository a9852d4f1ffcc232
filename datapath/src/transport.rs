use std::fmt;
use std::num::NonZeroU64;

use causeway_wire::IpProtocol;

/// What a packet carries, and where in its frame. A word, since what is put together of smaller things is slow to be handed on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transport(NonZeroU64);

impl Transport {
    const HAS_PORTS: u64 = 1;
    const FRAGMENT: u64 = 1 << 1;
    const INSIDE: u64 = 1 << 2;
    // Of every one.
    const THERE: NonZeroU64 = NonZeroU64::new(1 << 3).unwrap();
    const PROTOCOL: u32 = 8;
    const OFFSET: u32 = 16;
    const PORTS: [u32; 2] = [48, 32];

    /// One that begins so many bytes behind the beginning of the Ethernet header; nothing where no frame reaches. Ports are those of TCP,
    /// UDP and SCTP, source first, where they are there; they are never read from a later fragment.
    #[inline(always)]
    pub(crate) fn new(
        protocol: IpProtocol,
        offset: usize,
        ports: Option<[u16; 2]>,
        (fragment, inside): (bool, bool),
    ) -> Option<Self> {
        let offset = u16::try_from(offset).ok()?;
        let flag = |flag: u64, is: bool| if is { flag } else { 0 };
        let flags = flag(Self::HAS_PORTS, ports.is_some())
            | flag(Self::FRAGMENT, fragment)
            | flag(Self::INSIDE, inside);
        let place = u64::from(protocol.0) << Self::PROTOCOL | u64::from(offset) << Self::OFFSET;
        Some(Self(Self::THERE | (flags | place | Self::word(ports.unwrap_or_default()))))
    }

    #[inline(always)]
    fn word(ports: [u16; 2]) -> u64 {
        u64::from(ports[0]) << Self::PORTS[0] | u64::from(ports[1]) << Self::PORTS[1]
    }

    /// The same with other ports.
    #[inline(always)]
    pub(crate) fn with_ports(self, ports: [u16; 2]) -> Self {
        let rest = self.0.get() & 0xffff_ffff;
        Self(Self::THERE | (rest | Self::word(ports)))
    }

    #[inline(always)]
    pub(crate) fn protocol(self) -> IpProtocol {
        IpProtocol((self.0.get() >> Self::PROTOCOL) as u8)
    }

    /// The ports, source first; zero where there are none.
    #[inline(always)]
    pub(crate) fn ports(self) -> [u16; 2] {
        Self::PORTS.map(|at| (self.0.get() >> at) as u16)
    }

    /// Whether they are there.
    #[inline(always)]
    pub(crate) fn has_ports(self) -> bool {
        self.0.get() & Self::HAS_PORTS != 0
    }

    /// Where it begins, counted from the Ethernet header.
    #[inline(always)]
    pub(crate) fn offset(self) -> usize {
        usize::from((self.0.get() >> Self::OFFSET) as u16)
    }

    /// A part of a packet, first or not.
    #[inline(always)]
    pub(crate) fn fragment(self) -> bool {
        self.0.get() & Self::FRAGMENT != 0
    }

    /// Every fragment but the first: no transport header is there.
    #[inline(always)]
    pub(crate) fn inside(self) -> bool {
        self.0.get() & Self::INSIDE != 0
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("protocol", &self.protocol())
            .field("ports", &self.has_ports().then(|| self.ports()))
            .field("offset", &self.offset())
            .field("fragment", &self.fragment())
            .field("inside", &self.inside())
            .finish()
    }
}
