//! Packets of every size: what fits arrives, what does not is answered.

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::Underlay;
use causeway_tests::namespace::Namespace;
use causeway_tests::traffic::{echo_sizes, too_big};

use super::stage::{Matrix, Story};

pub const STORIES: &[(&str, Story)] = &[
    ("udp_of_every_size_comes_back", udp_of_every_size_comes_back),
    ("fragments_come_back_whole", fragments_come_back_whole),
    ("what_is_too_big_is_answered_with_the_right_mtu", what_is_too_big_is_answered_with_the_right_mtu),
];

/// The bytes of IP and UDP headers.
fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// What a pod's MTU must be: the wire's less the tunnel's overhead over IPv4.
const POD_MTU: usize = 1450;

fn udp_of_every_size_comes_back(matrix: &Matrix) -> anyhow::Result<()> {
    let (stage, step) = (matrix.stage()?, if matrix.full { 1 } else { 37 });
    for (from, to) in stage.near_and_far() {
        for family in Family::BOTH {
            let most = POD_MTU - headers(family);
            let sizes = (0..most).step_by(step).chain([most - 1, most]);
            let what = || format!("{} to {} over {family}", from.name(), to.name());
            echo_sizes(from.namespace(), to.namespace(), to.address(family), sizes).with_context(what)?;
        }
    }
    Ok(())
}

fn fragments_come_back_whole(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    for (from, to) in stage.near_and_far() {
        for family in Family::BOTH {
            let what = || format!("{} to {} over {family}", from.name(), to.name());
            let sizes = [POD_MTU, 4000, 65_507 - 20];
            echo_sizes(from.namespace(), to.namespace(), to.address(family), sizes).with_context(what)?;
        }
    }
    Ok(())
}

fn what_is_too_big_is_answered_with_the_right_mtu(matrix: &Matrix) -> anyhow::Result<()> {
    for (underlay, mtu) in [(Underlay::Both, POD_MTU), (Underlay::V6, POD_MTU - 20)] {
        let lab = matrix.lab(|spec| spec.underlay = underlay)?;
        let (from, near, far) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?);
        matrix.sabotage("too-big-silenced", || silence(lab.node("n1")?.namespace())).transpose()?;
        // A pod that believes in more than the tunnel carries.
        from.exec("ip link set eth0 mtu 9000")?;
        for (to, family) in [&near, &far].into_iter().flat_map(|to| Family::BOTH.map(|family| (to, family))) {
            let what = format!("{} to {} over {family}, underlay {underlay}", from.name(), to.name());
            let told = too_big(from.namespace(), to.address(family), mtu + 1);
            ensure!(told == Ok(u32::try_from(mtu)?), "{what}: {told:?}");
            ensure!(
                too_big(from.namespace(), to.address(family), mtu).is_err(),
                "{what}: what fits is too big"
            );
        }
    }
    Ok(())
}

/// Keeps a node from saying "too big".
fn silence(node: &Namespace) -> anyhow::Result<()> {
    let table = b"table inet fault { chain out { type filter hook output priority 0; \
                  icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }\n}\n";
    node.stdout(&mut causeway_tests::command::parse("nft -f -"), table)?;
    Ok(())
}
