//! Devices without a wire: null, pcap, memif, vhost.

use super::{assert_out, chain, counted, eal, frame, pool, story, whole, within};
use dpdk_sys::{Burst, Pool, PoolConfig, Port, PortConfig, RxQueue, Started};
use libtest_mimic::Trial;
use std::fs;

pub fn all() -> Vec<Trial> {
    vec![
        story("null_makes_frames_and_swallows_them", null),
        story("pcap_writes_what_it_reads_back", pcap),
        story("memif_carries_frames_between_two_ends", memif),
        story("vhost_opens_its_socket_and_takes_it_away", vhost),
        story("bad_devargs_are_a_clear_error", bad_devargs),
    ]
}

/// Attaches and starts a device with one queue each way.
pub fn device(pool: &Pool, devargs: &str) -> (Port, Started) {
    let port = Port::attach(eal(), devargs).unwrap_or_else(|why| panic!("{why}"));
    let queues = port.start(&PortConfig::new(1), pool).unwrap_or_else(|why| panic!("{why}"));
    (port, queues)
}

/// Receives until `wanted` frames are there.
pub fn receive(rx: &mut RxQueue, wanted: usize) -> Burst {
    let mut burst = Burst::new();
    within(5, "frames arrive", || {
        rx.receive(&mut burst, 32);
        (burst.len() >= wanted).then_some(())
    });
    burst
}

fn null() {
    let pool = pool("null", 255);
    let (port, mut queues) = device(&pool, "net_null_both,size=100");
    assert_eq!(port.info().unwrap().driver, "net_null");
    let mut burst = Burst::new();
    assert_eq!(queues.rx[0].receive(&mut burst, 32), 32);
    assert!(burst.iter().all(|frame| frame.len() == 100 && frame.port() == port.info().unwrap().id));
    assert_out(&pool, 32);
    burst.push(chain(&pool, b"head", b"tail")).unwrap();
    queues.tx[0].prepare(&mut burst, |_, why| panic!("{why}"));
    assert_eq!(queues.tx[0].send(&mut burst), 33);
    assert_out(&pool, 0);
    let stats = port.stats().unwrap();
    assert_eq!((stats.rx_frames, stats.tx_frames), (32, 33));
    port.set_promiscuous(true).unwrap();
    assert!(port.link().unwrap().up);
    drop(queues);
    port.close().unwrap();
    let (_silent, mut queues) = device(&pool, "net_null_silent,no-rx=1");
    assert_eq!(queues.rx[0].receive(&mut burst, 32), 0);
}

fn pcap() {
    let pool = pool("pcap", 511);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("frames.pcap");
    let file = file.to_str().unwrap();
    let (port, mut queues) = device(&pool, &format!("net_pcap_out,tx_pcap={file}"));
    let jumbos = Pool::new(eal(), PoolConfig { name: "jumbos", frames: 63, cache: 0, room: 9000 }).unwrap();
    let mut burst = counted(&pool, 10);
    burst.push(chain(&jumbos, &[1; 2000], &[2; 1500])).unwrap();
    burst.push(frame(&pool, &[3; 60])).unwrap();
    queues.tx[0].prepare(&mut burst, |_, why| panic!("{why}"));
    assert_eq!(queues.tx[0].send(&mut burst), 12);
    drop(queues);
    port.close().unwrap();
    assert_out(&pool, 0);
    assert_out(&jumbos, 0);
    assert_eq!(fs::read(file).unwrap()[..4], 0xa1b2_3c4d_u32.to_ne_bytes(), "a pcap file of nanoseconds");

    let (port, mut queues) = device(&pool, &format!("net_pcap_in,rx_pcap={file}"));
    let read = receive(&mut queues.rx[0], 12);
    assert_eq!(super::numbers(&read)[..10], (0..10).collect::<Vec<_>>());
    assert_eq!(whole(&read[10]), [vec![1; 2000], vec![2; 1500]].concat());
    assert_eq!(read[10].segments(), 2, "a frame longer than a buffer arrives as a chain");
    assert_eq!(read[11].data(), [3; 60]);
    assert_out(&pool, 13);
    drop((read, queues));
    port.close().unwrap();
    assert_out(&pool, 0);
}

fn memif() {
    let pool = pool("memif", 4095);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("memif.sock");
    let place = format!("socket={},socket-abstract=no", socket.to_str().unwrap());
    let (server, mut near) = device(&pool, &format!("net_memif_a,role=server,{place}"));
    let (client, mut far) = device(&pool, &format!("net_memif_b,role=client,{place}"));
    within(10, "both ends of the memif are up", || {
        (server.link().unwrap().up && client.link().unwrap().up).then_some(())
    });
    let (mut burst, mut got) = (counted(&pool, 32), Burst::new());
    // The client offers buffers when it polls, and only then does the server's ring take frames.
    within(5, "frames cross the memif", || {
        near.tx[0].send(&mut burst);
        far.rx[0].receive(&mut got, 32);
        (got.len() == 32).then_some(())
    });
    assert_eq!(super::numbers(&got), (0..32).collect::<Vec<_>>());
    within(5, "frames cross it back", || {
        far.tx[0].send(&mut got);
        near.rx[0].receive(&mut burst, 32);
        (burst.len() == 32).then_some(())
    });
    drop((burst, got, near, far));
    client.close().unwrap();
    server.close().unwrap();
    assert_out(&pool, 0);
}

fn vhost() {
    let pool = pool("vhost", 255);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vhost.sock");
    let (port, mut queues) =
        device(&pool, &format!("net_vhost_a,iface={},queues=1", socket.to_str().unwrap()));
    assert!(socket.exists());
    assert_eq!(port.info().unwrap().driver, "net_vhost");
    assert!(!port.link().unwrap().up, "nobody is at the other end");
    let mut burst = counted(&pool, 4);
    assert_eq!(queues.rx[0].receive(&mut burst, 32), 0);
    assert_eq!(queues.tx[0].send(&mut burst), 0);
    assert_eq!(burst.len(), 4);
    drop(queues);
    port.close().unwrap();
    assert!(!socket.exists());
}

fn bad_devargs() {
    let told = |devargs: &str| match Port::attach(eal(), devargs) {
        Ok(port) => panic!("{} was attached", port.name()),
        Err(why) => why.to_string(),
    };
    let unknown = told("net_nosuch0,iface=lo");
    assert!(unknown.starts_with("attaching net_nosuch0,iface=lo: "), "{unknown}");
    assert!(unknown.contains("net_nosuch0"), "{unknown}");
    let missing = told("net_pcap_bad,rx_pcap=/nonexistent/frames.pcap");
    assert!(missing.contains("Couldn't open /nonexistent/frames.pcap"), "{missing}");
    let no_link = told("net_af_packet_bad,iface=nosuchlink");
    assert!(no_link.contains("nosuchlink"), "{no_link}");
    assert!(told("").starts_with("attaching : Invalid argument"), "{}", told(""));
    assert_eq!(told("net_null\0"), r#""net_null\0" has a zero byte in it"#);
    let twice = Port::attach(eal(), "net_null_twice").unwrap();
    assert!(told("net_null_twice").contains("File exists"), "{}", told("net_null_twice"));
    twice.close().unwrap();
    // A refusal leaves nothing: the same name works with good arguments.
    Port::attach(eal(), "net_null_twice").unwrap();
}
