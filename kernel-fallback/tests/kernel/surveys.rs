//! A look that holds nobody up sees what is broken, and is not misled by what changes meanwhile.

use causeway_kernel_fallback::{KernelDataplane, Survey};

use crate::lab::{Lab, LabNode, Namespace, UNDERLAY};

fn survey(node: &mut LabNode) -> Survey {
    node.on(KernelDataplane::survey).expect("there is a state")
}

/// Looks, does something beside it, and mends what was seen.
fn mend_beside(node: &mut LabNode, meanwhile: impl FnOnce(&mut LabNode)) -> Vec<String> {
    let survey = survey(node);
    let sight = node.on(|_| survey.look()).unwrap();
    meanwhile(node);
    node.on(|dataplane| dataplane.mend_seen(&sight)).unwrap()
}

#[test]
fn what_was_broken_before_a_look_is_mended_after_it() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let a = lab.add_pod(0);
    let (link, v4) = (a.endpoint.key.link_name(), a.v4());
    let node = &mut lab.nodes[0];
    assert_eq!(mend_beside(node, |_| ()), Vec::<String>::new());
    for tampering in [
        format!("ip route del {v4}"),
        format!("ip neigh del {v4} dev {link}"),
        format!("sysctl -qw net.ipv4.conf.{link}.forwarding=0"),
        format!("sysctl -qw net.ipv4.conf.{link}.arp_ignore=0"),
        format!("sysctl -qw net.ipv6.conf.{link}.forwarding=0"),
        format!("sysctl -qw net.ipv6.conf.{link}.accept_dad=1"),
        format!("sysctl -qw net.ipv6.conf.{link}.accept_ra=1"),
        format!("sysctl -qw net.ipv6.conf.{link}.addr_gen_mode=0"),
        "sysctl -qw net.ipv4.conf.cw-vxlan.rp_filter=1".to_owned(),
        format!("ip link set {link} mtu 1400"),
        "ip route add 10.70.9.0/24 dev cw-vxlan proto 202".to_owned(),
        format!("ip link del {link}"),
        "ip link del cw-vxlan".to_owned(),
        "nft delete table inet causeway".to_owned(),
    ] {
        node.ns.run(&tampering);
        assert!(!mend_beside(node, |_| ()).is_empty(), "{tampering} is not seen");
        assert_eq!(node.mend(), Vec::<String>::new(), "{tampering} is not mended whole");
    }
    assert!(node.ns.ping(v4, ""), "all is mended and nothing passes");
}

#[test]
fn what_comes_and_goes_beside_a_look_is_not_taken_for_broken() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let node = &mut lab.nodes[0];
    let goes = node.add_pod();
    let (comes, ns) = (node.new_endpoint(), Namespace::new("pod"));
    // Began before, looks behind.
    let before = survey(node);
    node.plug(&comes, &ns);
    node.unplug(&goes.endpoint);
    let sight = node.on(|_| before.look()).unwrap();
    assert_eq!(node.on(|dataplane| dataplane.mend_seen(&sight)).unwrap(), Vec::<String>::new());
    // Looks before, mends behind.
    let mended = mend_beside(node, |node| {
        node.unplug(&comes);
        node.plug(&comes, &ns);
    });
    assert_eq!(mended, Vec::<String>::new());
    // What nobody looked at is left for the next time: that is all that it saves.
    let link = comes.key.link_name();
    let tampering = format!("ip neigh del {} dev {link}", comes.addresses[0]);
    assert_eq!(mend_beside(node, |node| drop(node.ns.run(&tampering))), Vec::<String>::new());
    assert_eq!(mend_beside(node, |_| ()).len(), 1);
}
