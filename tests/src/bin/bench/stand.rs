//! A lab that a bench measures on: hugepages, real agents, and gone when the bench is.

use anyhow::{Context, Result};
use causeway_tests::lab::{self, Datapath, Lab, LabSpec, Pod};

use super::hugepages::Hugepages;
use super::undo::Undo;

/// MiB of hugepages that two fast paths take.
const MIB: u64 = 2 * 256;

/// A lab of two nodes.
pub struct Stand {
    /// The lab.
    pub lab: Lab,
    _undo: Undo,
    _pages: Option<Hugepages>,
}

impl Stand {
    /// Makes one; an earlier one of this name goes. Hugepages are reserved for fast paths that shall have them.
    pub fn up(name: &'static str, datapath: Datapath, change: impl FnOnce(&mut LabSpec)) -> Result<Self> {
        let doing = || format!("lab {name}");
        lab::remove(name).with_context(doing)?;
        let undo = Undo::with(move || {
            if let Err(error) = lab::remove(name) {
                eprintln!("taking down lab {name}: {error}");
            }
        });
        let fastpath = vec!["--memory".into(), "hugepages".into()];
        let mut spec = LabSpec { datapath, fastpath, ..LabSpec::named(name) };
        change(&mut spec);
        let huge = datapath != Datapath::Kernel && spec.fastpath.iter().any(|word| word == "hugepages");
        let pages = huge.then(|| Hugepages::reserve(MIB)).transpose()?;
        Ok(Self { lab: Lab::up(spec).with_context(doing)?, _undo: undo, _pages: pages })
    }

    /// Adds a pod on each of these nodes.
    pub fn pods(&self, nodes: &[&str]) -> Result<Vec<Pod>> {
        let pod =
            |(number, node): (usize, &&str)| Ok(self.lab.add_pod(node, format!("p{number}").as_str())?);
        nodes.iter().enumerate().map(pod).collect()
    }

    /// Takes the offloads of the wire away: frames leave each node as they would leave a NIC that has none.
    pub fn without_offloads(&self) -> Result<()> {
        for node in self.lab.nodes()? {
            node.exec(
                "ethtool -K eth0 tx off tso off gso off gro off tx-udp_tnl-segmentation off \
                 tx-udp_tnl-csum-segmentation off",
            )?;
        }
        Ok(())
    }
}
