//! Ports made of rings: nothing is lost, nothing is freed twice.

use super::{assert_out, chain, counted, eal, frame, numbers, pool, story, whole, within};
use dpdk_sys::{
    Burst, Layer4, Pool, Port, PortConfig, Refusal, RingEnd, RingPort, RxQueue, SysError, TxOffloads,
    TxQueue, TxRequest,
};
use libtest_mimic::Trial;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

pub fn all() -> Vec<Trial> {
    vec![
        story("no_frame_is_lost_after_a_million_over_two_queues_and_two_workers", million),
        story("unsent_frames_stay_with_their_burst", unsent),
        story("chains_go_whole_through_a_ring_and_are_freed_whole", chains),
        story("frames_left_in_rings_come_back_to_their_pool", left_behind),
        story("more_queues_than_there_are_become_what_there_is", clamped),
        story("a_frame_that_asks_too_much_is_refused_with_the_reason", refused),
        story("a_port_closes_with_its_last_queue", closing),
        story("a_queue_without_a_descriptor_says_so", no_descriptor),
    ]
}

const MILLION: u64 = 1_000_000;

/// Frames enter at both ends; each worker moves what its queue receives to the other's wire.
fn million() {
    let pool = pool("million", 4095);
    let RingPort { port, ends } = RingPort::new(eal(), "million", 2, 1024).unwrap();
    let started = port.start(&PortConfig::new(2), &pool).unwrap();
    let done = AtomicBool::new(false);
    let mut tx = started.tx.into_iter();
    let (first, second) = (tx.next().unwrap(), tx.next().unwrap());
    let queues: Vec<_> = started.rx.into_iter().zip([second, first]).collect();
    thread::scope(|scope| {
        let workers: Vec<_> =
            queues.into_iter().map(|(rx, tx)| scope.spawn(|| forward(rx, tx, &done))).collect();
        let [a, b]: [RingEnd; 2] = ends.try_into().unwrap();
        let dismissal = Dismissal(&done);
        drive(&pool, a, b);
        drop(dismissal);
        let moved: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(moved, MILLION);
    });
    port.close().unwrap();
    assert_out(&pool, 0);
}

/// Sends the workers home, whether the story ends well or not.
struct Dismissal<'a>(&'a AtomicBool);

impl Drop for Dismissal<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn forward(mut rx: RxQueue, mut tx: TxQueue, done: &AtomicBool) -> u64 {
    let _known = eal().register_thread().unwrap();
    let mut burst = Burst::new();
    let mut moved = 0;
    while !done.load(Ordering::Acquire) {
        let got = rx.receive(&mut burst, 32);
        moved += tx.send(&mut burst) as u64;
        if got == 0 {
            thread::yield_now();
        }
    }
    moved
}

/// Half of the frames go in at `a` and come out at `b`, the other half the other way, all in order.
fn drive(pool: &Pool, mut a: RingEnd, mut b: RingEnd) {
    let mut halves = [(0, 0), (0, 0)];
    let (mut to_a, mut to_b, mut out) = (Burst::new(), Burst::new(), Burst::new());
    within(60, "a million frames come through", || {
        for _ in 0..1000 {
            refill(pool, &mut to_a, &mut halves[0].0);
            refill(pool, &mut to_b, &mut halves[1].0);
            a.put(&mut to_a);
            b.put(&mut to_b);
            b.take(&mut out, 32);
            check(&mut out, &mut halves[0].1);
            a.take(&mut out, 32);
            check(&mut out, &mut halves[1].1);
            thread::yield_now();
        }
        let held = to_a.len() + to_b.len();
        assert!(pool.in_use() as usize >= held, "what is in hand is in use");
        (halves.iter().map(|(_, seen)| seen).sum::<u64>() == MILLION).then_some(())
    });
}

