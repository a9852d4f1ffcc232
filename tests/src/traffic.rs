//! Traffic between two namespaces, each with a verdict and figures. Nothing here waits for ever.

mod bulk;
mod datagrams;
mod echo;
mod flow;
mod http;
mod order;
mod ping;
mod reach;
mod request;
mod resolve;
mod responder;
pub(crate) mod sctp;
mod segments;
mod stream;

use std::net::IpAddr;
use std::time::Duration;

pub use bulk::{Bulk, bulk};
pub use datagrams::{Datagrams, datagrams};
pub use domain::base::iana::Rtype;
pub use echo::echo_sizes;
pub use flow::{Flow, FlowReport};
pub use http::http;
pub use order::{Order, order};
pub use ping::{Pings, pings, too_big};
pub use reach::{tcp_reaches, udp_reaches};
pub use request::requests;
pub use resolve::{Query, Resolved, resolve, resolve_tcp, resolve_udp};
pub use responder::{Answered, Responder, UdpQuestioner, ask_tcp, ask_udp};
pub use sctp::{SctpEnd, associate};
pub use segments::udp_segments;
pub use stream::throughput;

/// How long a single answer may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(5);

/// Any address of the family of this one.
fn any(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() }
}
