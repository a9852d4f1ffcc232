//! TAP devices: opened, kept and given up. The one file of the agent that speaks TUN ioctls.
#![expect(
    unsafe_code,
    reason = "TUN is driven by ioctls that no safe library covers: several queues, virtio headers of 24 bytes"
)]

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;
use thiserror::Error;

use crate::steering;

/// Checksums may be left to the reader.
pub const TUN_F_CSUM: u32 = 0x01;
/// TCP over IPv4 may come unsegmented.
pub const TUN_F_TSO4: u32 = 0x02;
/// TCP over IPv6 may come unsegmented.
pub const TUN_F_TSO6: u32 = 0x04;
/// Unsegmented TCP may carry ECN marks.
pub const TUN_F_TSO_ECN: u32 = 0x08;
/// UDP over IPv4 may come unsegmented.
pub const TUN_F_USO4: u32 = 0x20;
/// UDP over IPv6 may come unsegmented.
pub const TUN_F_USO6: u32 = 0x40;
/// Frames inside a UDP tunnel may come unsegmented (Linux 6.17).
pub const TUN_F_UDP_TUNNEL_GSO: u32 = 0x80;
/// The same with an outer checksum.
pub const TUN_F_UDP_TUNNEL_GSO_CSUM: u32 = 0x100;

/// The virtio header of a TAP without tunnel offload (`struct virtio_net_hdr`).
pub const HEADER: u8 = 10;
/// The virtio header of a TAP with tunnel offload (`struct virtio_net_hdr_v1_hash_tunnel`).
pub const TUNNEL_HEADER: u8 = 24;

/// A TAP that could not be had.
#[derive(Debug, Error)]
#[error("{doing} of TAP {name}: {errno}")]
pub struct TapError {
    name: String,
    doing: &'static str,
    errno: Errno,
}

impl TapError {
    /// The system's reason.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

mod ioctl {
    use nix::errno::Errno;
    use nix::libc::{self, c_int, c_ulong, ifreq};
    use nix::{
        ioctl_none_bad, ioctl_read_bad, ioctl_write_ptr_bad, request_code_none, request_code_read,
        request_code_write,
    };

    const INT: usize = size_of::<c_int>();
    ioctl_write_ptr_bad!(set_iff, request_code_write!(b'T', 202, INT), ifreq);
    ioctl_read_bad!(get_iff, request_code_read!(b'T', 210, INT), ifreq);
    ioctl_none_bad!(get_netns, request_code_none!(b'T', 227));
    ioctl_write_ptr_bad!(set_steering, request_code_read!(b'T', 224, INT), c_int);
    ioctl_write_ptr_bad!(set_header, request_code_write!(b'T', 216, INT), c_int);

    /// What these two take is a long: of an int, which is what nix's macro passes, the upper half would be whatever the register held.
    unsafe fn set_value(fd: c_int, number: u8, value: c_ulong) -> nix::Result<c_int> {
        // SAFETY: the caller's: requests of the TUN driver that take a value and touch no memory of ours.
        Errno::result(unsafe { libc::ioctl(fd, request_code_write!(b'T', number, INT), value) })
    }

    pub(super) unsafe fn set_persist(fd: c_int, keep: bool) -> nix::Result<c_int> {
        // SAFETY: TUNSETPERSIST takes 0 or 1.
        unsafe { set_value(fd, 203, c_ulong::from(keep)) }
    }

    pub(super) unsafe fn set_offload(fd: c_int, bits: u32) -> nix::Result<c_int> {
        // SAFETY: TUNSETOFFLOAD takes its bits.
        unsafe { set_value(fd, 208, c_ulong::from(bits)) }
    }
}

/// How a TAP shall be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its queues.
    pub queues: u16,
    /// The length of the virtio header before every frame.
    pub header: u8,
    /// The bits of TUNSETOFFLOAD.
    pub offloads: u32,
}

/// Opens every queue of a TAP in the calling thread's network namespace, making the device if it is not there. One that is made
/// goes with its last descriptor until it is [kept](keep). A device left by an earlier process is taken up as it is: its addresses
/// and routes stay.
pub fn open(name: &str, shape: Shape) -> Result<Vec<OwnedFd>, TapError> {
    let queues = (0..shape.queues).map(|_| open_queue(name, shape)).collect::<Result<Vec<_>, _>>()?;
    if shape.queues > 1
        && let Some(queue) = queues.first()
        && let Err(error) = steer(name, queue.as_fd())
    {
        // A kernel without it deals flows by what it has seen of them: right in the end, out of order now and then.
        tracing::warn!("flows may change queues under way: {error}");
    }
    Ok(queues)
}

