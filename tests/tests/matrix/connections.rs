//! Connections: what belongs to one goes on, what does not goes no further.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use causeway_model::connection::Stage;
use causeway_model::operator::EndpointStatus;
use causeway_model::{DropReason, Family, GATEWAY_MAC};
use causeway_tests::lab::{Lab, Node, Pod, Role};
use causeway_tests::packet_socket::PacketSocket;
use causeway_tests::traffic::{Flow, tcp_reaches};
use etherparse::PacketBuilder;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("a_pod_that_denies_new_keeps_what_it_has", a_pod_that_denies_new_keeps_what_it_has),
    ("nothing_new_passes_while_anything_restarts", nothing_new_passes_while_anything_restarts),
    ("a_segment_outside_of_its_window_reaches_nobody", a_segment_outside_of_its_window_reaches_nobody),
    ("an_error_about_a_connection_reaches_its_sender", an_error_about_a_connection_reaches_its_sender),
    ("an_operator_sees_connections_and_finds_one", an_operator_sees_connections_and_finds_one),
    ("connections_are_forgotten_in_their_time", connections_are_forgotten_in_their_time),
    ("a_pod_has_no_more_connections_than_it_may", a_pod_has_no_more_connections_than_it_may),
    ("connections_go_with_their_pod", connections_go_with_their_pod),
];

const ANNOTATION: &str = "causeway.dev/deny-new";
/// How soon a change of an object is in force.
const SOON: Duration = Duration::from_secs(2);
/// How long a connection may take to go on: TCP's own timer doubles while nobody carries it.
const GOES_ON: Duration = Duration::from_secs(8);

/// Changes whether a pod denies new connections, and waits until that is in force.
fn deny_new(lab: &Lab, pod: &Pod, probe: &Pod, deny: bool) -> anyhow::Result<()> {
    lab.annotate(pod.name(), ANNOTATION, if deny { "true" } else { "false" })?;
    let as_asked = || probe.ping(pod.address(Family::V4)) != deny;
    ensure!(within(SOON, as_asked), "{}: {ANNOTATION}: {deny} is not in force", pod.name());
    Ok(())
}

fn a_pod_that_denies_new_keeps_what_it_has(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    for peer in [&b, &c] {
        let (to, from) = (
            Flow::start(peer.namespace(), a.namespace(), a.address(Family::V4))?,
            Flow::start(a.namespace(), peer.namespace(), peer.address(Family::V6))?,
        );
        let denied = n1.drops(DropReason::DeniedNew)?;
        matrix
            .sabotage("deny-new-ignored", || ())
            .map_or_else(|| deny_new(&lab, &a, peer, true), |()| Ok(()))?;
        for family in Family::BOTH {
            let what = peer.name();
            ensure!(
                !tcp_reaches(peer.namespace(), a.namespace(), a.address(family)),
                "{what} to a over {family}"
            );
            ensure!(
                !tcp_reaches(a.namespace(), peer.namespace(), peer.address(family)),
                "a to {what} over {family}"
            );
            ensure!(!a.ping(peer.address(family)), "a pings {what} over {family}");
        }
        ensure!(to.moves_within(SOON) && from.moves_within(SOON), "what a has with {} stands", peer.name());
        ensure!(n1.drops(DropReason::DeniedNew)? > denied, "nothing is counted as denied-new");
        deny_new(&lab, &a, peer, false)?;
        ensure!(tcp_reaches(peer.namespace(), a.namespace(), a.address(Family::V6)), "it stays closed");
        to.finish()?;
        from.finish()?;
    }
    Ok(())
}

/// What can be killed on n1, and in which orders.
pub(super) fn orders(lab: &Lab) -> anyhow::Result<&'static [&'static [Role]]> {
    use Role::{Agent, Fastpath};
    Ok(match lab.process("n1", Fastpath)? {
        Some(_) => &[&[Fastpath], &[Agent], &[Fastpath, Agent], &[Agent, Fastpath]],
        None => &[&[Agent]],
    })
}

