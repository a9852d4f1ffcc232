use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use causeway_model::plugin::{Capabilities, SOCKET, TOMBSTONES, ValidAttachment};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::capabilities;
use crate::error::Error;
use crate::parameters::is_plain_name;
use crate::version::SpecVersion;

/// The longest path of a socket: `sun_path` less its final zero (unix(7)).
const SOCKET_PATH: usize = 107;

/// What the list of GC is called, the specification's name first.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// Our own part of a network configuration, under the key `causeway`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    socket: Option<PathBuf>,
    tombstones: Option<PathBuf>,
    /// For attachments that are no pod; the agent reads them.
    #[serde(rename = "labels", default)]
    _labels: BTreeMap<String, String>,
}

/// The network configuration of one call (CNI 1.1.0 §1 and §3), validated.
#[derive(Debug)]
pub struct Config {
    /// The version of the specification it is written in, and the result shall be.
    pub version: SpecVersion,
    /// The network's name.
    pub network: String,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// Where deletions are left while it is dead.
    pub tombstones: PathBuf,
    /// All of it, as it came.
    pub document: Map<String, Value>,
}

impl TryFrom<Map<String, Value>> for Config {
    type Error = Error;

    fn try_from(document: Map<String, Value>) -> Result<Self, Error> {
        let version = version(&document)?;
        let network = text(&document, "name")?;
        if !is_plain_name(network) {
            let rule = "must be letters, digits, '_', '.' and '-', a letter or digit first";
            return Err(Error::config("name", format!("{network:?} {rule}")));
        }
        let network = network.to_owned();
        let kind = text(&document, "type")?;
        if kind.contains(['/', '\\']) {
            return Err(Error::config("type", format!("{kind:?} must not hold '/' or '\\'")));
        }
        let own: Own = match document.get("causeway") {
            None | Some(Value::Null) => Own::default(),
            Some(own) => {
                Own::deserialize(own).map_err(|error| Error::config("causeway", error.to_string()))?
            }
        };
        let socket = absolute("causeway.socket", own.socket.as_deref().unwrap_or(Path::new(SOCKET)))?;
        if socket.as_os_str().len() > SOCKET_PATH {
            let reason =
                format!("{socket:?} is longer than the {SOCKET_PATH} bytes a socket's path may have");
            return Err(Error::config("causeway.socket", reason));
        }
        let folder = own.tombstones.as_deref().unwrap_or(Path::new(TOMBSTONES));
        let tombstones = absolute("causeway.tombstones", folder)?;
        Ok(Self { version, network, socket, tombstones, document })
    }
}

impl Config {
    /// The result so far (CNI 1.1.0 §3): nothing, `null` and `{}` are all none.
    pub fn previous(&self) -> Result<Option<&Map<String, Value>>, Error> {
        Ok(object(&self.document, "prevResult")?.filter(|previous| !previous.is_empty()))
    }

    /// The attachments that GC leaves (CNI 1.1.0 §2, "GC"). The specification calls the list `cni.dev/valid-attachments`;
    /// an early libcni called it `cni.dev/attachments`, and later ones say both: what stands in either is valid.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Error> {
        let mut lists = Vec::new();
        for key in VALID_ATTACHMENTS {
            match self.document.get(key) {
                // Go writes a list that was never made as `null`.
                None | Some(Value::Null) => {}
                Some(list) => lists.push(valid_list(key, list)?),
            }
        }
        if lists.is_empty() {
            let reason = "is missing, which is not an empty list: nothing is released";
            return Err(Error::config(VALID_ATTACHMENTS[0], reason));
        }
        Ok(lists.concat())
    }

    /// What the result shall say of name resolution.
    pub fn dns(&self) -> Result<Option<Map<String, Value>>, Error> {
        let dns = capabilities::dns(object(&self.document, "dns")?, self.runtime()?)?;
        Ok((!dns.is_empty()).then_some(dns))
    }

    /// What the runtime asks for beyond an attachment.
    pub fn capabilities(&self) -> Result<Capabilities, Error> {
        capabilities::read(self.runtime()?)
    }

    fn runtime(&self) -> Result<Option<&Map<String, Value>>, Error> {
        object(&self.document, "runtimeConfig")
    }

    /// Refuses what would ask for more than an attachment, rather than making one that lacks it.
    pub fn refuse_unsupported(&self) -> Result<(), Error> {
        self.dns()?;
        let refuse =
            |key: &str, value: &Value| Err(Error::Unsupported { key: key.to_owned(), value: value.clone() });
        if let Some(masquerade) = self.document.get("ipMasq").filter(|masquerade| says_something(masquerade))
        {
            return refuse("ipMasq", masquerade);
        }
        self.capabilities().map(drop)
    }
}

