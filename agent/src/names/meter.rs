use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use causeway_model::operator::{NameServerStatus, NamesStatus};

use super::message::Transport;

/// What was asked of the server of names, what it answered, and where it cannot.
#[derive(Default)]
pub(crate) struct NameMeter(Mutex<NamesStatus>);

impl NameMeter {
    /// What there is to show.
    pub(crate) fn status(&self) -> NamesStatus {
        self.lock().clone()
    }

    /// Notes how it stands with an address.
    pub(super) fn at(&self, address: IpAddr, done: io::Result<()>) {
        let trouble = done.err().map(|error| error.to_string());
        let mut status = self.lock();
        let known = status.servers.iter().position(|server| server.address == address);
        let server = NameServerStatus { address, trouble };
        if let Some(trouble) = &server.trouble
            && known.is_none_or(|at| status.servers[at].trouble.as_ref() != Some(trouble))
        {
            tracing::warn!("names are not answered at {address}: {trouble}");
        }
        match known {
            Some(at) => status.servers[at] = server,
            None => status.servers.push(server),
        }
    }

    pub(super) fn asked(&self, by: Transport) {
        let mut status = self.lock();
        match by {
            Transport::Udp => status.udp += 1,
            Transport::Tcp => status.tcp += 1,
        }
    }

    pub(super) fn answered(&self, code: &str, truncated: bool) {
        let mut status = self.lock();
        // Codes are few, and mostly there.
        match status.answers.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(status.answers.insert(code.to_owned(), 1)),
        }
        status.truncated += u64::from(truncated);
    }

    pub(super) fn malformed(&self) {
        self.lock().malformed += 1;
    }

    pub(super) fn dropped(&self) {
        self.lock().dropped += 1;
    }

    fn lock(&self) -> MutexGuard<'_, NamesStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
