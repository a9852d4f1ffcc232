//! Two nodes that get no rest: pods come and go, flows, fragments, malformed frames, more than fits, processes that are killed. In
//! the end everything must be there that was there before, and memory be what it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_model::fastpath::ConnectionFigures;
use causeway_model::{Family, GATEWAY_MAC};
use causeway_tests::lab::{Datapath, Node, Pod, PodSpec, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::packet_socket::PacketSocket;
use causeway_tests::traffic::{Flow, datagrams, tcp_reaches};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    PacketBuilder, UdpHeader,
};
use fastrand::Rng;
use serde_json::json;

use super::finding::{Finding, OURS, Record, Target};
use super::samples::Samples;
use super::stand::Stand;

/// Room for connections of a node: few, so that all of them can be asked for in the end.
const CONNECTIONS: u32 = 4096;
/// Places that are left to whatever else begins meanwhile.
const SPARE: u32 = 8;
/// Addresses that pods which come and go share: each must be free again when they have gone.
const ADDRESSES: [u8; 6] = [200, 201, 202, 203, 204, 205];
/// In a round.
const SHORT_FLOWS: usize = 300;
const MALFORMED: usize = 1000;
const FRAGMENTS: u16 = 300;
const FLOOD: Duration = Duration::from_secs(1);
/// Until the longest of the connections that nobody ends is forgotten.
const FORGETS: Duration = Duration::from_secs(60);
/// How long a connection may take to go on: TCP's own timer doubles while nobody carries it.
const GOES_ON: Duration = Duration::from_secs(40);
/// Buffers that a worker keeps at hand for the next read from a TAP: a small one and a large one.
const AT_HAND: usize = 2;
/// The events that the agent keeps: its memory grows until there are so many.
const EVENTS: usize = 16_384;
/// What memory may grow by, in KiB, while it is the same work over and over.
const GROWTH: f64 = 4096.0;
/// What is killed in turn.
const VICTIMS: [&[Role]; 3] = [&[Role::Fastpath], &[Role::Agent], &[Role::Fastpath, Role::Agent]];

/// Runs the bench for so long: in the first half processes are killed, in the second memory is watched. Hugepages may be taken by
/// whoever else wants some while a process is dead.
pub fn run(length: Duration, hugepages: bool) -> Result<Vec<Finding>> {
    let stand = Stand::up("bench-soak", Datapath::Fast, |spec| {
        let memory = if hugepages { "hugepages" } else { "slow" };
        let words = ["--memory", memory, "--max-connections", &CONNECTIONS.to_string()];
        spec.fastpath = words.map(str::to_owned).to_vec();
        let short =
            ["udp", "udp-stream", "icmp", "tcp-syn", "tcp-syn-received", "tcp-fin-wait", "tcp-last-ack"];
        let short = short.iter().chain(&["tcp-time-wait", "tcp-closed", "sctp", "sctp-established", "other"]);
        let short: Vec<_> = short.map(|name| format!("{name}: 5")).collect();
        spec.config.push(format!("connection_timeouts: {{{}, tcp-established: 20}}", short.join(", ")));
    })?;
    let pods = stand.pods(&["n1", "n2", "n1", "n2"])?;
    let nodes = [stand.lab.node("n1")?, stand.lab.node("n2")?];
    let soak = Soak { stand: &stand, pods: &pods, nodes: &nodes };
    let flows = [
        Flow::start(pods[0].namespace(), pods[1].namespace(), pods[1].address(Family::V4))?,
        Flow::start(pods[1].namespace(), pods[0].namespace(), pods[0].address(Family::V6))?,
    ];
    let (began, mut rng, mut rounds) = (Instant::now(), Rng::with_seed(7), 0);
    while began.elapsed() < length / 2 {
        soak.round(&mut rng)?;
        soak.kill(VICTIMS[rounds % VICTIMS.len()])?;
        rounds += 1;
        for (number, flow) in flows.iter().enumerate() {
            ensure!(flow.moves_within(GOES_ON), "round {rounds}: flow {number} stands");
        }
        eprintln!("  soak: round {rounds} with a kill, {:.0} s", began.elapsed().as_secs_f64());
    }
    (0..=EVENTS / SHORT_FLOWS).try_for_each(|_| soak.short_flows())?;
    // Once without a kill, so that all that is made once has been made.
    soak.round(&mut rng)?;
    let before = soak.ledgers()?;
    loop {
        soak.round(&mut rng)?;
        rounds += 1;
        let grown = soak.growth(&before)?.into_iter().map(|(name, grown)| format!("{name} {grown:+} KiB"));
        let grown = grown.collect::<Vec<_>>().join(", ");
        eprintln!("  soak: round {rounds}, {:.0} s, {grown}", began.elapsed().as_secs_f64());
        if began.elapsed() >= length {
            break;
        }
    }
    for flow in flows {
        flow.finish().context("a flow that lasted throughout")?;
    }
    soak.settle(&before)?;
    let case = || vec![("minutes", (length.as_secs() / 60).into()), ("rounds", rounds.into())];
    let grown = soak.growth(&before)?.into_iter().map(|(name, grown)| {
        let mut samples = Samples::default();
        samples.push(grown);
        let metric = if name == "agent" { "agent's memory, growth" } else { "fast path's memory, growth" };
        let record = Record::new("soak", case(), (metric, "KiB"), &BTreeMap::from([(OURS, samples)]));
        Finding { record, targets: vec![Target::AtMost(GROWTH)] }
    });
    Ok(grown.collect())
}