fn nothing_new_passes_while_anything_restarts(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    // One whose next data segment comes from the far side, one from the near side, and a flow of datagrams.
    let push = Flow::start(c.namespace(), a.namespace(), a.address(Family::V4))?;
    let pull = Flow::start(a.namespace(), c.namespace(), c.address(Family::V6))?;
    let talk = Talk::start(&a, &c)?;
    deny_new(&lab, &a, &c, true)?;
    for order in orders(&lab)? {
        order.iter().try_for_each(|role| lab.kill("n1", *role))?;
        let knocking = Knocking::start(&c, &a)?;
        order.iter().try_for_each(|role| lab.start("n1", *role))?;
        ensure!(push.moves_within(GOES_ON), "a flow to the pod stands after {order:?}");
        ensure!(pull.moves_within(GOES_ON), "a flow from the pod stands after {order:?}");
        ensure!(within(GOES_ON, || talk.is_answered()), "datagrams are not answered after {order:?}");
        let got_in = knocking.finish()?;
        ensure!(got_in == 0, "{got_in} of those who knocked got in after {order:?}");
    }
    push.finish()?;
    pull.finish()?;
    Ok(())
}

/// Datagrams between two sockets that know each other.
pub(super) struct Talk(UdpSocket, UdpSocket, SocketAddr);

impl Talk {
    pub(super) fn start(from: &Pod, to: &Pod) -> anyhow::Result<Self> {
        let talk = Self::open(from, to)?;
        ensure!(talk.is_answered(), "datagrams are not answered at first");
        Ok(talk)
    }

    fn open(from: &Pod, to: &Pod) -> anyhow::Result<Self> {
        let own = SocketAddr::new(from.address(Family::V4), 0);
        let asker = from.run(|| UdpSocket::bind(own))?;
        let answerer = to.run(|| UdpSocket::bind(SocketAddr::new(to.address(Family::V4), 0)))?;
        for socket in [&asker, &answerer] {
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        }
        let target = answerer.local_addr()?;
        Ok(Self(asker, answerer, target))
    }

    pub(super) fn is_answered(&self) -> bool {
        let Self(asker, answerer, target) = self;
        let mut bytes = [0; 8];
        asker.send_to(b"question", target).is_ok()
            && answerer.recv_from(&mut bytes).is_ok_and(|(_, from)| answerer.send_to(&bytes, from).is_ok())
            && asker.recv(&mut bytes).is_ok()
    }
}

/// Somebody who tries to get in, over and over.
pub(super) struct Knocking {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<usize>,
}

impl Knocking {
    pub(super) fn start(from: &Pod, to: &Pod) -> anyhow::Result<Self> {
        let (sender, socket) = (
            from.run(|| UdpSocket::bind(SocketAddr::new(from.address(Family::V4), 0)))?,
            to.run(|| UdpSocket::bind(SocketAddr::new(to.address(Family::V4), 0)))?,
        );
        socket.set_nonblocking(true)?;
        let target = socket.local_addr()?;
        let (stop, stopped) = std::sync::mpsc::channel();
        let knock = move || {
            let (mut bytes, mut heard) = ([0; 8], 0);
            // A second more after the end: what was on its way must not arrive either.
            while stopped
                .recv_timeout(Duration::from_millis(5))
                .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                let _ = sender.send_to(b"let me in", target);
                heard += usize::from(socket.recv(&mut bytes).is_ok());
            }
            heard
        };
        Ok(Self { stop, thread: std::thread::spawn(knock) })
    }

    pub(super) fn finish(self) -> anyhow::Result<usize> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("who knocked has died"))
    }
}

fn a_segment_outside_of_its_window_reaches_nobody(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let (mut client, mut server) = connect(&a, &c)?;
    let n1 = lab.node("n1")?;
    // The kernel lets a segment from before the window through, which its receiver answers and forgets; of these two, half of all
    // numbers apart, one lies ahead.
    let ends = (client.local_addr()?, server.local_addr()?);
    let wild = [0x1000_0000, 0x9000_0000].map(|sequence| segment(&a, ends, sequence, 0x6000_0000, false));
    let wild = wild.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let invalid = |node: &Node| node.drops(DropReason::InvalidConnection);
    let before = invalid(&n1)?;
    let wire = a.run(|| PacketSocket::open("eth0"))?;
    (0..3).flat_map(|_| &wild).try_for_each(|segment| wire.send(segment))?;
    let counted = || invalid(&n1).is_ok_and(|now| now >= before + 3);
    ensure!(within(SOON, counted), "{} counted before, {} after", before, invalid(&n1)?);
    client.write_all(b"still here")?;
    let mut heard = [0; 10];
    server.read_exact(&mut heard).context("the connection is broken")?;
    ensure!(&heard == b"still here");
    Ok(())
}

