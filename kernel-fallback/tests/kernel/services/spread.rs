//! How a service's connections are spread over its backends.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;

use causeway_model::Delta;
use causeway_model::service::{Backend, Backends, BackendsId};

use super::world::*;

/// Frontends of the service, so that a port of the client begins several connections.
const FRONTENDS: u16 = 4;

/// How many connections each backend gets, a port of one pod each, of four for each of so many ports of the client.
fn shares_of(world: &mut World, weights: &[u32], clients: u16) -> Vec<u32> {
    let near = world.near.v4();
    let ports = || (9000..).take(weights.len());
    let servers: Vec<UdpSocket> =
        world.near.ns.inside(|| ports().map(|port| UdpSocket::bind((near, port)).unwrap()).collect());
    servers.iter().for_each(|server| server.set_nonblocking(true).unwrap());
    let weighed = ports().map(|port| Backend { address: near, port }).zip(weights.iter().copied());
    let mut deltas = vec![Delta::Backends(BackendsId(1), Arc::new(Backends::weighted(weighed, [])))];
    deltas.extend(
        (80..80 + FRONTENDS).map(|port| Delta::Service(frontend(VIP4, UDP, port), Box::new(served(1)))),
    );
    change(world.node(), deltas);

    let vip: IpAddr = VIP4.parse().unwrap();
    let mut shares = vec![0_u32; weights.len()];
    for client in 0..clients {
        let socket =
            world.client.ns.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 10_000 + client))).unwrap();
        for port in 80..80 + FRONTENDS {
            socket.send_to(b"?", (vip, port)).unwrap();
        }
        // Before anything has to wait for room, should all of them go to one.
        if client % 50 == 49 {
            for (server, share) in servers.iter().zip(&mut shares) {
                while server.recv(&mut [0; 8]).is_ok() {
                    *share += 1;
                }
            }
        }
    }
    assert_eq!(shares.iter().sum::<u32>(), u32::from(clients) * u32::from(FRONTENDS), "none is lost");
    shares
}

/// χ² of shares against what weights say.
fn squares(shares: &[u32], weights: &[u32]) -> f64 {
    let (all, whole) = (shares.iter().sum::<u32>(), weights.iter().sum::<u32>());
    let expected = |weight: u32| f64::from(all) * f64::from(weight) / f64::from(whole);
    let squares =
        |(share, weight): (&u32, &u32)| (f64::from(*share) - expected(*weight)).powi(2) / expected(*weight);
    shares.iter().zip(weights).filter(|(_, weight)| **weight > 0).map(squares).sum()
}

#[test]
fn a_hundred_backends_share_a_hundred_thousand_connections_as_chance_has_it() {
    // A fair choice among a hundred gives a greater sum of squares once in a million times (99 degrees of freedom).
    const FAIR: f64 = 181.0;
    let weights = [1; 100];
    let shares = shares_of(&mut World::new(), &weights, 25_000);
    let squares = squares(&shares, &weights);
    println!("{squares:.1}");
    assert!(squares < FAIR, "{squares:.1}: {shares:?}");
    assert!(squares > 45.0, "{squares:.1}: more even than chance, they are dealt out in turn: {shares:?}");
}

#[test]
fn backends_share_connections_by_weight_and_one_of_weight_zero_gets_none() {
    // Likewise, with 5 degrees of freedom.
    const FAIR: f64 = 37.5;
    // In 24 slots, and in 512 of a row that would be longer.
    for weights in [[6, 0, 9, 1, 3, 1, 4], [30_000, 10_000, 0, 5000, 7001, 4000, 20_003]] {
        let shares = shares_of(&mut World::new(), &weights, 5000);
        let found = squares(&shares, &weights);
        println!("{found:.1}");
        assert!(found < FAIR, "{found:.1}: {shares:?}");
        let idle = weights.iter().position(|weight| *weight == 0).unwrap();
        assert_eq!(shares[idle], 0);
        let forgotten = squares(&shares, &[1; 7]);
        assert!(forgotten > 10.0 * FAIR, "{forgotten:.1}: shares that heed no weights are found out");
    }
}
