//! Ports made of rings: what one end puts in, the other end's port receives.

use crate::{
    burst::Burst,
    eal::Eal,
    error::{SysError, hear},
    ffi,
    port::{Port, c_string},
};
use std::{
    ptr::{self, NonNull},
    sync::Arc,
};

/// A `net_ring` port whose wire is in our hands.
#[derive(Debug)]
pub struct RingPort {
    /// The port, to be started like any other.
    pub port: Port,
    /// The far end of each of its queues.
    pub ends: Vec<RingEnd>,
}

/// The far end of one queue of a ring port.
#[derive(Debug)]
pub struct RingEnd {
    towards: NonNull<ffi::cw_ring>,
    from: NonNull<ffi::cw_ring>,
    _rings: Arc<Rings>,
}

// SAFETY: the rings are made for many producers and many consumers.
unsafe impl Send for RingEnd {}

/// The rings, which outlive port and ends; frames left in them are freed with them.
#[derive(Debug)]
pub(crate) struct Rings {
    rings: Vec<NonNull<ffi::cw_ring>>,
    _eal: Eal,
}

// SAFETY: the rings are made for many producers and many consumers.
unsafe impl Send for Rings {}
// SAFETY: as above.
unsafe impl Sync for Rings {}

impl RingPort {
    /// Makes a port with `queues` queues each way, every one a ring of `size` frames.
    pub fn new(eal: &Eal, name: &str, queues: u16, size: u32) -> Result<Self, SysError> {
        let mut rings = Rings { rings: Vec::new(), _eal: eal.clone() };
        for queue in 0..queues {
            rings.add(&format!("{name}_rx{queue}"), size)?;
            rings.add(&format!("{name}_tx{queue}"), size)?;
        }
        let mut rx: Vec<_> = rings.rings.iter().step_by(2).map(|ring| ring.as_ptr()).collect();
        let mut tx: Vec<_> = rings.rings.iter().skip(1).step_by(2).map(|ring| ring.as_ptr()).collect();
        let ends = rings.rings.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>();
        let c_name = c_string(name)?;
        let mut id = 0;
        // SAFETY: the EAL runs; both arrays hold `queues` live rings, and DPDK copies them; `id`
        // may be written. The rings outlive the port, which holds them.
        hear(|| unsafe {
            ffi::cw_ring_port(c_name.as_ptr(), rx.as_mut_ptr(), tx.as_mut_ptr(), queues, &raw mut id)
        })
        .map_err(|reason| SysError::Attach { devargs: name.to_owned(), reason })?;
        let rings = Arc::new(rings);
        let end = |(towards, from)| RingEnd { towards, from, _rings: Arc::clone(&rings) };
        Ok(Self {
            ends: ends.into_iter().map(end).collect(),
            port: Port::own(eal, id, name, Some(Arc::clone(&rings)))?,
        })
    }
}

impl Rings {
    fn add(&mut self, name: &str, size: u32) -> Result<(), SysError> {
        let c_name = c_string(name)?;
        let mut ring = ptr::null_mut();
        // SAFETY: the EAL runs, DPDK copies the name, `ring` may be written.
        hear(|| unsafe { ffi::cw_ring_create(c_name.as_ptr(), size, &raw mut ring) })
            .map_err(|reason| SysError::Attach { devargs: name.to_owned(), reason })?;
        self.rings.extend(NonNull::new(ring));
        Ok(())
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        for ring in &self.rings {
            let mut left = Burst::new();
            while take(*ring, &mut left, Burst::CAPACITY) > 0 {
                left.clear();
            }
            // SAFETY: the port and all ends are gone, each held this value.
            unsafe { ffi::cw_ring_free(ring.as_ptr()) }
        }
    }
}

impl RingEnd {
    /// Puts frames from the front into the port's receiving queue; those that do not fit stay.
    pub fn put(&mut self, burst: &mut Burst) -> usize {
        let n = burst.len() as u16;
        // SAFETY: the ring lives; it owns the first `sent` frames, which the burst gives up.
        unsafe {
            let sent = ffi::cw_ring_put(self.towards.as_ptr(), burst.as_mut_ptr(), n).into();
            burst.forget_front(sent);
            sent
        }
    }

    /// Adds up to `max` frames that the port has sent to the burst, as many as it has room for.
    pub fn take(&mut self, burst: &mut Burst, max: usize) -> usize {
        take(self.from, burst, max)
    }
}

fn take(ring: NonNull<ffi::cw_ring>, burst: &mut Burst, max: usize) -> usize {
    let n = max.min(burst.room());
    // SAFETY: the ring lives and holds only frames it owns; the burst has room for `n` of them.
    unsafe {
        let taken = ffi::cw_ring_take(ring.as_ptr(), burst.spare_ptr(), n as u16).into();
        burst.grow(taken);
        taken
    }
}
