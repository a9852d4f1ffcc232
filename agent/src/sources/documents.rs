//! One manifest file: text in, objects and what is wrong with them out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use causeway_policy::{Effect, PolicyKind};
use serde_json::Value;

use super::objects::{self, Kind, Object, ObjectKey};
use super::offers;
use super::yaml;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    /// Its good objects in the order they stand, with what to call their place.
    pub objects: Vec<Placed>,
    /// What is wrong, each with file and line.
    pub problems: Vec<String>,
    /// The cluster whose place it is is marked lost; how old what is known of it was then.
    pub lost: Option<Duration>,
    /// How many objects of other people's kinds there are, by kind.
    pub ignored: BTreeMap<String, usize>,
    /// The objects that did not get through the door.
    broken: BTreeSet<ObjectKey>,
    /// Whether something is broken that cannot be told which object it is.
    unnamed_broken: bool,
}

/// An object, its key and its place as "file:line".
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placed {
    pub key: ObjectKey,
    pub object: Object,
    pub place: String,
}

impl Parsed {
    /// Reads a file's text.
    pub fn read(file: &str, text: &str) -> Self {
        let mut parsed = Parsed::default();
        if offers::marks_lost(Path::new(file)) {
            let age = offers::age(text).unwrap_or_else(|problem| {
                parsed.problems.push(format!("{file}: {problem}"));
                Duration::ZERO
            });
            return Parsed { lost: Some(age), ..parsed };
        }
        match yaml::documents(file, text) {
            Ok(documents) => {
                for document in documents {
                    parsed.take(&format!("{file}:{}", document.line), document.value, None);
                }
            }
            Err(problem) => parsed.broken_without_name(problem),
        }
        parsed
    }

    /// A file that could not even be read.
    pub fn unreadable(problem: String) -> Self {
        let mut parsed = Parsed::default();
        parsed.broken_without_name(problem);
        parsed
    }

    fn broken_without_name(&mut self, problem: String) {
        self.problems.push(problem);
        self.unnamed_broken = true;
    }

