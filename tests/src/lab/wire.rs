//! What joins the nodes: a bridge in a namespace of its own, or the user-space switch.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Binaries, Lab, LabError, NodePlan, WireKind};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::switch::{Order, SwitchStatus, ask};

/// How long the switch may take to answer its first question.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a node is plugged into the wire: its name may be longer than that of an interface.
fn port(plan: &NodePlan) -> String {
    format!("n{}", plan.number)
}

impl Lab {
    /// Makes the wire, without nodes.
    pub(super) fn make_wire(&self) -> Result<(), LabError> {
        let wire = Namespace::create(self.namespace("wire").name())
            .map_err(|error| LabError::io("making the wire's namespace", error))?;
        match self.record()?.spec.wire {
            WireKind::Bridge => {
                // The bridge carries frames; it has no business of its own on the wire.
                for scope in ["all", "default"] {
                    wire.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")
                        .map_err(|error| LabError::io("silencing the bridge", error))?;
                }
                wire.ip("link add wire up type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
                Ok(())
            }
            WireKind::Userspace => self.start_switch(),
        }
    }

    /// Starts the switch and waits until it answers.
    fn start_switch(&self) -> Result<(), LabError> {
        let mut command = Command::new(Binaries::find()?.get("lab")?);
        command.arg("switch").arg("--socket").arg(self.switch_socket());
        let process = Process::start(&mut command, &self.directory().join("switch.log"))
            .map_err(|error| LabError::io("starting the switch", error))?;
        self.store.update(|record| {
            record.wire = Some(process);
            Ok(())
        })?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask(&self.switch_socket(), &Order::Status) {
                Ok(_) => return Ok(()),
                Err(_) if process.is_alive() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    let log =
                        std::fs::read_to_string(self.directory().join("switch.log")).unwrap_or_default();
                    return Err(LabError::Refused(format!(
                        "the switch does not answer: {error}; its log: {log}"
                    )));
                }
            }
        }
    }

    fn switch_socket(&self) -> std::path::PathBuf {
        self.directory().join("switch.sock")
    }

    /// Gives a node its `eth0` on the wire, with its addresses.
    pub(super) fn join_wire(&self, plan: &NodePlan) -> Result<(), LabError> {
        let spec = self.record()?.spec;
        let (name, mtu) = (plan.node.id.name.as_str(), spec.mtu);
        let (node, port) = (self.namespace(name), port(plan));
        match spec.wire {
            WireKind::Bridge => {
                let eth0 = format!("type veth peer name eth0 mtu {mtu} netns {}", node.name());
                self.namespace("wire").ip(&format!("link add {port} mtu {mtu} master wire up {eth0}"))?;
            }
            WireKind::Userspace => {
                let namespace = node.name().to_owned();
                ask(&self.switch_socket(), &Order::AddPort { port, namespace }).map_err(LabError::Refused)?;
            }
        }
        // The wire knows its addresses; a node whose own come a second later would look changed.
        node.sysctl("net/ipv6/conf/eth0/accept_dad", "0")
            .map_err(|error| LabError::io(format!("eth0 of node {name}"), error))?;
        let (v4, v6) = plan.subnets;
        node.ip_batch(&format!(
            "link set eth0 mtu {mtu} up\naddr add {}/{v4} dev eth0\naddr add {}/{v6} dev eth0 nodad\n",
            plan.v4, plan.v6
        ))?;
        Ok(())
    }

    /// Adds a host to the wire, a bridge, that is no node: it has these addresses there, and knows no ways.
    pub fn add_host(&self, name: &str, addresses: &[IpAddr]) -> Result<Namespace, LabError> {
        let (number, spec) = self.store.update(|record| {
            record.hosts.push(name.to_owned());
            Ok((record.hosts.len(), record.spec.clone()))
        })?;
        if spec.wire != WireKind::Bridge {
            return Err(LabError::Refused(format!("host {name}: only a bridge takes hosts")));
        }
        let namespace = self.namespace(name);
        Namespace::create(namespace.name())
            .map_err(|error| LabError::io(format!("making namespace {}", namespace.name()), error))?;
        let (mtu, eth0) = (spec.mtu, format!("type veth peer name eth0 netns {}", namespace.name()));
        self.namespace("wire").ip(&format!("link add h{number} mtu {mtu} master wire up {eth0}"))?;
        let mut batch = format!("link set eth0 mtu {mtu} up\n");
        for address in addresses {
            let how = if address.is_ipv4() { "/32" } else { "/128" };
            batch += &format!("addr add {address}{how} dev eth0 nodad\n");
        }
        namespace.ip_batch(&batch)?;
        Ok(namespace)
    }

    /// Takes a node's uplink away, or gives it one again with the addresses it had.
    pub fn set_wired(&self, name: &str, wired: bool) -> Result<(), LabError> {
        if wired { self.join_wire(&self.node(name)?.plan) } else { self.leave_wire(name) }
    }

    /// Takes a node off the wire, for good.
    pub(super) fn leave_wire(&self, name: &str) -> Result<(), LabError> {
        match self.record()?.spec.wire {
            WireKind::Bridge => {
                drop(self.namespace("wire").ip(&format!("link del {}", port(&self.node(name)?.plan)))?);
            }
            WireKind::Userspace => {
                ask(&self.switch_socket(), &Order::RemovePort { port: port(&self.node(name)?.plan) })
                    .map_err(LabError::Refused)?;
            }
        }
        Ok(())
    }

    /// Changes what the wire does to frames, in the words of `lab wire`; without words, only looks.
    pub fn wire(&self, words: &[&str]) -> Result<SwitchStatus, LabError> {
        let record = self.record()?;
        if record.spec.wire != WireKind::Userspace {
            let reason = "has a bridge for a wire, which does nothing to frames: lab up --wire userspace";
            return Err(LabError::Refused(format!("lab {} {reason}", self.name())));
        }
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        ask(&self.switch_socket(), &Order::Set { words }).map_err(LabError::Refused)
    }
}
