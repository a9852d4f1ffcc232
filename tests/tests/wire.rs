//! The lab without agents: what joins the nodes, and what the user-space wire does to frames.

use std::time::{Duration, Instant};

use causeway_model::Family;
use causeway_tests::lab::{Lab, LabSpec, WireKind, names, remove};
use causeway_tests::traffic::{Pings, pings};

/// A lab of two bare nodes.
fn bare(name: &str, wire: WireKind) -> Lab {
    let name = format!("{name}-{}", std::process::id());
    Lab::up(LabSpec { wire, agents: false, ..LabSpec::named(name) }).expect("root, and a free name")
}

/// What comes of so many pings from the first node to the second, in quick succession.
fn ping(lab: &Lab, count: u32) -> Pings {
    let to = lab.node("n2").expect("two nodes").address(Family::V4);
    pings(lab.node("n1").expect("two nodes").namespace(), to, count, 0.002)
}

#[test]
fn both_wires_carry_both_families_and_leave_nothing() {
    for wire in [WireKind::Bridge, WireKind::Userspace] {
        let lab = bare("both", wire);
        let name = lab.name().to_owned();
        let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
        for family in Family::BOTH {
            assert!(n1.ping(n2.address(family)), "{wire} {family}");
        }
        let processes: Vec<_> = lab.record().unwrap().processes().collect();
        drop(lab);
        assert!(processes.iter().all(|process| !process.is_alive()), "{wire}");
        assert!(!names().contains(&name), "{wire}");
        assert!(!n1.namespace().exists() && !n2.namespace().exists(), "{wire}");
        remove(&name).unwrap();
    }
}

#[test]
fn a_lab_goes_even_when_its_test_panics() {
    let name = std::thread::spawn(|| {
        let lab = bare("panics", WireKind::Bridge);
        std::panic::panic_any(lab.name().to_owned());
    });
    let name = *name.join().expect_err("it panics").downcast::<String>().unwrap();
    assert!(!names().contains(&name));
}

#[test]
fn a_delay_is_measured_and_goes_again() {
    let lab = bare("delay", WireKind::Userspace);
    assert!(ping(&lab, 5).average < 10.0);
    lab.wire(&["delay=20ms"]).unwrap();
    let time = ping(&lab, 5).average;
    assert!((40.0..60.0).contains(&time), "{time} ms");
    lab.wire(&["clear", "n2>n1:delay=20ms"]).unwrap();
    let time = ping(&lab, 5).average;
    assert!((20.0..40.0).contains(&time), "{time} ms");
    lab.wire(&["clear"]).unwrap();
    assert!(ping(&lab, 5).average < 10.0);
}

#[test]
fn loss_is_what_was_asked_for() {
    let lab = bare("loss", WireKind::Userspace);
    ping(&lab, 1);
    lab.wire(&["n1:loss=30%", "seed=1"]).unwrap();
    let lost = ping(&lab, 200).loss();
    assert!((20.0..40.0).contains(&lost), "{lost} %");
    let tally = lab.wire(&[]).unwrap().ports["n1"];
    assert!((40..80).contains(&tally.lost), "{tally:?}");
}

#[test]
fn a_cut_is_in_one_direction() {
    let lab = bare("cut", WireKind::Userspace);
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    assert!(n1.ping(n2.address(Family::V4)));
    let before = lab.wire(&["cut=n1>n2"]).unwrap().ports;
    assert!(!n1.ping(n2.address(Family::V4)) && !n2.ping(n1.address(Family::V4)));
    let after = lab.wire(&[]).unwrap().ports;
    assert!(after["n1"].cut > 0 && after["n2"].cut == 0, "{after:?}");
    assert!(after["n2"].sent > before["n2"].sent, "the other direction carries on");
    lab.wire(&["mend=n1>n2"]).unwrap();
    assert!(n1.ping(n2.address(Family::V4)));
}

#[test]
fn damage_is_seen_by_checksums_and_duplicates_by_ping() {
    let lab = bare("damage", WireKind::Userspace);
    ping(&lab, 1);
    lab.wire(&["n1:duplicate=100%"]).unwrap();
    // ping ends with the last first answer, without waiting for its double.
    assert!(ping(&lab, 3).duplicates >= 2);
    lab.wire(&["clear", "n1>n2:corrupt=100%"]).unwrap();
    let lost = ping(&lab, 50).loss();
    assert!(lost > 50.0, "{lost} %: most bits of a ping are guarded by a checksum or an address");
}

#[test]
fn the_mtu_of_the_wire_holds_back_what_is_longer() {
    let lab = bare("mtu", WireKind::Userspace);
    let (n1, to) = (lab.node("n1").unwrap(), lab.node("n2").unwrap().address(Family::V4));
    lab.wire(&["mtu=1400"]).unwrap();
    assert!(n1.exec(&format!("ping -c 1 -W 1 -M do -s 1372 {to}")).is_ok());
    assert!(n1.exec(&format!("ping -c 1 -W 1 -M do -s 1373 {to}")).is_err());
}

#[test]
fn several_labs_stand_side_by_side_and_orders_name_what_is_wrong() {
    let (a, b) = (bare("side-a", WireKind::Userspace), bare("side-b", WireKind::Bridge));
    assert!(a.node("n1").unwrap().ping(a.node("n2").unwrap().address(Family::V6)));
    assert!(b.node("n1").unwrap().ping(b.node("n2").unwrap().address(Family::V6)));
    let again =
        Lab::up(LabSpec { agents: false, ..LabSpec::named(a.name()) }).expect_err("the name is taken");
    assert!(again.to_string().contains("is there already"), "{again}");
    assert!(Lab::open(a.name()).is_ok(), "a refused lab takes nothing along");
    let error = a.wire(&["delay=20"]).expect_err("no unit").to_string();
    assert!(error.contains("delay=20: not as in 20ms"), "{error}");
    let error = b.wire(&["delay=20ms"]).expect_err("a bridge").to_string();
    assert!(error.contains("--wire userspace"), "{error}");
    let error = a.node("n7").expect_err("two nodes").to_string();
    assert!(error.contains("no node \"n7\"") && error.contains("n1, n2"), "{error}");
    let error = Lab::open("no-such-lab").expect_err("none").to_string();
    assert!(error.contains("no lab \"no-such-lab\""), "{error}");
}

#[test]
fn nodes_come_and_go_on_both_wires() {
    for wire in [WireKind::Bridge, WireKind::Userspace] {
        let lab = bare("come", wire);
        let peer = lab.add_foreign().unwrap();
        let n1 = lab.node("n1").unwrap();
        assert!(n1.ping(peer.address(Family::V4)), "{wire}");
        lab.remove_node(peer.name()).unwrap();
        assert!(!peer.namespace().exists());
        let began = Instant::now();
        assert!(!n1.ping(peer.address(Family::V4)), "{wire}");
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}
