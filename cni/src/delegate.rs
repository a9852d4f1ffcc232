use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use causeway_model::plugin::Failure;
use causeway_model::{Family, IpNetwork};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::input;
use crate::ipam::routes;
use crate::parameters::{Command, Parameters};

/// Another plugin that gives a network's addresses (CNI 1.1.0 §4, "Plugin Delegation"): it gets our environment and our
/// stdin.
pub struct Delegate {
    /// Its name, `ipam.type`.
    pub kind: String,
    program: PathBuf,
    environment: Vec<(&'static str, Option<OsString>)>,
    stdin: Vec<u8>,
    patience: Duration,
}

/// What it gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    /// Addresses, one of a family at most, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Where the pod shall have routes to, where it says so.
    pub routes: Option<Vec<IpNetwork>>,
    /// What it says of name resolution.
    pub dns: Option<Map<String, Value>>,
}

impl Delegate {
    /// Finds the plugin in CNI_PATH.
    pub fn find(
        kind: &str,
        parameters: &Parameters,
        document: &Map<String, Value>,
        patience: Duration,
    ) -> Result<Self, Error> {
        let path = parameters.environment.iter().find(|(name, _)| *name == "CNI_PATH");
        let path = path.and_then(|(_, path)| path.clone()).unwrap_or_default();
        if path.is_empty() {
            let complaint = format!("CNI_PATH is not set, and the IPAM plugin {kind:?} is to be found in it");
            return Err(Error::Environment(vec![complaint]));
        }
        let program =
            std::env::split_paths(&path).map(|folder| folder.join(kind)).find(|file| file.is_file());
        let missing = || {
            Error::config("ipam.type", format!("there is no plugin {kind:?} in CNI_PATH {}", path.display()))
        };
        Ok(Self {
            kind: kind.to_owned(),
            program: program.ok_or_else(missing)?,
            environment: parameters.environment.clone(),
            stdin: Value::Object(document.clone()).to_string().into_bytes(),
            patience,
        })
    }

    /// Asks for addresses. Whatever goes wrong, it is told to release them again.
    pub fn add(&self) -> Result<Given, Error> {
        let added = self.call(Command::Add).and_then(|said| self.read(&said));
        added.map_err(|error| self.give_back(error))
    }

    /// Passes a call on that has no result of its own.
    pub fn forward(&self, command: Command) -> Result<(), Error> {
        self.call(command).map(drop)
    }

    /// Has the addresses released after something else failed, and returns what failed.
    pub fn give_back(&self, error: Error) -> Error {
        match self.forward(Command::Del) {
            Ok(()) => error,
            Err(more) => Error::Both(Box::new(error), Box::new(more)),
        }
    }

    fn failed(&self, code: u32, msg: String) -> Error {
        Error::Ipam { plugin: self.kind.clone(), failure: Failure::new(code, msg) }
    }

    fn call(&self, command: Command) -> Result<Vec<u8>, Error> {
        let until = Instant::now() + self.patience;
        let mut child = self.start(command).map_err(|error| self.failed(Failure::IO, error.to_string()))?;
        let answer = self.talk(&mut child, until);
        if answer.is_err() {
            // One that does not end by itself must not go on behind our back; one that has ended is not hurt.
            drop(child.kill());
            drop(child.wait());
        }
        let (said, status) = answer?;
        if status.success() {
            return Ok(said);
        }
        match serde_json::from_slice::<Failure>(&said) {
            Ok(failure) => Err(Error::Ipam { plugin: self.kind.clone(), failure }),
            Err(_) => {
                let said = String::from_utf8_lossy(&said);
                Err(self
                    .failed(Failure::IO, format!("{command} ended with {status} and said {:?}", said.trim())))
            }
        }
    }

    fn start(&self, command: Command) -> std::io::Result<Child> {
        let mut program = std::process::Command::new(&self.program);
        for (name, value) in &self.environment {
            match value {
                Some(value) => program.env(name, value),
                None => program.env_remove(name),
            };
        }
        program.env("CNI_COMMAND", command.to_string());
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    }

    fn talk(&self, child: &mut Child, until: Instant) -> Result<(Vec<u8>, ExitStatus), Error> {
        let Some((mut stdin, stdout)) = child.stdin.take().zip(child.stdout.take()) else {
            unreachable!("both were asked for")
        };
        let config = self.stdin.clone();
        // Beside the reading, so that neither waits for the other; it ends with the child, which need not read.
        std::thread::spawn(move || drop(stdin.write_all(&config)));
        let silent = || self.failed(Failure::TRY_AGAIN, format!("it did not end within {:?}", self.patience));
        let said = input::read_until(stdout.as_fd(), self.patience, |_| false);
        let said = said.map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => silent(),
            _ => self.failed(Failure::IO, error.to_string()),
        })?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok((said, status)),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => return Err(silent()),
                Err(error) => return Err(self.failed(Failure::IO, error.to_string())),
            }
        }
    }

    /// Reads an abbreviated result (CNI 1.1.0 §4).
    fn read(&self, said: &[u8]) -> Result<Given, Error> {
        #[derive(Deserialize)]
        struct Ip {
            address: IpNetwork,
        }
        #[derive(Deserialize)]
        struct Result {
            ips: Vec<Ip>,
            #[serde(default)]
            routes: Value,
            #[serde(default)]
            dns: Option<Map<String, Value>>,
        }
        let result: Result = serde_json::from_slice(said)
            .map_err(|error| self.failed(Failure::DECODING, format!("its result cannot be read: {error}")))?;
        let mut addresses: Vec<_> = result.ips.iter().map(|ip| ip.address.ip()).collect();
        addresses.sort();
        let family = |address: &IpAddr| Family::of(*address);
        if addresses.is_empty() {
            return Err(self.failed(Failure::INVALID_CONFIG, "it gave no address".to_owned()));
        }
        if let Some(two) = addresses.windows(2).find(|two| family(&two[0]) == family(&two[1])) {
            let text =
                format!("it gave {} and {}: a pod has one {} address", two[0], two[1], family(&two[0]));
            return Err(self.failed(Failure::INVALID_CONFIG, text));
        }
        let routes = match &result.routes {
            Value::Null => None,
            Value::Array(list) if list.is_empty() => None,
            list => Some(routes("the routes of ipam", list)?),
        };
        Ok(Given { addresses, routes, dns: result.dns })
    }
}
