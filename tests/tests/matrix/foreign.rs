//! A peer that we did not write: the kernel's own vxlan device with entries made by hand; and a decoder that we did not write.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::capture::{Capture, Recording};
use causeway_tests::lab::{Lab, Underlay, WireKind, foreign_pod};
use causeway_tests::traffic::{bulk, echo_sizes};

use super::stage::{Matrix, Story};

pub const STORIES: &[(&str, Story)] = &[
    ("the_kernels_vxlan_device_talks_with_pods", the_kernels_vxlan_device_talks_with_pods),
    ("over_ipv6_too", over_ipv6_too),
    ("what_we_send_decodes_without_complaint", what_we_send_decodes_without_complaint),
];

fn the_kernels_vxlan_device_talks_with_pods(matrix: &Matrix) -> anyhow::Result<()> {
    talks(matrix, &matrix.lab(|_| {})?)
}

fn over_ipv6_too(matrix: &Matrix) -> anyhow::Result<()> {
    talks(matrix, &matrix.lab(|spec| spec.underlay = Underlay::V6)?)
}

/// A pod and a foreign peer speak with each other, whoever begins.
fn talks(matrix: &Matrix, lab: &Lab) -> anyhow::Result<()> {
    let (pod, peer) = (lab.add_pod("n1", "a")?, lab.add_foreign()?);
    let meddle = "bridge fdb replace 02:00:00:00:00:99 dev vx0 dst 192.0.2.11 self permanent";
    let wrong_mac = || peer.exec(meddle).and(peer.exec("ip link set vx0 address 02:00:00:00:00:99"));
    matrix.sabotage("foreign-mac-wrong", wrong_mac).transpose()?;
    for family in Family::BOTH {
        let theirs = foreign_pod(&peer, family);
        let ours = pod.address(family);
        ensure!(peer.ping(ours), "the peer asks {ours} first");
        ensure!(pod.ping(theirs), "the pod asks {theirs} first");
        let there = bulk(pod.namespace(), peer.namespace(), theirs, 4 << 20).context("from the pod")?;
        let back = bulk(peer.namespace(), pod.namespace(), ours, 4 << 20).context("to the pod")?;
        ensure!(there.is_intact() && back.is_intact(), "{there:?} {back:?}");
        echo_sizes(peer.namespace(), pod.namespace(), ours, [0, 1, 100, 1300])?;
    }
    Ok(())
}

fn what_we_send_decodes_without_complaint(matrix: &Matrix) -> anyhow::Result<()> {
    for underlay in [Underlay::Both, Underlay::V6] {
        // On this wire frames are whole and their checksums are those that a NIC would send.
        let lab = matrix.lab(|spec| (spec.wire, spec.underlay) = (WireKind::Userspace, underlay))?;
        let (pod, peer) = (lab.add_pod("n1", "a")?, lab.add_foreign()?);
        let capture = Capture::start(peer.namespace(), "eth0")?;
        for family in Family::BOTH {
            let theirs = foreign_pod(&peer, family);
            ensure!(pod.ping(theirs), "{theirs}");
            bulk(pod.namespace(), peer.namespace(), theirs, 1 << 20)?;
            echo_sizes(pod.namespace(), peer.namespace(), theirs, [0, 1, 2, 3, 1300, 4000])?;
        }
        let recording = capture.finish()?;
        let complaints = recording.complaints()?;
        ensure!(complaints.is_empty(), "{underlay}: of {} frames: {complaints:?}", recording.frames);
        headers_are_as_decided(&recording, &lab, underlay).with_context(|| format!("underlay {underlay}"))?;
    }
    Ok(())
}

/// What RFC 7348 and the project's own decisions say of the headers that we send.
fn headers_are_as_decided(recording: &Recording, lab: &Lab, underlay: Underlay) -> anyhow::Result<()> {
    let from = lab.node("n1")?.plan.node.underlay[0];
    let (source, family) = match underlay {
        Underlay::Both => ("ip.src", ["ip.flags.df", "ip.flags.mf"].as_slice()),
        Underlay::V6 => ("ipv6.src", ["ipv6.nxt"].as_slice()),
    };
    let outer = |field: &str| {
        let shown = recording.fields(&format!("vxlan && {source} == {from}"), &[field])?;
        ensure!(shown.len() > 100, "only {} of {} frames are ours", shown.len(), recording.frames);
        Ok(shown
            .iter()
            .map(|all| all.split(',').next().unwrap_or_default().to_owned())
            .collect::<BTreeSet<_>>())
    };
    let only = |field: &str, value: &str| {
        let found = outer(field)?;
        ensure!(found == BTreeSet::from([value.to_owned()]), "{field} is {found:?}, not {value}");
        Ok(())
    };
    only("vxlan.vni", "51717")?;
    only("vxlan.flags", "0x0800")?;
    only("vxlan.reserved8", "0")?;
    only("udp.dstport", "4789")?;
    match underlay {
        Underlay::Both => {
            only("udp.checksum", "0x0000")?;
            only(family[0], "1")?;
            only(family[1], "0")?;
        }
        Underlay::V6 => {
            ensure!(
                !outer("udp.checksum")?.contains("0x0000"),
                "a checksum over IPv6 is computed (RFC 8200 §8.1)"
            );
            only(family[0], "17")?;
        }
    }
    let ports = outer("udp.srcport")?;
    let below = ports.iter().find(|port| port.parse().is_ok_and(|port: u16| port < 49_152));
    ensure!(below.is_none(), "a source port below 49152: {ports:?}");
    ensure!(ports.len() > 3, "all flows share the outer ports {ports:?}");
    Ok(())
}
