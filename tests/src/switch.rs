//! The user-space wire: a small learning switch whose ports are TAPs named `eth0` in the nodes' namespaces.
//!
//! The TAPs have no virtio header, so every frame on the wire is whole and has its checksums. What happens to frames is
//! told over a unix socket, one JSON line each way.

mod conditions;
mod fate;
mod forwarder;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use conditions::{Conditions, GRAMMAR, Rules};
pub use fate::Tally;
use forwarder::Forwarder;

/// What the switch can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// How it stands.
    Status,
    /// To take up words of [`GRAMMAR`].
    Set {
        /// The words.
        words: Vec<String>,
    },
    /// To make an `eth0` in a namespace.
    AddPort {
        /// What the port is called on the wire.
        port: String,
        /// The namespace's name.
        namespace: String,
    },
    /// To drop a port.
    RemovePort {
        /// Which one.
        port: String,
    },
}

/// How the switch stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// The words that say what holds.
    pub words: Vec<String>,
    /// What happened to the frames of each port.
    pub ports: BTreeMap<String, Tally>,
}

/// Asks a switch.
pub fn ask(socket: &Path, order: &Order) -> Result<SwitchStatus, String> {
    let asked = || -> io::Result<Result<SwitchStatus, String>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, "{}", serde_json::to_string(order)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    asked().unwrap_or_else(|error| Err(format!("the switch at {}: {error}", socket.display())))
}

/// Is a switch until it is killed.
pub fn serve(socket: &Path) -> io::Result<()> {
    drop(fs::remove_file(socket));
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let mut forwarder = Forwarder::default();
    loop {
        if forwarder.turn(&listener)? {
            while let Ok((stream, _)) = listener.accept() {
                if let Err(error) = answer(&stream, &mut forwarder) {
                    eprintln!("a question could not be answered: {error}");
                }
            }
        }
    }
}

fn answer(mut stream: &UnixStream, forwarder: &mut Forwarder) -> io::Result<()> {
    // Who asks and does not go on asking must not stop the frames.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer = serde_json::from_str(&line)
        .map_err(|error| error.to_string())
        .and_then(|order| forwarder.obey(order));
    writeln!(stream, "{}", serde_json::to_string(&answer)?)
}
