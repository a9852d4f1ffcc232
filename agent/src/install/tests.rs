use std::cell::Cell;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use super::*;

/// A node: its configuration, and the directories of its runtime.
struct Node {
    scratch: tempfile::TempDir,
    config: Config,
    wanted: Wanted,
}

impl Node {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let yaml = format!("{{node: east, state: {0}/state, run: {0}/run}}", scratch.path().display());
        let wanted = Wanted {
            plugin: at("causeway-cni"),
            bin_dir: at("opt/cni/bin"),
            conf_dir: at("etc/cni/net.d"),
            network: "pods".into(),
            cni_version: CniVersion::V1_0_0,
            overwrite: false,
        };
        write_plugin(&wanted.plugin, "1");
        Self { config: Config::from_yaml("agent.yaml", &yaml).unwrap(), wanted, scratch }
    }

    fn install(&self) -> Result<Vec<String>, Error> {
        install(&self.config, &self.wanted, Duration::ZERO, || Ok(()))
    }

    fn uninstall(&self) -> Result<(), Error> {
        let none = Places::default();
        let removal = Removal::of(&self.config, &none)?;
        removal.conflists()?;
        removal.programs()
    }

    fn program(&self) -> PathBuf {
        self.wanted.bin_dir.join(PLUGIN)
    }

    fn conflist(&self) -> PathBuf {
        self.wanted.conf_dir.join(CONFLIST)
    }

    fn network(&self) -> Value {
        serde_json::from_slice(&fs::read(self.conflist()).unwrap()).unwrap()
    }
}

/// A plugin of some release that says its versions and no more.
fn write_plugin(path: &Path, release: &str) {
    let versions = json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]});
    fs::write(path, format!("#!/bin/sh\n# {release}\necho '{versions}'\n")).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn program_and_configuration_come_and_go_and_nothing_else() {
    let node = Node::new();
    let said = node.install().unwrap();
    assert_eq!(
        said,
        [
            format!("{} is in place", node.program().display()),
            format!("{} is in place", node.conflist().display()),
        ]
    );
    assert_eq!(names(&node.wanted.bin_dir), [PLUGIN]);
    assert_eq!(names(&node.wanted.conf_dir), [CONFLIST]);
    assert_eq!(fs::metadata(node.program()).unwrap().permissions().mode() & 0o777, 0o755);
    let network = node.network();
    assert_eq!((&network["name"], &network["cniVersion"]), (&json!("pods"), &json!("1.0.0")));
    assert_eq!(network["plugins"][0]["causeway"]["socket"], json!(node.config.cni_socket));
    node.uninstall().unwrap();
    assert_eq!(names(node.scratch.path()), ["causeway-cni", "state"], "directories that were made go, too");
    assert!(names(&node.config.state).is_empty());
    node.uninstall().expect("taking nothing away succeeds");
}

#[test]
fn a_second_time_changes_nothing_and_another_release_goes_either_way() {
    let node = Node::new();
    node.install().unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = (inode(&node.program()), inode(&node.conflist()));
    assert!(node.install().unwrap().iter().all(|line| line.ends_with("is in place already")));
    assert_eq!((inode(&node.program()), inode(&node.conflist())), before);
    for release in ["2", "1"] {
        write_plugin(&node.wanted.plugin, release);
        assert!(node.install().unwrap()[0].ends_with("is replaced"));
        assert_eq!(fs::read(node.program()).unwrap(), fs::read(&node.wanted.plugin).unwrap());
        assert_eq!(names(&node.wanted.bin_dir), [PLUGIN]);
    }
}

#[test]
fn the_configuration_waits_until_the_agent_serves() {
    let node = Node::new();
    let refuses = || Err("the agent waits for the Node object".to_owned());
    let error = install(&node.config, &node.wanted, Duration::ZERO, refuses).unwrap_err().to_string();
    assert!(error.contains("waits for the Node object"), "{error}");
    assert!(node.program().exists() && !node.conflist().exists());
    let asked = Cell::new(0);
    let serves = || {
        asked.set(asked.get() + 1);
        if asked.get() < 3 { Err("not yet".to_owned()) } else { Ok(()) }
    };
    install(&node.config, &node.wanted, Duration::from_secs(10), serves).unwrap();
    assert_eq!((asked.get(), node.conflist().exists()), (3, true));
    install(&node.config, &node.wanted, Duration::ZERO, refuses).unwrap_err();
    assert!(node.conflist().exists(), "one that was there stays");
}

