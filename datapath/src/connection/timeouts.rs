//! How long connections are remembered without a packet.

use causeway_wire::IpProtocol;

use super::entry::{Stage, State};

/// How long connections are remembered without a packet, in milliseconds. The defaults are those of Linux, so that both
/// data paths forget alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, a SYN without an answer.
    pub tcp_syn: u32,
    /// TCP, a SYN with an answer that is not acknowledged.
    pub tcp_syn_received: u32,
    /// TCP, established.
    pub tcp_established: u32,
    /// TCP, one end has said its last.
    pub tcp_fin_wait: u32,
    /// TCP, both have, and one is not acknowledged.
    pub tcp_last_ack: u32,
    /// TCP, all is said.
    pub tcp_time_wait: u32,
    /// TCP, reset.
    pub tcp_closed: u32,
    /// UDP, one end has spoken.
    pub udp: u32,
    /// UDP, both have.
    pub udp_stream: u32,
    /// An echo.
    pub icmp: u32,
    /// SCTP, not yet established or no more.
    pub sctp: u32,
    /// SCTP, established.
    pub sctp_established: u32,
    /// Anything else.
    pub other: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn: 120_000,
            tcp_syn_received: 60_000,
            tcp_established: 432_000_000,
            tcp_fin_wait: 120_000,
            tcp_last_ack: 30_000,
            tcp_time_wait: 120_000,
            tcp_closed: 10_000,
            udp: 30_000,
            udp_stream: 120_000,
            icmp: 30_000,
            sctp: 10_000,
            sctp_established: 210_000,
            other: 600_000,
        }
    }
}

impl Timeouts {
    /// How long a connection in this state is remembered.
    pub(super) fn of(&self, protocol: IpProtocol, state: State) -> u32 {
        let spoken = state.stage != Stage::New;
        match protocol {
            IpProtocol::TCP => match state.stage {
                Stage::New => self.tcp_syn,
                Stage::SynReceived => self.tcp_syn_received,
                Stage::Established => self.tcp_established,
                Stage::FinWait => self.tcp_fin_wait,
                Stage::LastAck => self.tcp_last_ack,
                Stage::TimeWait => self.tcp_time_wait,
                Stage::Closed => self.tcp_closed,
            },
            IpProtocol::UDP if spoken => self.udp_stream,
            IpProtocol::UDP => self.udp,
            IpProtocol::ICMPV4 | IpProtocol::ICMPV6 => self.icmp,
            IpProtocol::SCTP if state.stage == Stage::Established => self.sctp_established,
            IpProtocol::SCTP => self.sctp,
            _ => self.other,
        }
    }
}
