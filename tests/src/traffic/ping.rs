use std::net::IpAddr;

use crate::command;
use crate::namespace::Namespace;

/// What came of several pings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pings {
    /// How many were sent.
    pub sent: u32,
    /// How many were answered.
    pub received: u32,
    /// Answers that came once more.
    pub duplicates: u32,
    /// The mean round trip time in milliseconds; infinite without answers.
    pub average: f64,
}

impl Pings {
    /// How many of a hundred were not answered.
    pub fn loss(&self) -> f64 {
        100.0 - f64::from(self.received) * 100.0 / f64::from(self.sent.max(1))
    }
}

/// Sends so many pings, so many seconds apart, and waits a second for the last answer.
pub fn pings(from: &Namespace, to: IpAddr, count: u32, interval: f64) -> Pings {
    let mut ping = command::parse(&format!("ping -n -q -c {count} -i {interval} -W 1 {to}"));
    let output = from.run(|| command::output(&mut ping, b""));
    let said =
        output.map_or_else(|error| error.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
    let before = |label: &str| {
        let (head, _) = said.split_once(label)?;
        head.rsplit([' ', '\n', '+']).find(|word| !word.is_empty())?.parse().ok()
    };
    let times = said.rsplit_once("= ").and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
    Pings {
        sent: before(" packets transmitted").unwrap_or(0),
        received: before(" received").unwrap_or(0),
        duplicates: before(" duplicates").unwrap_or(0),
        average: times.unwrap_or(f64::INFINITY),
    }
}

/// Sends a ping of so many bytes of IP packet that no router may fragment, and returns the MTU that a router's
/// "too big" names; the text of what happened instead, when none came.
pub fn too_big(from: &Namespace, to: IpAddr, packet: usize) -> Result<u32, String> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    // A path's MTU that was learned by an earlier question would keep this one from being asked.
    let family = if to.is_ipv4() { "-4" } else { "-6" };
    from.ip(&format!("{family} route flush cache")).map_err(|error| error.to_string())?;
    let words = format!("ping -n -M do -s {} -c 2 -i 0.2 -W 1 {to}", packet - headers);
    let output =
        from.run(|| command::output(&mut command::parse(&words), b"")).map_err(|error| error.to_string())?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // IPv4: "Frag needed and DF set (mtu = 1450)"; IPv6: "Packet too big: mtu=1430". A "local error" is no router's word.
    let line = said.lines().find(|line| line.starts_with("From ") && line.contains("mtu"));
    let digits = line.and_then(|line| line.rsplit_once('=')).map(|(_, mtu)| mtu.trim().trim_end_matches(')'));
    digits.and_then(|digits| digits.parse().ok()).ok_or(said)
}
