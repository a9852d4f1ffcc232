use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::bulk::accept;
use crate::namespace::Namespace;

/// Questions before the clock runs.
const WARM: u32 = 200;

/// Asks over one TCP connection and waits for each answer, one byte each way, for as long as is said. Returns how many
/// were answered in a second.
pub fn requests(from: &Namespace, to: &Namespace, address: IpAddr, span: Duration) -> io::Result<f64> {
    let listener = to.run(|| TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    let client = from.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_nodelay(true)?;
    let server = accept(&listener)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || answer(server));
        let asked = ask(client, span);
        answering.join().unwrap_or_else(|_| Err(io::Error::other("the server died")))?;
        asked
    })
}

fn ask(mut client: TcpStream, span: Duration) -> io::Result<f64> {
    let mut exchange = |number: u32| {
        let (question, mut answer) = ([number as u8], [0]);
        client.write_all(&question)?;
        client.read_exact(&mut answer)?;
        if answer == question { Ok(()) } else { Err(io::Error::other("another answer than was asked for")) }
    };
    (0..WARM).try_for_each(&mut exchange)?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < span {
        exchange(count)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// Sends every byte back, until there are no more.
fn answer(mut server: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while server.read(&mut byte)? == 1 {
        server.write_all(&byte)?;
    }
    Ok(())
}
