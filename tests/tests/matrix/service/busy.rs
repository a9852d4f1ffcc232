//! A client that asks again and again, each time over a connection of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use causeway_tests::namespace::Namespace;

/// How long a question may take.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The client.
pub struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Asked>,
}

/// What a client was answered.
#[derive(Debug, Default)]
pub struct Asked {
    /// How often, by whom.
    pub by: BTreeMap<String, usize>,
    /// Whom those saw who answered.
    pub seen: BTreeSet<IpAddr>,
    failed: Vec<String>,
}

impl Asked {
    /// Every question was answered.
    pub fn lost_none(&self) -> anyhow::Result<()> {
        let total = self.by.values().sum::<usize>();
        ensure!(self.failed.is_empty(), "beside {total} requests were lost: {:?}", self.failed);
        ensure!(total > 0, "nothing was asked");
        Ok(())
    }
}

impl Busy {
    /// Begins.
    pub fn start(from: &Namespace, target: SocketAddr) -> anyhow::Result<Self> {
        let (stop, place) = (Arc::new(AtomicBool::new(false)), from.clone());
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                place.run(|| {
                    let (mut asked, began) = (Asked::default(), Instant::now());
                    while !stop.load(Ordering::Relaxed) {
                        match answer(target) {
                            Ok((name, seen)) => {
                                *asked.by.entry(name).or_default() += 1;
                                asked.seen.insert(seen);
                            }
                            Err(error) => {
                                asked.failed.push(format!("after {:?}: {error:#}", began.elapsed()));
                            }
                        }
                    }
                    asked
                })
            }
        });
        Ok(Self { stop, thread })
    }

    /// Ends, and tells.
    pub fn finish(self) -> anyhow::Result<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a client has died"))
    }
}

/// One request, from this thread's namespace: who answers.
pub fn ask(target: SocketAddr) -> anyhow::Result<String> {
    Ok(answer(target)?.0)
}

/// … and whom it saw.
fn answer(target: SocketAddr) -> anyhow::Result<(String, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (name, seen) = text.split_once(' ').context("an answer without a name")?;
    Ok((name.to_owned(), seen.parse().context("an answer without an address")?))
}
