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
use causeway_model::clusterset::Clusterset;
use causeway_model::connection::{Listing, Stage};
use causeway_model::flow::{FlowQuery, Flows};
use causeway_model::operator::{self, ConnectionQuery, EndpointStatus, ServiceQuery, ServiceStatus, Status};
use causeway_model::policy::Verdict;
use causeway_model::why::{Why, WhyQuery};
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
    /// Shows what became of connections as they were begun: allowed or denied, by which rules; all conditions given must fit.
    Flows(FlowArguments),
    /// Shows the services as this node has them: where each is reached, who answers, how often it was asked; all conditions given
    /// must fit.
    Services(Services),
    /// Says why a connection is allowed or denied: by which rule of which policy at either end, and what it would take to allow it.
    Why(WhyArguments),
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
struct FlowArguments {
    #[command(flatten)]
    question: Question,
    /// Go on showing what comes.
    #[arg(long)]
    follow: bool,
    /// From or to this pod.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
    /// With this verdict: allow, deny.
    #[arg(long, value_name = "VERDICT", value_parser = word::<Verdict>)]
    verdict: Option<Verdict>,
    /// To this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Of this data path: fast, kernel.
    #[arg(long, value_name = "PATH", value_parser = word::<causeway_model::Path>)]
    path: Option<causeway_model::Path>,
    /// By rules whose id begins so: a policy's uid, or a whole id.
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// How many at most, the newest.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    most: usize,
}

/// How often somebody who follows is told what is new.
const FOLLOW: Duration = Duration::from_millis(500);

impl FlowArguments {
    /// One line an event; with `--json`, one record a line.
    fn obey(self) -> anyhow::Result<()> {
        let Self { question: Question { socket, json }, follow, pod, verdict, port, path, rule, most } = self;
        let mut query = FlowQuery { after: None, pod, verdict, port, path, rule, most: Some(most) };
        let (mut lost, mut first) = (0, true);
        loop {
            let page = format!("/v1/flows?{}", client::query(&query)?);
            let flows: Flows = read(&socket, &client::get(&socket, &page)?)?;
            let missed = flows.lost.saturating_sub(lost) + flows.forgotten;
            if missed > 0 && !first {
                eprintln!("causeway: {missed} events were lost");
            }
            for event in &flows.events {
                client::print(&if json { serde_json::to_string(event)? } else { table::flow(event) })?;
            }
            if !follow {
                return Ok(());
            }
            (query.after, lost, first) = (Some(flows.last), flows.lost, false);
            std::thread::sleep(FOLLOW);
        }
    }
}

#[derive(Args)]
struct WhyArguments {
    #[command(flatten)]
    question: Question,
    /// Who begins: a pod's namespace/name, an address, `host` (this node) or `world` (whoever is outside).
    #[arg(value_name = "SRC")]
    from: String,
    /// Whom it is for, likewise, or a service's namespace/name, or a name under clusterset.local.
    #[arg(value_name = "DST")]
    to: String,
    /// The transport and the port, as in tcp/80; without it, what has no ports, or the first port of an imported service.
    #[arg(value_name = "PROTO/PORT", value_parser = transport_port)]
    traffic: Option<(String, u16)>,
    /// Send one packet, and tell what was denied and dropped meanwhile.
    #[arg(long)]
    probe: bool,
}

fn transport_port(text: &str) -> Result<(String, u16), String> {
    let (protocol, port) = text.split_once('/').ok_or("wanted PROTO/PORT, as in tcp/80")?;
    Ok((protocol.to_owned(), port.parse().map_err(|error| format!("port {port:?}: {error}"))?))
}

impl WhyArguments {
    fn obey(self) -> anyhow::Result<()> {
        let Self { question, from, to, traffic, probe } = self;
        let (protocol, port) = traffic.unzip();
        let query = WhyQuery { from, to, protocol, port, probe };
        let page = format!("/v1/why?{}", client::query(&query)?);
        question.answer(&page, |why: &Why| table::why(why))
    }
}

#[derive(Args)]
struct Services {
    #[command(flatten)]
    question: Question,
    /// Of this namespace.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Of this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Those of the mesh instead: what clusters export and this one imports, what they disagree about, who serves, how it is
    /// chosen.
    #[arg(long)]
    clusters: bool,
}

impl Services {
    fn obey(self) -> anyhow::Result<()> {
        let Self { question, namespace, name, clusters } = self;
        let query = client::query(&ServiceQuery { namespace, name })?;
        if clusters {
            let page = format!("/v1/services/clusters?{query}");
            return question.answer(&page, |page: &Clusterset| table::clusterset(page));
        }
        let page = format!("/v1/services?{query}");
        question.answer(&page, |services: &Vec<ServiceStatus>| table::services(services))
    }
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
        Command::Flows(flows) => flows.obey(),
        Command::Services(services) => services.obey(),
        Command::Why(why) => why.obey(),
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
