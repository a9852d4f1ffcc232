//! The same on a node whose tunnel is the fast path's: its pods and other nodes' are reached by `cw-host`.

use causeway_model::{Delta, Family, HostServices, Masquerade, Path, PortKind, TunnelOwner};

use super::world::{
    Met, OUTSIDE, PORT, Server, TCP, UDP, VIP4, at, backends, change, frontend, node_port, served, tcp, udp,
};
use crate::lab::{Lab, Namespace, UNDERLAY};

#[test]
fn fast_pods_are_served_and_sent_out_as_kernel_pods_are() {
    let mut lab = Lab::bare(2, &UNDERLAY);
    let node = &mut lab.nodes[0];
    node.snapshot.settings.tunnel = TunnelOwner::FastPath;
    node.snapshot.settings.host_services = HostServices::Own;
    node.snapshot.settings.masquerade = Some(Masquerade::default());
    // The fast path, as a namespace that has the addresses of its pod and of another node's.
    let fast = Namespace::new("fast");
    node.ns.run(&format!("ip link add cw-host type veth peer name eth0 netns {}", fast.name));
    let mut endpoint = node.new_endpoint();
    (endpoint.path, endpoint.port) = (Path::Fast, PortKind::Tap);
    let (near, far) = (endpoint.addresses[0], "10.70.2.3".parse().unwrap());
    fast.run(&format!("ip link set eth0 address {} up", causeway_model::GATEWAY_MAC));
    for address in [near, far] {
        fast.run(&format!("ip addr add {address}/32 dev eth0"));
    }
    node.snapshot.endpoints.insert(endpoint.key.clone(), endpoint);
    node.apply_whole();
    node.ns.run("ip route add default via 192.0.2.77");
    let pod = node.add_pod();
    let mac = node.snapshot.settings.node.vtep_mac;
    fast.run("ip route replace default via 169.254.1.1 dev eth0 onlink");
    fast.run(&format!("ip neigh replace 169.254.1.1 lladdr {mac} dev eth0 nud permanent"));
    let outside = Namespace::new("outside");
    lab.switch.run(&format!("ip link add o77 type veth peer name eth0 netns {}", outside.name));
    lab.switch.run("ip link set o77 master br0 up");
    outside.run(&format!("ip addr add {}/24 dev eth0", OUTSIDE[0]));
    outside.run("ip link set eth0 up");
    let _servers = [Server::new(&fast, "fast", PORT), Server::new(&outside, "outside", PORT)];
    let node = &mut lab.nodes[0];
    let here = node.underlay(0);
    let host = node.overlay(Family::V4);
    for (backend, seen_from_outside) in [(near, OUTSIDE[0].parse().unwrap()), (far, host)] {
        let mut deltas = vec![backends(1, &[backend])];
        for protocol in [TCP, UDP] {
            for at in [frontend(VIP4, protocol, 80), node_port(Family::V4, protocol, 30080)] {
                deltas.push(Delta::Service(at, Box::new(served(1))));
            }
        }
        change(node, deltas);
        let met = Met::Served("fast".into(), seen_from_outside);
        assert_eq!((tcp(&outside, at(here, 30080)), udp(&outside, at(here, 30080))), (met.clone(), met));
        let met = Met::Served("fast".into(), pod.v4());
        for to in [at(VIP4, 80), at(here, 30080)] {
            assert_eq!((tcp(&pod.ns, to), udp(&pod.ns, to)), (met.clone(), met.clone()), "{to}");
            assert_eq!(tcp(&node.ns, to).server(), "fast", "{to}");
        }
    }
    assert_eq!(tcp(&pod.ns, at(OUTSIDE[0], PORT)), Met::Served("outside".into(), here));
    // Of two addresses it takes the first, which is the pod's.
    assert_eq!(tcp(&fast, at(OUTSIDE[0], PORT)), Met::Served("outside".into(), here));
    assert_eq!(udp(&fast, at(OUTSIDE[0], PORT)), Met::Served("outside".into(), here));
}
