//! Putting the plugin and its network configuration where a runtime looks for them, and taking them away again.
//!
//! A runtime uses whatever it finds the moment it finds it. So a file is never seen half-written, the program comes before
//! the configuration that names it, and the configuration comes only when the agent answers for it.

mod network;
mod place;
mod record;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config::Config;
use crate::error::Error;
pub use network::CniVersion;
use place::{Found, Held};
use record::Installed;

/// The plugin's file, and the type that a network configuration names it by.
pub const PLUGIN: &str = "causeway-cni";
/// The network configuration's file; a runtime takes the first of its directory in the order of names.
pub const CONFLIST: &str = "10-causeway.conflist";
/// How often an agent that does not serve yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a plugin may take to say which versions it speaks.
const VERSIONS: Duration = Duration::from_secs(5);

/// What shall be put where.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The plugin of this release.
    pub plugin: PathBuf,
    /// Where the runtime looks for plugins.
    pub bin_dir: PathBuf,
    /// Where the runtime looks for network configurations.
    pub conf_dir: PathBuf,
    /// The network's name.
    pub network: String,
    /// The version of the specification that the runtime is asked to speak.
    pub cni_version: CniVersion,
    /// Whether a network configuration that somebody has edited is replaced, too.
    pub overwrite: bool,
}

/// Puts program and network configuration in place, and says what was done. The configuration waits, no longer than `patience`,
/// until `serves` has nothing to complain about.
pub fn install(
    config: &Config,
    wanted: &Wanted,
    patience: Duration,
    serves: impl Fn() -> Result<(), String>,
) -> Result<Vec<String>, Error> {
    let text = network::text(config, wanted)?;
    let mut installed = Installed::read(config)?;
    installed.make_directory(config, &wanted.bin_dir)?;
    installed.make_directory(config, &wanted.conf_dir)?;
    let _held = Held::of(&wanted.bin_dir)?;
    let (program, conflist) = (wanted.bin_dir.join(PLUGIN), wanted.conf_dir.join(CONFLIST));
    let kept = look_at_conflist(&conflist, &installed, wanted.overwrite)?;
    installed.expect(config, &program, &conflist, &text)?;
    let mut said = vec![place_program(wanted, &program)?];
    wait_for(patience, serves)?;
    said.push(match kept {
        Some(why) => format!("{} stays as it is: {why}; --overwrite replaces it", conflist.display()),
        None => {
            let done = place::text(&conflist, &text)?;
            installed.settle(config, &conflist, &text)?;
            format!("{} {done}", conflist.display())
        }
    });
    said.extend(network::comes_before(&conflist)?.map(|other| {
        format!("warning: {} comes first in the order of names: a runtime takes that one", other.display())
    }));
    Ok(said)
}

/// Why a network configuration stays that is there already; an error when it is not ours to judge.
fn look_at_conflist(
    path: &Path,
    installed: &Installed,
    overwrite: bool,
) -> Result<Option<&'static str>, Error> {
    let text = match place::find(path)? {
        Found::Nothing => return Ok(None),
        Found::File => fs::read(path).map_err(Error::io(format!("reading {}", path.display())))?,
    };
    // What a full disk leaves of a file that was not written as ours are.
    if text.is_empty() || installed.wrote(path, &text) {
        return Ok(None);
    }
    match network::names_our_plugin(&text) {
        true if overwrite => Ok(None),
        true => Ok(Some("it has been edited")),
        false => Err(Error::NotOurs { path: path.to_owned(), why: format!("it names no plugin {PLUGIN}") }),
    }
}

fn place_program(wanted: &Wanted, program: &Path) -> Result<String, Error> {
    let bytes = fs::read(&wanted.plugin)
        .map_err(Error::io(format!("reading the plugin {}", wanted.plugin.display())))?;
    let done = place::program(program, &bytes, |aside| {
        speaks(aside, wanted.cni_version).map_err(|why| Error::NoPlugin { path: wanted.plugin.clone(), why })
    })?;
    Ok(format!("{} {done}", program.display()))
}

/// Asks a program for its versions, as a runtime would: a file cut short, or of another machine, does not answer.
fn speaks(program: &Path, version: CniVersion) -> Result<(), String> {
    let mut child = start(program).map_err(|error| format!("it does not run: {error}"))?;
    let until = Instant::now() + VERSIONS;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > until {
            drop(child.kill());
            drop(child.wait());
            return Err(format!("it did not say its versions within {VERSIONS:?}"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let said = child.wait_with_output().map_err(|error| error.to_string())?.stdout;
    let answer: Value = serde_json::from_slice(&said).map_err(|_| "it is no CNI plugin".to_owned())?;
    let versions = answer["supportedVersions"].as_array();
    match versions.is_some_and(|all| all.iter().any(|one| one == version.as_str())) {
        true => Ok(()),
        false => Err(format!("it does not speak CNI {version}: {answer}")),
    }
}

fn start(program: &Path) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.env_clear().env("CNI_COMMAND", "VERSION");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    for _ in 0..50 {
        match command.spawn() {
            // Another thread's child may hold what we have just written until it runs its own program.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(10));
            }
            started => return started,
        }
    }
    command.spawn()
}

/// Writes a small record of the agent's as durably as what is installed.
pub(crate) fn put_text(path: &Path, text: &str) -> Result<(), Error> {
    place::text(path, text).map(drop)
}

fn wait_for(patience: Duration, serves: impl Fn() -> Result<(), String>) -> Result<(), Error> {
    let until = Instant::now() + patience;
    loop {
        match serves() {
            Ok(()) => return Ok(()),
            Err(missing) if Instant::now() >= until => return Err(Error::NotServing(missing)),
            Err(_) => thread::sleep(ASK_AGAIN.min(until.saturating_duration_since(Instant::now()))),
        }
    }
}

/// Where program and network configuration may lie although no record says so.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// A directory of plugins.
    pub bin_dir: Option<PathBuf>,
    /// A directory of network configurations.
    pub conf_dir: Option<PathBuf>,
}

/// What is installed, being taken away: configurations first, so that no runtime calls a plugin that cannot serve.
pub(crate) struct Removal<'a> {
    config: &'a Config,
    installed: Installed,
    places: &'a Places,
}

impl<'a> Removal<'a> {
    pub fn of(config: &'a Config, places: &'a Places) -> Result<Self, Error> {
        Ok(Self { config, installed: Installed::read(config)?, places })
    }

    /// Takes the network configurations away, edited ones too: without us they would break every pod.
    pub fn conflists(&self) -> Result<(), Error> {
        let more = self.places.conf_dir.iter().map(|directory| directory.join(CONFLIST));
        Error::all(self.installed.conflists().chain(more).map(|path| {
            match place::find(&path)? {
                Found::Nothing => return Ok(()),
                Found::File => {}
            }
            let text = fs::read(&path).map_err(Error::io(format!("reading {}", path.display())))?;
            match text.is_empty() || network::names_our_plugin(&text) {
                true => place::take_away(&path),
                false => Ok(()),
            }
        }))
    }

    /// Takes the programs away, the directories made for all this, and the record of it.
    pub fn programs(self) -> Result<(), Error> {
        let more = self.places.bin_dir.iter().map(|directory| directory.join(PLUGIN));
        Error::all(self.installed.programs().chain(more).map(|path| match place::find(&path)? {
            Found::Nothing => Ok(()),
            Found::File => place::take_away(&path),
        }))?;
        self.installed.forget(self.config)
    }
}

#[cfg(test)]
mod tests;
