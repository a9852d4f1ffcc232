//! Whether kube-proxy keeps services on this node, told by what it leaves in the kernel.

use std::fs;
use std::process::Command;

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::error::KernelError;
use crate::netlink::{Failure, Netlink};
use crate::nfnetlink::{NFTABLES, Record, failed};
use crate::uplink;

const GET_TABLE: u16 = NFTABLES | 1;
const GET_CHAIN: u16 = NFTABLES | 4;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// The families that kube-proxy has tables of, and what nft calls them.
const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];
/// The interface that has every ClusterIP in its ipvs mode.
const IPVS_LINK: &str = "kube-ipvs0";

/// What kube-proxy has put into the kernel, in the network namespace of this thread, by whichever of its modes; none: nothing.
///
/// Its rules are found by their names; those of legacy iptables only where the command that shows them is installed.
pub fn kube_proxy() -> Result<Option<String>, KernelError> {
    let mut netlink =
        Netlink::open(NETLINK_NETFILTER).map_err(KernelError::io("opening a netfilter socket"))?;
    for (family, name) in FAMILIES {
        if exists(&mut netlink, GET_TABLE, family, &[(TABLE_NAME, "kube-proxy")])? {
            return Ok(Some(format!("kube-proxy's nftables (table {name} kube-proxy)")));
        }
        if exists(&mut netlink, GET_CHAIN, family, &[(CHAIN_TABLE, "nat"), (CHAIN_NAME, "KUBE-SERVICES")])? {
            return Ok(Some(format!("kube-proxy's iptables (chain KUBE-SERVICES of table {name} nat)")));
        }
    }
    let ipvs = uplink::by_name(IPVS_LINK)?;
    Ok(ipvs.map(|_| format!("kube-proxy's ipvs (interface {IPVS_LINK})")).or_else(legacy))
}

/// Asks legacy iptables where they have a table `nat`: asking makes one where there was none.
fn legacy() -> Option<String> {
    const COMMANDS: [(&str, &str, &str); 2] = [
        ("ip", "/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
        ("ip6", "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
    ];
    COMMANDS.into_iter().find_map(|(family, tables, command)| {
        let has_nat = fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == "nat"));
        let saved = has_nat.then(|| Command::new(command).args(["-t", "nat"]).output().ok()).flatten()?;
        let saved = String::from_utf8_lossy(&saved.stdout).into_owned();
        let found = saved.lines().any(|line| line.starts_with(":KUBE-SERVICES "));
        found.then(|| format!("kube-proxy's iptables (chain KUBE-SERVICES of legacy table {family} nat)"))
    })
}

fn exists(netlink: &mut Netlink, kind: u16, family: u8, names: &[(u16, &str)]) -> Result<bool, KernelError> {
    let names: Vec<_> = names.iter().map(|(kind, name)| (*kind, format!("{name}\0"))).collect();
    let attributes: Vec<_> = names.iter().map(|(kind, name)| (*kind, name.as_bytes())).collect();
    match netlink.exchange(Record::question(kind, family, &attributes), NLM_F_REQUEST) {
        Ok(answer) => Ok(!answer.records.is_empty()),
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::ENOENT as i32 => Ok(false),
        Err(failure) => Err(failed(failure, "looking for kube-proxy's rules")),
    }
}
