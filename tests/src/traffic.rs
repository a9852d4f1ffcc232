//! Traffic between two namespaces, each with a verdict and figures. Nothing here waits for ever.

mod bulk;
mod datagrams;
mod echo;
mod flow;
mod http;
mod ping;
mod reach;
mod request;
mod stream;

use std::time::Duration;

pub use bulk::{Bulk, bulk};
pub use datagrams::{Datagrams, datagrams};
pub use echo::echo_sizes;
pub use flow::{Flow, FlowReport};
pub use http::http;
pub use ping::{Pings, pings, too_big};
pub use reach::{tcp_reaches, udp_reaches};
pub use request::requests;
pub use stream::throughput;

/// How long a single answer may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(5);
