//! A peer: DPDK's own testpmd, which swaps hardware addresses and does nothing else, over the same devices. What no program
//! of ours can outrun.

use std::path::Path;

use anyhow::{Context, Result};
use causeway_tests::command;

use super::flows::Flows;

/// Seconds that it runs, the first of them beginning.
const SECONDS: u32 = 4;

/// What DPDK calls the files of those whom this process starts.
pub fn prefix() -> String {
    format!("cwb{}", std::process::id())
}

/// Millions of packets in a second, of one forwarding core, from a file of so many flows.
pub fn measure(pcap: &Path, flows: u32) -> Result<f64> {
    // The source keeps every frame of the file in a buffer.
    forward(&format!("net_pcap0,rx_pcap={},infinite_rx=1", pcap.display()), flows + 16_384, None)
}

/// The same from a source that it brings along.
pub fn measure_flows(flows: &Flows) -> Result<f64> {
    forward(&flows.device(), 16_384, Some(flows))
}

fn forward(source: &str, buffers: u32, flows: Option<&Flows>) -> Result<f64> {
    let words = format!(
        "timeout {SECONDS} dpdk-testpmd -l 0,1 --main-lcore=1 --in-memory --no-pci --no-telemetry --file-prefix={} \
         --vdev={source} --vdev=net_null1,no-rx=1 -- \
         --forward-mode=mac --auto-start --stats-period 1 --total-num-mbufs={buffers}",
        prefix()
    );
    let mut command = command::parse(&words);
    if let Some(flows) = flows {
        flows.preload(&mut command);
    }
    // It ends by the timeout's signal: its status tells nothing, its figures all.
    let output = command::output(&mut command, b"")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let rates =
        said.lines().filter_map(|line| line.split_once("Tx-pps:")?.1.split_whitespace().next()?.parse().ok());
    let best = rates.max_by(f64::total_cmp).filter(|rate| *rate > 0.0);
    let complaint =
        || format!("dpdk-testpmd sent nothing: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(best.with_context(complaint)? / 1e6)
}