/// Makes a TAP outlive its descriptors.
pub fn keep(name: &str, queue: BorrowedFd<'_>) -> Result<(), TapError> {
    // SAFETY: TUNSETPERSIST takes an integer and touches no memory of ours; the descriptor is an open TAP queue.
    unsafe { ioctl::set_persist(queue.as_raw_fd(), true) }.map(drop).map_err(failed(name, "keeping"))
}

/// Has flows dealt to the queues by what they are, not by what was seen of them.
fn steer(name: &str, queue: BorrowedFd<'_>) -> Result<(), TapError> {
    let program = steering::load().map_err(failed(name, "loading the steering program"))?;
    let program = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int, which lives on this stack for the whole call.
    unsafe { ioctl::set_steering(queue.as_raw_fd(), &raw const program) }
        .map(drop)
        .map_err(failed(name, "steering"))
}

fn open_queue(name: &str, shape: Shape) -> Result<OwnedFd, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|error| failed(name, "opening /dev/net/tun for the sake")(errno_of(&error)))?;
    let queue = OwnedFd::from(file);
    let request = request(name).ok_or_else(|| failed(name, "naming")(Errno::ENAMETOOLONG))?;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which lives on this stack for the whole call.
    unsafe { ioctl::set_iff(queue.as_raw_fd(), &raw const request) }
        .map_err(failed(name, "opening a queue"))?;
    let header = libc::c_int::from(shape.header);
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives on this stack for the whole call.
    unsafe { ioctl::set_header(queue.as_raw_fd(), &raw const header) }
        .map_err(failed(name, "setting the header length"))?;
    // SAFETY: TUNSETOFFLOAD takes its bits by value and touches no memory of ours.
    unsafe { ioctl::set_offload(queue.as_raw_fd(), shape.offloads) }
        .map_err(failed(name, "setting the offloads"))?;
    Ok(queue)
}

/// Where the device of a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name there.
    pub name: String,
    /// Its network namespace, by device and inode.
    pub netns: (u64, u64),
}

/// Whether a device is in a network namespace.
pub fn is_in(place: &Place, netns: BorrowedFd<'_>) -> bool {
    fstat(netns).is_ok_and(|status| (status.st_dev, status.st_ino) == place.netns)
}

/// Where the device of a queue is now; an error when it has gone.
pub fn place(queue: BorrowedFd<'_>) -> Result<Place, TapError> {
    let failed = |errno| failed("of a queue", "looking for the device")(errno);
    // SAFETY: `struct ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which lives on this stack for the whole call.
    unsafe { ioctl::get_iff(queue.as_raw_fd(), &raw mut request) }.map_err(failed)?;
    let name = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    let name = String::from_utf8_lossy(&name.collect::<Vec<_>>()).into_owned();
    // SAFETY: TUNGETDEVNETNS takes no argument and touches no memory of ours.
    let netns = unsafe { ioctl::get_netns(queue.as_raw_fd()) }.map_err(failed)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    let netns = unsafe { OwnedFd::from_raw_fd(netns) };
    let status = fstat(&netns).map_err(failed)?;
    Ok(Place { name, netns: (status.st_dev, status.st_ino) })
}

/// Whether the device of a queue has been deleted. Whatever else keeps the kernel from telling is no sign of it.
pub fn has_gone(queue: BorrowedFd<'_>) -> bool {
    // SAFETY: `struct ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which lives on this stack for the whole call.
    let asked = unsafe { ioctl::get_iff(queue.as_raw_fd(), &raw mut request) };
    // A queue without a device (`tun_get` in the kernel's drivers/net/tun.c).
    asked == Err(Errno::EBADFD)
}

/// Lets a TAP go with its last descriptor.
pub fn forget(name: &str, queue: BorrowedFd<'_>) -> Result<(), TapError> {
    // SAFETY: as in `keep`.
    unsafe { ioctl::set_persist(queue.as_raw_fd(), false) }.map(drop).map_err(failed(name, "giving up"))
}

fn request(name: &str) -> Option<libc::ifreq> {
    // SAFETY: `struct ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte of the name stays zero.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room {
        return None;
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).ok()?;
    Some(request)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn failed(name: &str, doing: &'static str) -> impl FnOnce(Errno) -> TapError {
    let name = name.to_owned();
    move |errno| TapError { name, doing, errno }
}
