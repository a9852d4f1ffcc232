//! The operator's command.

mod client;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use causeway_agent::config::{Config, ConfigError, PathWish};
use causeway_agent::hugepages;
use causeway_agent::install::{self, CniVersion, Places, Wanted};
use causeway_model::IpNetwork;
use causeway_model::connection::{Listing, Stage};
use causeway_model::operator::{self, ConnectionQuery, EndpointStatus, Status};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Release and commit.
const RELEASE: &str = env!("CAUSEWAY_RELEASE");

/// The exit status of a configuration that no restart will make better (sysexits.h, EX_CONFIG); the unit goes by it.
const CONFIGURATION: u8 = 78;

/// Runs and shows the pod network of this node.
#[derive(Parser)]
#[command(name = "causeway", version = RELEASE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the node agent in the foreground. Logs go to standard error, filtered by CAUSEWAY_LOG (as in
    /// "info,causeway_agent=debug"). SIGTERM stops it and leaves the data path in place.
    Agent {
        #[command(flatten)]
        config: ConfigFile,
        /// The data path of this node, whatever the configuration says.
        #[arg(long, value_name = "auto|fast|kernel")]
        datapath: Option<PathWish>,
    },
    /// Shows this node: path and reason, peers, endpoints, drops, what is waited for and what is wrong.
    Status(Question),
    /// Shows every attachment: pod, addresses, path and reason, counters.
    Endpoints(Question),
    /// Shows the connections of this node's pods on both data paths; all conditions given must fit.
    Connections(Connections),
    /// Puts the plugin where the runtime looks for it and, once the agent serves, the network configuration.
    Install(Install),
    /// Sees to it that so much memory is free in hugepages for a fast path about to start; `uninstall` gives the count back.
    Hugepages {
        #[command(flatten)]
        config: ConfigFile,
        /// As much as `causeway-fastpath --memory-mib` takes.
        #[arg(long, value_name = "MIB", default_value_t = 256)]
        mib: u64,
    },
    /// With no agent running: takes the network configuration, every kernel object of ours and the plugin away, and gives
    /// kernel settings back what they were.
    Uninstall {
        #[command(flatten)]
        config: ConfigFile,
        /// Look for the plugin here, too; what `install` wrote down is found without.
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
        /// Look for the network configuration here, too.
        #[arg(long, value_name = "DIR")]
        conf_dir: Option<PathBuf>,
        /// Remove the store of endpoints and addresses as well.
        #[arg(long)]
        purge: bool,
    },
}

#[derive(Args)]
struct ConfigFile {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/causeway/agent.yaml")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&self.config)?)
    }
}

#[derive(Args)]
struct Install {
    #[command(flatten)]
    config: ConfigFile,
    /// The plugin to install. Default: causeway-cni beside this program.
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Where the runtime looks for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where the runtime looks for network configurations; it takes the first in the order of names.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The name of the network.
    #[arg(long, value_name = "NAME", default_value = "causeway")]
    network: String,
    /// The version of CNI: 1.0.0, or 1.1.0 where the runtime takes it (containerd 2.0, CRI-O 1.32 and later).
    #[arg(long, value_name = "VERSION", default_value_t)]
    cni_version: CniVersion,
    /// How long the agent may take until it serves; without it the network configuration is not put in place.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Replace a network configuration of ours that has been edited.
    #[arg(long)]
    overwrite: bool,
}

impl Install {
    fn obey(self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let plugin = self.plugin.map_or_else(own_plugin, Ok)?;
        let wanted = Wanted {
            plugin,
            bin_dir: absolute(&self.bin_dir)?,
            conf_dir: absolute(&self.conf_dir)?,
            network: self.network,
            cni_version: self.cni_version,
            overwrite: self.overwrite,
        };
        let serves = || client::serves(&config.api_socket);
        client::print(&install::install(&config, &wanted, Duration::from_secs(self.wait), serves)?.join("\n"))
    }
}

