//! Two nodes and a pod: the state in which the pipeline is measured, and the frames that fit it, made by code that is not ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path as FilePath;

use anyhow::{Context, Result};
use causeway_model::{
    DEFAULT_VNI, DropReason, Endpoint, EndpointKey, Family, GATEWAY_MAC, Identity, MacAddr, NameServer, Node,
    Overlay, Path, PortKind, Settings, Snapshot, TunnelOwner, UplinkKind, VXLAN_PORT, Vni,
};
use causeway_tests::lab::{NodePlan, Underlay};
use causeway_tests::pcap::PcapWriter;
use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use serde_json::Value;

use super::rules::{self, Ruled};

/// Octets of payload that make the inner frame one of the smallest that Ethernet carries, less its checksum.
const PAYLOAD: [u8; 18] = [b'x'; 18];
/// Flows before the next address comes.
const PORTS: u32 = 60_000;
const REMOTES: u32 = 200;
/// What all flows are for.
pub const PORT: u16 = 80;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the pod into the tunnel.
    Encap,
    /// Out of the tunnel to the pod.
    Decap,
}

impl Direction {
    /// The word in records.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Encap => "encap",
            Direction::Decap => "decap",
        }
    }
}

/// Who is there.
#[derive(Clone)]
pub struct Scene {
    /// The node that is measured.
    pub here: Node,
    /// The other one.
    pub there: Node,
    /// The pod on this node.
    pub pod: Ipv4Addr,
    pod_mac: MacAddr,
    vni: Vni,
    /// What the pod may do; everything where there is no policy.
    ruled: Option<Ruled>,
}

impl Scene {
    /// The one scene.
    pub fn new() -> Result<Self> {
        let node = |number| NodePlan::new(number, 1, Underlay::Both).map(|plan| plan.node);
        let pod_mac = MacAddr([0x02, 0, 0, 0, 0x01, 0x0a]);
        let vni = Vni::try_from(DEFAULT_VNI).context("the network identifier")?;
        Ok(Self {
            here: node(1)?,
            there: node(2)?,
            pod: Ipv4Addr::new(10, 70, 1, 10),
            pod_mac,
            vni,
            ruled: None,
        })
    }

    /// The same with these policies.
    pub fn ruled_by(&self, policies: &[Value]) -> Result<Self> {
        Ok(Self { ruled: Some(rules::compile(self, policies)?), ..self.clone() })
    }

    /// Where a node's tunnel ends.
    pub fn tunnel_address(node: &Node) -> Result<Ipv4Addr> {
        match node.tunnel_address(Family::V4) {
            Some(IpAddr::V4(address)) => Ok(address),
            _ => anyhow::bail!("node {} has no IPv4 address", node.id),
        }
    }

    /// What the pod is known by.
    pub fn key() -> EndpointKey {
        EndpointKey { network: "pods".into(), container: "bench".into(), interface: "eth0".into() }
    }

    /// The network identifier.
    pub fn vni(&self) -> Vni {
        self.vni
    }

