//! Whatever comes on stdin and in the environment: one answer, in the specification's shape, and no panic.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use causeway_cni::{Answer, Limits, answer};
use serde_json::{Map, Value, json};

use crate::runtime::{Call, Network};

/// A generator that gives the same noise on every run (Steele, Lea and Flood's SplitMix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self) -> String {
        let known = [
            "",
            "eth0",
            "c1",
            "..",
            "a/b",
            "0.3.1",
            "1.1.0",
            "9.9.9",
            "4",
            "10.0.0.2/24",
            "10.0.0.2",
            "::/0",
            "fd00::1/64",
            "02:00:00:00:00:01",
            "host-local",
            "causeway",
            "\u{0}",
            "\u{10ffff}",
            "=;=;",
            "-1",
        ];
        self.one_of(&known).to_owned()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 10 }) {
            0 => Value::Null,
            1 => Value::Bool(self.next().is_multiple_of(2)),
            2 => json!(self.next()),
            3 => json!(-(self.below(1000) as i64)),
            4 => json!(0.5),
            5 => json!(self.text()),
            6 | 7 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => Value::Object(self.object(depth - 1)),
        }
    }

    fn object(&mut self, depth: usize) -> Map<String, Value> {
        const KEYS: &[&str] = &[
            "cniVersion",
            "name",
            "type",
            "prevResult",
            "ipam",
            "dns",
            "runtimeConfig",
            "ipMasq",
            "interfaces",
            "ips",
            "routes",
            "address",
            "interface",
            "gateway",
            "version",
            "mac",
            "mtu",
            "sandbox",
            "ip4",
            "ip6",
            "ip",
            "dst",
            "ranges",
            "subnet",
            "rangeStart",
            "cni.dev/valid-attachments",
            "cni.dev/attachments",
            "containerID",
            "ifname",
            "nameservers",
            "ipRanges",
            "portMappings",
            "bandwidth",
        ];
        (0..self.below(6)).map(|_| (self.one_of(KEYS).to_owned(), self.value(depth))).collect()
    }

    fn variable(&mut self) -> OsString {
        match self.below(3) {
            0 => OsString::from_vec(self.bytes(20)),
            _ => self.text().into(),
        }
    }
}

const COMMANDS: &[&str] = &["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "add"];

fn variables(noise: &mut Noise) -> BTreeMap<&'static str, OsString> {
    let good = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=p"),
        ("CNI_PATH", "/nowhere"),
    ];
    let mut variables: BTreeMap<_, OsString> = BTreeMap::new();
    for (name, value) in good {
        match noise.below(8) {
            0 => {}
            1 => drop(variables.insert(name, noise.variable())),
            _ => drop(variables.insert(name, value.into())),
        }
    }
    variables.insert("CNI_COMMAND", noise.one_of(COMMANDS).into());
    variables
}

/// A configuration whose sockets and tombstones are the test's, and anything else in it.
fn configuration(noise: &mut Noise, network: &Network) -> Vec<u8> {
    let mut config = network.config();
    for (key, value) in noise.object(3) {
        config[key] = value;
    }
    config.to_string().into_bytes()
}

fn judge(answer: &Answer, what: &dyn std::fmt::Debug) {
    match &answer.document {
        None => assert!(!answer.failed, "a failure without a word: {what:?}"),
        Some(document) if answer.failed => {
            let code = document["code"].as_u64();
            assert!(code.is_some_and(|code| code > 0), "{document} of {what:?}");
            assert!(document["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{document} of {what:?}");
            assert!(document["cniVersion"].is_string(), "{document} of {what:?}");
        }
        Some(document) => assert!(document.is_object(), "{document} of {what:?}"),
    }
}

#[test]
fn noise_is_answered_by_one_error() {
    let network = Network::new();
    let noise = &mut Noise(1);
    let soon = Duration::from_millis(20);
    let limits = Limits { prompt: soon, stdin: soon, connect: soon, ..Limits::default() };
    let mut failed = 0;
    for round in 0..3000 {
        let variables = variables(noise);
        let stdin = if round % 4 == 0 { noise.bytes(200) } else { configuration(noise, &network) };
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&stdin).unwrap();
        drop(writer);
        let answer = answer(&|name| variables.get(name).cloned(), OwnedFd::from(reader).as_fd(), &limits);
        judge(&answer, &(&variables, String::from_utf8_lossy(&stdin)));
        failed += usize::from(answer.failed);
    }
    assert!((1000..3000).contains(&failed), "{failed} of 3000 were refused: the noise is no test");
}

#[test]
fn the_binary_says_no_more_than_that() {
    let network = Network::new();
    let noise = &mut Noise(2);
    for round in 0..60 {
        let command = noise.one_of(COMMANDS);
        let stdin = if round % 3 == 0 { noise.bytes(100) } else { configuration(noise, &network) };
        let call: Call = network.call(command).with("CNI_NETNS", "/proc/self/ns/net");
        // It judges that stdout is one document at most, and the exit status.
        let said = call.stdin(&String::from_utf8_lossy(&stdin)).run();
        assert!(said.succeeded || said.document.is_some_and(|error| error["code"].is_u64()), "{command}");
        assert!(!said.log.contains("panicked"), "{}", said.log);
    }
}
