//! Packets of every size: what fits arrives, what does not is answered.

use anyhow::{Context, ensure};
use causeway_model::Family;
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
    let lab = matrix.lab(|_| {})?;
    let (from, near, far) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?);
    let table = b"table inet fault { chain out { type filter hook output priority 0; \
                  icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }\n}\n";
    let node = lab.node("n1")?;
    matrix
        .sabotage("too-big-silenced", || {
            let mut nft = std::process::Command::new("nft");
            node.namespace().stdout(nft.args(["-f", "-"]), table)
        })
        .transpose()
        .context("silencing the node")?;
    // A pod that believes in more than the tunnel carries.
    from.exec("ip link set eth0 mtu 9000")?;
    for to in [&near, &far] {
        for family in Family::BOTH {
            let told = too_big(from.namespace(), to.address(family), POD_MTU + 1);
            let what = format!("{} to {} over {family}", from.name(), to.name());
            ensure!(told == Ok(u32::try_from(POD_MTU)?), "{what}: {told:?}");
        }
    }
    Ok(())
}