fn connect(from: &Pod, to: &Pod) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(to.address(Family::V4), 0)))?;
    let target = listener.local_addr()?;
    let client = from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))?;
    let (server, _) = listener.accept()?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok((client, server))
}

/// A segment of a connection with numbers far away from everything that was sent, or a reset of it.
pub(super) fn segment(
    from: &Pod,
    ends: (SocketAddr, SocketAddr),
    sequence: u32,
    acknowledgment: u32,
    reset: bool,
) -> anyhow::Result<Vec<u8>> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (ends.0.ip(), ends.1.ip()) else {
        anyhow::bail!("{ends:?} are not IPv4");
    };
    let own = super::spoof::mac(from.namespace(), "eth0")?;
    let builder = PacketBuilder::ethernet2(own, GATEWAY_MAC.0)
        .ipv4(source.octets(), destination.octets(), 64)
        .tcp(ends.0.port(), ends.1.port(), sequence, 1000)
        .ack(acknowledgment);
    let builder = if reset { builder.rst() } else { builder };
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"wild")?;
    Ok(bytes)
}

fn an_error_about_a_connection_reaches_its_sender(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    // A closed port of c answers with an error, which a hears on its connected socket although nothing else may come in.
    let target = SocketAddr::new(c.address(Family::V4), 9);
    let socket = a.run(|| UdpSocket::bind(SocketAddr::new(a.address(Family::V4), 0)))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send(b"anybody?")?;
    let refused = socket.recv(&mut [0; 8]).err().context("a closed port answered")?;
    ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
    Ok(())
}

fn an_operator_sees_connections_and_finds_one(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    let (mut client, mut server) = connect(&a, &c)?;
    client.write_all(b"question")?;
    server.read_exact(&mut [0; 8])?;
    server.write_all(b"answer")?;
    client.read_exact(&mut [0; 6])?;
    ensure!(b.ping(c.address(Family::V6)), "b does not reach c");
    let path = endpoint(&n1, &a)?.endpoint.path;

    let of_a = n1.connections(&format!("--pod default/{} --protocol tcp", a.name()))?;
    let [flow] = of_a.connections.as_slice() else { bail!("a has one connection, not {of_a:?}") };
    ensure!(flow.path == path && flow.stage == Stage::Established, "{flow:?}");
    let ends = (client.local_addr()?, client.peer_addr()?);
    ensure!((flow.from, flow.to) == ((ends.0.ip(), ends.0.port()), (ends.1.ip(), ends.1.port())), "{flow:?}");
    // SYN, data and two acknowledgments one way; SYN-ACK, an acknowledgment and data the other, give or take an acknowledgment.
    ensure!((3..6).contains(&flow.sent.packets) && (2..5).contains(&flow.answered.packets), "{flow:?}");
    ensure!(flow.sent.bytes >= 3 * 40 + 8 && flow.age_ms.is_some_and(|age| age < 60_000), "{flow:?}");
    ensure!((431_000_000..=432_000_000).contains(&flow.left_ms), "{flow:?}");
    ensure!(
        flow.from_pod.as_ref().is_some_and(|pod| pod.name == a.name()) && flow.to_pod.is_none(),
        "{flow:?}"
    );

    let count = |words: &str| Ok::<_, anyhow::Error>(n1.connections(words)?.connections.len());
    let port = ends.0.port();
    for (words, expected) in [
        (format!("--port {port} --stage established"), 1),
        (format!("--port {port} --stage new"), 0),
        (format!("--port {port} --path {path}"), 1),
        (format!("--within {} --protocol 58", a.address(Family::V6)), 0),
        ("--protocol sctp".to_owned(), 0),
    ] {
        ensure!(count(&words)? == expected, "{words}: {:?}", n1.connections(&words)?);
    }
    // One that was answered late is asked once more.
    let echoes = format!("--within {} --protocol icmpv6", b.address(Family::V6));
    ensure!(count(&echoes)? >= 1, "{echoes}: none");
    let one = n1.connections("--most 1")?;
    ensure!(one.connections.len() == 1 && one.more >= 1, "{one:?}");
    for (words, named) in
        [("--pod default/nobody", "nobody"), ("--protocol tpc", "tpc"), ("--stage old", "old")]
    {
        let refused = n1.connections(words).err().with_context(|| format!("{words} was answered"))?;
        ensure!(refused.to_string().contains(named), "{words}: {refused}");
    }
    Ok(())
}

