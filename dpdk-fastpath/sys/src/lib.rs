//! DPDK behind a small, burst-shaped fence: EAL, pools, frames, ports and queues as owned values.
#![expect(unsafe_code, reason = "this crate is the fence: every call into DPDK is made here")]

mod burst;
mod eal;
mod error;
pub mod hugepages;
mod log;
mod mbuf;
mod offload;
mod pool;
mod port;
mod queue;
mod ring;

pub use burst::{Burst, Drain};
pub use eal::{Eal, EalConfig, LogLevel, Memory, MemoryFigures, PciAddress, Registered, tsc};
pub use error::{Reason, SysError};
pub use mbuf::{HEADROOM, Mbuf, NoRoom, Parts};
pub use offload::{Checksum, Layer4, MalformedRequest, Outer, RxOffloads, Segments, TxOffloads, TxRequest};
pub use pool::{LARGEST_ROOM, Pool, PoolConfig};
pub use port::{Granted, Link, Port, PortConfig, PortInfo, PortStats, Started};
pub use queue::{Refusal, RxQueue, TxQueue};
pub use ring::{RingEnd, RingPort};

#[expect(non_camel_case_types, reason = "C's names")]
mod ffi {
    include!(concat!(env!("OUT_DIR"), "/shim.rs"));

    // The same layout that shim.c asserts against DPDK's own mbuf.
    const _: () = {
        use core::mem::{align_of, offset_of, size_of};
        assert!(size_of::<cw_mbuf>() == 64 && align_of::<cw_mbuf>() == 8);
        assert!(offset_of!(cw_mbuf, buf_addr) == 0);
        assert!(offset_of!(cw_mbuf, data_off) == 16);
        assert!(offset_of!(cw_mbuf, refcnt) == 18);
        assert!(offset_of!(cw_mbuf, nb_segs) == 20);
        assert!(offset_of!(cw_mbuf, port) == 22);
        assert!(offset_of!(cw_mbuf, ol_flags) == 24);
        assert!(offset_of!(cw_mbuf, pkt_len) == 36);
        assert!(offset_of!(cw_mbuf, data_len) == 40);
        assert!(offset_of!(cw_mbuf, rss) == 44);
        assert!(offset_of!(cw_mbuf, buf_len) == 54);
        assert!(offset_of!(cw_mbuf, pool) == 56);
        assert!(size_of::<cw_request>() == 24);
        assert!(size_of::<cw_port_setup>() == 32);
        assert!(size_of::<cw_port_stats>() == 64);
    };
}