struct Soak<'a> {
    stand: &'a Stand,
    pods: &'a [Pod],
    nodes: &'a [Node; 2],
}

/// What a node holds.
struct Ledger {
    descriptors: BTreeMap<&'static str, usize>,
    memory: BTreeMap<&'static str, f64>,
    /// Packet buffers that are not free, and workers.
    buffers_held: (u32, usize),
    endpoints: usize,
    holdings: Holdings,
}

impl Soak<'_> {
    /// A little of everything.
    fn round(&self, rng: &mut Rng) -> Result<()> {
        self.churn()?;
        self.short_flows()?;
        self.malformed(rng)?;
        self.unfinished(rng)?;
        let (loud, sink) = (&self.pods[2], &self.pods[3]);
        let way = (loud.namespace(), sink.namespace(), sink.address(Family::V4));
        // More than is carried, and more of it in fragments.
        let flood = datagrams(way, 64, None, FLOOD)?;
        ensure!(flood.received > 0, "of {} datagrams none came", flood.sent);
        datagrams(way, 5000, Some(500.0), FLOOD)?;
        Ok(())
    }

    /// Pods come, all of them at addresses that others had before, are reached, and go.
    fn churn(&self) -> Result<()> {
        let [first, .., last] = ADDRESSES;
        let range = json!([[{
            "subnet": "10.70.1.0/24", "rangeStart": format!("10.70.1.{first}"), "rangeEnd": format!("10.70.1.{last}")
        }]]);
        let names: Vec<_> = ADDRESSES.iter().map(|last| format!("guest{last}")).collect();
        for name in &names {
            let spec =
                PodSpec::named(name.as_str()).config("ipam", json!({"type": "causeway", "ranges": range}));
            let guest =
                self.stand.lab.add_pod("n1", spec).context("an address of a guest is not free again")?;
            ensure!(self.pods[1].ping(guest.address(Family::V4)), "{name} is not reached");
        }
        names.iter().try_for_each(|name| Ok(self.stand.lab.del_pod(name)?))
    }

    /// Connections that are over at once.
    fn short_flows(&self) -> Result<()> {
        let (loud, sink) = (&self.pods[2], &self.pods[3]);
        let address = sink.address(Family::V4);
        let listener = sink.run(|| TcpListener::bind((address, 0)))?;
        let target = listener.local_addr()?;
        loud.run(|| -> Result<()> {
            for port in 0..SHORT_FLOWS {
                let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                // Nobody hears most of them.
                let _ = socket.send_to(b"short", (address, 20_000 + port as u16));
            }
            for _ in 0..SHORT_FLOWS / 10 {
                let mut stream = TcpStream::connect_timeout(&target, GOES_ON)?;
                stream.write_all(b"short")?;
            }
            Ok(())
        })?;
        listener.set_nonblocking(true)?;
        while listener.accept().is_ok() {}
        Ok(())
    }

    /// Frames with bytes that nobody expects, from a pod and on the wire.
    fn malformed(&self, rng: &mut Rng) -> Result<()> {
        let (loud, there) = (&self.pods[2], &self.nodes[1]);
        let own = own_mac(&there.exec("ip -o link show eth0")?)?;
        let sockets = [loud.run(|| PacketSocket::open("eth0"))?, there.run(|| PacketSocket::open("eth0"))?];
        // Whatever passes meanwhile is what they are made of: of the pod anything, on the wire tunnel frames. An ARP message that lies
        // would be no fault of ours.
        let (mut kept, deadline) = ([vec![0x45; 90], vec![]], Instant::now() + GOES_ON);
        if let Some(frame) = sockets[0].receive(Duration::from_millis(200))? {
            kept[0] = frame;
        }
        while kept[1].is_empty() {
            ensure!(Instant::now() < deadline, "no tunnel frame passes");
            let frame = sockets[1].receive(Duration::from_millis(200))?.unwrap_or_default();
            // The node sees what it sends, too.
            if frame.get(36..38) == Some(&4789_u16.to_be_bytes()) && frame[6..12] != own {
                kept[1] = frame;
            }
        }
        // As if the other end had answered: its addresses the other way round.
        let (mac, address) = (kept[1][..6].to_vec(), kept[1][26..30].to_vec());
        kept[1].copy_within(6..12, 0);
        kept[1][6..12].copy_from_slice(&mac);
        kept[1].copy_within(30..34, 26);
        kept[1][30..34].copy_from_slice(&address);
        for number in 0..MALFORMED {
            let which = number % sockets.len();
            let mut frame = kept[which].clone();
            frame.truncate(1400);
            // Addresses stay, or nobody would take it.
            let from = [12, 34][which];
            for _ in 0..=rng.usize(..8) {
                let at = from + rng.usize(..frame.len().saturating_sub(from).max(1));
                if let Some(byte) = frame.get_mut(at) {
                    *byte = rng.u8(..);
                }
            }
            frame.truncate(14 + rng.usize(..frame.len().saturating_sub(13).max(1)));
            // What the link itself refuses reaches nobody.
            let _ = sockets[which].send(&frame);
        }
        Ok(())
    }

    /// Fragments of datagrams that are never whole, over both families: what waits for the others must be given up.
    fn unfinished(&self, rng: &mut Rng) -> Result<()> {
        let (loud, sink) = (&self.pods[2], &self.pods[3]);
        let macs = (own_mac(&loud.exec("ip -o link show eth0")?)?, GATEWAY_MAC.0);
        let socket = loud.run(|| PacketSocket::open("eth0"))?;
        for _ in 0..FRAGMENTS {
            for family in Family::BOTH {
                let ends = (loud.address(family), sink.address(family));
                let (number, offset) = (rng.u32(..), rng.u16(..4) * 100);
                // A full queue takes no more.
                let _ = socket.send(&fragment(macs, ends, number, offset)?);
            }
        }
        Ok(())
    }

    fn kill(&self, order: &[Role]) -> Result<()> {
        order.iter().try_for_each(|role| self.stand.lab.kill("n1", *role))?;
        order.iter().try_for_each(|role| self.stand.lab.start("n1", *role))?;
        let (near, far) = (&self.pods[2], &self.pods[3]);
        let back =
            within(GOES_ON, || tcp_reaches(near.namespace(), far.namespace(), far.address(Family::V4)));
        let told = || -> Result<_> {
            let status = self.nodes[0].status()?;
            let log = fs::read_to_string(self.nodes[0].directory().join("fastpath.log")).unwrap_or_default();
            let log = log.lines().rev().take(8).collect::<Vec<_>>().join("\n");
            Ok(format!("{:?}, {:?}, {:?}\n{log}", status.limits, status.fastpath, status.drops))
        };
        ensure!(back, "nobody is reached after {order:?} was killed: {}", told()?);
        Ok(())
    }

    fn ledgers(&self) -> Result<Vec<Ledger>> {
        self.nodes.iter().map(|node| self.ledger(node)).collect()
    }

    fn ledger(&self, node: &Node) -> Result<Ledger> {
        let (mut descriptors, mut memory) = (BTreeMap::new(), BTreeMap::new());
        for (name, role) in [("agent", Role::Agent), ("fast path", Role::Fastpath)] {
            let process = self.stand.lab.process(node.name(), role)?.with_context(|| format!("no {name}"))?;
            let directory = format!("/proc/{}", process.pid);
            descriptors.insert(name, fs::read_dir(format!("{directory}/fd"))?.count());
            let status = fs::read_to_string(format!("{directory}/status"))?;
            let resident =
                status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
            memory.insert(name, resident.context("no VmRSS")?.parse()?);
        }
        let fast = node.status()?.fastpath.context("no fast path is connected")?;
        Ok(Ledger {
            descriptors,
            memory,
            buffers_held: (fast.buffers - fast.buffers_free, fast.workers.len()),
            endpoints: node.endpoints()?.len(),
            holdings: Holdings::of(node.namespace())?,
        })
    }

    /// By how much the memory of the first node's processes has grown, in KiB.
    fn growth(&self, before: &[Ledger]) -> Result<Vec<(&'static str, f64)>> {
        let now = self.ledger(&self.nodes[0])?;
        Ok(before[0].memory.iter().map(|(name, first)| (*name, now.memory[name] - *first)).collect())
    }

    /// Fails unless all is as it was, and nothing is lost of what cannot be seen.
    fn settle(&self, before: &[Ledger]) -> Result<()> {
        for node in self.nodes {
            let live = || -> Result<u32> {
                let fast = node.status()?.fastpath.context("no fast path is connected")?;
                Ok(fast.connections.context("it remembers none")?.live)
            };
            let forgotten = within(FORGETS, || live().is_ok_and(|live| live == 0));
            ensure!(forgotten, "{}: {} connections are never forgotten", node.name(), live()?);
        }
        self.every_entry_is_there()?;
        self.churn()?;
        for (node, before) in self.nodes.iter().zip(before) {
            let name = node.name();
            let same =
                within(GOES_ON, || self.ledger(node).is_ok_and(|now| now.descriptors == before.descriptors));
            let now = self.ledger(node)?;
            ensure!(same, "{name}: descriptors were {:?} and are {:?}", before.descriptors, now.descriptors);
            let held = || Ok::<_, anyhow::Error>(self.ledger(node)?.buffers_held);
            let all =
                within(GOES_ON, || held().is_ok_and(|(held, workers)| held as usize <= AT_HAND * workers));
            let (held, workers) = held()?;
            ensure!(
                all,
                "{name}: {held} buffers are never free again; {workers} workers need {AT_HAND} each"
            );
            ensure!(
                now.endpoints == before.endpoints,
                "{name}: {} endpoints, not {}",
                now.endpoints,
                before.endpoints
            );
            let left = now.holdings.since(&before.holdings);
            ensure!(left == Leftovers::NONE, "{name}: {left}");
        }
        Ok(())
    }

    /// As many connections at once as there is room for: each place of the table must be free.
    fn every_entry_is_there(&self) -> Result<()> {
        let (near, far) = (&self.pods[0], &self.pods[1]);
        let figures = || -> Result<_> {
            let fast = self.nodes[0].status()?.fastpath.context("no fast path is connected")?;
            fast.connections.context("it remembers none")
        };
        let before = figures()?;
        let (target, wanted) = (far.address(Family::V4), CONNECTIONS - SPARE);
        let socket = near.run(|| UdpSocket::bind(("0.0.0.0", 0)))?;
        // What a full queue loses is sent again.
        let all = within(GOES_ON, || {
            for port in before.live..wanted {
                let _ = socket.send_to(b"one more", SocketAddr::new(target, 30_000 + port as u16));
            }
            figures().is_ok_and(|full| full.live >= wanted)
        });
        let full = figures()?;
        let pressed =
            |figures: &ConnectionFigures| figures.refused + figures.half_open_gone + figures.idle_gone;
        ensure!(
            all && pressed(&full) == pressed(&before),
            "{} of {CONNECTIONS} places could be used: {full:?}, before: {before:?}",
            full.live
        );
        Ok(())
    }
}