    /// Takes up one document, or each item of a list. `list` is the kind that a list such as PodList gives its items.
    fn take(&mut self, place: &str, value: Value, list: Option<(&str, &str)>) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let api_version = text("apiVersion").or_else(|| list.map(|(version, _)| version.to_owned()));
        let kind = text("kind").or_else(|| list.map(|(_, kind)| kind.to_owned()));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            return self
                .broken_without_name(format!("{place}: neither apiVersion and kind, nor a list of such"));
        };
        if value.get("items").is_some() && kind.ends_with("List") {
            return self.take_list(place, value, &api_version, &kind);
        }
        match known(&api_version, &kind) {
            Known::Ours(kind) => self.take_object(place, kind, value),
            Known::WrongVersion(kind) => {
                let expected = kind.api_version();
                let key = key_of(kind, &value);
                let name = key.as_ref().map_or_else(|| kind.as_str().to_owned(), ToString::to_string);
                self.problems.push(format!(
                    "{place}: {name}: unknown apiVersion {api_version:?}; known is {expected:?}"
                ));
                self.mark_broken(key);
            }
            // A misspelt kind in our own group would be ignored without a word.
            Known::NotOurs => {
                let text = format!(
                    "{place}: unknown kind {kind:?} of {api_version}; known: {}",
                    Kind::Cluster.as_str()
                );
                self.broken_without_name(text);
            }
            Known::Foreign => *self.ignored.entry(format!("{kind} ({api_version})")).or_default() += 1,
        }
    }

    fn take_list(&mut self, place: &str, mut value: Value, api_version: &str, kind: &str) {
        let item_kind = kind.strip_suffix("List").filter(|item| !item.is_empty());
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
            return self.broken_without_name(format!("{place}: items of a {kind} is not a list"));
        };
        for (index, item) in items.into_iter().enumerate() {
            self.take(&format!("{place}: items[{index}]"), item, item_kind.map(|kind| (api_version, kind)));
        }
    }

    fn take_object(&mut self, place: &str, kind: Kind, value: Value) {
        let Some(key) = key_of(kind, &value) else {
            return self.broken_without_name(format!("{place}: {} without metadata.name", kind.as_str()));
        };
        match objects::read(kind, value) {
            Ok(object) => {
                match &object {
                    Object::Pod(pod) => self
                        .problems
                        .extend(pod.refusals().iter().map(|refusal| format!("{place}: {key}: {refusal}"))),
                    Object::Policy(read) if read.report.effect != Effect::Whole => {
                        self.problems.push(format!("{place}: {}", read.report));
                    }
                    Object::Served(read, offer) => {
                        let of_node = Some(read.report()).filter(|report| !report.problems.is_empty());
                        self.problems.extend(of_node.iter().map(|report| format!("{place}: {report}")));
                        let told = offer.problems(of_node.is_some());
                        self.problems.extend(told.map(|problem| format!("{place}: {key}: {problem}")));
                    }
                    Object::Offer(offer) => {
                        let told = offer.problems(false);
                        self.problems.extend(told.map(|problem| format!("{place}: {key}: {problem}")));
                    }
                    _ => {}
                }
                self.objects.push(Placed { key, object, place: place.to_owned() });
            }
            Err(error) => {
                self.problems.push(format!("{place}: {key}: {error}"));
                self.mark_broken(Some(key));
            }
        }
    }

    fn mark_broken(&mut self, key: Option<ObjectKey>) {
        match key {
            Some(key) => drop(self.broken.insert(key)),
            None => self.unnamed_broken = true,
        }
    }

    /// Keeps of the last good state of this file what the new state has broken. Where something is broken that does not say
    /// what it is, it may be any of them.
    pub fn keep_last_good(&mut self, last: &Parsed) {
        if self.unnamed_broken {
            self.lost = self.lost.or(last.lost);
        }
        let here: BTreeSet<_> = self.objects.iter().map(|placed| placed.key.clone()).collect();
        let kept = last.objects.iter().filter(|placed| {
            !here.contains(&placed.key) && (self.unnamed_broken || self.broken.contains(&placed.key))
        });
        let kept: Vec<_> = kept.cloned().collect();
        self.objects.extend(kept);
    }
}

enum Known {
    Ours(Kind),
    WrongVersion(Kind),
    /// In our group, and yet no kind of ours.
    NotOurs,
    Foreign,
}

/// Whose kind it is. Others have kinds of our names too (Cluster of the Cluster API, NetworkPolicy of other networks, Service of
/// Knative): the group decides for our own, for policies and for services.
fn known(api_version: &str, kind: &str) -> Known {
    let group = |version: &str| version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let ours = group(api_version) == group(Kind::Cluster.api_version());
    match Kind::all().find(|known| known.as_str() == kind) {
        Some(kind) if api_version == kind.api_version() => Known::Ours(kind),
        // Of another version it exports nothing any more, whatever it did before.
        Some(kind @ (Kind::ServiceExport | Kind::ServiceImport)) => {
            match group(api_version) == group(kind.api_version()) {
                true => Known::Ours(kind),
                false => Known::Foreign,
            }
        }
        Some(Kind::Cluster) if !ours => Known::Foreign,
        Some(kind @ (Kind::Policy(_) | Kind::Service | Kind::EndpointSlice))
            if group(api_version) != group(kind.api_version()) =>
        {
            Known::Foreign
        }
        Some(kind) => Known::WrongVersion(kind),
        None if ours => Known::NotOurs,
        None => Known::Foreign,
    }
}

fn key_of(kind: Kind, value: &Value) -> Option<ObjectKey> {
    let metadata = value.get("metadata")?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str);
    let namespace = match kind {
        Kind::Pod
        | Kind::Policy(PolicyKind::NetworkPolicy)
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::ServiceExport
        | Kind::ServiceImport => text("namespace").unwrap_or("default"),
        Kind::Cluster | Kind::Node | Kind::Namespace | Kind::Policy(_) => "",
    };
    let name = text("name").filter(|name| !name.is_empty())?;
    Some(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}
