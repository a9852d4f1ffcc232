//! A peer: the kernel's own VXLAN as one would set it up by hand, over the same kind of wire, with two pods on one node and one
//! on the other.

use anyhow::{Context, Result};
use causeway_model::Family;
use causeway_tests::lab::{Datapath, Node};

use super::scratch::Place;
use super::stand::Stand;

/// Nodes, wire and pods.
pub struct Plain {
    // The pods' links go with the nodes'.
    stand: Stand,
    /// Two pods on the first node and one on the second, with their addresses.
    pub pods: [(Place, String); 3],
}

impl Plain {
    /// Sets it up.
    pub fn up() -> Result<Self> {
        let stand = Stand::up("bench-plain", Datapath::Kernel, |spec| spec.agents = false)?;
        let nodes = [stand.lab.node("n1")?, stand.lab.node("n2")?];
        for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            tunnel(node, other).with_context(|| format!("the tunnel of {}", node.name()))?;
        }
        let pod = |name, node: &Node, last| -> Result<_> {
            let place = Place::new(name)?;
            let address = format!("10.70.{}.{last}", node.plan.number);
            plug(node, &place, name, &address).with_context(|| format!("pod {name}"))?;
            Ok((place, address))
        };
        let pods = [pod("pa", &nodes[0], 10)?, pod("pb", &nodes[1], 10)?, pod("pc", &nodes[0], 11)?];
        Ok(Self { stand, pods })
    }

    /// Takes the offloads of a real wire away: frames leave as they would leave a NIC without any.
    pub fn without_offloads(&self) -> Result<()> {
        self.stand.without_offloads()
    }
}

fn tunnel(node: &Node, other: &Node) -> Result<()> {
    let (own, far) = (node.plan.number, other.plan.number);
    let (local, remote) = (node.address(Family::V4), other.address(Family::V4));
    let namespace = node.namespace();
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.ip_batch(&format!(
        "link add vx type vxlan id 4096 dstport 4789 local {local} dev eth0 nolearning\n\
         link set vx address 66:00:00:00:00:0{own} mtu 1450 up\n\
         neigh add 10.70.{far}.0 lladdr 66:00:00:00:00:0{far} dev vx\n\
         addr add 10.70.{own}.0/32 dev vx\n\
         route add 10.70.{far}.0/24 via 10.70.{far}.0 dev vx onlink\n"
    ))?;
    namespace.exec(&format!("bridge fdb add 66:00:00:00:00:0{far} dev vx dst {remote}"))?;
    Ok(())
}

fn plug(node: &Node, place: &Place, link: &str, address: &str) -> Result<()> {
    let pod = &place.namespace;
    node.namespace().ip_batch(&format!(
        "link add {link} type veth peer name eth0 netns {}\n\
         link set {link} up\naddr add 169.254.1.1/32 dev {link}\nroute add {address}/32 dev {link}\n",
        pod.name()
    ))?;
    pod.ip_batch(&format!(
        "link set eth0 up mtu 1450\naddr add {address}/32 dev eth0\n\
         route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n"
    ))?;
    Ok(())
}