fn valid_list(key: &'static str, list: &Value) -> Result<Vec<ValidAttachment>, Error> {
    let valid = Vec::<ValidAttachment>::deserialize(list);
    let valid = valid.map_err(|error| Error::config(key, format!("{error}: nothing is released")))?;
    // Half a name would match nothing and have its attachment released.
    match valid.iter().find(|one| one.container.is_empty() || one.interface.is_empty()) {
        Some(_) => {
            Err(Error::config(key, "an attachment without containerID or ifname: nothing is released"))
        }
        None => Ok(valid),
    }
}

/// CNI 1.1.0 §1, "Version considerations".
fn version(document: &Map<String, Value>) -> Result<SpecVersion, Error> {
    let asked = match document.get("cniVersion") {
        None => SpecVersion::UNSAID,
        Some(Value::String(asked)) => asked,
        Some(other) => return Err(Error::Undecodable(format!("cniVersion is {other}, not a string"))),
    };
    SpecVersion::parse(asked).ok_or_else(|| Error::Incompatible(asked.to_owned()))
}

fn text<'a>(document: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, Error> {
    match document.get(key) {
        None | Some(Value::Null) => Err(Error::config(key, "is missing")),
        Some(Value::String(text)) if text.is_empty() => Err(Error::config(key, "is empty")),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(Error::config(key, format!("{other} is not a string"))),
    }
}

/// An object of the configuration; nothing and `null` are none.
pub fn object<'a>(
    document: &'a Map<String, Value>,
    key: &'static str,
) -> Result<Option<&'a Map<String, Value>>, Error> {
    match document.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => Err(Error::config(key, format!("{other} is not an object"))),
    }
}

