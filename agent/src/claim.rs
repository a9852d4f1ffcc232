//! One agent a node: what an agent holds so that a second one is told so instead of fighting the first.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use rustix::net::sockopt::socket_peercred;

use crate::error::Error;

/// Bound in the node's network namespace, where the data path is; dies with the process that holds it.
const NAME: &[u8] = b"causeway-agent";

/// The node and the state directory, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    socket: UnixListener,
    _lock: Flock<File>,
}

impl Claim {
    /// Takes both, or says who has them.
    pub(crate) fn of(state: &Path) -> Result<Self, Error> {
        let socket = claim_node(NAME)?;
        fs::create_dir_all(state).map_err(Error::io(format!("making {}", state.display())))?;
        Ok(Self { socket, _lock: lock(state)? })
    }

    /// Takes those in who look who holds the node, and lets them go: a full queue would make them wait.
    pub(crate) async fn answer(self) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(self.socket)?;
        loop {
            drop(listener.accept().await);
        }
    }
}

fn claim_node(name: &[u8]) -> Result<UnixListener, Error> {
    let doing = || "claiming this node by the abstract socket causeway-agent".to_owned();
    let address = SocketAddr::from_abstract_name(name).map_err(Error::io(doing()))?;
    match UnixListener::bind_addr(&address) {
        Ok(socket) => Ok(socket),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(Error::AnotherAgent { what: "serves this node already".to_owned(), pid: holder(&address) })
        }
        Err(error) => Err(Error::io(doing())(error)),
    }
}

/// The process that listens.
fn holder(address: &SocketAddr) -> Option<i32> {
    let stream = OwnedFd::from(UnixStream::connect_addr(address).ok()?);
    Some(socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get())
}

fn lock(state: &Path) -> Result<Flock<File>, Error> {
    let path = state.join("lock");
    let doing = format!("locking {}", path.display());
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.map_err(Error::io(doing.clone()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // For the reader only; the lock itself is the kernel's and goes with the process.
            let note = lock.set_len(0).and_then(|()| lock.rewind());
            note.and_then(|()| writeln!(*lock, "{}", std::process::id())).map_err(Error::io(doing))?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            Err(Error::AnotherAgent { what: format!("uses {} already", state.display()), pid })
        }
        Err((_, errno)) => Err(Error::io(doing)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_whose_the_node_is() {
        let name = format!("causeway-agent-test-{}", std::process::id());
        let first = claim_node(name.as_bytes()).unwrap();
        let error = claim_node(name.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, format!("another agent (pid {}) serves this node already", std::process::id()));
        drop(first);
        claim_node(name.as_bytes()).unwrap();
    }

    #[test]
    fn a_state_directory_has_one_user_and_names_it() {
        let state = tempfile::tempdir().unwrap();
        let first = lock(state.path()).unwrap();
        let error = lock(state.path()).unwrap_err().to_string();
        let (pid, path) = (std::process::id(), state.path().display());
        assert_eq!(error, format!("another agent (pid {pid}) uses {path} already"));
        drop(first);
        lock(state.path()).unwrap();
    }
}
