use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::namespace::Namespace;

/// Sends UDP datagrams with these lengths of payload to an address in another namespace, which sends each back; the first
/// that does not come back as it was is an error that names its length.
pub fn echo_sizes(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    sizes: impl IntoIterator<Item = usize> + Send,
) -> io::Result<usize> {
    let server = to.run(|| UdpSocket::bind((address, 0)))?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let target = server.local_addr()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&server, &done));
        let asked = from.run(|| ask_all(target, sizes));
        done.store(true, Ordering::Relaxed);
        asked
    })
}

fn serve(server: &UdpSocket, done: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !done.load(Ordering::Relaxed) {
        if let Ok((length, client)) = server.recv_from(&mut buffer) {
            // A loss shows on the other side.
            drop(server.send_to(&buffer[..length], client));
        }
    }
}

fn ask_all(target: SocketAddr, sizes: impl IntoIterator<Item = usize>) -> io::Result<usize> {
    let socket = UdpSocket::bind((super::any(target.ip()), 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(super::PATIENCE))?;
    let mut buffer = vec![0; 65_536];
    let mut count = 0;
    for size in sizes {
        let sent: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
        let failed = |error| io::Error::other(format!("a datagram of {size} bytes to {target}: {error}"));
        socket.send(&sent).map_err(failed)?;
        let length = socket.recv(&mut buffer).map_err(failed)?;
        if buffer[..length] != sent {
            return Err(failed(io::Error::other(format!("{length} other bytes came back"))));
        }
        count += 1;
    }
    Ok(count)
}
