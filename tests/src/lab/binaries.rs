use std::path::{Path, PathBuf};

use super::{Datapath, LabError, LabSpec};

/// Where the programs under test are.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// The directory `CAUSEWAY_BIN` names; without it, that of this very program, or the one above for a test's.
    pub fn find() -> Result<Self, LabError> {
        if let Some(directory) = std::env::var_os("CAUSEWAY_BIN") {
            return Ok(Self { directory: directory.into() });
        }
        let own = std::env::current_exe().map_err(|error| LabError::io("finding this program", error))?;
        let directory = own.parent().unwrap_or(Path::new("/"));
        let directory =
            if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
        Ok(Self { directory: directory.to_owned() })
    }

    /// The directory, for CNI_PATH.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program, or what to do about its absence.
    pub fn get(&self, program: &str) -> Result<PathBuf, LabError> {
        let path = self.directory.join(program);
        if path.is_file() {
            return Ok(path);
        }
        let directory = self.directory.display();
        Err(LabError::Refused(format!(
            "there is no {program} in {directory}: build it there, or name its directory in CAUSEWAY_BIN"
        )))
    }

    /// Fails when a lab needs a program that is not there.
    pub(super) fn need_for(&self, spec: &LabSpec) -> Result<(), LabError> {
        if spec.agents {
            self.get("causeway")?;
            self.get("causeway-cni")?;
        }
        if spec.agents && spec.datapath != Datapath::Kernel {
            self.get("causeway-fastpath")?;
        }
        if spec.wire == super::WireKind::Userspace {
            self.get("lab")?;
        }
        Ok(())
    }
}
