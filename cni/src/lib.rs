//! The plugin a container runtime executes: one CNI call becomes one question to the agent.
//!
//! It speaks CNI 1.1.0 and its forerunners down to 0.3.1 (SPEC.md of containernetworking/cni): parameters in the
//! environment, one JSON document on stdin, at most one on stdout, logs on stderr. It does nothing to the node by
//! itself, except leaving word of a deletion when the agent is dead.

mod agent;
mod capabilities;
mod config;
mod delegate;
mod error;
mod input;
mod ipam;
mod namespace;
mod outcome;
mod parameters;
mod previous;
mod tombstone;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use causeway_model::plugin::{Attachment, Capabilities, Failure, IpamRequest, Reply, Request, VERSION, Verb};
use serde_json::{Map, Value, json};

use agent::Unanswered;
use config::Config;
use delegate::{Delegate, Given};
use error::Error;
use namespace::Namespace;
use outcome::Outcome;
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
    /// For the agent's answer to DEL; then the deletion is left as a tombstone, as it is when the agent has no time.
    pub del: Duration,
    /// For a plugin that gives the addresses.
    pub ipam: Duration,
    /// For the agent's answer to CHECK.
    pub check: Duration,
    /// For the agent's answer to GC.
    pub gc: Duration,
    /// For the agent's answer to STATUS, which a runtime asks for every few seconds.
    pub status: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prompt: Duration::from_millis(200),
            stdin: Duration::from_secs(10),
            connect: Duration::from_secs(1),
            add: Duration::from_secs(60),
            del: Duration::from_secs(10),
            ipam: Duration::from_secs(30),
            check: Duration::from_secs(20),
            gc: Duration::from_secs(60),
            status: Duration::from_secs(5),
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
        Command::Check => check(parameters, &config, limits).map(|()| None),
        Command::Gc => gc(parameters, &config, limits).map(|()| None),
        Command::Status => status(parameters, &config, limits).map(|()| None),
        Command::Version => unreachable!("answered before stdin was read"),
    }
}

