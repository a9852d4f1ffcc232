//! `lab` as a person or a script uses it.

use std::process::{Command, Output};

use serde_json::Value;

/// Runs `lab` on a lab of this test's own.
fn lab(name: &str, words: &str) -> Output {
    let lab = format!("cli{}-{name}", std::process::id());
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["--name", &lab]).args(words.split_whitespace()).output().expect("lab runs")
}

/// What it prints, when it succeeds.
fn said(name: &str, words: &str) -> String {
    let output = lab(name, words);
    assert!(output.status.success(), "lab {words}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What it prints as JSON, when it succeeds.
fn json(name: &str, words: &str) -> Value {
    serde_json::from_str(&said(name, &format!("--json {words}"))).expect("JSON")
}

/// Why it fails.
fn refused(name: &str, words: &str) -> String {
    let output = lab(name, words);
    assert!(!output.status.success(), "lab {words} succeeds");
    String::from_utf8(output.stderr).expect("text")
}

/// Takes a lab down whatever the test comes to.
struct Down(&'static str);

impl Drop for Down {
    fn drop(&mut self) {
        lab(self.0, "down");
    }
}

#[test]
fn a_lab_goes_up_is_used_and_goes_down() {
    let _down = Down("use");
    let up = json("use", "up --nodes 2 --clusters 2");
    assert_eq!(up["labs"][0]["nodes"][1]["cluster"], "c2");
    assert!(refused("use", "up").contains("is there already"));
    let a = json("use", "pod add n1 a --label app=web --label tier=front");
    said("use", "pod add n2 b");
    let address = a["addresses"][0].as_str().expect("an address");
    assert!(said("use", &format!("exec b ping -c 1 -W 2 {address}")).contains(" 0% packet loss"));
    assert_eq!(lab("use", "exec a sh -c false").status.code(), Some(1));
    assert!(refused("use", "exec n1 no-such-command").contains("running no-such-command in n1"));
    let failed = lab("use", "--json exec a cat /nowhere");
    let told: Value = serde_json::from_slice(&failed.stdout).expect("JSON");
    assert_eq!((failed.status.code(), &told["code"]), (Some(1), &Value::from(1)));
    let pods = json("use", "status")["labs"][0]["pods"].clone();
    assert_eq!(pods[0]["labels"]["tier"], "front");
    assert!(refused("use", "pod add n7 x").contains("no node \"n7\""));
    assert!(refused("use", "pod add n1 b").contains("has a pod or node of this name"));
    assert!(refused("use", "pod del n1 b").contains("pod b is on node n2"));
    assert!(refused("use", "exec nobody true").contains("no pod \"nobody\""));
    assert!(refused("use", "wire loss=1%").contains("--wire userspace"));
    said("use", "pod del n2 b");
    assert!(refused("use", "pod del n2 b").contains("no pod \"b\""));
    said("use", "down");
    said("use", "down");
    assert!(refused("use", "pod add n1 x").contains("no lab"));
}

#[test]
fn an_agent_is_killed_and_started() {
    let _down = Down("kill");
    said("kill", "up --nodes 1");
    said("kill", "kill n1 agent");
    assert!(refused("kill", "kill n1 agent").contains("does not run"));
    let state = json("kill", "status")["labs"][0]["nodes"][0]["state"].clone();
    assert!(state.to_string().contains("does not run"), "{state}");
    let error = refused("kill", "pod add n1 a");
    assert!(error.contains("code 11") && error.contains("cni.sock"), "{error}");
    said("kill", "start n1 agent");
    assert!(refused("kill", "start n1 agent").contains("runs already"));
    said("kill", "pod add n1 a");
}

#[test]
fn the_environment_is_enough_to_call_the_plugin_by_hand() {
    let _down = Down("env");
    said("env", "up --nodes 1");
    let env = json("env", "env n1");
    let of = |key: &str| env[key].as_str().unwrap_or_else(|| panic!("{key} in {env}")).to_owned();
    let conflist: Value =
        serde_json::from_slice(&std::fs::read(of("CAUSEWAY_CONFLIST")).expect("a conflist")).expect("JSON");
    let mut config = conflist["plugins"][0].clone();
    config["name"] = conflist["name"].clone();
    config["cniVersion"] = conflist["cniVersion"].clone();
    let script = format!(
        "CNI_COMMAND=DEL CNI_CONTAINERID=by-hand CNI_IFNAME=eth0 CNI_PATH={0} {0}/causeway-cni",
        of("CNI_PATH")
    );
    let net = format!("--net={}", of("NODE_NAMESPACE"));
    let mut call = Command::new("nsenter");
    call.args([&net, "sh", "-c", &script]);
    causeway_tests::command::stdout(&mut call, config.to_string().as_bytes())
        .expect("DEL of nothing succeeds");
    assert!(std::path::Path::new(&of("CAUSEWAY_MANIFESTS")).join("cluster.yaml").exists());
    assert!(said("env", "env n1").contains("export CNI_PATH="));
}

#[test]
fn the_wire_is_spoiled_and_cleared() {
    let _down = Down("wire");
    said("wire", "up --wire userspace");
    said("wire", "pod add n1 a");
    let b = json("wire", "pod add n2 b")["addresses"][0].clone();
    let ping = format!("exec a ping -c 1 -W 1 {}", b.as_str().expect("an address"));
    said("wire", &ping);
    assert!(said("wire", "wire cut=n2>n1").contains("cut=n2>n1"));
    assert!(!lab("wire", &ping).status.success());
    assert!(refused("wire", "wire dealy=3ms").contains("the wire knows no dealy"));
    assert_eq!(json("wire", "wire clear delay=2ms")["words"][0], "delay=2000us");
    said("wire", &ping);
}
