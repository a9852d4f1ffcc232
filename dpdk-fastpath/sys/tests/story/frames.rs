//! Frames, bursts and pools.

use super::{assert_out, chain, counted, eal, frame, numbers, pool, story, whole};
use dpdk_sys::{Burst, HEADROOM, LARGEST_ROOM, Layer4, NoRoom, Pool, PoolConfig, Segments, TxRequest};
use libtest_mimic::Trial;

pub fn all() -> Vec<Trial> {
    vec![
        story("a_fresh_frame_is_empty_with_headroom", fresh),
        story("headers_are_pushed_and_pulled_within_the_buffer", headers),
        story("a_frame_of_64_kib_is_a_head_and_a_large_tail", large),
        story("a_shortened_chain_frees_what_is_past_its_end", shortened),
        story("a_chain_becomes_one_buffer_where_it_fits", linear),
        story("a_burst_keeps_order_and_owns_what_it_holds", bursts),
        story("an_empty_pool_gives_nothing", exhausted),
        story("a_pool_outlives_its_handle_while_frames_are_out", kept),
        story("a_request_to_the_sending_port_rides_in_the_frame", requests),
        story("a_pool_that_cannot_be_says_why", refused),
        story("a_registered_thread_gives_back_its_cache", registered),
        story("memory_figures_add_up", figures),
    ]
}

fn fresh() {
    let pool = pool("fresh", 127);
    let one = pool.alloc().unwrap();
    assert!(one.is_empty());
    assert_eq!((one.segments(), one.headroom(), one.tailroom()), (1, HEADROOM, 2048));
    assert_eq!(one.rss_hash(), None);
    assert_out(&pool, 1);
    drop(one);
    assert_out(&pool, 0);
}

fn headers() {
    let pool = pool("headers", 127);
    let mut inner = frame(&pool, b"payload");
    inner.push(4).unwrap().copy_from_slice(b"head");
    assert_eq!(inner.data(), b"headpayload");
    assert_eq!((inner.len(), inner.headroom()), (11, HEADROOM - 4));
    inner.pull(6).unwrap();
    assert_eq!(inner.data(), b"yload");
    assert_eq!(inner.pull(6), Err(NoRoom));
    assert_eq!(inner.push(HEADROOM + 3).map(|_| ()), Err(NoRoom));
    assert_eq!(inner.append(&[0; 2049]), Err(NoRoom));
    assert_eq!(inner.set_window(HEADROOM, 2049), Err(NoRoom));
    assert_eq!(inner.set_window(usize::MAX, 2), Err(NoRoom));
    assert_eq!(inner.data(), b"yload", "a refusal changes nothing");
    let parts = inner.parts_mut();
    assert_eq!(&parts.buffer[parts.start..parts.start + parts.len], b"yload");
    assert_eq!((parts.buffer.len(), parts.tail), (HEADROOM + 2048, None));
}

fn large() {
    let heads = pool("heads", 127);
    let config = PoolConfig { name: "larges", frames: 15, cache: 0, room: LARGEST_ROOM - HEADROOM as u16 };
    let larges = Pool::new(eal(), config).unwrap();
    let mut head = heads.alloc().unwrap();
    let mut spare = larges.alloc().unwrap();
    // As a vectored read would fill them: the whole tail room of one, the whole buffer of the other.
    let room = head.tailroom();
    head.parts_mut().buffer[HEADROOM..].fill(1);
    spare.parts_mut().buffer.fill(2);
    let rest = 65_536 - room;
    head.set_window(HEADROOM, room).unwrap();
    spare.set_window(0, rest).unwrap();
    head.chain(spare).unwrap();
    assert_eq!((head.len(), head.segments()), (65_536, 2));
    head.pull(14).unwrap();
    assert_eq!(head.len(), 65_522);
    let parts = head.parts_mut();
    let tail = parts.tail.unwrap();
    assert_eq!((tail.len(), parts.buffer[parts.start], tail[rest - 1]), (rest, 1, 2));
    tail[0] = 9;
    assert_eq!(whole(&head)[room - 14], 9);
    let tail = head.split_tail().unwrap();
    assert_eq!((head.len(), head.segments(), tail.len(), tail.segments()), (room - 14, 1, rest, 1));
    drop(head);
    assert_out(&heads, 0);
    assert_out(&larges, 1);
    drop(tail);
    assert_out(&larges, 0);
}

fn shortened() {
    let pool = pool("shortened", 127);
    let mut three = chain(&pool, b"0123", b"456");
    three.chain(frame(&pool, b"789")).unwrap();
    assert_eq!((three.len(), three.segments()), (10, 3));
    three.truncate(10);
    assert_out(&pool, 3);
    three.truncate(6);
    assert_eq!((whole(&three), three.segments()), (b"012345".to_vec(), 2));
    assert_out(&pool, 2);
    three.truncate(4);
    assert_eq!((whole(&three), three.segments()), (b"0123".to_vec(), 1));
    three.truncate(0);
    assert!(three.is_empty());
    assert_out(&pool, 1);
}

fn linear() {
    let pool = pool("linear", 127);
    let mut fits = chain(&pool, b"head", b"tail");
    fits.linearise().unwrap();
    assert_eq!((fits.data(), fits.segments()), (&b"headtail"[..], 1));
    assert_out(&pool, 1);
    let mut too_long = chain(&pool, &[1; 2000], &[2; 100]);
    assert_eq!(too_long.linearise(), Err(NoRoom));
    assert_eq!((too_long.len(), too_long.segments()), (2100, 2));
}

