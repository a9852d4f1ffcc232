//! What the kernel itself counts of packets that it does not take: outside of our chains, under names of its own.

use std::fs;

use crate::error::KernelError;

/// The kernel's counts of IPv4 packets whose lengths or header checksum are wrong, whatever link they came by.
const IPV4: [&str; 2] = ["InTruncatedPkts", "InCsumErrors"];
/// Its counts of IPv6 packets whose lengths are wrong, by link.
const IPV6: [&str; 1] = ["Ip6InTruncatedPkts"];

/// Packets with malformed IP headers since the namespace of this thread was made: over IPv4 those of all links, since the kernel
/// does not tell them apart, over IPv6 those of the link named.
pub(crate) fn malformed(link: &str) -> Result<u64, KernelError> {
    let v4 = table(&read("netstat")?, "IpExt:", &IPV4);
    // A link without IPv6 has no such file.
    let v6 = read(&format!("dev_snmp6/{link}")).map_or(0, |text| of_link(&text, &IPV6));
    Ok(v4 + v6)
}

/// Datagrams that were not put together: those of which a fragment did not come in time, over either family, and those of IPv4 whose
/// fragments overlap. The kernel counts them for all links together.
pub(crate) fn datagrams() -> Result<(u64, u64), KernelError> {
    let late = table(&read("snmp")?, "Ip:", &["ReasmTimeout"]);
    // Without IPv6 there is no such file.
    let late6 = read("snmp6").map_or(0, |text| of_link(&text, &["Ip6ReasmTimeout"]));
    Ok((late + late6, table(&read("netstat")?, "IpExt:", &["ReasmOverlaps"])))
}

fn read(name: &str) -> Result<String, KernelError> {
    let path = format!("/proc/thread-self/net/{name}");
    fs::read_to_string(&path).map_err(KernelError::io(format!("reading {path}")))
}

/// Sums up columns of the table of a name: one line of names, one of numbers.
fn table(text: &str, name: &str, wanted: &[&str]) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    let columns = names.split_whitespace().zip(numbers.split_whitespace());
    columns
        .filter(|(name, _)| wanted.contains(name))
        .filter_map(|(_, number)| number.parse::<u64>().ok())
        .sum()
}

/// Sums up rows: a name and a number each.
fn of_link(text: &str, wanted: &[&str]) -> u64 {
    let rows = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
    rows.filter(|(name, _)| wanted.contains(name))
        .filter_map(|(_, number)| number.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read_by_their_names() {
        let text =
            "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InTruncatedPkts InCsumErrors\nIpExt: 7 20 3\n";
        assert_eq!(table(text, "IpExt:", &IPV4), 23);
        assert_eq!(table("TcpExt: A\nTcpExt: 1\n", "IpExt:", &IPV4), 0);
        let rows =
            "ifIndex                         \t3\nIp6InTruncatedPkts              \t5\nIp6InDiscards \t9\n";
        assert_eq!(of_link(rows, &IPV6), 5);
    }

    #[test]
    fn this_machine_has_them() {
        let text = read("netstat").unwrap();
        let names = text.lines().find(|line| line.starts_with("IpExt:")).unwrap();
        let known: Vec<_> = names.split_whitespace().collect();
        assert!(IPV4.iter().chain(&["ReasmOverlaps"]).all(|name| known.contains(name)), "{names}");
        assert!(read("snmp").unwrap().contains(" ReasmTimeout "));
    }
}