fn own_plugin() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding the directory of this program")?;
    Ok(own.with_file_name(install::PLUGIN))
}

/// What is written down is read from other directories.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}", path.display()))
}

#[derive(Args)]
struct Question {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = operator::SOCKET)]
    socket: PathBuf,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Connections {
    #[command(flatten)]
    question: Question,
    /// Of this pod.
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "within")]
    pod: Option<String>,
    /// With one end in this prefix, or at this address.
    #[arg(long, value_name = "PREFIX")]
    within: Option<IpNetwork>,
    /// Of this transport: tcp, udp, sctp, icmp, icmpv6 or a number.
    #[arg(long, value_name = "NAME")]
    protocol: Option<String>,
    /// With this port at one end.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// In this stage: new, syn-received, established, fin-wait, last-ack, time-wait, closed.
    #[arg(long, value_name = "STAGE", value_parser = word::<Stage>)]
    stage: Option<Stage>,
    /// Of this data path: fast, kernel.
    #[arg(long, value_name = "PATH", value_parser = word::<causeway_model::Path>)]
    path: Option<causeway_model::Path>,
    /// How many at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    most: usize,
}

/// A word as the API writes it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::Value::from(text))
}

impl Connections {
    fn obey(self) -> anyhow::Result<()> {
        let Self { question, pod, within, protocol, port, stage, path, most } = self;
        let query = ConnectionQuery { pod, within, protocol, port, stage, path, most: Some(most) };
        let page = format!("/v1/connections?{}", client::query(&query)?);
        question.answer(&page, |listing: &Listing| table::connections(listing))
    }
}

fn main() -> ExitCode {
    match obey(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {}", one_line(&error));
            match error.is::<ConfigError>() {
                true => ExitCode::from(CONFIGURATION),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn obey(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Agent { config, datapath } => {
            let mut config = config.load()?;
            config.datapath = datapath.unwrap_or(config.datapath);
            log_to_stderr()?;
            Ok(causeway_agent::run(config, RELEASE)?)
        }
        Command::Status(question) => question.answer("/v1/status", |status: &Status| table::status(status)),
        Command::Endpoints(question) => {
            question.answer("/v1/endpoints", |endpoints: &Vec<EndpointStatus>| table::endpoints(endpoints))
        }
        Command::Connections(connections) => connections.obey(),
        Command::Install(install) => install.obey(),
        Command::Hugepages { config, mib } => client::print(&hugepages::provide(&config.load()?, mib)?),
        Command::Uninstall { config, bin_dir, conf_dir, purge } => {
            Ok(causeway_agent::uninstall(&config.load()?, &Places { bin_dir, conf_dir }, purge)?)
        }
    }
}

impl Question {
    fn answer<T: serde::de::DeserializeOwned>(
        &self,
        page: &str,
        show: impl Fn(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = client::get(&self.socket, page)?;
        let shown = match self.json {
            true => text,
            false => show(&read(&self.socket, &text)?),
        };
        client::print(&shown)
    }
}

fn read<T: serde::de::DeserializeOwned>(socket: &Path, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).with_context(|| format!("the answer of {} is unreadable", socket.display()))
}

fn log_to_stderr() -> anyhow::Result<()> {
    const VARIABLE: &str = "CAUSEWAY_LOG";
    let filter = std::env::var(VARIABLE).unwrap_or_else(|_| "info".to_owned());
    let filter: Targets = filter.parse().with_context(|| format!("{VARIABLE}={filter:?}"))?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

/// An error and its causes; some errors show their cause themselves.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match line.is_empty() {
            true => line = cause,
            false if line.ends_with(&cause) => {}
            false => line = format!("{line}: {cause}"),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = std::io::Error::other("no such thing");
        let error = anyhow::Error::new(inner).context("looking: no such thing").context("starting");
        assert_eq!(one_line(&error), "starting: looking: no such thing");
    }
}
