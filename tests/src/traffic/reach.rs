use std::io::Read;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::namespace::Namespace;

/// How long silence must last to be taken for a no.
const SILENCE: Duration = Duration::from_millis(700);

/// Whether a TCP connection to an address in another namespace comes about.
pub fn tcp_reaches(from: &Namespace, to: &Namespace, address: IpAddr) -> bool {
    let Ok(listener) = to.run(|| TcpListener::bind((address, 0))) else { return false };
    let Ok(target) = listener.local_addr() else { return false };
    from.run(|| TcpStream::connect_timeout(&target, SILENCE)).is_ok()
}

/// Whether a datagram to an address in another namespace arrives.
pub fn udp_reaches(from: &Namespace, to: &Namespace, address: IpAddr) -> bool {
    let Ok(server) = to.run(|| UdpSocket::bind((address, 0))) else { return false };
    let Ok(target) = server.local_addr() else { return false };
    let sent = from.run(|| {
        UdpSocket::bind((super::any(address), 0)).and_then(|socket| socket.send_to(b"hello", target))
    });
    let heard = server.set_read_timeout(Some(SILENCE)).and_then(|()| server.recv(&mut [0; 16]));
    sent.is_ok() && heard.is_ok_and(|length| length == 5)
}

/// Everything a stream still has to say.
pub(super) fn rest(mut stream: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
