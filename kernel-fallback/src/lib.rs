//! The data path kept by the Linux kernel: veth, vxlan, routes, neighbours, nftables.
