use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::bulk::accept;
use crate::namespace::Namespace;

/// The bytes between two looks at the clock.
const BLOCK: usize = 64 << 10;
/// How long one TCP connection may stand still before the flow gives up.
const STILL: Duration = Duration::from_secs(30);

/// One TCP connection under load, for as long as a test wants it.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: Option<JoinHandle<io::Result<u64>>>,
    receiver: Option<JoinHandle<io::Result<FlowReport>>>,
}

/// What a flow saw in its life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowReport {
    /// How many bytes arrived, all of them checked.
    pub bytes: u64,
    /// The longest time without any.
    pub longest_gap: Duration,
}

impl Flow {
    /// Connects to an address in another namespace and sends until it is finished.
    pub fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> io::Result<Self> {
        let listener = to.run(|| TcpListener::bind((address, 0)))?;
        let target = listener.local_addr()?;
        let client = from.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
        let server = accept(&listener)?;
        server.set_read_timeout(Some(STILL))?;
        client.set_write_timeout(Some(STILL))?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sender = std::thread::spawn({
            let stop = stop.clone();
            move || send(client, &stop)
        });
        let receiver = std::thread::spawn({
            let received = received.clone();
            move || receive(server, &received)
        });
        Ok(Self { stop, received, sender: Some(sender), receiver: Some(receiver) })
    }

    /// How many bytes have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until more bytes arrive than have now, or the time is over.
    pub fn moves_within(&self, patience: Duration) -> bool {
        let (before, deadline) = (self.received(), Instant::now() + patience);
        while self.received() == before {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Ends the sending, and tells what the connection saw: an error when it broke, or when other bytes arrived than were sent.
    pub fn finish(mut self) -> io::Result<FlowReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender.take())?;
        let report = join(self.receiver.take())?;
        if report.bytes == sent {
            return Ok(report);
        }
        Err(io::Error::other(format!("{sent} bytes were sent and {} arrived", report.bytes)))
    }
}

/// A test that ends early takes its flow along.
impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: Option<JoinHandle<io::Result<T>>>) -> io::Result<T> {
    let ended = thread.map(JoinHandle::join);
    ended.and_then(Result::ok).unwrap_or_else(|| Err(io::Error::other("a thread of the flow died")))
}

/// The block of the pattern with this number: the receiver knows what must come.
fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<u64> {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&block(number))?;
        number += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(number * BLOCK as u64)
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> io::Result<FlowReport> {
    let (mut buffer, mut bytes) = (vec![0; BLOCK], 0);
    let (mut last, mut longest_gap) = (Instant::now(), Duration::ZERO);
    loop {
        let filled = match fill(&mut stream, &mut buffer)? {
            0 => return Ok(FlowReport { bytes, longest_gap }),
            filled => filled,
        };
        let expected = block(bytes / BLOCK as u64);
        if buffer[..filled] != expected[..filled] {
            return Err(io::Error::other(format!("other bytes than were sent after the first {bytes}")));
        }
        bytes += filled as u64;
        received.store(bytes, Ordering::Relaxed);
        longest_gap = longest_gap.max(last.elapsed());
        last = Instant::now();
    }
}

/// Fills the buffer, less only at the end of the stream.
fn fill(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
