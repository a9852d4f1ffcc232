use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};

use super::{PATIENCE, any};
use crate::namespace::Namespace;

/// Datagrams of one call: less than 64 KiB together, and less than the 64 that the kernel cuts at once.
const AT_ONCE: usize = 40;
/// Room for what a receiver has not read yet; a datagram counts with all of its buffer.
const ROOM: usize = 4 << 20;

/// Sends datagrams with this length of payload, many a call, left to be cut by whoever can do it last (UDP_SEGMENT), and returns
/// how many arrived: all of them, each once and as it was sent. Anything else is an error. Their order within a call is another
/// story's.
pub fn udp_segments(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    size: u16,
    calls: usize,
) -> io::Result<usize> {
    let server = to.run(|| UdpSocket::bind((address, 0)))?;
    server.set_read_timeout(Some(PATIENCE))?;
    setsockopt(&server, sockopt::RcvBufForce, &ROOM)?;
    let target = server.local_addr()?;
    let client = from.run(|| UdpSocket::bind((any(address), 0)))?;
    let (mut buffer, mut arrived) = (vec![0; 1 << 16], 0);
    for _ in 0..calls {
        let mut datagrams: Vec<_> =
            (arrived..arrived + AT_ONCE).map(|number| datagram(number, size)).collect();
        send(&client, target, &datagrams, size)?;
        while !datagrams.is_empty() {
            let length = server.recv(&mut buffer).map_err(|error| {
                io::Error::other(format!("datagram {arrived} of {size} bytes to {target}: {error}"))
            })?;
            let Some(at) = datagrams.iter().position(|expected| buffer[..length] == expected[..]) else {
                return Err(io::Error::other(format!(
                    "beside {arrived} datagrams of {size} bytes to {target} came {length} bytes that nobody sent"
                )));
            };
            datagrams.remove(at);
            arrived += 1;
        }
    }
    Ok(arrived)
}

/// No two are alike, nor are two parts of one.
fn datagram(number: usize, size: u16) -> Vec<u8> {
    (0..usize::from(size)).map(|at| (at / 251 + at + number * 7) as u8).collect()
}

fn send(client: &UdpSocket, target: SocketAddr, datagrams: &[Vec<u8>], size: u16) -> io::Result<()> {
    let whole = datagrams.concat();
    let address = SockaddrStorage::from(target);
    let cut = [ControlMessage::UdpGsoSegments(&size)];
    let sent = sendmsg(client.as_raw_fd(), &[IoSlice::new(&whole)], &cut, MsgFlags::empty(), Some(&address));
    match sent {
        Ok(sent) if sent == whole.len() => Ok(()),
        Ok(sent) => Err(io::Error::other(format!("{sent} of {} bytes were sent", whole.len()))),
        // Before Linux 6.11 a link without checksum offload takes no such calls; then a sender does it as it always did.
        Err(Errno::EIO) => datagrams.iter().try_for_each(|one| client.send_to(one, target).map(drop)),
        Err(error) => Err(error.into()),
    }
}
