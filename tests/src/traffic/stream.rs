use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::bulk::accept;
use crate::namespace::Namespace;

/// What is written and read at once.
const BLOCK: usize = 256 << 10;
/// How long connections run before the clock does: their windows are open by then.
const WARM: Duration = Duration::from_millis(300);

/// Sends over so many TCP connections at once, as fast as they take it, for as long as is said. Returns the bits that
/// arrived in a second, all together; an error when another number of bytes arrived in the end than were sent.
pub fn throughput(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    streams: usize,
    span: Duration,
) -> io::Result<f64> {
    let listener = to.run(|| TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..streams {
        let client = from.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        pairs.push((client, accept(&listener)?));
    }
    let began = Instant::now();
    let window = (began + WARM, began + WARM + span);
    std::thread::scope(|scope| {
        let threads = pairs.into_iter().map(|(client, server)| {
            let sender = scope.spawn(move || send(client, window.1));
            (sender, scope.spawn(move || receive(server, window)))
        });
        let threads: Vec<_> = threads.collect();
        let mut bytes = 0;
        for (sender, receiver) in threads {
            let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("a sender died")))?;
            let (all, counted) =
                receiver.join().unwrap_or_else(|_| Err(io::Error::other("a receiver died")))?;
            if all != sent {
                return Err(io::Error::other(format!("{sent} bytes were sent and {all} arrived")));
            }
            bytes += counted;
        }
        Ok(bytes as f64 * 8.0 / span.as_secs_f64())
    })
}

fn send(mut stream: TcpStream, until: Instant) -> io::Result<u64> {
    let block = vec![0x5a; BLOCK];
    let mut bytes = 0;
    while Instant::now() < until {
        stream.write_all(&block)?;
        bytes += BLOCK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(bytes)
}

/// All bytes, and those that came while the clock ran.
fn receive(mut stream: TcpStream, (begin, end): (Instant, Instant)) -> io::Result<(u64, u64)> {
    let (mut buffer, mut all, mut counted) = (vec![0; BLOCK], 0, 0);
    loop {
        let length = match stream.read(&mut buffer)? {
            0 => return Ok((all, counted)),
            length => length as u64,
        };
        all += length;
        let now = Instant::now();
        if begin <= now && now < end {
            counted += length;
        }
    }
}
