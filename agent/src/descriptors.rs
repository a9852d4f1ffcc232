//! Bytes and the descriptor beside them, as the plugin sends them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// Room for more than the one we expect: what is surplus is taken and closed.
const ROOM: usize = 8;

/// What one read brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many bytes; none when the other side has closed.
    pub bytes: usize,
    /// The first descriptor beside them. Others are closed.
    pub descriptor: Option<OwnedFd>,
}

/// Reads what is there. More descriptors than anybody has reason to send are an error.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    // Those that found room are owned by the buffer and closed with it, also when there were too many.
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors beside a request"));
    }
    Ok(Received { bytes: message.bytes, descriptor })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::IoSlice;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn send(to: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    /// How many of this process's descriptors are open on a file.
    fn open_on(file: &std::path::Path) -> usize {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter(|link| fs::read_link(link.path()).is_ok_and(|target| target == file)).count()
    }

    #[test]
    fn one_descriptor_is_kept_and_the_surplus_closed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let copies: Vec<_> = (0..3).map(|_| File::open(file.path()).unwrap()).collect();
        let descriptors: Vec<_> = copies.iter().map(AsFd::as_fd).collect();
        send(&theirs, b"hello", &descriptors);
        drop(copies);
        let received = receive(&ours, &mut [0; 16]).unwrap();
        assert_eq!(received.bytes, 5);
        let kept = received.descriptor.unwrap();
        let flags = fs::read_to_string(format!("/proc/self/fdinfo/{}", kept.as_raw_fd())).unwrap();
        assert!(flags.lines().any(|line| line.starts_with("flags:") && line.contains("02")), "{flags}");
        assert_eq!(open_on(file.path()), 2, "the test's own and the one that was kept");
    }

    #[test]
    fn more_than_there_is_room_for_are_refused_and_none_stays_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let copies: Vec<_> = (0..20).map(|_| File::open(file.path()).unwrap()).collect();
        let descriptors: Vec<_> = copies.iter().map(AsFd::as_fd).collect();
        send(&theirs, b"hello", &descriptors);
        drop(copies);
        let error = receive(&ours, &mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(open_on(file.path()), 1);
    }

    #[test]
    fn bytes_without_a_descriptor_and_the_end_are_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&theirs, b"x", &[]);
        drop(theirs);
        let received = receive(&ours, &mut [0; 16]).unwrap();
        assert!(received.bytes == 1 && received.descriptor.is_none());
        assert_eq!(receive(&ours, &mut [0; 16]).unwrap().bytes, 0);
    }
}