/// The hardware address of a link as `ip -o link show` tells of it.
fn own_mac(shown: &str) -> Result<[u8; 6]> {
    let address =
        shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap_or_default();
    let octets = address.split(':').map(|octet| u8::from_str_radix(octet, 16));
    let octets = octets.collect::<Result<Vec<_>, _>>().context("the address of eth0")?;
    octets.try_into().map_err(|_| anyhow::anyhow!("the address of eth0: {shown}"))
}

/// A frame with 800 octets of a UDP datagram, from this many times eight on, after which more should come.
fn fragment(
    (from, to): ([u8; 6], [u8; 6]),
    ends: (IpAddr, IpAddr),
    number: u32,
    offset: u16,
) -> Result<Vec<u8>> {
    let udp = UdpHeader { source_port: 5, destination_port: 6, length: 4000, checksum: 0x1234 };
    let payload = [&udp.to_bytes()[..], &[b'f'; 792]].concat();
    let link = PacketBuilder::ethernet2(from, to);
    let mut frame = Vec::new();
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(800, 64, IpNumber::UDP, from.octets(), to.octets())?;
            (ip.identification, ip.more_fragments, ip.dont_fragment) = (number as u16, true, false);
            ip.fragment_offset = IpFragOffset::try_new(offset)?;
            ip.header_checksum = ip.calc_header_checksum();
            link.ip(IpHeaders::Ipv4(ip, Default::default())).write(&mut frame, IpNumber::UDP, &payload)?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = Ipv6Header {
                next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            let part = Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::try_new(offset)?, true, number);
            let extensions = Ipv6Extensions { fragment: Some(part), ..Ipv6Extensions::default() };
            link.ip(IpHeaders::Ipv6(ip, extensions)).write(&mut frame, IpNumber::UDP, &payload)?;
        }
        _ => anyhow::bail!("{ends:?} are of two families"),
    }
    Ok(frame)
}

/// Whether something comes true in time.
fn within(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}
