//! Policy that changes: what becomes of flows that were, and what is open meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn established_flows_are_judged_again_both_ways_and_others_go_on() {
    let (mut lab, [a, b, server]) = three();
    let node = &mut lab.nodes[0];
    let (cut, kept) = (Talk::new(&a, &server, 5001), Talk::new(&b, &server, 5002));
    assert!(cut.goes() && kept.goes());
    let listener = server.ns.inside(|| TcpListener::bind((server.v4(), 80))).unwrap();
    let to = listener.local_addr().unwrap();
    let mut streams = [&a, &b].map(|pod| {
        let stream = pod.ns.inside(|| TcpStream::connect(to)).unwrap();
        (stream, listener.accept().unwrap().0)
    });
    let allowed = |who| [Said::new(Action::Accept, 16).of(who)];
    put(node, 1, &allowed(B), Some(17));
    let start = Instant::now();
    table(node, &server, Direction::Ingress, &[1]);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(!cut.answers(), "answers of what is denied now");
    assert!(!cut.asks());
    assert!(kept.goes() && kept.goes());
    let goes = |(client, server): &mut (TcpStream, TcpStream)| {
        client.write_all(b"hello").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        server.read(&mut [0; 16]).is_ok()
    };
    assert!(!goes(&mut streams[0]) && goes(&mut streams[1]));
    assert!(denied(node, 17) > 0);
    // Allowed again: the same flow goes on, and the other is denied now without a word of its own.
    put(node, 1, &allowed(A), Some(17));
    assert!(kept.goes(), "the epoch has not moved: what was judged stays so");
    table(node, &server, Direction::Ingress, &[1]);
    assert!(cut.goes());
    assert!(!kept.asks() && !kept.answers());
    table(node, &server, Direction::Ingress, &[]);
    assert!(cut.goes() && kept.goes());
    // The other end's table holds as well.
    isolate(node, &b, Direction::Egress);
    assert!(!kept.asks() && !kept.answers() && cut.goes());
}

#[test]
fn a_stamp_that_comes_round_again_lets_nothing_through() {
    let (mut lab, [a, b, server]) = three();
    let node = &mut lab.nodes[0];
    // Others have marks of their own on every connection.
    node.ns.run("nft add table inet others");
    node.ns.run("nft 'add chain inet others c { type filter hook forward priority -200; }'");
    node.ns.run("nft add rule inet others c ct mark set ct mark or 0x00ffffff");
    let talk = Talk::new(&a, &server, 5001);
    assert!(talk.goes());
    put(node, 1, &[Said::new(Action::Accept, 16).of(B)], Some(17));
    let other = Talk::new(&b, &server, 5002);
    for turn in 0..33 {
        table(node, &server, Direction::Ingress, &[1]);
        assert!(other.goes(), "turn {turn}");
        // Stamps are taken off at every look when few are left, and by a change when none is.
        if turn % 11 == 10 {
            assert_eq!(node.on(Dataplane::mend).unwrap(), Vec::<String>::new());
        }
        // The first flow has been silent since it was allowed, and bears the first stamp of all.
        if turn % 5 == 4 {
            assert!(!talk.answers(), "turn {turn}");
        }
    }
    let flows = node.ns.run("cat /proc/net/nf_conntrack");
    let marks: Vec<u32> = flows
        .lines()
        .filter(|line| line.contains("port=5001") || line.contains("port=5002"))
        .filter_map(|line| line.split("mark=").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    assert!(marks.len() >= 2 && marks.iter().all(|mark| mark & 0x00ff_ffff == 0x00ff_ffff), "{flows}");
}

/// Says stop when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A load of the table and two other stages, three times.
const CHANGES: u32 = 9;

#[test]
fn nothing_is_open_while_an_agent_starts_again_or_stages_change() {
    let (mut lab, [a, b, server]) = three();
    let node = &mut lab.nodes[0];
    put(node, 1, &[Said::new(Action::Accept, 16).of(A)], Some(17));
    table(node, &server, Direction::Ingress, &[1]);
    let (allowed, heard) = (Talk::new(&a, &server, 5001), udp(&server, 5002));
    assert!(allowed.goes());
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed);
    let (sent, lost) = std::thread::scope(|scope| {
        // Whatever fails meanwhile.
        let end = Stop(&stop);
        let denied = scope.spawn(|| {
            let (mut sent, to) = (0_u32, SocketAddr::new(server.v4(), 5002));
            // A port of its own each: every datagram is judged.
            let mut sockets: Vec<_> = (0..200).map(|n| udp(&b, 20_000 + n)).collect();
            while !stopped() {
                for socket in &mut sockets {
                    let _ = socket.send_to(b"hello", to);
                    sent += 1;
                }
            }
            sent
        });
        let goes = scope.spawn(|| {
            let mut lost = 0;
            while !stopped() {
                lost += u32::from(!allowed.goes());
            }
            lost
        });
        for _ in 0..CHANGES / 3 {
            node.restart();
            node.apply_whole();
            let renumbered = [Said::new(Action::Accept, 16).of(SERVER), Said::new(Action::Accept, 16).of(A)];
            put(node, 1, &renumbered, Some(17));
            put(node, 1, &[Said::new(Action::Accept, 16).of(A)], Some(17));
        }
        drop(end);
        (denied.join().unwrap(), goes.join().unwrap())
    });
    assert!(heard.recv(&mut [0; 16]).is_err(), "one of {sent} came through");
    println!("{sent} datagrams denied meanwhile, {lost} exchanges of an allowed flow lost");
    // A change that comes into the middle of a judgement costs the packet, and an exchange is two.
    assert!(lost <= 2 * CHANGES, "{lost} exchanges of an allowed flow lost in {CHANGES} changes");
    assert!(allowed.goes(), "what is allowed goes on");
}

#[test]
fn changes_leave_what_a_load_would() {
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    let blocks = |first: u8, step: usize| -> Vec<Said> {
        let block = |n: u8| Said::new(Action::Deny, 20 + u32::from(n)).block(&format!("10.{n}.0.0/16"), &[]);
        (first..60).step_by(step).map(block).collect()
    };
    for (first, step) in [(0, 1), (3, 2), (0, 3), (1, 1), (59, 1), (0, 1)] {
        put(node, 1, &blocks(first, step), None);
        put(node, 2, &[Said::new(Action::Accept, 16).of(A).port(TCP, 80..=80 + u16::from(first))], Some(17));
        table(node, &server, Direction::Ingress, &[1, 2]);
        // After another hand's transaction everything is looked at.
        node.ns.run("nft add table inet others");
        assert_eq!(node.mend(), Vec::<String>::new(), "{first} {step}");
    }
    node.apply(Delta::StageGone(StageId(1)));
    node.ns.run("nft delete table inet others");
    assert_eq!(node.mend(), Vec::<String>::new());
    let _open = listen(&server, &[80]);
    assert!(!connects(&a.ns, server.v4(), 80), "a stage that is not there is no leave");
}