fn connections_are_forgotten_in_their_time(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix
        .lab(|spec| spec.config.push("connection_timeouts: {udp: 3, udp-stream: 3, icmp: 600}".into()))?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    ensure!(a.ping(c.address(Family::V4)), "a does not reach c");
    let talk = Talk::start(&a, &c)?;
    let left = |protocol: &str| {
        let listing = n1.connections(&format!("--pod default/{} --protocol {protocol}", a.name()))?;
        Ok::<_, anyhow::Error>(listing.connections.iter().map(|flow| flow.left_ms).max())
    };
    ensure!(left("udp")?.is_some_and(|left| left <= 3000), "udp: {:?}", left("udp")?);
    ensure!(left("icmp")?.is_some_and(|left| left > 500_000), "icmp: {:?}", left("icmp")?);
    let forgotten = || left("udp").is_ok_and(|left| left.is_none());
    ensure!(within(Duration::from_secs(10), forgotten), "udp: {:?}", left("udp")?);
    ensure!(left("icmp")?.is_some(), "the echo is forgotten, too");
    ensure!(talk.is_answered(), "another one does not begin");
    Ok(())
}

fn a_pod_has_no_more_connections_than_it_may(matrix: &Matrix) -> anyhow::Result<()> {
    const MOST: u64 = 5;
    const TRIED: u64 = 8;
    const PATIENCE: Duration = Duration::from_secs(1);
    let lab = matrix.lab(|spec| spec.config.push(format!("connections_per_endpoint: {MOST}")))?;
    let (a, b) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?);
    let [c, d, e] = ["c", "d", "e"].map(|pod| lab.add_pod("n2", pod));
    let (c, d, e, n1) = (c?, d?, e?, lab.node("n1")?);
    // Those that a pod begins, and those from elsewhere that it is reached by: by two, who are held to as many each.
    for (pod, others) in [(&a, [&c, &c]), (&b, [&d, &e])] {
        let before = dropped(&n1, pod, DropReason::ConnectionLimit)?;
        let begins = pod.name() == a.name();
        let open = |other| if begins { Talk::open(pod, other) } else { Talk::open(other, pod) };
        let talks = (0..TRIED).map(|number| open(others[number as usize % 2]));
        let talks: Vec<_> = talks.collect::<anyhow::Result<_>>()?;
        let answered = talks.iter().filter(|talk| within(PATIENCE, || talk.is_answered())).count() as u64;
        ensure!(answered == MOST, "{answered} of {TRIED} connections of {} were let through", pod.name());
        let over = || Ok::<_, anyhow::Error>(dropped(&n1, pod, DropReason::ConnectionLimit)? - before);
        let counted = within(SOON, || over().is_ok_and(|over| over >= TRIED - MOST));
        ensure!(counted, "{} are counted for {}", over()?, pod.name());
    }
    let another = Talk::open(&b, &a)?;
    ensure!(!within(PATIENCE, || another.is_answered()), "a pod on the same node gets round it");
    Ok(())
}

/// What the agent says of one pod.
fn endpoint(node: &Node, pod: &Pod) -> anyhow::Result<EndpointStatus> {
    let own = node.endpoints()?.into_iter().find(|status| status.endpoint.key == pod.key());
    own.with_context(|| format!("{} is no endpoint", pod.name()))
}

/// What one pod has dropped for a reason.
fn dropped(node: &Node, pod: &Pod, reason: DropReason) -> anyhow::Result<u64> {
    Ok(endpoint(node, pod)?.counters.drops.get(&reason).map_or(0, |count| count.packets))
}

fn connections_go_with_their_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    let talks = [Talk::start(&a, &c)?, Talk::start(&a, &b)?, Talk::start(&b, &c)?];
    let of = |pod: &Pod| {
        let listing = n1.connections(&format!("--within {} --protocol udp", pod.address(Family::V4)))?;
        Ok::<_, anyhow::Error>(listing.connections.len())
    };
    ensure!(of(&a)? >= 2 && of(&b)? >= 2, "{} and {}", of(&a)?, of(&b)?);
    lab.del_pod(a.name())?;
    ensure!(within(SOON, || of(&a).is_ok_and(|left| left == 0)), "{} outlive their pod", of(&a)?);
    ensure!(of(&b)? >= 1 && talks[2].is_answered(), "those of others go along");
    Ok(())
}