    /// The state that the fast path is told.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let settings = Settings {
            overlay: Overlay { vni: self.vni, port: VXLAN_PORT },
            node: self.here.clone(),
            tunnel_address: Self::tunnel_address(&self.here)?.into(),
            tunnel: TunnelOwner::FastPath,
            uplink: UplinkKind::Ethdev,
            pod_mtu: 1450,
            connections: Default::default(),
            host_services: Default::default(),
            masquerade: None,
            names: NameServer::default(),
        };
        let mut snapshot = Snapshot::new(settings);
        snapshot.peers.insert(self.there.id.clone(), self.there.clone());
        let (identity, policy) = match &self.ruled {
            Some(Ruled { identity, tables, book }) => {
                snapshot.policy = book.clone();
                (*identity, tables.clone())
            }
            None => (Identity(Identity::FIRST_INTERNED), Default::default()),
        };
        let endpoint = Endpoint {
            key: Self::key(),
            pod: None,
            addresses: vec![self.pod.into()],
            mac: self.pod_mac,
            mtu: 1450,
            routes: None,
            labels: BTreeMap::new(),
            identity,
            path: Path::Fast,
            path_reason: "it is measured".into(),
            port: PortKind::Tap,
            port_mappings: Vec::new(),
            bandwidth: Default::default(),
            deny_new: false,
            policy,
        };
        snapshot.endpoints.insert(endpoint.key.clone(), endpoint);
        Ok(snapshot)
    }

    /// Writes a file with one frame of each of so many flows, as they come in.
    pub fn write(&self, direction: Direction, flows: u32, file: &FilePath) -> Result<()> {
        self.write_sample(direction, flows, 0, file)
    }

    /// The same, the first few of them such that nobody may receive them.
    pub fn write_sample(
        &self,
        direction: Direction,
        flows: u32,
        strangers: u32,
        file: &FilePath,
    ) -> Result<()> {
        let doing = || format!("writing {}", file.display());
        let mut pcap = PcapWriter::new(BufWriter::new(File::create(file).with_context(doing)?))?;
        for flow in 0..flows {
            let stranger = flow < strangers;
            let frame = match direction {
                Direction::Encap => self.pod_frame(flow, stranger),
                Direction::Decap => self.tunnel_frame(flow, stranger),
            };
            pcap.frame(&frame.with_context(doing)?).with_context(doing)?;
        }
        pcap.finish().with_context(doing)?;
        Ok(())
    }

    /// One frame as it comes in, without the inner checksum that would be another one for each flow.
    pub fn frame(&self, direction: Direction) -> Result<Vec<u8>> {
        let mut frame = match direction {
            Direction::Encap => self.pod_frame(0, false),
            Direction::Decap => self.tunnel_frame(0, false),
        }?;
        let checksum = frame.len() - PAYLOAD.len() - 2;
        frame[checksum..checksum + 2].fill(0);
        Ok(frame)
    }

    /// The remote pods.
    pub fn remotes() -> impl Iterator<Item = Ipv4Addr> {
        (0..REMOTES).map(|pod| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 70, 2, 10)) + pod))
    }

    /// The remote pod of a flow and the port of its source.
    fn remote(flow: u32) -> (Ipv4Addr, u16) {
        let pod = (flow / PORTS * 7 + flow / 200) % REMOTES;
        (Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 70, 2, 10)) + pod), (1024 + flow % PORTS) as u16)
    }

    /// What a pod sends; a stranger is a pod that uses an address of another one.
    fn pod_frame(&self, flow: u32, stranger: bool) -> Result<Vec<u8>> {
        let (remote, port) = Self::remote(flow);
        let source = if stranger { remote } else { self.pod };
        Ok(datagram((self.pod_mac, GATEWAY_MAC), (source, remote), (port, PORT), &PAYLOAD, true)?)
    }

    /// What the other node sends; a stranger is another network's.
    fn tunnel_frame(&self, flow: u32, stranger: bool) -> Result<Vec<u8>> {
        let (remote, port) = Self::remote(flow);
        let macs = (self.there.vtep_mac, self.here.vtep_mac);
        let inner = datagram(macs, (remote, self.pod), (port, PORT), &PAYLOAD, true)?;
        let vni = u32::from(self.vni) ^ u32::from(stranger);
        let header = [0x0800_0000_u32.to_be_bytes(), (vni << 8).to_be_bytes()].concat();
        let macs = (Self::peer_mac(), Self::uplink_mac());
        let nodes = (Self::tunnel_address(&self.there)?, Self::tunnel_address(&self.here)?);
        let entropy = (49_152 + flow.wrapping_mul(7919) % 16_384) as u16;
        Ok(datagram(macs, nodes, (entropy, VXLAN_PORT), &[&header[..], &inner].concat(), false)?)
    }

    /// As what a stranger is dropped.
    pub fn stranger(direction: Direction) -> DropReason {
        match direction {
            Direction::Encap => DropReason::SpoofedAddress,
            Direction::Decap => DropReason::NoSuchTunnel,
        }
    }

    /// Whether a frame that went out, as the decoder's `ip.src`, `ip.dst`, `vxlan.vni` and `eth.dst`, is what it should be.
    pub fn is_as_it_should_be(&self, direction: Direction, line: &str) -> Result<bool> {
        let fields: Vec<Vec<_>> = line.split('\t').map(|field| field.split(',').collect()).collect();
        let [from, to, vni, mac] = fields.as_slice() else { return Ok(false) };
        let remote = |address: &str| {
            let address = address.parse::<IpAddr>();
            address.is_ok_and(|address| self.there.pod_prefixes.iter().any(|prefix| prefix.contains(address)))
        };
        let (here, there) = (Self::tunnel_address(&self.here)?, Self::tunnel_address(&self.there)?);
        let (here, there, pod) = (here.to_string(), there.to_string(), self.pod.to_string());
        let (vtep, hop, own) =
            (self.there.vtep_mac.to_string(), Self::peer_mac().to_string(), self.pod_mac.to_string());
        Ok(match direction {
            Direction::Encap => {
                *from == [here.as_str(), pod.as_str()]
                    && matches!(to.as_slice(), [outer, inner] if *outer == there && remote(inner))
                    && *vni == [u32::from(self.vni).to_string().as_str()]
                    && *mac == [hop.as_str(), vtep.as_str()]
            }
            Direction::Decap => {
                matches!(from.as_slice(), [inner] if remote(inner))
                    && *to == [pod.as_str()]
                    && *vni == [""]
                    && *mac == [own.as_str()]
            }
        })
    }

    /// The hardware address of the uplink of this node.
    pub fn uplink_mac() -> MacAddr {
        MacAddr([0x02, 0xaa, 0, 0, 0, 0x01])
    }

    /// The hardware address behind the uplink of the other node.
    pub fn peer_mac() -> MacAddr {
        MacAddr([0x02, 0xaa, 0, 0, 0, 0x02])
    }
}

fn datagram(
    (from_mac, to_mac): (MacAddr, MacAddr),
    (from, to): (Ipv4Addr, Ipv4Addr),
    (from_port, to_port): (u16, u16),
    payload: &[u8],
    checksum: bool,
) -> io::Result<Vec<u8>> {
    let length = UdpHeader::LEN + payload.len();
    let length = u16::try_from(length).map_err(io::Error::other)?;
    let ip =
        Ipv4Header::new(length, 64, IpNumber::UDP, from.octets(), to.octets()).map_err(io::Error::other)?;
    let udp = if checksum {
        UdpHeader::with_ipv4_checksum(from_port, to_port, &ip, payload)
    } else {
        UdpHeader::without_ipv4_checksum(from_port, to_port, payload.len())
    };
    let ethernet = Ethernet2Header {
        source: from_mac.0,
        destination: to_mac.0,
        ether_type: etherparse::EtherType::IPV4,
    };
    let mut frame = Vec::with_capacity(Ethernet2Header::LEN + Ipv4Header::MIN_LEN + usize::from(length));
    ethernet.write(&mut frame)?;
    ip.write(&mut frame).map_err(io::Error::other)?;
    udp.map_err(io::Error::other)?.write(&mut frame)?;
    frame.extend(payload);
    Ok(frame)
}