/// CNI 1.1.0 §2, "ADD". What cannot become a result is known before anything is done.
fn add(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<Value, Error> {
    config.refuse_unsupported()?;
    let mut ipam = ipam::request(&config.document, &parameters.args)?;
    let mut outcome =
        Outcome::from_previous(config.version, config.previous()?.cloned().unwrap_or_default())?;
    outcome.resolve_by(config.dns()?.as_ref());
    let capabilities = config.capabilities()?;
    let namespace = open_namespace(parameters)?;
    let Some(delegate) = delegate(parameters, config, limits)? else {
        let attachment = attach(
            &Request { ipam, capabilities, ..request(Verb::Add, parameters, config) },
            config,
            &namespace,
            limits,
        )?;
        outcome.attach(&attachment, &parameters.interface, &parameters.netns);
        return Ok(outcome.into_document());
    };
    let Given { addresses, routes, dns } = delegate.add()?;
    ipam = IpamRequest { addresses, routes, delegate: Some(delegate.kind.clone()), ..ipam };
    let asked = Request { ipam, capabilities, ..request(Verb::Add, parameters, config) };
    outcome.resolve_by(dns.as_ref());
    let attachment = attach(&asked, config, &namespace, limits).map_err(|error| {
        // Who took the question may still do it: it must undo it before the addresses are another pod's.
        let heard = matches!(&error, Error::Unanswered { source, .. } if !matches!(source, Unanswered::Unreachable(_)));
        let buried = if heard { tombstone::leave(&config.tombstones, &asked.key).err() } else { None };
        let error = buried.into_iter().fold(error, |error, more| Error::Both(Box::new(error), Box::new(more)));
        delegate.give_back(error)
    })?;
    outcome.attach(&attachment, &parameters.interface, &parameters.netns);
    Ok(outcome.into_document())
}

/// The namespace that the runtime names, which must be a pod's.
fn open_namespace(parameters: &Parameters) -> Result<Namespace, Error> {
    namespace::open(&parameters.netns)
        .map_err(|source| Error::Namespace { path: parameters.netns.clone(), source })
}

/// The plugin that gives this network's addresses, where the agent does not.
fn delegate(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<Option<Delegate>, Error> {
    let kind = ipam::delegate(&config.document)?;
    kind.map(|kind| Delegate::find(kind, parameters, &config.document, limits.ipam)).transpose()
}

/// Has the agent attach.
fn attach(
    request: &Request,
    config: &Config,
    namespace: &Namespace,
    limits: &Limits,
) -> Result<Attachment, Error> {
    let unanswered = |source| Error::Unanswered { socket: config.socket.clone(), source };
    match agent::ask(&config.socket, request, Some(namespace), limits.connect, limits.add)
        .map_err(unanswered)?
    {
        Reply::Attached(attachment) => Ok(attachment),
        Reply::Failed(failure) => Err(Error::Agent(failure)),
        Reply::Done => Err(unanswered(Unanswered::Beside)),
    }
}

/// CNI 1.1.0 §2, "DEL": best effort, so nothing but an agent's refusal or a full disk is an error.
///
/// The plugin that gave the addresses comes last, whatever came of the rest: nothing must speak from them any more.
fn del(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<(), Error> {
    let detached = detach(parameters, config, limits);
    // What cannot be understood never gave an address.
    let kind = ipam::delegate(&config.document).inspect_err(|error| log(format_args!("ignored: {error}")));
    let released = kind.ok().flatten().map_or(Ok(()), |kind| {
        Delegate::find(kind, parameters, &config.document, limits.ipam)?.forward(Command::Del)
    });
    both(detached, released)
}

/// Success, or everything that failed.
fn both(first: Result<(), Error>, second: Result<(), Error>) -> Result<(), Error> {
    match (first, second) {
        (Err(error), Err(more)) => Err(Error::Both(Box::new(error), Box::new(more))),
        (first, second) => first.and(second),
    }
}

fn detach(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<(), Error> {
    let namespace = pod_namespace(&parameters.netns);
    let request = request(Verb::Del, parameters, config);
    match agent::ask(&config.socket, &request, namespace.as_ref(), limits.connect, limits.del) {
        Ok(Reply::Done) => Ok(()),
        // It has no time for it now, and a deletion waits for nobody.
        Ok(Reply::Failed(failure)) if failure.code == Failure::TRY_AGAIN => {
            bury(&request, config, &format_args!("said {}", failure.msg))
        }
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

fn bury(request: &Request, config: &Config, why: &dyn std::fmt::Display) -> Result<(), Error> {
    let path = tombstone::leave(&config.tombstones, &request.key)?;
    let (socket, key) = (config.socket.display(), &request.key);
    log(format_args!("the agent at {socket} {why}: the deletion of {key} is left in {}", path.display()));
    Ok(())
}

/// CNI 1.1.0 §2, "CHECK": what the result said, for the agent to hold against what is there. The plugin that gave the
/// addresses is asked, too.
fn check(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<(), Error> {
    let previous = config.previous()?.ok_or(Error::config("prevResult", "CHECK cannot do without it"))?;
    let remembered = previous::of_interface(previous, &parameters.interface)?;
    let namespace = open_namespace(parameters)?;
    let delegate = delegate(parameters, config, limits)?;
    let request = Request { remembered: Some(remembered), ..request(Verb::Check, parameters, config) };
    let checked =
        done(agent::ask(&config.socket, &request, Some(&namespace), limits.connect, limits.check), config);
    both(checked, delegate.map_or(Ok(()), |delegate| delegate.forward(Command::Check)))
}

/// CNI 1.1.0 §2, "GC". Passed on to the plugin that gave the addresses, whatever came of ours.
fn gc(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<(), Error> {
    let valid = Some(config.valid_attachments()?);
    let delegate = delegate(parameters, config, limits)?;
    let request = Request { valid, ..request(Verb::Gc, parameters, config) };
    let collected = done(agent::ask(&config.socket, &request, None, limits.connect, limits.gc), config);
    both(collected, delegate.map_or(Ok(()), |delegate| delegate.forward(Command::Gc)))
}

/// CNI 1.1.0 §2, "STATUS": an ADD can be served when its configuration is one we take and the agent says so.
fn status(parameters: &Parameters, config: &Config, limits: &Limits) -> Result<(), Error> {
    config.refuse_unsupported()?;
    let mut ipam = ipam::request(&config.document, &parameters.args)?;
    if let Some(delegate) = delegate(parameters, config, limits)? {
        delegate.forward(Command::Status)?;
        ipam.delegate = Some(delegate.kind);
    }
    let request = Request { ipam, ..request(Verb::Status, parameters, config) };
    match done(agent::ask(&config.socket, &request, None, limits.connect, limits.status), config) {
        // Whatever keeps the agent from answering keeps it from serving an ADD.
        Err(Error::Unanswered { socket, source }) => Err(Error::NotServing { socket, source }),
        Err(Error::Agent(failure)) if failure.code == Failure::TRY_AGAIN => {
            Err(Error::Agent(Failure { code: Failure::NOT_AVAILABLE, ..failure }))
        }
        done => done,
    }
}

/// The agent's answer to a question that has no other answer than that it is done.
fn done(reply: Result<Reply, Unanswered>, config: &Config) -> Result<(), Error> {
    let unanswered = |source| Error::Unanswered { socket: config.socket.clone(), source };
    match reply.map_err(unanswered)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(Error::Agent(failure)),
        Reply::Attached(_) => Err(unanswered(Unanswered::Beside)),
    }
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
        ipam: IpamRequest::default(),
        remembered: None,
        valid: None,
        // What a deletion takes away is what was made, whatever is asked for by then.
        capabilities: Capabilities::default(),
    }
}

/// stdout belongs to the one document, so everything else goes to stderr.
fn log(line: std::fmt::Arguments<'_>) {
    // A runtime that closed stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "causeway-cni: {line}");
}
