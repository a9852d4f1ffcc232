//! One frame and its owner.

use crate::{
    ffi,
    offload::{Checksum, MalformedRequest, TxRequest},
};
use std::{fmt, mem, ptr::NonNull, slice};

/// Bytes kept free before a received or freshly allocated frame.
pub const HEADROOM: usize = ffi::CW_HEADROOM as usize;

/// A frame: one buffer, or a chain of them. Whoever holds it owns it; dropping it frees every segment.
///
/// Lengths and offsets are read from the frame's first cache line without a call into C.
#[repr(transparent)]
pub struct Mbuf(NonNull<ffi::cw_mbuf>);

// SAFETY: a frame has one owner, and DPDK lets any thread free it.
unsafe impl Send for Mbuf {}

/// The bytes do not fit into the frame's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room in the frame's buffer")]
pub struct NoRoom;

/// A frame taken apart for work on its bytes.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The whole buffer of the first segment: headroom, bytes, tail room.
    pub buffer: &'a mut [u8],
    /// Where the frame begins in `buffer`.
    pub start: usize,
    /// How many of the frame's bytes lie in `buffer`.
    pub len: usize,
    /// The bytes of the second segment, if there is one.
    pub tail: Option<&'a mut [u8]>,
}

impl Mbuf {
    /// Takes over a frame from C.
    ///
    /// # Safety
    /// `frame` is a live mbuf of a pool, the head of its chain, and has no other owner.
    pub(crate) unsafe fn from_raw(frame: NonNull<ffi::cw_mbuf>) -> Self {
        Self(frame)
    }

    #[inline]
    fn head(&self) -> &ffi::cw_mbuf {
        // SAFETY: the frame is live and ours; its first cache line has this layout (asserted in
        // shim.c), and nobody writes it while we are borrowed.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn head_mut(&mut self) -> &mut ffi::cw_mbuf {
        // SAFETY: as in `head`, and we are borrowed mutably.
        unsafe { self.0.as_mut() }
    }

    /// Bytes of the whole frame, every segment counted.
    #[inline]
    pub fn len(&self) -> usize {
        self.head().pkt_len as usize
    }

    /// Whether the frame has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many segments there are.
    #[inline]
    pub fn segments(&self) -> usize {
        usize::from(self.head().nb_segs)
    }

