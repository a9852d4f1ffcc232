//! An agent that answers one call as the test wants it to, and tells what it was asked.

use std::io::{IoSliceMut, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use causeway_model::plugin::{Attachment, Failure, PodAddress, Reply, Request};
use causeway_model::{MacAddr, Path, read_frame, write_frame};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use crate::runtime::Network;

/// What it does once it has read the request.
pub enum Manner {
    Answer(Reply),
    /// Bytes as they are.
    Garbage(Vec<u8>),
    Close,
    /// Keeps silent until the test is over.
    Hang,
}

/// What it was asked, and the device and inode of the descriptor that came beside the first byte.
pub struct Asked {
    pub request: Request,
    pub namespace: Option<(u64, u64)>,
}

pub struct Agent {
    asked: Receiver<Asked>,
    // Dropped before the join, so that a hanging agent ends.
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Listens on the network's socket and serves one connection.
    pub fn serve(network: &Network, manner: Manner) -> Self {
        let listener = UnixListener::bind(network.socket()).unwrap();
        let ((tell, asked), (over, wait)) = (channel(), channel());
        let socket = network.socket();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let Some(question) = read(&mut stream) else { return };
            tell.send(question).unwrap();
            match manner {
                Manner::Answer(reply) => write_frame(&stream, &reply).unwrap(),
                Manner::Garbage(bytes) => stream.write_all(&bytes).unwrap(),
                Manner::Close => {}
                Manner::Hang => drop(wait.recv()),
            }
            drop(std::fs::remove_file(socket));
        });
        Self { asked, over: Some(over), thread: Some(thread) }
    }

    pub fn asked(&self) -> Asked {
        self.asked.try_recv().expect("the plugin asked the agent before it ended")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.over.take());
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(joined.is_none_or(|joined| joined.is_ok()) || std::thread::panicking());
    }
}

fn read(stream: &mut UnixStream) -> Option<Asked> {
    let mut first = [0];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut into = [IoSliceMut::new(&mut first)];
    let message =
        recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty()).unwrap();
    if message.bytes == 0 {
        return None;
    }
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        let ControlMessageOwned::ScmRights(rights) = control else { panic!("{control:?}") };
        descriptors.extend(rights);
    }
    assert!(descriptors.len() <= 1, "one namespace at most");
    let namespace = descriptors.first().map(|descriptor| {
        let metadata = std::fs::metadata(format!("/proc/self/fd/{descriptor}")).unwrap();
        nix::unistd::close(*descriptor).unwrap();
        (metadata.dev(), metadata.ino())
    });
    let request = read_frame((&first[..]).chain(stream)).unwrap();
    Some(Asked { request, namespace })
}

/// A pod of both families on the kernel path.
pub fn attachment() -> Attachment {
    let address = |address: &str, gateway: IpAddr| PodAddress { address: address.parse().unwrap(), gateway };
    Attachment {
        host_interface: Some("cwp0123456789ab".into()),
        host_mac: MacAddr([2, 0xca, 0x5e, 0, 0, 1]),
        host_mtu: Some(65535),
        routes: None,
        mac: MacAddr([2, 0, 10, 70, 1, 5]),
        mtu: 1450,
        addresses: vec![
            address("10.70.1.5/32", causeway_model::GATEWAY_V4.into()),
            address("fd70:0:0:1::5/128", causeway_model::GATEWAY_V6.into()),
        ],
        path: Path::Kernel,
    }
}

/// An answer to ADD.
pub fn attached() -> Manner {
    Manner::Answer(Reply::Attached(attachment()))
}

/// An answer that refuses.
pub fn failed(code: u32, msg: &str, details: &str) -> Manner {
    Manner::Answer(Reply::Failed(Failure { code, msg: msg.into(), details: details.into() }))
}
