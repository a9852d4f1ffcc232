//! A synchronous rtnetlink socket: a request and its answer, a dump and its records.

use std::io;

use netlink_packet_core::NLMSG_ERROR;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use crate::error::{KernelError, Refusal};
use crate::sysctl::Sysctls;

/// The longest datagram the kernel sends in a dump.
const DATAGRAM: usize = 64 << 10;
/// `struct nlmsghdr`.
const NETLINK_HEADER: usize = 16;
/// NLMSGERR_ATTR_MSG: the kernel's own words about a refusal.
const ERROR_TEXT: u16 = 1;
/// A dump that other changes cut through is taken again, so often.
const DUMP_ATTEMPTS: usize = 8;

/// A connection to one subsystem of the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// The settings of the same namespace.
    sysctls: Sysctls,
}

impl Netlink {
    /// A connection to rtnetlink.
    pub(crate) fn route() -> Result<Self, KernelError> {
        let netlink = Self::open(NETLINK_ROUTE).map_err(KernelError::io("opening a netlink socket"))?;
        // Old kernels do not check strictly; then dumps give more than was asked for, and we filter as well.
        let _ = netlink.socket.set_netlink_get_strict_chk(true);
        Ok(netlink)
    }

    /// A connection to any subsystem.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM), sysctls: Sysctls::default() })
    }

    /// What comes without having been asked for, from now on: nothing waits for it.
    pub(crate) fn into_listener(self) -> io::Result<Socket> {
        self.socket.set_non_blocking(true)?;
        Ok(self.socket)
    }

    /// The settings of the network namespace that this is a connection to.
    pub(crate) fn sysctls(&mut self) -> &mut Sysctls {
        &mut self.sysctls
    }

    /// Asks for a change and waits for the answer. `doing` names the change and its object, should it fail.
    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        doing: impl FnOnce() -> String,
    ) -> Result<(), KernelError> {
        match self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags) {
            Ok(_) => Ok(()),
            Err(Failure::Refused(source)) => Err(KernelError::Netlink { doing: doing(), source }),
            Err(Failure::Io(source)) => Err(KernelError::Io { doing: doing(), source }),
        }
    }

    /// Everything of a kind that there is. What this code cannot read is left out: it is none of ours.
    pub(crate) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Ok(Answer { interrupted: true, .. }) => {}
                Ok(answer) => return Ok(answer.records),
                Err(Failure::Refused(source)) => {
                    return Err(KernelError::Netlink { doing: format!("listing {what}"), source });
                }
                Err(Failure::Io(source)) => {
                    return Err(KernelError::Io { doing: format!("listing {what}"), source });
                }
            }
        }
        let source = io::Error::new(io::ErrorKind::Interrupted, "it changes faster than it can be listed");
        Err(KernelError::Io { doing: format!("listing {what}"), source })
    }

    /// Sends one message and gathers its answer.
    pub(crate) fn exchange<T>(&mut self, message: T, flags: u16) -> Result<Answer<T>, Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let bytes = self.numbered(message, flags);
        self.socket.send(&bytes, 0)?;
        let mut answer = Answer { records: Vec::new(), interrupted: false };
        // A question that is neither a dump nor to be acknowledged has one record for an answer.
        let single = flags & (NLM_F_ACK | NLM_F_DUMP) == 0;
        while !self.receive(&mut answer)? && (!single || answer.records.is_empty()) {}
        Ok(answer)
    }

    /// How many messages were sent.
    #[cfg(test)]
    pub(crate) fn sent(&self) -> u32 {
        self.sequence
    }

    /// The next message as it goes over the wire.
    fn numbered<T: NetlinkSerializable>(&mut self, message: T, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(message));
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Sends messages that belong together in one datagram, and waits for the answer to each that asks for one.
    pub(crate) fn transact<T>(&mut self, messages: Vec<(T, u16)>) -> Result<(), Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let first = self.sequence.wrapping_add(1);
        let (mut datagram, mut awaited) = (Vec::new(), Vec::new());
        for (message, flags) in messages {
            datagram.extend(self.numbered(message, NLM_F_REQUEST | flags));
            // A message of any length keeps the next one aligned.
            datagram.resize(datagram.len().next_multiple_of(4), 0);
            if flags & NLM_F_ACK != 0 {
                awaited.push(self.sequence);
            }
        }
        if datagram.len() > DATAGRAM {
            // Only as much as the longest one needs; the kernel doubles it for its own book-keeping.
            setsockopt(&self.socket, sockopt::SndBufForce, &datagram.len()).map_err(io::Error::from)?;
        }
        self.socket.send(&datagram, 0)?;
        let last = self.sequence;
        while !awaited.is_empty() {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for (sequence, code) in errors(&self.buffer) {
                // What is refused as a whole is refused under the number of its beginning.
                let ours = sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                match code {
                    0 => awaited.retain(|number| *number != sequence),
                    errno if ours => return Err(Failure::Refused(Refusal { errno, reason: None })),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes in one datagram; true when the answer is complete.
    fn receive<T: NetlinkDeserializable>(&mut self, answer: &mut Answer<T>) -> Result<bool, Failure> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let (length, flags, sequence) = match NetlinkBuffer::new_checked(rest) {
                Ok(head) => (head.length() as usize, head.flags(), head.sequence_number()),
                Err(error) => return Err(Failure::Io(io::Error::other(error.to_string()))),
            };
            let (bytes, behind) = rest.split_at(length);
            // Records are aligned to four bytes, the last one possibly not padded.
            rest = behind.get(length.next_multiple_of(4) - length..).unwrap_or_default();
            if sequence != self.sequence {
                continue;
            }
            answer.interrupted |= flags & NLM_F_DUMP_INTR != 0;
            match NetlinkMessage::<T>::deserialize(bytes).map(NetlinkMessage::into_parts) {
                Ok((_, NetlinkPayload::InnerMessage(record))) => answer.records.push(record),
                Ok((_, NetlinkPayload::Error(ErrorMessage { code: None, .. }))) => return Ok(true),
                Ok((_, NetlinkPayload::Error(error))) => return Err(Failure::Refused(refusal(&error))),
                Ok((_, NetlinkPayload::Done(done))) if done.code != 0 => {
                    return Err(Failure::Refused(Refusal { errno: -done.code, reason: None }));
                }
                Ok((_, NetlinkPayload::Done(_))) => return Ok(true),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a netlink record that cannot be read"),
            }
        }
        Ok(false)
    }
}

/// The sequence numbers of the answers in a datagram, and what is wrong; zero is nothing.
fn errors(datagram: &[u8]) -> Vec<(u32, i32)> {
    let (mut errors, mut rest) = (Vec::new(), datagram);
    while let Ok(head) = NetlinkBuffer::new_checked(rest) {
        let length = head.length() as usize;
        if head.message_type() == NLMSG_ERROR
            && let Some(code) = rest.get(NETLINK_HEADER..NETLINK_HEADER + 4)
        {
            let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
            errors.push((head.sequence_number(), -code));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    errors
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) records: Vec<T>,
    interrupted: bool,
}

/// Why nothing came back.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusal),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The error number, and the kernel's own words behind the header that it repeats.
fn refusal(error: &ErrorMessage) -> Refusal {
    const HEADER: usize = 16;
    let errno = error.code.map_or(0, |code| -code.get());
    let mut rest = error.header.get(HEADER..).unwrap_or_default();
    while let [a, b, c, d, ..] = *rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let Some(value) = rest.get(4..length) else { break };
        if kind == ERROR_TEXT {
            let text = String::from_utf8_lossy(value);
            return Refusal { errno, reason: Some(text.trim_end_matches('\0').to_owned()) };
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Refusal { errno, reason: None }
}
