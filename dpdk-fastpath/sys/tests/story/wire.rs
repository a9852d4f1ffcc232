//! Devices on a kernel interface: a veth pair in a namespace of its own, whose far end the kernel answers.

use super::{
    assert_out,
    devices::{device, receive},
    pool, story, within,
};
use dpdk_sys::{Burst, Pool};
use libtest_mimic::Trial;
use nix::sched::{CloneFlags, setns};
use std::{fs::File, process::Command};

pub fn all() -> Vec<Trial> {
    vec![
        story("af_packet_gets_an_answer_from_the_kernel", af_packet),
        story("af_xdp_gets_an_answer_from_the_kernel", af_xdp),
    ]
}

const OURS: [u8; 6] = [2, 0xca, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0xca, 0, 0, 0, 2];

fn af_packet() {
    let pool = pool("af_packet", 2047);
    let wire = Wire::new("syspkt");
    asks_who_has(&pool, "net_af_packet_w,iface=near");
    drop(wire);
    assert_out(&pool, 0);
}

fn af_xdp() {
    let pool = pool("af_xdp", 16_383);
    let wire = Wire::new("sysxdp");
    asks_who_has(&pool, "net_af_xdp_w,iface=near,start_queue=0,queue_count=1");
    drop(wire);
    // This driver never gives back the buffers it handed to the kernel: the pool has to stay.
    assert_eq!(pool.in_use() + pool.free(), pool.frames());
}

/// Sends ARP requests until the kernel at the far end has answered one.
fn asks_who_has(pool: &Pool, devargs: &str) {
    let (port, mut queues) = device(pool, devargs);
    let answer = within(10, "an ARP reply", || {
        let mut request = Burst::new();
        request.push(super::frame(pool, &arp_request())).unwrap();
        assert_eq!(queues.tx[0].send(&mut request), 1);
        let seen = receive(&mut queues.rx[0], 1);
        seen.iter().map(|frame| frame.data().to_vec()).find(|data| is_reply(data))
    });
    assert_eq!(answer[6..12], THEIRS);
    assert_eq!(answer[28..32], [198, 18, 0, 2]);
    drop(queues);
    port.close().unwrap();
}

/// Who has 198.18.0.2? Tell 198.18.0.1 (RFC 826).
fn arp_request() -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend([0xff; 6]);
    frame.extend(OURS);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(OURS);
    frame.extend([198, 18, 0, 1, 0, 0, 0, 0, 0, 0, 198, 18, 0, 2]);
    frame.resize(60, 0);
    frame
}

fn is_reply(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[..6] == OURS && frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
}

/// A veth pair `near`–`far` in a fresh namespace that this thread is in until it is dropped.
struct Wire {
    name: String,
    home: File,
}

impl Wire {
    fn new(prefix: &str) -> Self {
        let name = format!("{prefix}{}", std::process::id());
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        ip(&format!("netns add {name}"));
        let wire = Self { name, home };
        setns(File::open(format!("/run/netns/{}", wire.name)).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        ip("link add near address 02:ca:00:00:00:01 type veth peer name far address 02:ca:00:00:00:02");
        ip("addr add 198.18.0.2/24 dev far");
        ip("link set near up");
        ip("link set far up");
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        setns(&self.home, CloneFlags::CLONE_NEWNET).unwrap();
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(command: &str) {
    let done = Command::new("ip").args(command.split(' ')).status().unwrap();
    assert!(done.success(), "ip {command}");
}
