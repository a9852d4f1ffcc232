//! The plugin a container runtime executes: one CNI call becomes one question to the agent.
//!
//! It speaks CNI 1.1.0 and its forerunners down to 0.3.1 (SPEC.md of containernetworking/cni): parameters in the
//! environment, one JSON document on stdin, at most one on stdout, logs on stderr. It does nothing to the node by
//! itself, except leaving word of a deletion when the agent is dead.

mod agent;
mod config;
mod error;
mod input;
mod namespace;
mod outcome;
mod parameters;
mod tombstone;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use causeway_model::plugin::{Attachment, Reply, Request, VERSION, Verb};
use serde_json::{Map, Value, json};

use agent::Unanswered;
use config::Config;
use error::Error;
use namespace::Namespace;
use parameters::{Command, Parameters};
use version::SpecVersion;

/// How long the plugin waits, and for what. No call outlives the sum of these.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the `cniVersion` of a VERSION call, which a runtime need not send.
    pub prompt: Duration,
    /// For the network configuration.
    pub stdin: Duration,
    /// For the agent to take the connection.
    pub connect: Duration,
    /// For the agent's answer to ADD.
    pub add: Duration,
    /// For the agent's answer to DEL; then the deletion is left as a tombstone.
    pub del: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prompt: Duration::from_millis(200),
            stdin: Duration::from_secs(10),
            connect: Duration::from_secs(1),
            add: Duration::from_secs(60),
            del: Duration::from_secs(10),
        }
    }
}

/// What the runtime gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The one document for stdout; the success of a verb without a result has none (CNI 1.1.0 §5).
    pub document: Option<Value>,
    /// Whether the exit status tells of failure.
    pub failed: bool,
}

impl Answer {
    fn failure(version: SpecVersion, error: Error) -> Self {
        let failure = error.failure();
        let mut document = json!({"cniVersion": version.as_str(), "code": failure.code, "msg": failure.msg});
        if !failure.details.is_empty() {
            document["details"] = Value::from(failure.details);
        }
        Self { document: Some(document), failed: true }
    }
}

