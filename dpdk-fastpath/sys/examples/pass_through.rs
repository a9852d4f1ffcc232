//! What the fence itself costs: frames of a pcap file, round and round, to a sink, on one core.
//!
//! usage: pass_through FLOWS.pcap [SECONDS]      (256 MiB of free 2 MiB pages; build with CAUSEWAY_MARCH=native)

use dpdk_sys::{
    Burst, Eal, EalConfig, Memory, Pool, PoolConfig, Port, PortConfig, RxQueue, SysError, TxQueue, tsc,
};
use std::{env, error::Error};

const BURST: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let flows = arguments.next().ok_or("usage: pass_through FLOWS.pcap [SECONDS]")?;
    let seconds: u64 = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let eal = Eal::start(&EalConfig::new(Memory::Hugepages { mib: 256 }))?;
    let pool = Pool::new(&eal, PoolConfig { name: "frames", frames: 16_383, cache: 256, room: 2048 })?;
    let source = Port::attach(&eal, &format!("net_pcap_source,rx_pcap={flows},infinite_rx=1"))?;
    let sink = Port::attach(&eal, "net_null_sink,no-rx=1")?;
    let mut from = source.start(&PortConfig::new(1), &pool)?.rx;
    let mut to = sink.start(&PortConfig::new(1), &pool)?.tx;
    type Loop = fn(&mut RxQueue, &mut TxQueue, u64) -> u64;
    let loops: [(&str, Loop); 2] = [("untouched", untouched), ("read and moved", moved)];
    for (name, run) in loops {
        let (frames, ticks) = timed(&eal, seconds, |rounds| run(&mut from[0], &mut to[0], rounds));
        let rate = frames as f64 * eal.tsc_hz() as f64 / ticks as f64 / 1e6;
        println!("{name}: {rate:.1} Mpps, {:.1} ticks a frame", ticks as f64 / frames as f64);
    }
    drop((from, to));
    source.close()?;
    sink.close().map_err(SysError::into)
}

/// Frames and ticks of a few seconds.
fn timed(eal: &Eal, seconds: u64, mut run: impl FnMut(u64) -> u64) -> (u64, u64) {
    run(10_000);
    let (start, mut frames) = (tsc(), 0);
    while tsc() - start < seconds * eal.tsc_hz() {
        frames += run(1_000);
    }
    (frames, tsc() - start)
}

/// Bursts handed on as they are.
fn untouched(from: &mut RxQueue, to: &mut TxQueue, rounds: u64) -> u64 {
    let (mut burst, mut frames) = (Burst::new(), 0);
    for _ in 0..rounds {
        frames += from.receive(&mut burst, BURST) as u64;
        to.send(&mut burst);
        burst.clear();
    }
    frames
}

/// Each frame's place and first bytes read, its window written back, as a packet program would.
fn moved(from: &mut RxQueue, to: &mut TxQueue, rounds: u64) -> u64 {
    let (mut burst, mut frames) = (Burst::new(), 0);
    for _ in 0..rounds {
        frames += from.receive(&mut burst, BURST) as u64;
        for frame in burst.iter_mut() {
            let parts = frame.parts_mut();
            let (start, len) = (parts.start, parts.len);
            let ethertype = parts.buffer.get(start + 12).copied().unwrap_or_default();
            // A window that moves by what was read cannot be left out by the compiler.
            let moved = usize::from(ethertype == 0xff);
            if frame.set_window(start + moved, len - moved).is_err() {
                unreachable!("a window within the frame's own");
            }
        }
        to.send(&mut burst);
        burst.clear();
    }
    frames
}
