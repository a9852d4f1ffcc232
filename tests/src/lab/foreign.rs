//! A peer that we did not write: a node that is only the kernel's own vxlan device and static entries.

use std::net::IpAddr;

use causeway_model::{DEFAULT_VNI, Family, VXLAN_PORT};

use super::{Lab, LabError, Node};

impl Lab {
    /// Adds a foreign node to the first cluster: known by its Node object, speaking VXLAN by hand-made entries. Its own
    /// overlay host addresses and one more of each of its prefixes (see [`foreign_pod`]) are on its tunnel device.
    pub fn add_foreign(&self) -> Result<Node, LabError> {
        let foreign = self.make_node(1, true)?;
        let plan = &foreign.plan;
        let (mac, local) = (plan.node.vtep_mac, plan.node.underlay[0]);
        let mtu = self.record()?.spec.mtu - Family::of(local).tunnel_overhead();
        let mut batch = format!(
            "link add vx0 address {mac} mtu {mtu} up type vxlan id {DEFAULT_VNI} dstport {VXLAN_PORT} local {local} nolearning\n"
        );
        for family in Family::BOTH {
            for address in [foreign.overlay_host_address(family), foreign_pod(&foreign, family)] {
                let nodad = if family == Family::V6 { " nodad" } else { "" };
                batch += &format!("addr add {address}/{} dev vx0{nodad}\n", family.host_length());
            }
        }
        foreign.namespace().ip_batch(&batch)?;
        for node in self.nodes()?.iter().filter(|node| !node.foreign) {
            foreign.namespace().ip_batch(&entries(node))?;
            let (mac, end) = (node.plan.node.vtep_mac, node.plan.node.underlay[0]);
            foreign.exec(&format!("bridge fdb replace {mac} dev vx0 dst {end} self permanent"))?;
        }
        self.await_known(&foreign)?;
        Ok(foreign)
    }
}

/// The address that plays a pod of a foreign node.
pub fn foreign_pod(foreign: &Node, family: Family) -> IpAddr {
    match foreign.overlay_host_address(family) {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + 8).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + 8).into()),
    }
}

/// What a foreign node must be told about one of ours.
fn entries(node: &Node) -> String {
    let mac = node.plan.node.vtep_mac;
    let mut batch = String::new();
    for family in Family::BOTH {
        let gateway = node.overlay_host_address(family);
        batch += &format!("neigh replace {gateway} lladdr {mac} dev vx0 nud permanent\n");
        for prefix in node.plan.node.pod_prefixes_of(family) {
            batch += &format!("route replace {prefix} via {gateway} dev vx0 onlink\n");
        }
    }
    batch
}