/// Does what the process was executed for: environment and stdin in, stdout and exit status out.
pub fn run() -> ExitCode {
    let answer = answer(&|name| std::env::var_os(name), std::io::stdin().as_fd(), &Limits::default());
    if let Some(document) = &answer.document
        && let Err(error) = writeln!(std::io::stdout(), "{document}")
    {
        log(format_args!("writing the answer to stdout: {error}"));
        return ExitCode::FAILURE;
    }
    if answer.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One CNI call: the environment is validated before stdin is read, and both before anything is done.
pub fn answer(variable: &dyn Fn(&str) -> Option<OsString>, stdin: BorrowedFd<'_>, limits: &Limits) -> Answer {
    let parameters = match Parameters::read(variable) {
        Ok(parameters) => parameters,
        Err(error) => {
            let asked = input::prompt_version(stdin, limits.prompt);
            let version = asked.and_then(|asked| SpecVersion::parse(&asked)).unwrap_or(SpecVersion::NEWEST);
            return Answer::failure(version, error);
        }
    };
    if parameters.command == Command::Version {
        let asked = input::prompt_version(stdin, limits.prompt);
        return Answer { document: Some(version::document(asked.as_deref())), failed: false };
    }
    let document = match input::document(stdin, limits.stdin) {
        Ok(document) => document,
        Err(error) => return Answer::failure(SpecVersion::NEWEST, error),
    };
    let version = SpecVersion::asked_by(&document);
    match perform(&parameters, document, limits) {
        Ok(document) => Answer { document, failed: false },
        Err(error) => Answer::failure(version.unwrap_or(SpecVersion::NEWEST), error),
    }
}

/// CNI 1.1.0 §2, "CNI operations".
fn perform(
    parameters: &Parameters,
    document: Map<String, Value>,
    limits: &Limits,
) -> Result<Option<Value>, Error> {
    let config = Config::try_from(document)?;
    if config.version < parameters.command.since() {
        return Err(Error::TooOld { command: parameters.command, version: config.version });
    }
    match parameters.command {
        Command::Add => add(parameters, &config, limits).map(Some),
        Command::Del => del(parameters, &config, limits).map(|()| None),
        Command::Check => {
            config.previous()?.ok_or(Error::config("prevResult", "CHECK cannot do without it"))?;
            Err(Error::NotYet(Command::Check))
        }
        Command::Gc => Err(Error::NotYet(Command::Gc)),
        Command::Status => status(&config, limits).map(|()| None),
        Command::Version => unreachable!("answered before stdin was read"),
    }
}

/// CNI 1.1.0 §2, "ADD".
fn add(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<Value, Error> {
    config.refuse_unsupported()?;
    let previous = config.previous()?.cloned().unwrap_or_default();
    let namespace = namespace::open(&parameters.netns)
        .map_err(|source| Error::Namespace { path: parameters.netns.clone(), source })?;
    let request = request(Verb::Add, parameters, config);
    let reply = agent::ask(&config.socket, &request, Some(&namespace), limits.connect, limits.add)
        .map_err(|source| Error::Unanswered { socket: config.socket.clone(), source })?;
    match reply {
        Reply::Attached(attachment) => result(parameters, config, previous, &attachment),
        Reply::Failed(failure) => Err(Error::Agent(failure)),
        Reply::Done => Err(Error::Unanswered { socket: config.socket.clone(), source: Unanswered::Beside }),
    }
}

fn result(
    parameters: &Parameters,
    config: &Config,
    previous: Map<String, Value>,
    attachment: &Attachment,
) -> Result<Value, Error> {
    let mut outcome = outcome::Outcome::from_previous(config.version, previous)?;
    outcome.attach(attachment, &parameters.interface, &parameters.netns);
    outcome.resolve_by(config.dns()?)?;
    Ok(outcome.into_document())
}

/// CNI 1.1.0 §2, "DEL": best effort, so nothing but an agent's refusal or a full disk is an error.
fn del(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<(), Error> {
    let namespace = pod_namespace(&parameters.netns);
    let request = request(Verb::Del, parameters, config);
    match agent::ask(&config.socket, &request, namespace.as_ref(), limits.connect, limits.del) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Failed(failure)) => Err(Error::Agent(failure)),
        Ok(Reply::Attached(_)) => bury(&request, config, &Unanswered::Beside),
        Err(unanswered) => bury(&request, config, &unanswered),
    }
}

/// The namespace of a pod to delete, if it is still there and is a pod's.
fn pod_namespace(path: &str) -> Option<Namespace> {
    if path.is_empty() {
        return None;
    }
    namespace::open(path)
        .inspect_err(|error| log(format_args!("deleting without namespace: CNI_NETNS {path:?} {error}")))
        .ok()
}

fn bury(request: &Request, config: &Config, unanswered: &Unanswered) -> Result<(), Error> {
    let path = tombstone::leave(&config.tombstones, &request.key)?;
    let (socket, key) = (config.socket.display(), &request.key);
    log(format_args!(
        "the agent at {socket} {unanswered}: the deletion of {key} is left in {}",
        path.display()
    ));
    Ok(())
}

/// CNI 1.1.0 §2, "STATUS": an ADD can be served when its configuration is one we take and the agent listens.
fn status(config: &Config, limits: &Limits) -> Result<(), Error> {
    config.refuse_unsupported()?;
    agent::reach(&config.socket, limits.connect)
        .map_err(|source| Error::NotServing { socket: config.socket.clone(), source })
}

fn request(verb: Verb, parameters: &Parameters, config: &Config) -> Request {
    Request {
        version: VERSION,
        verb,
        key: parameters.key(&config.network),
        netns: parameters.netns.clone(),
        pod: parameters.pod(),
        args: parameters.args.clone(),
        config: config.document.clone(),
    }
}

/// stdout belongs to the one document, so everything else goes to stderr.
fn log(line: std::fmt::Arguments<'_>) {
    // A runtime that closed stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "causeway-cni: {line}");
}
