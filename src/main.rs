//! The operator's command.

mod client;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use causeway_agent::config::{Config, PathWish};
use causeway_model::operator::{self, EndpointStatus, Status};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Release and commit.
const RELEASE: &str = env!("CAUSEWAY_RELEASE");

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
    /// With no agent running: takes every kernel object of ours away and gives kernel settings back what they were.
    Uninstall {
        #[command(flatten)]
        config: ConfigFile,
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
struct Question {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = operator::SOCKET)]
    socket: PathBuf,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match obey(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {}", one_line(&error));
            ExitCode::FAILURE
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
        Command::Uninstall { config, purge } => Ok(causeway_agent::uninstall(&config.load()?, purge)?),
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
