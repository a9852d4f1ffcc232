//! One real packet, and what it moved.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use causeway_kernel_fallback::namespace;
use causeway_model::policy::Traffic;
use causeway_model::why::{Probe, Why};
use causeway_model::{Count, Counters, PortProtocol};

use super::connections::Unanswered;
use super::{Core, Engine};
use crate::error::chain;

/// How long the packet's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

impl Engine {
    /// Begins the connection that was asked about, from where it would begin, and tells what moved.
    pub(super) fn probe(&self, mut why: Why) -> Result<Why, Unanswered> {
        let (netns, before) = {
            let mut core = self.lock();
            (core.sender_of(&why).map_err(Unanswered::Question)?, core.counters())
        };
        let to = match why.traffic {
            Traffic::To(PortProtocol::Tcp | PortProtocol::Udp, port) => SocketAddr::new(why.to.address, port),
            _ => return Err(Unanswered::Question("a probe is of tcp or udp".to_owned())),
        };
        let from = SocketAddr::new(why.from.address, 0);
        let is_tcp = matches!(why.traffic, Traffic::To(PortProtocol::Tcp, _));
        let send = || if is_tcp { connect(to) } else { ask(from, to) };
        let outcome = match &netns {
            Some(netns) => {
                namespace::within(netns.as_fd(), send).map_err(|error| Unanswered::Trouble(chain(&error)))?
            }
            None => send(),
        };
        let after = self.lock().counters();
        why.probe = Some(Probe { outcome, ..moved(&before, after) });
        Ok(why)
    }
}

impl Core {
    /// The network namespace of who begins: none for the node itself.
    fn sender_of(&self, why: &Why) -> Result<Option<File>, String> {
        let here = |address| {
            self.desired.as_ref().is_some_and(|d| d.settings.node.stack().any(|own| own == address))
        };
        let address = why.from.address;
        if here(address) {
            return Ok(None);
        }
        let records = self.parts.store.records();
        let record = records.values().find(|record| record.endpoint.addresses.contains(&address));
        let Some(record) = record else {
            return Err(format!(
                "a probe begins at a pod of this node or at its host, not at {}",
                why.from.who
            ));
        };
        let netns = namespace::open(record.netns.path.as_ref()).map_err(|error| chain(&error))?;
        Ok(Some(netns))
    }
}

fn connect(to: SocketAddr) -> String {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => "answered: the connection was accepted".to_owned(),
        Err(error) => failed(&error),
    }
}

fn ask(from: SocketAddr, to: SocketAddr) -> String {
    let asked = UdpSocket::bind(from).and_then(|socket| {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"causeway why --probe")?;
        socket.recv(&mut [0; 64])
    });
    match asked {
        Ok(_) => "answered by a datagram".to_owned(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused: it came through, and nobody listens there".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => format!("no answer within {PATIENCE:?}"),
        _ => error.to_string(),
    }
}

/// What has been denied and dropped since.
fn moved(before: &Counters, after: Counters) -> Probe {
    fn since<K: Ord>(before: &BTreeMap<K, Count>, after: BTreeMap<K, Count>) -> Vec<(K, Count)> {
        let more = after.into_iter().map(|(key, now)| {
            let then = before.get(&key).copied().unwrap_or_default();
            let packets = now.packets.saturating_sub(then.packets);
            (key, Count { packets, bytes: now.bytes.saturating_sub(then.bytes) })
        });
        more.filter(|(_, count)| count.packets > 0).collect()
    }
    let (rules, drops) = (since(&before.rules, after.rules), since(&before.drops, after.drops));
    Probe { outcome: String::new(), rules, drops }
}
