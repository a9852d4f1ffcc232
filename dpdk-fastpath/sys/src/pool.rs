//! Pools of frames.

use crate::{
    burst::Burst,
    eal::Eal,
    error::{SysError, hear},
    ffi,
    mbuf::{HEADROOM, Mbuf},
};
use std::{ffi::CString, mem, ptr, ptr::NonNull, sync::Arc};

/// The most bytes a frame's buffer can be told to have, headroom included: DPDK counts them in 16 bits.
pub const LARGEST_ROOM: u16 = u16::MAX - 63;

/// What a pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig<'a> {
    /// Its name, short and unique in the process.
    pub name: &'a str,
    /// How many frames; one less than a power of two wastes least.
    pub frames: u32,
    /// How many of them a thread's cache may keep back, at most 512 and two thirds of `frames`.
    pub cache: u32,
    /// Bytes of a frame's buffer without the headroom.
    pub room: u16,
}

/// A pool of frames; clones are the same pool. It goes away with its last clone, unless frames of
/// it are still somewhere: then its memory stays mapped for the life of the process.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Life>);

#[derive(Debug)]
struct Life {
    pool: NonNull<ffi::cw_pool>,
    name: String,
    frames: u32,
    eal: Eal,
}

// SAFETY: a mempool may be used from any thread; DPDK's own rings and per-thread caches see to it.
unsafe impl Send for Life {}
// SAFETY: as above.
unsafe impl Sync for Life {}

impl Pool {
    /// Makes a pool.
    pub fn new(eal: &Eal, config: PoolConfig<'_>) -> Result<Self, SysError> {
        let PoolConfig { name, frames, cache, room } = config;
        let room = room.saturating_add(HEADROOM as u16);
        let c_name = CString::new(name).map_err(|_| SysError::ZeroByte(name.to_owned()))?;
        let mut pool = ptr::null_mut();
        // SAFETY: the EAL runs, the name is a C string that DPDK copies, `pool` may be written.
        hear(|| unsafe { ffi::cw_pool_create(c_name.as_ptr(), frames, cache, room, &raw mut pool) })
            .map_err(|reason| SysError::Pool { pool: name.to_owned(), frames, room, reason })?;
        let pool = NonNull::new(pool).unwrap_or_else(|| unreachable!("success comes with a pool"));
        Ok(Self(Arc::new(Life { pool, name: name.to_owned(), frames, eal: eal.clone() })))
    }

    /// An empty frame with headroom before it, if one is free.
    pub fn alloc(&self) -> Option<Mbuf> {
        let mut frame = ptr::null_mut();
        // SAFETY: the pool lives and `frame` takes the one pointer asked for.
        let failed = unsafe { ffi::cw_mbuf_alloc(self.as_ptr(), &raw mut frame, 1) };
        // SAFETY: a frame that was just allocated has no other owner.
        if failed == 0 { NonNull::new(frame).map(|frame| unsafe { Mbuf::from_raw(frame) }) } else { None }
    }

    /// Adds `n` empty frames to the burst, or none if that many are not free or do not fit.
    pub fn fill(&self, burst: &mut Burst, n: usize) -> bool {
        if n > burst.room() {
            return false;
        }
        // SAFETY: the burst has room for `n` more pointers; on success all `n` are fresh frames
        // without another owner, otherwise none was written.
        unsafe {
            let filled = ffi::cw_mbuf_alloc(self.as_ptr(), burst.spare_ptr(), n as u16) == 0;
            burst.grow(if filled { n } else { 0 });
            filled
        }
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How many frames it has in all.
    pub fn frames(&self) -> u32 {
        self.0.frames
    }

    /// How many are out: in bursts, rings, queues.
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool lives.
        unsafe { ffi::cw_pool_in_use(self.as_ptr()) }
    }

    /// How many are free, threads' caches included.
    pub fn free(&self) -> u32 {
        // SAFETY: the pool lives.
        unsafe { ffi::cw_pool_free_count(self.as_ptr()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::cw_pool {
        self.0.pool.as_ptr()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // SAFETY: the pool lives until the call below.
        let in_use = unsafe { ffi::cw_pool_in_use(self.pool.as_ptr()) };
        if in_use == 0 {
            // SAFETY: no frame is out, and with the last clone gone nobody can take one.
            unsafe { ffi::cw_pool_free(self.pool.as_ptr()) }
        } else {
            tracing::warn!("pool {} is kept: {in_use} of its frames are still in use", self.name);
            // Those frames point into DPDK's memory, which therefore must stay, too.
            mem::forget(self.eal.clone());
        }
    }
}
