use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::PATIENCE;
use crate::namespace::Namespace;

/// What a bulk transfer came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Bulk {
    /// The digest of what was sent.
    pub sent: String,
    /// The digest of what arrived.
    pub received: String,
    /// How many bytes arrived.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl Bulk {
    /// Whether what arrived is what was sent.
    pub fn is_intact(&self) -> bool {
        self.sent == self.received
    }

    /// Megabits a second.
    pub fn mbit(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.took.as_secs_f64()
    }
}

/// Sends so many bytes over one TCP connection to an address in another namespace.
pub fn bulk(from: &Namespace, to: &Namespace, address: IpAddr, bytes: u64) -> io::Result<Bulk> {
    let listener = to.run(|| TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(accept(&listener)?));
        let began = Instant::now();
        let sent = from.run(|| send(TcpStream::connect_timeout(&target, PATIENCE)?, bytes))?;
        let (received, bytes) =
            receiver.join().unwrap_or_else(|_| Err(io::Error::other("the receiver died")))?;
        Ok(Bulk { sent, received, bytes, took: began.elapsed() })
    })
}

/// Accepts one connection, unless none comes.
pub(super) fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(2 * PATIENCE))?;
                stream.set_write_timeout(Some(2 * PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn send(mut stream: TcpStream, bytes: u64) -> io::Result<String> {
    stream.set_write_timeout(Some(2 * PATIENCE))?;
    let mut block = vec![0; 256 << 10];
    fastrand::fill(&mut block);
    let (mut digest, mut left, mut number) = (Sha256::new(), bytes, 0_u64);
    while left > 0 {
        // No two blocks are alike, so that one lost, doubled or swapped shows.
        block[..8].copy_from_slice(&number.to_le_bytes());
        let part = &block[..block.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        digest.update(part);
        stream.write_all(part)?;
        left -= part.len() as u64;
        number += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    // Until the receiver has read everything and closes.
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(hex(&digest.finalize()))
}

fn receive(mut stream: TcpStream) -> io::Result<(String, u64)> {
    let (mut digest, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((hex(&digest.finalize()), bytes)),
            length => {
                digest.update(&buffer[..length]);
                bytes += length as u64;
            }
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
