//! What was installed where, kept with the agent's state, so that it can be told from what others wrote and taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::place;
use crate::config::Config;
use crate::error::Error;

/// The version of the record.
const VERSION: u32 = 1;

/// What was installed, or is about to be: a record of too much is harmless, one of too little is not.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Installed {
    version: u32,
    #[serde(default)]
    programs: BTreeSet<PathBuf>,
    /// Network configurations, each with the texts that are ours.
    #[serde(default)]
    conflists: BTreeMap<PathBuf, Vec<String>>,
    /// Directories that were not there, outermost first.
    #[serde(default)]
    directories: Vec<PathBuf>,
}

fn file(config: &Config) -> PathBuf {
    config.state.join("installed.json")
}

impl Installed {
    pub fn read(config: &Config) -> Result<Self, Error> {
        let file = file(config);
        match fs::read(&file) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| Error::Damaged { file, why: error.to_string() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { version: VERSION, ..Self::default() })
            }
            Err(error) => Err(Error::io(format!("reading {}", file.display()))(error)),
        }
    }

    fn write(&self, config: &Config) -> Result<(), Error> {
        fs::create_dir_all(&config.state).map_err(Error::io(format!("making {}", config.state.display())))?;
        let text =
            serde_json::to_string_pretty(self).unwrap_or_else(|_| unreachable!("paths of ours are text"));
        place::text(&file(config), &text).map(drop)
    }

    /// Makes a directory, and writes down first which ones there were not.
    pub fn make_directory(&mut self, config: &Config, directory: &Path) -> Result<(), Error> {
        let missing: Vec<_> = directory.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.into_iter().rev().map(Path::to_owned) {
            if !self.directories.contains(&path) {
                self.directories.push(path);
            }
            self.write(config)?;
        }
        fs::create_dir_all(directory).map_err(Error::io(format!("making {}", directory.display())))
    }

    /// Writes down what is about to be installed.
    pub fn expect(
        &mut self,
        config: &Config,
        program: &Path,
        conflist: &Path,
        text: &str,
    ) -> Result<(), Error> {
        self.programs.insert(program.to_owned());
        let texts = self.conflists.entry(conflist.to_owned()).or_default();
        if !texts.iter().any(|known| known == text) {
            texts.push(text.to_owned());
        }
        self.write(config)
    }

    /// Writes down which text it is now.
    pub fn settle(&mut self, config: &Config, conflist: &Path, text: &str) -> Result<(), Error> {
        self.conflists.insert(conflist.to_owned(), vec![text.to_owned()]);
        self.write(config)
    }

    /// Whether a file is as we wrote it.
    pub fn wrote(&self, conflist: &Path, text: &[u8]) -> bool {
        self.conflists.get(conflist).is_some_and(|texts| texts.iter().any(|known| known.as_bytes() == text))
    }

    pub fn conflists(&self) -> impl Iterator<Item = PathBuf> {
        self.conflists.keys().cloned()
    }

    pub fn programs(&self) -> impl Iterator<Item = PathBuf> {
        self.programs.iter().cloned()
    }

    /// Removes the directories that were made, unless others use them, and the record.
    pub fn forget(self, config: &Config) -> Result<(), Error> {
        for directory in self.directories.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error)
                    if ![io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty]
                        .contains(&error.kind()) =>
                {
                    return Err(Error::io(format!("removing {}", directory.display()))(error));
                }
                _ => {}
            }
        }
        place::take_away(&file(config))
    }
}
