//! Two nodes with servers in their pods and on themselves, and a machine outside; everybody who answers says who they are and whom
//! they saw.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway_model::service::{Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort};
use causeway_model::{Dataplane, Delta, HostServices, PortProtocol, Update};

use crate::lab::{Lab, LabNode, LabPod, Namespace, UNDERLAY};

pub const TCP: PortProtocol = PortProtocol::Tcp;
pub const UDP: PortProtocol = PortProtocol::Udp;
/// Where servers listen.
pub const PORT: u16 = 8080;
pub const LONG: Duration = Duration::from_millis(700);
pub const VIP4: &str = "10.96.0.10";
pub const VIP6: &str = "fd96::10";

/// What a client meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// This one, who saw that address.
    Served(String, IpAddr),
    Refused,
    Silence,
}

impl Met {
    pub fn server(&self) -> &str {
        match self {
            Self::Served(name, _) => name,
            other => panic!("{other:?}"),
        }
    }

    pub fn seen(&self) -> IpAddr {
        match self {
            Self::Served(_, seen) => *seen,
            other => panic!("{other:?}"),
        }
    }
}

/// Answers TCP and UDP with its name and whom it saw, for as long as it is held.
pub struct Server(Arc<AtomicBool>);

impl Server {
    pub fn new(ns: &Namespace, name: &str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = ns.inside(|| TcpListener::bind(("::", port))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let says = |name: &str, peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
        let (own, ends) = (name.to_owned(), stop.clone());
        std::thread::spawn(move || {
            let mut open = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, peer)) => {
                        let _ = stream.write_all(says(&own, peer).as_bytes());
                        open.push(stream);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        // One socket an address: a datagram is answered from where it was sent to.
        for address in addresses(ns) {
            let udp = ns.inside(|| UdpSocket::bind((address, port))).unwrap();
            udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let (own, ends) = (name.to_owned(), stop.clone());
            std::thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    if let Ok((_, peer)) = udp.recv_from(&mut [0; 64]) {
                        let _ = udp.send_to(says(&own, peer).as_bytes(), peer);
                    }
                }
            });
        }
        Self(stop)
    }
}

/// The addresses of a namespace that mean the same everywhere.
fn addresses(ns: &Namespace) -> Vec<IpAddr> {
    let said = ns.run("ip -o addr show scope global");
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    said.lines().filter_map(address).collect()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn read(bytes: &[u8]) -> Met {
    let said = std::str::from_utf8(bytes).unwrap();
    let (name, seen) = said.split_once(' ').unwrap();
    Met::Served(name.to_owned(), seen.parse().unwrap())
}

fn failed(error: &std::io::Error) -> Met {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::ConnectionReset => {
            Met::Refused
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::PermissionDenied => Met::Silence,
        _ => panic!("{error}"),
    }
}

/// Opens a connection, and what its server says.
pub fn open(from: &Namespace, to: SocketAddr) -> Result<(TcpStream, Met), Met> {
    let connect = || TcpStream::connect_timeout(&to, LONG);
    let mut stream = from.inside(connect).map_err(|error| failed(&error))?;
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes).map_err(|error| failed(&error))?;
    let met = read(&bytes[..length]);
    Ok((stream, met))
}

pub fn tcp(from: &Namespace, to: SocketAddr) -> Met {
    open(from, to).map_or_else(|met| met, |(_, met)| met)
}

/// A socket that asks one address again and again.
pub struct Asker(UdpSocket);

impl Asker {
    pub fn new(from: &Namespace, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = from.inside(|| UdpSocket::bind((any, 0))).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        from.inside(|| socket.connect(to)).unwrap();
        Self(socket)
    }

    pub fn ask(&self) -> Met {
        match self.0.send(b"?") {
            // Who may not send is told why, if he was refused.
            Err(error) if error.kind() != ErrorKind::PermissionDenied => return failed(&error),
            _ => {}
        }
        let mut bytes = [0; 64];
        match self.0.recv(&mut bytes) {
            Ok(length) => read(&bytes[..length]),
            Err(error) => failed(&error),
        }
    }
}

pub fn udp(from: &Namespace, to: SocketAddr) -> Met {
    Asker::new(from, to).ask()
}

/// An address, written or not.
pub struct Address(IpAddr);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(address)
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(text.parse().unwrap())
    }
}

pub fn at(address: impl Into<Address>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into().0, port)
}

pub fn frontend(address: &str, protocol: PortProtocol, port: u16) -> Frontend {
    Frontend { at: At::Address(address.parse().unwrap()), protocol, port }
}

pub fn node_port(family: causeway_model::Family, protocol: PortProtocol, port: u16) -> Frontend {
    Frontend { at: At::Nodes(family), protocol, port }
}

pub fn service(inside: Answer, outside: Answer) -> Service {
    let id = ServicePort {
        cluster: "lyon".parse().unwrap(),
        namespace: "default".into(),
        name: "web".into(),
        port: String::new(),
    };
    Service { id, inside, outside, sources: None, affinity: None }
}

