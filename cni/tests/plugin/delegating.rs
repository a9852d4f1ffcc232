//! A network whose addresses another plugin gives: host-local of containernetworking, and a double that writes down all it
//! is asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use causeway_model::plugin::{Reply, Verb};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, Manner, attached, failed};
use crate::runtime::{Call, Network, Pod};

/// Where Debian has containernetworking's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A plugin played by a script: it writes environment and stdin down, and answers as told.
struct Double {
    folder: TempDir,
}

impl Double {
    fn new(answers: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("double");
        let heard = folder.path().join("heard");
        let script = format!(
            "#!/bin/sh\nPATH=/usr/bin:/bin\n\
             printf '%s %s %s %s %s ' \"$CNI_COMMAND\" \"$CNI_CONTAINERID\" \"$CNI_IFNAME\" \"$CNI_NETNS\" \"$CNI_ARGS\" >> {heard}\n\
             cat >> {heard}\necho >> {heard}\n\
             case $CNI_COMMAND in\n{answers}\nesac\n",
            heard = heard.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn path(&self) -> String {
        format!("/nowhere:{}", self.folder.path().display())
    }

    /// What it was asked: verb and the rest of each call.
    fn heard(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("heard")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn verbs(&self) -> Vec<String> {
        self.heard().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    /// A call of a network whose addresses it gives.
    fn call(&self, network: &Network, verb: &str, pod: &Pod) -> Call {
        let call = network.call(verb).with("CNI_PATH", &self.path()).with("CNI_NETNS", &pod.path());
        call.configured("ipam", json!({"type": "double", "anything": ["it", "likes"]}))
    }
}

const GIVES: &str = r#"ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"fd70:0:0:1::20/64"},{"address":"10.70.1.20/24","gateway":"10.70.1.1"}],"dns":{"nameservers":["192.0.2.53"]}}';;"#;

#[test]
fn another_plugins_addresses_go_to_the_agent_and_its_names_into_the_result() {
    let (network, pod, double) = (Network::new(), Pod::new(), Double::new(GIVES));
    let agent = Agent::serve(&network, attached());
    let call = double.call(&network, "ADD", &pod).with("CNI_ARGS", "A=B;C=D");
    let result = call.run().result();
    let request = agent.asked().request;
    assert_eq!(request.verb, Verb::Add);
    assert_eq!(request.ipam.delegate.as_deref(), Some("double"));
    let given: Vec<_> = request.ipam.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(given, ["10.70.1.20", "fd70:0:0:1::20"]);
    assert_eq!(request.ipam.routes, None);
    assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]));
    // It got our environment and our stdin, both as they were.
    let heard = double.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    let start = format!("ADD c1 eth0 {} A=B;C=D ", pod.path());
    let config = heard[0].strip_prefix(&start).unwrap_or_else(|| panic!("{heard:?}"));
    let sent: Value = serde_json::from_str(&call.stdin).unwrap();
    assert_eq!(serde_json::from_str::<Value>(config).unwrap(), sent);
}

#[test]
fn whatever_fails_after_another_plugin_gave_addresses_it_gets_them_back() {
    let (network, pod, double) = (Network::new(), Pod::new(), Double::new(GIVES));
    let call = double.call(&network, "ADD", &pod);
    call.run().error(11, &[network.socket().to_str().unwrap()]);
    assert_eq!(double.verbs(), ["ADD", "DEL"], "nobody listens");
    assert!(network.left().is_empty(), "nobody heard of it");
    {
        let _agent = Agent::serve(&network, failed(7, "10.70.1.20 is outside of 10.80.0.0/24", ""));
        call.run().error(7, &["10.70.1.20"]);
        assert_eq!(double.verbs()[2..], ["ADD", "DEL"], "the agent refuses");
    }
    {
        let _agent = Agent::serve(&network, Manner::Close);
        call.run().error(11, &[]);
        assert_eq!(double.verbs()[4..], ["ADD", "DEL"], "the agent dies over it");
        assert_eq!(network.left().len(), 1, "it may have done it: word of the deletion is left");
    }
    let odd = call.configured("prevResult", json!({"dns": 7}));
    odd.run().error(7, &["prevResult"]);
    assert_eq!(double.verbs().len(), 6, "what cannot become a result is not begun");
}

#[test]
fn what_another_plugin_cannot_give_is_told_in_its_words_and_released() {
    let (network, pod) = (Network::new(), Pod::new());
    let refusals = [
        (
            r#"ADD) echo '{"cniVersion":"1.1.0","code":100,"msg":"none left","details":"d"}'; exit 1;;"#,
            100,
            "none left",
        ),
        ("ADD) echo 'Traceback'; exit 3;;", 5, "Traceback"),
        ("ADD) echo '{';;", 6, "cannot be read"),
        (r#"ADD) echo '{"ips":[]}';;"#, 7, "no address"),
        (r#"ADD) echo '{"ips":[{"address":"10.0.0.1/24"},{"address":"10.0.0.2/24"}]}';;"#, 7, "10.0.0.2"),
        (
            r#"ADD) echo '{"ips":[{"address":"10.0.0.1/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.254"}]}';;"#,
            7,
            "10.0.0.254",
        ),
    ];
    for (answer, code, word) in refusals {
        let double = Double::new(answer);
        let listener = std::os::unix::net::UnixListener::bind(network.socket()).unwrap();
        listener.set_nonblocking(true).unwrap();
        double.call(&network, "ADD", &pod).run().error(code, &[word]);
        assert_eq!(double.verbs(), ["ADD", "DEL"], "{answer}");
        assert!(listener.accept().is_err(), "the agent was asked: {answer}");
        fs::remove_file(network.socket()).unwrap();
    }
    let double = Double::new("ADD|DEL) echo '{\"code\":5,\"msg\":\"disk full\"}'; exit 1;;");
    double.call(&network, "ADD", &pod).run().error(5, &["IPAM plugin double: disk full; then", "double"]);
}

#[test]
fn another_plugin_that_hangs_is_ended_in_time() {
    let (network, pod, double) = (Network::new(), Pod::new(), Double::new("ADD) exec sleep 77;;"));
    let call = double.call(&network, "ADD", &pod);
    let limits = causeway_cni::Limits { ipam: Duration::from_millis(400), ..Default::default() };
    let stdin = fs::File::open(write(&call.stdin).path()).unwrap();
    let variable = |name: &str| call.variables.get(name).map(Into::into);
    let answer = causeway_cni::answer(&variable, std::os::fd::AsFd::as_fd(&stdin), &limits);
    let document = answer.document.unwrap();
    assert_eq!(document["code"], 11, "{document}");
    assert!(document["msg"].as_str().unwrap().contains("double: it did not end within 400ms"), "{document}");
    assert_eq!(double.verbs(), ["ADD", "DEL"]);
    assert!(!running("77"), "it goes on behind our back");
}

fn write(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn running(argument: &str) -> bool {
    let parent = std::process::id().to_string();
    let children = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.split_whitespace().eq(["PPid:", parent.as_str()]))
    });
    let line = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    children.map(line).any(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
}

#[test]
fn a_deletion_reaches_another_plugin_last_and_even_when_the_agent_is_dead() {
    let (network, pod, double) = (Network::new(), Pod::new(), Double::new(""));
    let call = double.call(&network, "DEL", &pod);
    {
        let _agent = Agent::serve(&network, Manner::Answer(Reply::Done));
        call.run().silence();
    }
    assert_eq!(double.verbs(), ["DEL"]);
    call.clone().with("CNI_NETNS", "").run().silence();
    assert_eq!(double.verbs(), ["DEL", "DEL"]);
    assert_eq!(network.left().len(), 1, "the agent is dead");
    let _agent = Agent::serve(&network, failed(102, "detach failed", ""));
    call.run().error(102, &["detach failed"]);
    assert_eq!(double.verbs().len(), 3, "whatever came of the rest");
}

#[test]
fn a_status_is_passed_on_and_its_refusal_told() {
    let (network, pod) = (Network::new(), Pod::new());
    let double =
        Double::new(r#"STATUS) echo '{"cniVersion":"1.1.0","code":50,"msg":"pool is dry"}'; exit 1;;"#);
    double.call(&network, "STATUS", &pod).run().error(50, &["IPAM plugin double: pool is dry"]);
    assert_eq!(double.verbs(), ["STATUS"]);
}

#[test]
fn another_plugin_that_is_not_there_is_named_with_the_path() {
    let (network, pod, double) = (Network::new(), Pod::new(), Double::new(""));
    let call = double.call(&network, "ADD", &pod).configured("ipam", json!({"type": "nobody"}));
    call.run().error(7, &["ipam.type", "nobody", "CNI_PATH /nowhere:"]);
    call.without("CNI_PATH").run().error(4, &["CNI_PATH", "nobody"]);
    // Ours needs none.
    let _agent = Agent::serve(&network, attached());
    network.call("ADD").without("CNI_PATH").with("CNI_NETNS", &pod.path()).run().result();
}

/// A network of host-local's, with two addresses.
struct HostLocal {
    data: TempDir,
}

impl HostLocal {
    fn call(&self, network: &Network, verb: &str, pod: &Pod) -> Call {
        let ranges =
            json!([[{"subnet": "10.70.1.0/24", "rangeStart": "10.70.1.20", "rangeEnd": "10.70.1.21"}]]);
        let ipam = json!({
            "type": "host-local", "dataDir": self.data.path(), "ranges": ranges, "routes": [{"dst": "10.70.0.0/16"}]
        });
        let call = network.call(verb).with("CNI_PATH", PLUGINS).with("CNI_NETNS", &pod.path());
        call.configured("cniVersion", json!("1.0.0")).configured("ipam", ipam)
    }

    /// The addresses that are taken.
    fn taken(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.data.path().join("pods")).into_iter().flatten().flatten();
        let mut files: Vec<_> = files.map(|file| PathBuf::from(file.file_name())).collect();
        files.retain(|file| file.to_string_lossy().starts_with("10."));
        files.sort();
        files
    }
}

#[test]
fn host_local_gives_keeps_and_gets_back() {
    let (network, pod, ipam) = (Network::new(), Pod::new(), HostLocal { data: tempfile::tempdir().unwrap() });
    let add = ipam.call(&network, "ADD", &pod);
    {
        let agent = Agent::serve(&network, attached());
        add.run().result();
        let asked = agent.asked().request.ipam;
        assert_eq!(asked.addresses, ["10.70.1.20".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(asked.routes, Some(vec!["10.70.0.0/16".parse().unwrap()]));
    }
    assert_eq!(ipam.taken(), [PathBuf::from("10.70.1.20")]);
    add.clone().with("CNI_CONTAINERID", "c2").run().error(11, &[]);
    assert_eq!(ipam.taken().len(), 1, "an ADD without an agent keeps nothing");
    // With the agent dead as with it alive.
    ipam.call(&network, "DEL", &pod).run().silence();
    assert!(ipam.taken().is_empty());
    ipam.call(&network, "DEL", &pod).with("CNI_NETNS", "").run().silence();
}