fn bursts() {
    let pool = pool("bursts", 255);
    let mut burst = counted(&pool, 64);
    let extra = burst.push(frame(&pool, b"one too many")).unwrap_err();
    assert_eq!(extra.data(), b"one too many");
    drop(extra);
    assert!(!pool.fill(&mut burst, 1), "a full burst takes no frames");
    assert_out(&pool, 64);
    let mut odd = Burst::new();
    let parity =
        |frame: &mut dpdk_sys::Mbuf| if frame.data()[7].is_multiple_of(2) { Ok(()) } else { Err("odd") };
    burst.sift(parity, |frame, why| {
        assert_eq!(why, "odd");
        odd.push(frame).unwrap();
    });
    assert_eq!(numbers(&burst), (0..64).step_by(2).collect::<Vec<_>>());
    assert_eq!(numbers(&odd), (1..64).step_by(2).collect::<Vec<_>>());
    let mut out = odd.drain();
    assert_eq!((out.len(), out.next().unwrap().data()[7]), (32, 1));
    drop(out);
    assert!(odd.is_empty());
    assert_out(&pool, 32);
    assert!(pool.fill(&mut odd, 40));
    burst.append(&mut odd);
    assert_eq!((burst.len(), odd.len()), (64, 8));
    assert_eq!(burst.pop().unwrap().len(), 0);
    burst.clear();
    assert_out(&pool, 8);
    drop(odd);
    assert_out(&pool, 0);
}

fn exhausted() {
    let config = PoolConfig { name: "exhausted", frames: 63, cache: 0, room: 256 };
    let pool = Pool::new(eal(), config).unwrap();
    let mut burst = Burst::new();
    assert!(!pool.fill(&mut burst, 64), "all or none");
    assert_out(&pool, 0);
    assert!(pool.fill(&mut burst, 63));
    assert!(pool.alloc().is_none());
    assert_out(&pool, 63);
    drop(burst);
    assert!(pool.alloc().is_some());
}

fn kept() {
    let pool = pool("kept", 127);
    let survivor = frame(&pool, b"still here");
    drop(pool);
    assert_eq!(survivor.data(), b"still here");
    drop(survivor);
    // The kept pool still has its name; a pool that was not kept gives its name back.
    let named = |name| Pool::new(eal(), PoolConfig { name, frames: 15, cache: 0, room: 64 });
    assert!(named("kept").is_err());
    drop(named("again").unwrap());
    drop(named("again").unwrap());
}

fn requests() {
    let pool = pool("requests", 127);
    let mut one = frame(&pool, &[0; 100]);
    assert_eq!(one.asked(), TxRequest::default());
    let request = TxRequest {
        l2_len: 14,
        l3_len: 20,
        checksum: Some(Layer4::Tcp),
        segments: Some(Segments { l4_len: 20, size: 1400 }),
        ..TxRequest::default()
    };
    one.ask(&request).unwrap();
    assert_eq!(one.asked(), request);
    one.ask(&TxRequest::default()).unwrap();
    assert_eq!(one.asked(), TxRequest::default());
    one.ask(&request).unwrap();
    drop(one);
    let mut all = Burst::new();
    for _ in 0..64 {
        all.push(pool.alloc().unwrap()).unwrap();
    }
    assert!(all.iter().all(|frame| frame.asked() == TxRequest::default()), "a fresh frame asks nothing");
}

fn refused() {
    let too_much = PoolConfig { name: "too_much", frames: 64_000_000, cache: 0, room: 2048 };
    let why = Pool::new(eal(), too_much).unwrap_err().to_string();
    assert!(why.starts_with("making the pool too_much of 64000000 frames of 2176 bytes: "), "{why}");
    assert!(why.contains("Cannot allocate memory"), "{why}");
    let odd_name = PoolConfig { name: "zero\0byte", frames: 63, cache: 0, room: 64 };
    assert_eq!(Pool::new(eal(), odd_name).unwrap_err().to_string(), r#""zero\0byte" has a zero byte in it"#);
}

fn registered() {
    let pool = pool("registered", 1023);
    assert!(eal().register_thread().is_err(), "the EAL's first thread is registered already");
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _known = eal().register_thread().unwrap();
            let again = eal().register_thread().unwrap_err().to_string();
            assert!(again.contains("File exists"), "{again}");
            for _ in 0..1000 {
                drop(counted(&pool, 40));
            }
        });
        worker.join().unwrap();
    });
    assert_out(&pool, 0);
    let mut all = Vec::new();
    while let Some(frame) = pool.alloc() {
        all.push(frame);
    }
    assert!(all.len() > 800, "a thread that left keeps no more than its cache: {}", all.len());
}

fn figures() {
    let before = eal().memory_figures().unwrap();
    assert!(before.largest_free <= before.free && before.free <= before.total, "{before:?}");
    let pool = pool("figures", 1023);
    let during = eal().memory_figures().unwrap();
    let taken = (during.total - during.free) - (before.total - before.free);
    assert!(taken >= 1023 * 2048, "{taken} bytes taken");
    drop(pool);
    assert!(eal().tsc_hz() > 1_000_000);
    assert!(dpdk_sys::tsc() != dpdk_sys::tsc());
}