fn refill(pool: &Pool, burst: &mut Burst, next: &mut u64) {
    while burst.len() < 32 && *next < MILLION / 2 {
        let Some(mut fresh) = pool.alloc() else { return };
        fresh.append(&next.to_be_bytes()).unwrap();
        burst.push(fresh).unwrap();
        *next += 1;
    }
}

fn check(out: &mut Burst, seen: &mut u64) {
    for number in numbers(out) {
        assert_eq!(number, *seen, "frames come in order, each once");
        *seen += 1;
    }
    out.clear();
}

fn unsent() {
    let pool = pool("unsent", 255);
    let RingPort { port, mut ends } = RingPort::new(eal(), "unsent", 1, 50).unwrap();
    let mut queues = port.start(&PortConfig::new(1), &pool).unwrap();
    let mut burst = counted(&pool, 64);
    assert_eq!(queues.tx[0].send(&mut burst), 50);
    assert_eq!(numbers(&burst), (50..64).collect::<Vec<_>>());
    assert_eq!(queues.tx[0].send(&mut burst), 0);
    assert_out(&pool, 64);
    let mut out = Burst::new();
    assert_eq!(ends[0].take(&mut out, 10), 10);
    assert_eq!(queues.tx[0].send(&mut burst), 10);
    assert_eq!(numbers(&burst), (60..64).collect::<Vec<_>>());
    drop(burst);
    assert_out(&pool, 60);
    assert_eq!(ends[0].take(&mut out, 64), 50);
    assert_eq!(numbers(&out), (0..60).collect::<Vec<_>>());
    // The other way: an end keeps what the port's ring does not take.
    let mut more = counted(&pool, 64);
    assert_eq!(ends[0].put(&mut more), 50);
    assert_eq!(numbers(&more), (50..64).collect::<Vec<_>>());
    let mut received = counted(&pool, 60);
    assert_eq!(queues.rx[0].receive(&mut received, 32), 4, "no more than the burst has room for");
    assert_eq!(queues.rx[0].receive(&mut received, 32), 0);
}

fn chains() {
    let pool = pool("chains", 127);
    let RingPort { port, mut ends } = RingPort::new(eal(), "chains", 1, 64).unwrap();
    let mut queues = port.start(&PortConfig::new(1), &pool).unwrap();
    assert!(queues.granted.tx_offloads.contains(TxOffloads::CHAINS));
    let mut burst = Burst::new();
    burst.push(chain(&pool, &[1; 2000], &[2; 1500])).unwrap();
    burst.push(frame(&pool, b"single")).unwrap();
    queues.tx[0].prepare(&mut burst, |_, why| panic!("{why}"));
    assert_eq!(queues.tx[0].send(&mut burst), 2);
    assert_eq!(ends[0].take(&mut burst, 64), 2);
    assert_eq!((burst[0].segments(), burst[0].len(), burst[1].len()), (2, 3500, 6));
    assert_eq!(whole(&burst[0]), [vec![1; 2000], vec![2; 1500]].concat());
    assert_eq!(ends[0].put(&mut burst), 2);
    assert_eq!(queues.rx[0].receive(&mut burst, 64), 2);
    assert_eq!(whole(&burst[0]).len(), 3500);
    assert_out(&pool, 3);
    drop(burst);
    assert_out(&pool, 0);
}

fn left_behind() {
    let pool = pool("left", 127);
    let RingPort { port, mut ends } = RingPort::new(eal(), "left", 2, 64).unwrap();
    let mut queues = port.start(&PortConfig::new(2), &pool).unwrap();
    assert_eq!(ends[1].put(&mut counted(&pool, 20)), 20);
    assert_eq!(queues.tx[0].send(&mut counted(&pool, 20)), 20);
    assert_out(&pool, 40);
    drop(queues);
    port.close().unwrap();
    drop(ends);
    assert_out(&pool, 0);
    // The same name again: nothing of the first port is left.
    RingPort::new(eal(), "left", 2, 64).unwrap().port.close().unwrap();
}

