//! Whether kube-proxy is there is told by what it leaves in the kernel, whichever of its modes it runs in.

use causeway_kernel_fallback::kube_proxy;

use crate::lab::Namespace;

#[test]
fn kube_proxy_is_found_by_what_each_of_its_modes_leaves() {
    let node = Namespace::new("proxied");
    let found = || node.inside(kube_proxy).expect("the kernel answers");
    assert_eq!(found(), None, "nothing is here");
    node.run("nft add table ip nat");
    node.run("nft add chain ip nat KUBE-MARK-MASQ");
    node.run("nft add table inet kube-proxy");
    assert_eq!(found(), None, "these are others': the plugins' and somebody's of the same name");
    for (family, make, take, what) in [
        ("ip", "nft add table ip kube-proxy", "nft delete table ip kube-proxy", "nftables"),
        ("ip6", "nft add table ip6 kube-proxy", "nft delete table ip6 kube-proxy", "nftables"),
        ("ip", "nft add chain ip nat KUBE-SERVICES", "nft delete chain ip nat KUBE-SERVICES", "iptables"),
    ] {
        node.run(make);
        let told = found().expect(make);
        assert!(told.contains(what) && told.contains(&format!("table {family} ")), "{told}");
        node.run(take);
        assert_eq!(found(), None, "{take}");
    }
    node.run("ip link add kube-ipvs0 type bridge");
    assert!(found().expect("the interface is there").contains("ipvs"));
}