/// The same from everywhere.
pub fn served(id: u32) -> Service {
    service(Answer::Backends(BackendsId(id)), Answer::Backends(BackendsId(id)))
}

pub fn backends(id: u32, chosen: &[IpAddr]) -> Delta {
    backends_at(id, chosen, &[], PORT)
}

pub fn backends_at(id: u32, chosen: &[IpAddr], leaving: &[IpAddr], port: u16) -> Delta {
    let all = |of: &[IpAddr]| of.iter().map(|address| Backend { address: *address, port }).collect();
    Delta::Backends(BackendsId(id), Arc::new(Backends::alike(all(chosen), all(leaving))))
}

/// Applies changes in one update.
pub fn change(node: &mut LabNode, deltas: Vec<Delta>) {
    node.on(|dataplane| dataplane.apply(Update::Changes(&deltas))).unwrap();
    deltas.into_iter().for_each(|delta| node.snapshot.apply(delta));
}

pub struct World {
    pub lab: Lab,
    /// On the first node.
    pub client: LabPod,
    pub near: LabPod,
    /// On the second.
    pub far: LabPod,
    pub outside: Namespace,
    _servers: Vec<Server>,
}

/// The addresses of the machine outside, the last one away from the nodes' network.
pub const OUTSIDE: [&str; 3] = ["192.0.2.77", "2001:db8::77", "203.0.113.9"];

impl World {
    pub fn new() -> Self {
        Self::of(HostServices::Own)
    }

    /// Nobody is served yet.
    pub fn of(host_services: HostServices) -> Self {
        let mut lab = Lab::bare(2, &UNDERLAY);
        for node in &mut lab.nodes {
            node.snapshot.settings.host_services = host_services;
            node.apply_whole();
            // Where what nobody knows would go.
            node.ns.run("ip route add default via 192.0.2.77");
            node.ns.run("ip -6 route add default via 2001:db8::77");
        }
        let (client, near, far) = (lab.add_pod(0), lab.add_pod(0), lab.add_pod(1));
        let outside = Namespace::new("outside");
        lab.switch.run(&format!("ip link add o77 type veth peer name eth0 netns {}", outside.name));
        lab.switch.run("ip link set o77 master br0 up");
        outside.run(&format!("ip addr add {}/24 dev eth0", OUTSIDE[0]));
        outside.run(&format!("ip addr add {}/64 dev eth0 nodad", OUTSIDE[1]));
        outside.run("ip link set eth0 up");
        outside.run(&format!("ip addr add {}/32 dev lo", OUTSIDE[2]));
        let mut servers = Vec::new();
        for (ns, name) in
            [(&client.ns, "client"), (&near.ns, "near"), (&far.ns, "far"), (&outside, "outside")]
        {
            servers.push(Server::new(ns, name, PORT));
        }
        for (index, node) in lab.nodes.iter().enumerate() {
            servers.push(Server::new(&node.ns, &format!("node{index}"), PORT));
        }
        let mut world = Self { lab, client, near, far, outside, _servers: servers };
        world.settle();
        let prefixes = ["10.96.0.0/16", "fd96::/112"].map(|prefix| prefix.parse().unwrap());
        for number in 0..2 {
            let mut deltas = vec![Delta::ServicePrefixes(prefixes.to_vec())];
            deltas.extend([VIP4, VIP6].map(|vip| Delta::ServiceAddress(vip.parse().unwrap())));
            change(&mut world.lab.nodes[number], deltas);
        }
        // The clients from outside reach services by the first node.
        world.outside.run("ip route add 10.96.0.0/16 via 192.0.2.1");
        world.outside.run("ip -6 route add fd96::/112 via 2001:db8::1");
        world.outside.run("ip route add 10.70.1.0/24 via 192.0.2.1");
        world
    }

    /// The kernel opens the queue of a link a moment after its other end came up.
    fn settle(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        let pods = [(&self.client, 0), (&self.near, 0), (&self.far, 1)];
        for (pod, node) in pods {
            for address in [pod.v4(), pod.v6()] {
                while !self.lab.nodes[node].ns.ping(address, "-W 1") && Instant::now() < until {}
            }
        }
    }

    pub fn node(&mut self) -> &mut LabNode {
        &mut self.lab.nodes[0]
    }

    /// Serves both ClusterIPs at port 80, TCP and UDP, by these.
    pub fn serve(&mut self, v4: &[IpAddr], v6: &[IpAddr]) {
        let mut deltas = vec![backends(4, v4), backends(6, v6)];
        for protocol in [TCP, UDP] {
            deltas.push(Delta::Service(frontend(VIP4, protocol, 80), Box::new(served(4))));
            deltas.push(Delta::Service(frontend(VIP6, protocol, 80), Box::new(served(6))));
        }
        change(self.node(), deltas);
    }

    pub fn drops(&mut self, reason: causeway_model::DropReason) -> u64 {
        let counters = self.node().on(Dataplane::counters).unwrap();
        counters.drops.get(&reason).map_or(0, |count| count.packets)
    }
}
