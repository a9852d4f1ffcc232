//! What is to be told of objects, written where they are read: one file per object in the status directory.

mod mesh;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_policy::{Effect, PolicyKey, PolicyKind, Report};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Error;
pub(crate) use mesh::MeshStatuses;

/// The statuses of policies.
#[derive(Debug)]
pub(crate) struct Statuses {
    directory: PathBuf,
    /// What was written last, by file.
    written: BTreeMap<PathBuf, Report>,
    /// The directory was looked through for files of objects that have gone.
    swept: bool,
}

/// A status as a file has it: the object's name and the part of it that Kubernetes would keep in its `status`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    api_version: String,
    kind: String,
    metadata: Named,
    status: Conditions,
}

#[derive(Serialize)]
struct Named {
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct Conditions {
    conditions: Vec<Condition>,
}

impl Statuses {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, written: BTreeMap::new(), swept: false }
    }

    /// Writes what is new, and takes away what is of objects that have gone.
    pub(crate) fn tell<'a>(&mut self, reports: impl Iterator<Item = &'a Report>) -> Result<(), Error> {
        let now: BTreeMap<_, _> = reports.map(|report| (self.file(&report.policy), report)).collect();
        let mut gone: BTreeSet<PathBuf> =
            self.written.keys().filter(|file| !now.contains_key(*file)).cloned().collect();
        if !self.swept {
            let kinds = PolicyKind::ALL.map(PolicyKind::as_str);
            gone.extend(ours(&self.directory, &kinds)?.into_iter().filter(|file| !now.contains_key(file)));
            self.swept = true;
        }
        for file in gone {
            remove(&file)?;
            self.written.remove(&file);
        }
        for (file, report) in now {
            if self.written.get(&file) != Some(report) {
                write(&file, report)?;
                self.written.insert(file, report.clone());
            }
        }
        Ok(())
    }

    /// The file of an object. No name of Kubernetes has an underscore.
    fn file(&self, key: &PolicyKey) -> PathBuf {
        let PolicyKey { kind, namespace, name } = key;
        let kind = kind.as_str();
        self.directory.join(match namespace.as_str() {
            "" => format!("{kind}_{name}.json"),
            namespace => format!("{kind}_{namespace}_{name}.json"),
        })
    }
}

/// The files in a directory that are named as we name those of these kinds.
fn ours(directory: &Path, kinds: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let reading = || Error::io(format!("reading {}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(reading())?,
    };
    let files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(reading())?;
    let is_ours = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let kind = name.strip_suffix(".json").and_then(|stem| stem.split_once('_')).map(|(kind, _)| kind);
        kind.is_some_and(|kind| kinds.contains(&kind))
    };
    Ok(files.into_iter().filter(is_ours).collect())
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing status {}", file.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The conditions that a file has.
fn conditions(file: &Path) -> Vec<Condition> {
    #[derive(Deserialize)]
    struct There {
        status: Conditions,
    }
    let there = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<There>(&bytes).ok());
    there.map(|there| there.status.conditions).unwrap_or_default()
}

/// Writes the status of a policy. A condition that says the same as before keeps its time.
fn write(file: &Path, report: &Report) -> Result<(), Error> {
    let mut condition = condition(report);
    if let Some(before) = conditions(file).into_iter().next()
        && before.status == condition.status
    {
        condition.last_transition_time = before.last_transition_time;
    }
    let PolicyKey { kind, namespace, name } = &report.policy;
    let status = Written {
        api_version: kind.api_version().to_owned(),
        kind: kind.as_str().to_owned(),
        metadata: Named { namespace: namespace.clone(), name: name.clone() },
        status: Conditions { conditions: vec![condition] },
    };
    put(file, &status)
}

/// Writes a status aside and puts it in its place, unless it is there already.
fn put(file: &Path, status: &impl Serialize) -> Result<(), Error> {
    let writing = || Error::io(format!("writing status {}", file.display()));
    let mut json = serde_json::to_vec_pretty(status).map_err(|error| writing()(error.into()))?;
    json.push(b'\n');
    if fs::read(file).is_ok_and(|there| there == json) {
        return Ok(());
    }
    let aside = file.with_extension("new");
    let directory = file.parent().unwrap_or(Path::new("/"));
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(&aside, json));
    written.and_then(|()| fs::rename(&aside, file)).map_err(writing())
}

/// The time, in whole seconds.
fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    Time(now.unwrap_or_default())
}

/// Whether a policy is taken up as it is written, as a condition of Kubernetes.
fn condition(report: &Report) -> Condition {
    let reason = match report.effect {
        Effect::Whole => "TakenUp",
        Effect::InPart => "InPart",
        Effect::IsolatesOnly => "IsolatesOnly",
        Effect::None => "NotTakenUp",
    };
    let problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
    let message = std::iter::once(report.effect.to_string()).chain(problems).collect::<Vec<_>>().join("; ");
    let whole = report.effect == Effect::Whole && report.problems.is_empty();
    Condition {
        type_: "Accepted".to_owned(),
        status: if whole { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: now(),
        observed_generation: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn report(name: &str, spec: &Value) -> Report {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec
        });
        causeway_policy::read(&policy).unwrap().report
    }

    fn read(file: &Path) -> Value {
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    #[test]
    fn each_policy_has_a_file_that_says_what_became_of_it_and_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("NetworkPolicy_shop_old.json"), "{}").unwrap();
        fs::write(directory.path().join("notes.txt"), "mine").unwrap();
        let mut statuses = Statuses::new(directory.path().to_owned());
        let good = report("web", &json!({"podSelector": {}}));
        let bad = report("db", &json!({"podSelector": {}, "ingress": [{"ports": [{"endPort": 9}]}]}));
        statuses.tell([&good, &bad].into_iter()).unwrap();
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["NetworkPolicy_shop_db.json", "NetworkPolicy_shop_web.json", "notes.txt"]);
        let web = read(&directory.path().join(&names[1]));
        assert_eq!(web["metadata"], json!({"namespace": "shop", "name": "web"}));
        let condition = |status: &Value| status["status"]["conditions"][0].clone();
        assert_eq!(
            (&condition(&web)["status"], &condition(&web)["reason"]),
            (&json!("True"), &json!("TakenUp"))
        );
        let db = condition(&read(&directory.path().join(&names[0])));
        assert_eq!((&db["status"], &db["reason"]), (&json!("False"), &json!("IsolatesOnly")));
        assert!(db["message"].as_str().unwrap().contains("endPort goes with a numeric port only"), "{db}");

        statuses.tell([&good].into_iter()).unwrap();
        assert!(!directory.path().join("NetworkPolicy_shop_db.json").exists(), "its policy has gone");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("NetworkPolicy_shop_web.json");
        let tell = |report: &Report| {
            Statuses::new(directory.path().to_owned()).tell([report].into_iter()).unwrap();
            read(&file)["status"]["conditions"][0]["lastTransitionTime"].clone()
        };
        let good = report("web", &json!({"podSelector": {}}));
        let first = tell(&good);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(tell(&good), first, "by the next agent, too");
        assert_ne!(tell(&report("web", &json!({"podSelector": {}, "colour": "blue"}))), first);
    }
}