fn clamped() {
    let pool = pool("clamped", 127);
    let RingPort { port, .. } = RingPort::new(eal(), "clamped", 2, 64).unwrap();
    let info = port.info().unwrap();
    assert_eq!((info.max_rx_queues, info.max_tx_queues), (2, 2));
    let all = TxOffloads::TCP_CHECKSUM | TxOffloads::VXLAN_SEGMENTS | TxOffloads::CHAINS;
    let asked = PortConfig { tx_queues: 64, tx_offloads: all, ..PortConfig::new(16) };
    let queues = port.start(&asked, &pool).unwrap();
    assert_eq!((queues.granted.rx_queues, queues.granted.tx_queues), (2, 2));
    assert_eq!((queues.rx.len(), queues.tx.len()), (2, 2));
    assert_eq!(queues.granted.tx_offloads, TxOffloads::CHAINS, "granted is what the port can do");
    assert_eq!(queues.rx.iter().map(RxQueue::id).collect::<Vec<_>>(), [0, 1]);
    assert!(matches!(port.start(&asked, &pool), Err(SysError::InUse(name)) if name == "clamped"));
}

fn refused() {
    let pool = pool("refused", 127);
    let RingPort { port, .. } = RingPort::new(eal(), "refused", 1, 64).unwrap();
    let asked = PortConfig { tx_offloads: TxOffloads::NONE, ..PortConfig::new(1) };
    let mut queues = port.start(&asked, &pool).unwrap();
    let mut burst = Burst::new();
    burst.push(chain(&pool, b"short", b" chain")).unwrap();
    burst.push(chain(&pool, &[1; 2000], &[2; 1500])).unwrap();
    burst.push(frame(&pool, &[0; 60])).unwrap();
    let request = TxRequest { l2_len: 14, l3_len: 20, checksum: Some(Layer4::Udp), ..TxRequest::default() };
    burst[2].ask(&request).unwrap();
    burst.push(frame(&pool, b"plain")).unwrap();
    assert_eq!(queues.tx[0].send(&mut burst), 0, "a chain in front is not sent in part");
    let mut reasons = Vec::new();
    queues.tx[0].prepare(&mut burst, |_, why| reasons.push(why));
    assert_eq!(reasons, [Refusal::Chain, Refusal::Offload(TxOffloads::UDP_CHECKSUM)]);
    assert_eq!((burst[0].data(), burst[1].data()), (&b"short chain"[..], &b"plain"[..]));
    assert_out(&pool, 2);
    assert_eq!(queues.tx[0].send(&mut burst), 2);
}

fn closing() {
    let pool = pool("closing", 127);
    let port = Port::attach(eal(), "net_null_closing,no-rx=1").unwrap();
    let mut queues = port.start(&PortConfig::new(1), &pool).unwrap();
    drop(queues.rx);
    assert!(matches!(port.close(), Err(SysError::InUse(name)) if name == "net_null_closing"));
    assert_eq!(queues.tx[0].send(&mut counted(&pool, 8)), 8, "a queue keeps its port running");
    assert!(Port::attach(eal(), "net_null_closing").is_err());
    assert!(matches!(Port::find(eal(), "net_null_closing"), Err(SysError::InUse(_))));
    drop(queues.tx);
    Port::attach(eal(), "net_null_closing").unwrap().close().unwrap();
    let gone = Port::find(eal(), "net_null_closing").unwrap_err().to_string();
    assert!(gone.starts_with("port net_null_closing: finding it: No such device"), "{gone}");
}

fn no_descriptor() {
    let pool = pool("no_descriptor", 127);
    let port = Port::attach(eal(), "net_null_sleep").unwrap();
    let asked = PortConfig { interrupts: true, ..PortConfig::new(1) };
    let queues = port.start(&asked, &pool).unwrap();
    let why = queues.rx[0].descriptor().unwrap_err().to_string();
    assert_eq!(why, "port net_null_sleep: queue 0 has no interrupt descriptor");
}