    /// Bytes of the first segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        segment(self.head())
    }

    /// Bytes of the first segment, to change.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: the segment is live, and ours alone while `self` is borrowed mutably.
        unsafe { segment_mut(self.0) }
    }

    /// Bytes free before the frame.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.head().data_off)
    }

    /// Bytes free after the first segment.
    #[inline]
    pub fn tailroom(&self) -> usize {
        let head = self.head();
        usize::from(head.buf_len) - usize::from(head.data_off) - usize::from(head.data_len)
    }

    /// The whole buffer of the first segment, wherever in it the frame lies.
    #[inline]
    pub fn buffer(&self) -> &[u8] {
        let head = self.head();
        // SAFETY: `buf_addr` points at `buf_len` bytes of the pool's memory that belong to this segment alone.
        unsafe { slice::from_raw_parts(head.buf_addr, head.buf_len.into()) }
    }

    /// The same, to change.
    #[inline]
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        let (address, room) = (self.head().buf_addr, self.head().buf_len.into());
        // SAFETY: as in `buffer`, apart from the segment's own line, and we are borrowed mutably.
        unsafe { slice::from_raw_parts_mut(address, room) }
    }

    /// The whole buffer of the first segment and what lies where in it.
    #[inline]
    pub fn parts_mut(&mut self) -> Parts<'_> {
        let tail = self.second().map(|second| {
            // SAFETY: the second segment is live and, like its head, ours alone for this borrow.
            unsafe { segment_mut(second) }
        });
        // Copied out, so that no reference to the segment's own line is left beside `buffer`.
        let (address, room, start, len) = {
            let head = self.head();
            (head.buf_addr, head.buf_len.into(), head.data_off.into(), head.data_len.into())
        };
        // SAFETY: `buf_addr` points at `buf_len` bytes of the pool's memory that belong to this
        // segment alone, apart from its header and from other segments' buffers.
        let buffer = unsafe { slice::from_raw_parts_mut(address, room) };
        Parts { buffer, start, len, tail }
    }

    /// Says that the first segment is the `len` bytes from `start` on of its buffer.
    #[inline]
    pub fn set_window(&mut self, start: usize, len: usize) -> Result<(), NoRoom> {
        let head = self.head_mut();
        if start.checked_add(len).is_none_or(|end| end > usize::from(head.buf_len)) {
            return Err(NoRoom);
        }
        // Both fit 16 bits, since `buf_len` does.
        head.data_off = start as u16;
        head.pkt_len = head.pkt_len - u32::from(head.data_len) + len as u32;
        head.data_len = len as u16;
        Ok(())
    }

    /// The same of a frame of one segment, which is all that there is of it.
    #[inline]
    pub fn set_only_window(&mut self, start: usize, len: usize) -> Result<(), NoRoom> {
        let head = self.head_mut();
        if head.nb_segs != 1 || start.checked_add(len).is_none_or(|end| end > usize::from(head.buf_len)) {
            return Err(NoRoom);
        }
        // Both fit 16 bits, since `buf_len` does.
        (head.data_off, head.data_len, head.pkt_len) = (start as u16, len as u16, len as u32);
        Ok(())
    }

    /// Grows the frame by `n` bytes at its front and hands them out.
    #[inline]
    pub fn push(&mut self, n: usize) -> Result<&mut [u8], NoRoom> {
        let start = self.headroom().checked_sub(n).ok_or(NoRoom)?;
        let len = usize::from(self.head().data_len) + n;
        self.set_window(start, len)?;
        Ok(&mut self.data_mut()[..n])
    }

    /// Takes `n` bytes off the frame's front, all of them in the first segment.
    #[inline]
    pub fn pull(&mut self, n: usize) -> Result<(), NoRoom> {
        let len = usize::from(self.head().data_len).checked_sub(n).ok_or(NoRoom)?;
        self.set_window(self.headroom() + n, len)
    }

    /// Adds bytes at the end of a frame of one segment.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let len = usize::from(self.head().data_len);
        if self.segments() != 1 || bytes.len() > self.tailroom() {
            return Err(NoRoom);
        }
        self.set_window(self.headroom(), len + bytes.len())?;
        self.data_mut()[len..].copy_from_slice(bytes);
        Ok(())
    }

    /// Shortens the whole frame; segments past its new end are freed.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            // SAFETY: the frame is live and ours; `len` is below its length, which has 32 bits.
            unsafe { ffi::cw_mbuf_truncate(self.0.as_ptr(), len as u32) }
        }
    }

    /// Hangs `tail` behind this frame's last segment; it comes back if the chain would be too long.
    pub fn chain(&mut self, tail: Self) -> Result<(), Self> {
        // SAFETY: both are live heads with one owner each. On success the chain owns `tail`, which
        // is forgotten; otherwise nothing has changed.
        if unsafe { ffi::cw_mbuf_chain(self.0.as_ptr(), tail.0.as_ptr()) } == 0 {
            mem::forget(tail);
            Ok(())
        } else {
            Err(tail)
        }
    }

    /// Takes off everything behind the first segment.
    pub fn split_tail(&mut self) -> Option<Self> {
        // SAFETY: the frame is live and ours; what comes back was cut off and has no other owner.
        unsafe { NonNull::new(ffi::cw_mbuf_split(self.0.as_ptr())).map(|rest| Self::from_raw(rest)) }
    }

    /// Copies a chain into its first segment, if its tail room suffices.
    pub fn linearise(&mut self) -> Result<(), NoRoom> {
        // SAFETY: the frame is live and ours; a failed call changes nothing.
        if unsafe { ffi::cw_mbuf_linearise(self.0.as_ptr()) } == 0 { Ok(()) } else { Err(NoRoom) }
    }

    /// The bytes of each segment in turn.
    pub fn each_segment(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::successors(Some(self.head()), |at| {
            // SAFETY: every segment of the chain lives as long as its head, which is borrowed.
            unsafe { ffi::cw_mbuf_next(*at).as_ref() }
        })
        .map(segment)
    }

    /// The second segment; asked only of chains, as it lies in another cache line.
    #[inline]
    fn second(&self) -> Option<NonNull<ffi::cw_mbuf>> {
        // SAFETY: the frame is live.
        if self.segments() > 1 { NonNull::new(unsafe { ffi::cw_mbuf_next(self.0.as_ptr()) }) } else { None }
    }

    /// The port it was received on.
    #[inline]
    pub fn port(&self) -> u16 {
        self.head().port
    }

    /// The hash by which the card chose the queue.
    #[inline]
    pub fn rss_hash(&self) -> Option<u32> {
        (self.head().ol_flags & ffi::CW_SEEN_RSS_HASH != 0).then_some(self.head().rss)
    }

    /// What the receiving port says about the transport checksum.
    #[inline]
    pub fn checksum(&self) -> Checksum {
        Checksum::from_flags(self.head().ol_flags)
    }

    #[inline]
    pub(crate) fn flags(&self) -> u64 {
        self.head().ol_flags
    }

    /// Asks the port that will send this frame for work; a default request asks for none.
    pub fn ask(&mut self, request: &TxRequest) -> Result<(), MalformedRequest> {
        let request = request.encode()?;
        // SAFETY: the frame is live and ours, the request is readable for the call.
        unsafe { ffi::cw_mbuf_ask(self.0.as_ptr(), &raw const request) }
        Ok(())
    }

    /// What was asked of the sending port, by us or by the driver it came from.
    pub fn asked(&self) -> TxRequest {
        if self.flags() & ffi::CW_ASK_ANY == 0 {
            return TxRequest::default();
        }
        let mut request = ffi::cw_request::default();
        // SAFETY: the frame is live, `request` may be written.
        unsafe { ffi::cw_mbuf_asked(self.0.as_ptr(), &raw mut request) }
        TxRequest::decode(&request)
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        let mut frame = self.0.as_ptr();
        // SAFETY: the frame is live, and its only owner goes away here.
        unsafe { ffi::cw_mbuf_free(&raw mut frame, 1) }
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf").field("len", &self.len()).field("segments", &self.segments()).finish()
    }
}

#[inline]
fn segment(at: &ffi::cw_mbuf) -> &[u8] {
    // SAFETY: a live segment's `data_off` and `data_len` lie within its buffer, as drivers and
    // `set_window` keep them; the borrow of the segment covers its buffer.
    unsafe { slice::from_raw_parts(at.buf_addr.add(usize::from(at.data_off)), usize::from(at.data_len)) }
}

/// # Safety
/// The segment is live, and nothing else refers to its bytes for the lifetime chosen.
#[inline]
unsafe fn segment_mut<'a>(at: NonNull<ffi::cw_mbuf>) -> &'a mut [u8] {
    // SAFETY: the caller's promise, and as in `segment`.
    unsafe {
        let at = at.as_ptr();
        let data = (*at).buf_addr.add(usize::from((*at).data_off));
        slice::from_raw_parts_mut(data, usize::from((*at).data_len))
    }
}