#[test]
fn what_others_wrote_stays() {
    let node = Node::new();
    fs::create_dir_all(&node.wanted.conf_dir).unwrap();
    fs::create_dir_all(&node.wanted.bin_dir).unwrap();
    let foreign = r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "bridge"}]}"#;
    for text in [foreign, "not JSON"] {
        fs::write(node.conflist(), text).unwrap();
        let error = node.install().unwrap_err();
        assert!(matches!(&error, Error::NotOurs { path, .. } if *path == node.conflist()), "{error}");
        assert!(!node.program().exists(), "said before anything is done");
    }
    node.uninstall().unwrap();
    assert_eq!(fs::read_to_string(node.conflist()).unwrap(), "not JSON");
    fs::remove_file(node.conflist()).unwrap();
    let elsewhere = node.scratch.path().join("elsewhere");
    fs::write(&elsewhere, "somebody's").unwrap();
    symlink(&elsewhere, node.program()).unwrap();
    assert!(node.install().unwrap_err().to_string().contains("is not ours: it is a link"));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "somebody's");
}

#[test]
fn an_edited_configuration_stays_until_told_otherwise() {
    let mut node = Node::new();
    node.install().unwrap();
    let mut network = node.network();
    network["plugins"].as_array_mut().unwrap().push(json!({"type": "portmap"}));
    fs::write(node.conflist(), network.to_string()).unwrap();
    let said = node.install().unwrap();
    assert!(said[1].contains("it has been edited") && said[1].contains("--overwrite"), "{said:?}");
    assert_eq!(node.network(), network);
    node.wanted.overwrite = true;
    assert!(node.install().unwrap()[1].ends_with("is replaced"));
    assert_eq!(node.network()["plugins"].as_array().unwrap().len(), 1);
    // Another name or version is a wish of ours, not an edit.
    (node.wanted.overwrite, node.wanted.network, node.wanted.cni_version) =
        (false, "other".into(), CniVersion::V1_1_0);
    assert!(node.install().unwrap()[1].ends_with("is replaced"));
    fs::write(node.conflist(), "").unwrap();
    assert!(node.install().unwrap()[1].ends_with("is replaced"), "an empty file is nobody's");
    fs::write(node.conflist(), network.to_string()).unwrap();
    node.uninstall().unwrap();
    assert!(!node.wanted.conf_dir.exists(), "an edited one would break every pod without us");
}

#[test]
fn what_is_no_plugin_is_not_installed() {
    let node = Node::new();
    node.install().unwrap();
    let before = fs::read(node.program()).unwrap();
    for (text, word) in [
        ("#!/bin/sh\necho '{\"supportedVersions\": [\"0.2.0\"]}'\n", "does not speak CNI 1.0.0"),
        ("#!/bin/sh\necho hello\n", "it is no CNI plugin"),
        ("\x7fELF", "it does not run"),
        ("", "it is no CNI plugin"),
    ] {
        fs::write(&node.wanted.plugin, text).unwrap();
        let error = node.install().expect_err(text).to_string();
        let empty_does_not_run = text.is_empty() && error.contains("it does not run");
        assert!(error.contains(word) || empty_does_not_run, "{text:?}: {error}");
        assert_eq!(
            (names(&node.wanted.bin_dir), fs::read(node.program()).unwrap()),
            (vec![PLUGIN.into()], before.clone())
        );
    }
}

#[test]
fn a_configuration_that_comes_first_is_named() {
    let node = Node::new();
    fs::create_dir_all(&node.wanted.conf_dir).unwrap();
    for (name, first) in [("87-podman.conflist", false), ("00-other.txt", false), ("05-other.conf", true)] {
        fs::write(node.wanted.conf_dir.join(name), "{}").unwrap();
        let warned =
            node.install().unwrap().iter().any(|line| line.starts_with("warning: ") && line.contains(name));
        assert_eq!(warned, first, "{name}");
    }
}

#[test]
fn one_installer_at_a_time() {
    let node = Node::new();
    node.install().unwrap();
    let held = Held::of(&node.wanted.bin_dir).unwrap();
    assert!(node.install().unwrap_err().to_string().contains("another `causeway install`"));
    drop(held);
    node.install().unwrap();
}

#[test]
fn networks_have_plain_names() {
    let mut node = Node::new();
    for bad in ["", "-a", "a/b", "a b"] {
        node.wanted.network = bad.into();
        assert!(node.install().unwrap_err().to_string().contains(&format!("{bad:?}")));
        assert!(!node.wanted.bin_dir.exists(), "said before anything is done");
    }
}
