//! The socket the plugin asks on: one request and one reply a connection, root only, nobody in anybody's way.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use causeway_model::plugin::{Failure, Reply, Request, Verb};
use causeway_model::{FrameError, read_frame, write_frame};
use causeway_socket::{SocketError, make_way};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::caller::Caller;
use crate::descriptors::receive;
use crate::error::{Error, chain};

/// How long a client may take to say what it wants, and to take the answer.
const TALK: Duration = Duration::from_secs(5);
/// How long an answer may take, waiting for the engine included: less than the plugin waits, so that it hears why.
fn work(verb: Verb) -> Duration {
    Duration::from_secs(match verb {
        Verb::Add | Verb::Gc => 55,
        Verb::Check => 15,
        Verb::Del => 9,
        // A runtime asks every few seconds, and takes silence for an error.
        Verb::Status => 4,
    })
}

/// What answers requests, with the descriptor that came along, for whoever asks. It runs on a thread where it may block.
pub(crate) type Handler = dyn Fn(&Request, Option<OwnedFd>, &Caller) -> Reply + Send + Sync;

/// Listens at a path, for root only; what is dead there is replaced, what lives there is an error.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    make_way(path, rustix::net::SocketType::STREAM).map_err(|error| match error {
        SocketError::Taken(_) => taken(path, "another process listens there"),
        SocketError::NotASocket(_) => taken(path, "it is something else than a socket"),
        other => {
            Error::Io { doing: format!("making way for {}", path.display()), source: io::Error::other(other) }
        }
    })?;
    let listener = UnixListener::bind(path).map_err(Error::io(format!("listening at {}", path.display())))?;
    let only_root = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, only_root).map_err(Error::io(format!("restricting {}", path.display())))?;
    Ok(listener)
}

fn taken(path: &Path, why: &str) -> Error {
    Error::Taken { what: format!("socket {}", path.display()), why: why.to_owned() }
}

/// Serves until told to stop, and whoever has been let in to the end.
pub(crate) async fn serve(
    listener: UnixListener,
    path: PathBuf,
    handler: Arc<Handler>,
    mut stop: watch::Receiver<bool>,
) {
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(conversations.spawn(converse(stream, handler.clone()))),
                Err(error) => {
                    tracing::warn!("accepting on {}: {error}", path.display());
                    // Out of descriptors, most likely: others need time to give some back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            // Taken out as they end, for a set keeps what has ended.
            Some(_) = conversations.join_next() => {}
            _ = async { drop(stop.wait_for(|stop| *stop).await) } => break,
        }
    }
    drop(listener);
    while conversations.join_next().await.is_some() {}
}

async fn converse(stream: UnixStream, handler: Arc<Handler>) {
    if let Err(error) = answer(stream, handler).await {
        tracing::warn!("a plugin's request came to nothing: {}", chain(&error));
    }
}

async fn answer(mut stream: UnixStream, handler: Arc<Handler>) -> Result<(), FrameError> {
    let peer = stream.peer_cred()?;
    let (uid, pid) = (peer.uid(), peer.pid());
    if uid != 0 {
        return Err(refused(format!("uid {uid} may not ask")));
    }
    let heard = timeout(TALK, hear(&stream)).await;
    let (request, descriptor) = match heard.map_err(|_| refused(format!("no request within {TALK:?}")))? {
        Ok(heard) => heard,
        Err(FrameError::Json(error)) => {
            let failure = Failure::new(Failure::DECODING, format!("unreadable request: {error}"));
            return say(&mut stream, &Reply::Failed(failure)).await;
        }
        Err(error) => return Err(error),
    };
    let key = request.key.clone();
    let limit = work(request.verb);
    // While we stood still it may have been given up, and what it asked for been taken back by a tombstone: the handler looks.
    let caller = Caller::new(Some(stream.as_fd().try_clone_to_owned()?), pid, limit);
    let work = tokio::task::spawn_blocking(move || handler(&request, descriptor, &caller));
    let reply = match timeout(limit, work).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(panic)) => {
            Reply::Failed(Failure::new(Failure::IO, format!("{key}: the agent failed: {panic}")))
        }
        Err(_) => {
            let text = format!("{key}: the agent is busy, no answer within {limit:?}");
            Reply::Failed(Failure::new(Failure::TRY_AGAIN, text))
        }
    };
    say(&mut stream, &reply).await
}

/// Reads one request and the descriptor beside its first byte.
async fn hear(stream: &UnixStream) -> Result<(Request, Option<OwnedFd>), FrameError> {
    let mut bytes = Vec::new();
    let mut first = None;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = stream.async_io(Interest::READABLE, || receive(stream, &mut buffer)).await?;
        if bytes.is_empty() {
            first = received.descriptor;
        }
        bytes.extend_from_slice(&buffer[..received.bytes]);
        let length = bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
        let whole = length.is_some_and(|length| bytes.len() >= length + 4);
        // Four bytes are enough for a length without measure to be refused before it is waited for.
        match read_frame(&bytes[..if whole { bytes.len() } else { bytes.len().min(4) }]) {
            Err(FrameError::Io(_)) if received.bytes > 0 => {}
            other => return other.map(|request| (request, first)),
        }
    }
}

async fn say(stream: &mut UnixStream, reply: &Reply) -> Result<(), FrameError> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, reply)?;
    let said = timeout(TALK, stream.write_all(&bytes)).await;
    Ok(said.map_err(|_| refused(format!("the answer was not taken within {TALK:?}")))??)
}

fn refused(why: String) -> FrameError {
    FrameError::Io(io::Error::other(why))
}

#[cfg(test)]
mod tests;