/// A runtime's way of saying nothing: containerd sends `null` for capabilities without a value.
pub fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(says_something),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn absolute(key: &'static str, path: &Path) -> Result<PathBuf, Error> {
    // The working directory is the runtime's; JSON can hold a zero byte, a path cannot.
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        Ok(path.to_owned())
    } else {
        Err(Error::config(key, format!("{path:?} is not an absolute path")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(changes: Value) -> Result<Config, Error> {
        let Value::Object(changes) = changes else { panic!("{changes} is not an object") };
        let mut document = Map::new();
        for (key, value) in [("cniVersion", "1.1.0"), ("name", "pods"), ("type", "causeway-cni")] {
            document.insert(key.to_owned(), value.into());
        }
        document.extend(changes);
        Config::try_from(document)
    }

    /// Its code must be the given one, and its message must hold the words.
    fn assert_refused<T: std::fmt::Debug>(tried: Result<T, Error>, code: u32, words: &[&str]) {
        let failure = tried.expect_err(&format!("{words:?}")).failure();
        assert_eq!(failure.code, code, "{}", failure.msg);
        for word in words {
            assert!(failure.msg.contains(word), "{} lacks {word}", failure.msg);
        }
    }

    #[test]
    fn a_bare_configuration_has_our_paths() {
        let config = read(json!({})).unwrap();
        assert_eq!(config.version, SpecVersion::V1_1_0);
        assert_eq!(config.network, "pods");
        assert_eq!(config.socket, Path::new(SOCKET));
        assert_eq!(config.tombstones, Path::new(TOMBSTONES));
    }

    #[test]
    fn our_own_keys_are_taken_and_no_others() {
        let own = json!({"socket": "/run/x.sock", "tombstones": "/var/x", "labels": {"app": "web"}});
        let config = read(json!({"causeway": own})).unwrap();
        assert_eq!(config.socket, Path::new("/run/x.sock"));
        assert_eq!(config.tombstones, Path::new("/var/x"));
        read(json!({"causeway": null, "anything": "else"})).unwrap();
        for (own, word) in [
            (json!({"sockt": "/run/x.sock"}), "sockt"),
            (json!({"socket": "x.sock"}), "causeway.socket"),
            (json!({"socket": format!("/{}", "x".repeat(107))}), "causeway.socket"),
            (json!({"socket": "/run/\0"}), "causeway.socket"),
            (json!({"tombstones": ""}), "causeway.tombstones"),
            (json!({"labels": {"app": 1}}), "causeway"),
            (json!("x"), "causeway"),
        ] {
            assert_refused(read(json!({"causeway": own})), 7, &[word]);
        }
    }

    #[test]
    fn versions_are_judged_before_anything_else_in_the_document() {
        for (asked, shown) in [(json!("9.9.9"), "9.9.9"), (json!("1.0.1"), "1.0.1"), (json!(""), "\"\"")] {
            let tried = read(json!({"cniVersion": asked, "name": ""}));
            assert_refused(tried, 1, &[shown]);
        }
        assert_refused(read(json!({"cniVersion": 1})), 6, &["cniVersion"]);
        let silent = json!({"name": "pods", "type": "causeway-cni"});
        let failure = Config::try_from(silent.as_object().unwrap().clone()).unwrap_err().failure();
        assert_eq!((failure.code, failure.msg.contains("0.1.0")), (1, true), "{}", failure.msg);
        for version in SpecVersion::ALL {
            assert!(failure.details.contains(version.as_str()), "{}", failure.details);
        }
    }

    #[test]
    fn names_are_those_of_the_specification() {
        for good in ["a", "0", "net-1", "a.b_c"] {
            assert_eq!(read(json!({"name": good})).unwrap().network, good);
        }
        for bad in [json!(""), json!(null), json!(1), json!("-a"), json!("a/b"), json!("a b"), json!("..")] {
            assert_refused(read(json!({"name": bad})), 7, &["name"]);
        }
        for bad in [json!(""), json!(null), json!([]), json!("../x"), json!("a\\b")] {
            assert_refused(read(json!({"type": bad})), 7, &["type"]);
        }
    }

    #[test]
    fn an_empty_previous_result_is_none() {
        for none in [json!({}), json!({"prevResult": null}), json!({"prevResult": {}})] {
            assert_eq!(read(none).unwrap().previous().unwrap(), None);
        }
        assert!(read(json!({"prevResult": {"ips": []}})).unwrap().previous().unwrap().is_some());
        assert_refused(read(json!({"prevResult": "x"})).unwrap().previous(), 7, &["prevResult"]);
    }

    #[test]
    fn a_list_of_valid_attachments_is_known_by_both_its_names_and_never_made_up() {
        let one = |container: &str| json!({"containerID": container, "ifname": "eth0", "colour": "blue"});
        let names = |changes: Value| {
            let valid = read(changes).unwrap().valid_attachments().unwrap();
            valid.into_iter().map(|one| format!("{}/{}", one.container, one.interface)).collect::<Vec<_>>()
        };
        let [new, old] = VALID_ATTACHMENTS;
        assert_eq!(names(json!({new: [one("a"), one("b")]})), ["a/eth0", "b/eth0"]);
        assert_eq!(names(json!({old: [one("a")]})), ["a/eth0"]);
        assert_eq!(names(json!({new: null, old: [one("a")]})), ["a/eth0"]);
        assert_eq!(names(json!({new: [one("a")], old: [one("b")]})), ["a/eth0", "b/eth0"]);
        assert_eq!(names(json!({new: []})), Vec::<String>::new());
        for absent in [json!({}), json!({new: null}), json!({old: null}), json!({"valid-attachments": []})] {
            assert_refused(read(absent).unwrap().valid_attachments(), 7, &[new, "nothing is released"]);
        }
        for bad in [
            json!({}),
            json!("a"),
            json!([{"containerID": "a"}]),
            json!([{"ifname": "eth0"}]),
            json!([{"containerID": "", "ifname": "eth0"}]),
            json!([{"containerID": "a", "ifname": 1}]),
            json!(["a"]),
        ] {
            assert_refused(read(json!({new: bad})).unwrap().valid_attachments(), 7, &[new]);
            assert_refused(read(json!({new: [], old: bad})).unwrap().valid_attachments(), 7, &[old]);
        }
    }

    #[test]
    fn what_we_cannot_do_is_refused_with_key_and_value() {
        for (changes, words) in [
            (json!({"ipMasq": true}), ["ipMasq", "true"]),
            (json!({"runtimeConfig": {"deviceID": "0000:03:00.1"}}), ["runtimeConfig.deviceID", "0000:03"]),
        ] {
            assert_refused(read(changes).unwrap().refuse_unsupported(), 2, &words);
        }
        for nothing in [
            json!({"ipMasq": false, "ipam": {}, "runtimeConfig": {}}),
            json!({"ipam": {"type": "causeway"}, "capabilities": {"portMappings": true}}),
            json!({"runtimeConfig": {"portMappings": null, "ips": [], "dns": {"servers": []}, "mac": ""}}),
            json!({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"a": "b"}}}),
            json!({"runtimeConfig": {"portMappings": [{"HostPort": 80, "ContainerPort": 80}], "aliases": ["x"]}}),
        ] {
            read(nothing).unwrap().refuse_unsupported().unwrap();
        }
        assert_refused(read(json!({"dns": []})).unwrap().refuse_unsupported(), 7, &["dns"]);
    }
}
