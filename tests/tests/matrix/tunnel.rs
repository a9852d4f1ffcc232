//! The tunnel to the letter, packet for packet: the field log's cases F17 to F24 over both underlays.

mod fragments;
mod inward;
mod narrow;
mod outward;
pub mod packets;

use super::stage::{Matrix, Story};

pub const STORIES: &[(&str, Story)] = &[
    ("what_comes_out_is_as_the_standards_say", inward::over_ipv4),
    ("what_comes_out_is_so_over_ipv6_too", inward::over_ipv6),
    ("what_goes_in_is_as_the_standards_say", outward::over_ipv4),
    ("what_goes_in_is_so_over_ipv6_too", outward::over_ipv6),
    ("fragments_go_where_their_first_goes", fragments::fragments_go_where_their_first_goes),
    ("fragments_that_lie_reach_nobody", fragments::fragments_that_lie_reach_nobody),
    ("a_narrow_path_is_learned", narrow::over_ipv4),
    ("a_narrow_path_is_learned_over_ipv6_too", narrow::over_ipv6),
    ("a_narrow_route_of_the_node_is_learned", narrow::a_narrow_route_of_the_node_is_learned),
    ("another_tunnel_of_the_node_goes_on", inward::another_tunnel_of_the_node_goes_on),
];

/// The network identifier that these labs are configured with.
const VNI: u32 = 4096;
/// The tunnel's header with that identifier, as it is sent.
pub const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0x10, 0, 0];
/// The port of the tunnel.
const TUNNEL: u16 = 4789;

/// What every agent is told of it.
pub fn configured() -> Vec<String> {
    vec![format!("vni: {VNI}")]
}

/// Takes the congestion marks off everything that comes to a node by its uplink.
fn lose_marks(matrix: &Matrix, node: &causeway_tests::lab::Node) -> anyhow::Result<()> {
    let table = b"table netdev fault { chain in { type filter hook ingress device \"eth0\" priority -500; \
                  udp dport 4789 ip ecn set not-ect; udp dport 4789 ip6 ecn set not-ect; }\n}\n";
    let nft = || node.namespace().stdout(&mut causeway_tests::command::parse("nft -f -"), table);
    matrix.sabotage("marks-lost", nft).transpose()?;
    Ok(())
}
