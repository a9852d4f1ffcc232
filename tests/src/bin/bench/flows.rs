//! A source of more flows than a file can hold: made in the process that is measured, whosever it is.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use causeway_tests::command;

use super::scene::{Direction, Scene};
use super::scratch::Scratch;

/// The device whose frames they are.
pub const DEVICE: &str = "net_null_flows";
/// Bytes of headers that a tunnel puts before a packet: IPv4, UDP, VXLAN, Ethernet, and the first Ethernet.
const TUNNEL: usize = 14 + 20 + 8 + 8 + 14;

/// A library that is preloaded, and what it is told.
pub struct Flows {
    library: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Flows {
    /// A source of so many flows of one direction.
    pub fn new(scratch: &Scratch, scene: &Scene, direction: Direction, flows: u32) -> Result<Self> {
        let (library, source, frame) =
            (scratch.file("flows.so"), scratch.file("flows.c"), scratch.file("flows.frame"));
        if !library.exists() {
            fs::write(&source, include_str!("flows.c"))?;
            let headers = command::run("pkg-config --cflags libdpdk")?;
            let mut compiler = Command::new("cc");
            compiler.args(["-O2", "-shared", "-fPIC"]).args(headers.split_whitespace());
            compiler.arg(&source).arg("-o").arg(&library).args(["-lrte_ethdev", "-ldl"]);
            command::stdout(&mut compiler, b"").context("the source of flows")?;
        }
        let bytes = scene.frame(direction)?;
        fs::write(&frame, &bytes)?;
        // The remote pod is the receiver of what goes in and the sender of what comes out; its port is the sender's in both.
        let (packet, address, entropy) = match direction {
            Direction::Encap => (14, 14 + 16, 0),
            Direction::Decap => (TUNNEL, TUNNEL + 12, 14 + 20),
        };
        let variables = vec![
            ("FLOWS_FRAME", frame.display().to_string()),
            ("FLOWS_COUNT", flows.to_string()),
            ("FLOWS_PACKET", packet.to_string()),
            ("FLOWS_ADDRESS", address.to_string()),
            ("FLOWS_PORT", (packet + 20).to_string()),
            ("FLOWS_ENTROPY", entropy.to_string()),
        ];
        Ok(Self { library, variables })
    }

    /// The device's arguments, beginning with its name.
    pub fn device(&self) -> String {
        format!("{DEVICE},size=64")
    }

    /// Has a program bring the source along.
    pub fn preload(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).envs(self.variables.iter().cloned());
    }
}
