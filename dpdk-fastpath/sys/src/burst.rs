//! A handful of frames that travel together.

use crate::{ffi, mbuf::Mbuf};
use std::{
    fmt,
    mem::{self, MaybeUninit},
    ops::{Deref, DerefMut},
    ptr, slice,
};

/// Up to [`Burst::CAPACITY`] frames, in order. What is in it is owned by it; dropping it frees them all.
pub struct Burst {
    frames: [MaybeUninit<Mbuf>; Burst::CAPACITY],
    len: usize,
}

impl Burst {
    /// The most frames it holds: a receive of 32, and whatever one frame of 64 KiB becomes when cut up.
    pub const CAPACITY: usize = 64;

    /// An empty burst.
    pub const fn new() -> Self {
        Self { frames: [const { MaybeUninit::uninit() }; Self::CAPACITY], len: 0 }
    }

    /// How many frames still fit.
    #[inline]
    pub fn room(&self) -> usize {
        Self::CAPACITY - self.len
    }

    /// Adds a frame at the end; it comes back if the burst is full.
    #[inline]
    pub fn push(&mut self, frame: Mbuf) -> Result<(), Mbuf> {
        match self.frames.get_mut(self.len) {
            Some(slot) => {
                slot.write(frame);
                self.len += 1;
                Ok(())
            }
            None => Err(frame),
        }
    }

    /// Adds frames at the end while there is room and the iterator has some.
    #[inline]
    pub fn fill(&mut self, frames: &mut impl Iterator<Item = Mbuf>) {
        let mut len = self.len;
        for (slot, frame) in self.frames[len..].iter_mut().zip(frames) {
            slot.write(frame);
            len += 1;
        }
        self.len = len;
    }

    /// Takes the last frame.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: slots below the old length hold a frame each; this one is no longer counted.
        Some(unsafe { self.frames[self.len].assume_init_read() })
    }

    /// Moves frames from the front of `other` to the end of this burst, as many as fit.
    pub fn append(&mut self, other: &mut Self) {
        let n = self.room().min(other.len);
        // SAFETY: `other` has at least `n` frames, we have room for `n`, the arrays are apart, and
        // `forget_front` gives up exactly what was copied.
        unsafe {
            ptr::copy_nonoverlapping(other.as_mut_ptr(), self.spare_ptr(), n);
            self.grow(n);
            other.forget_front(n);
        }
    }

    /// Keeps, in order, the frames for which `judge` says Ok and hands the others to `refused`.
    pub fn sift<R>(
        &mut self,
        mut judge: impl FnMut(&mut Mbuf) -> Result<(), R>,
        mut refused: impl FnMut(Mbuf, R),
    ) {
        // A panic in a closure leaks what is left rather than freeing it twice.
        let len = mem::take(&mut self.len);
        let mut kept = 0;
        for at in 0..len {
            // SAFETY: `at` is below the old length, and no slot is read twice.
            let mut frame = unsafe { self.frames[at].assume_init_read() };
            match judge(&mut frame) {
                Ok(()) => {
                    self.frames[kept].write(frame);
                    kept += 1;
                }
                Err(reason) => refused(frame, reason),
            }
        }
        self.len = kept;
    }

    /// Takes all frames out, in order; those that the iterator still holds when it is dropped are freed.
    pub fn drain(&mut self) -> Drain<'_> {
        let end = mem::take(&mut self.len);
        Drain { burst: self, at: 0, end }
    }

    /// Frees all frames.
    pub fn clear(&mut self) {
        let len = mem::take(&mut self.len);
        self.free(0, len);
    }

    fn free(&mut self, from: usize, to: usize) {
        if from < to {
            // SAFETY: callers pass the range of slots that hold frames and count them no longer.
            unsafe { ffi::cw_mbuf_free(self.as_mut_ptr().add(from), (to - from) as u16) }
        }
    }

    /// The frames as C sees them: `Mbuf` is a transparent pointer.
    #[inline]
    pub(crate) fn as_mut_ptr(&mut self) -> *mut *mut ffi::cw_mbuf {
        self.frames.as_mut_ptr().cast()
    }

    /// Where the next frame goes; `room()` slots follow.
    #[inline]
    pub(crate) fn spare_ptr(&mut self) -> *mut *mut ffi::cw_mbuf {
        self.frames[self.len..].as_mut_ptr().cast()
    }

    /// Counts `n` frames more.
    ///
    /// # Safety
    /// The `n` slots from `spare_ptr` on were filled with frames that have no other owner.
    #[inline]
    pub(crate) unsafe fn grow(&mut self, n: usize) {
        debug_assert!(n <= self.room());
        self.len += n;
    }

    /// Gives up the first `n` frames without freeing them.
    ///
    /// # Safety
    /// Somebody else owns them now.
    #[inline]
    pub(crate) unsafe fn forget_front(&mut self, n: usize) {
        debug_assert!(n <= self.len);
        self.len -= n;
        if n > 0 && self.len > 0 {
            let frames = self.frames.as_mut_ptr();
            // SAFETY: both ranges lie within the old length.
            unsafe { ptr::copy(frames.add(n), frames, self.len) }
        }
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Burst {
    type Target = [Mbuf];

    #[inline]
    fn deref(&self) -> &[Mbuf] {
        // SAFETY: the first `len` slots hold frames.
        unsafe { slice::from_raw_parts(self.frames.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Burst {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        // SAFETY: the first `len` slots hold frames.
        unsafe { slice::from_raw_parts_mut(self.frames.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Frames on their way out of a burst.
#[derive(Debug)]
pub struct Drain<'a> {
    burst: &'a mut Burst,
    at: usize,
    end: usize,
}

impl Iterator for Drain<'_> {
    type Item = Mbuf;

    #[inline]
    fn next(&mut self) -> Option<Mbuf> {
        if self.at == self.end {
            return None;
        }
        self.at += 1;
        // SAFETY: slots from `at` to `end` hold frames that the burst no longer counts, and each is
        // read once.
        Some(unsafe { self.burst.frames[self.at - 1].assume_init_read() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.at, Some(self.end - self.at))
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        self.burst.free(self.at, self.end);
    }
}
