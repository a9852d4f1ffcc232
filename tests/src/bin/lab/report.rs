//! What `lab` prints, for people and as JSON.

use causeway_tests::lab::{Binaries, Lab, LabError, Node, NodeRecord, Pod, Role};
use causeway_tests::process::Process;
use causeway_tests::switch::SwitchStatus;
use serde_json::{Value, json};

fn print(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// One sentence.
pub fn done(sentence: &str, json: bool) {
    if json {
        println!("{}", json!({"done": sentence}));
    } else {
        println!("{sentence}");
    }
}

/// Labs with their nodes and pods.
pub fn labs(labs: &[Lab], json: bool) -> anyhow::Result<()> {
    let all: Result<Vec<_>, _> = labs.iter().map(describe).collect();
    let all = all?;
    if json {
        return print(&json!({"labs": all}));
    }
    if all.is_empty() {
        println!("no lab is up");
    }
    for lab in &all {
        println!(
            "lab {}: {} wire, underlay {}, datapath {}, manifests in {}",
            text(&lab["name"]),
            text(&lab["wire"]),
            text(&lab["underlay"]),
            text(&lab["datapath"]),
            text(&lab["manifests"])
        );
        for node in lab["nodes"].as_array().into_iter().flatten() {
            println!(
                "  node {:6} cluster {:4} {:12} {:14} {}",
                text(&node["name"]),
                text(&node["cluster"]),
                text(&node["addresses"][0]),
                text(&node["pod_prefixes"][0]),
                text(&node["state"])
            );
        }
        for pod in lab["pods"].as_array().into_iter().flatten() {
            let addresses: Vec<_> = pod["addresses"].as_array().into_iter().flatten().map(text).collect();
            println!("  pod  {:6} on {:4} {}", text(&pod["name"]), text(&pod["node"]), addresses.join(" "));
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn describe(lab: &Lab) -> Result<Value, LabError> {
    let record = lab.record()?;
    let nodes: Vec<_> =
        lab.nodes()?.iter().zip(&record.nodes).map(|(node, r)| describe_node(node, r)).collect();
    Ok(json!({
        "name": lab.name(),
        "wire": record.spec.wire,
        "underlay": record.spec.underlay,
        "datapath": record.spec.datapath,
        "directory": lab.directory(),
        "manifests": lab.directory().join("manifests"),
        "nodes": nodes,
        "pods": record.pods.iter().map(|pod| describe_pod(lab, &pod.name)).collect::<Result<Vec<_>, _>>()?,
    }))
}

fn describe_node(node: &Node, record: &NodeRecord) -> Value {
    let state = if node.foreign {
        "a foreign peer".to_owned()
    } else if !record.agent.is_some_and(Process::is_alive) {
        format!("{} does not run", Role::Agent)
    } else {
        match node.status() {
            Ok(status) if status.waiting_for.is_empty() => {
                format!("serves: path {}, {}", status.path.path, status.path.reason)
            }
            Ok(status) => format!("waits for {}", status.waiting_for.join(", ")),
            Err(error) => error.to_string(),
        }
    };
    json!({
        "name": node.name(),
        "cluster": node.plan.node.id.cluster,
        "namespace": node.namespace().name(),
        "addresses": [node.plan.v4.to_string(), node.plan.v6.to_string()],
        "pod_prefixes": node.plan.node.pod_prefixes,
        "vtep_mac": node.plan.node.vtep_mac,
        "agent": record.agent,
        "fastpath": record.fastpath,
        "log": node.directory().join("agent.log"),
        "state": state,
    })
}

fn describe_pod(lab: &Lab, name: &str) -> Result<Value, LabError> {
    let pod = lab.pod(name)?;
    Ok(json!({
        "name": pod.name(),
        "node": pod.record.node,
        "namespace": pod.namespace().name(),
        "container": pod.record.container,
        "addresses": pod.record.addresses,
        "labels": pod.record.labels,
        "link": pod.link(),
    }))
}

/// One pod.
pub fn pod(pod: &Pod, json: bool) -> anyhow::Result<()> {
    let addresses: Vec<_> = pod.record.addresses.iter().map(ToString::to_string).collect();
    if json {
        return print(&json!({
            "name": pod.name(),
            "node": pod.record.node,
            "namespace": pod.namespace().name(),
            "container": pod.record.container,
            "addresses": addresses,
            "result": pod.record.result,
        }));
    }
    println!("pod {} is on node {}: {}", pod.name(), pod.record.node, addresses.join(" "));
    Ok(())
}

/// What is needed to call the plugin by hand.
pub fn environment(lab: &Lab, node: &str, json: bool) -> anyhow::Result<()> {
    let node = lab.node(node)?;
    let binaries = Binaries::find()?;
    let run = node.directory().join("run");
    let variables = [
        ("NODE_NAMESPACE", node.namespace().path()),
        ("CNI_PATH", binaries.directory().to_owned()),
        ("CAUSEWAY_CONFLIST", lab.conflist_file(&node)),
        ("CAUSEWAY_CNI_SOCKET", run.join("cni.sock")),
        ("CAUSEWAY_API_SOCKET", run.join("api.sock")),
        ("CAUSEWAY_CONFIG", node.config_file()),
        ("CAUSEWAY_MANIFESTS", lab.manifests_of(node.plan.cluster)?),
        ("CAUSEWAY_TOMBSTONES", node.directory().join("state/tombstones")),
        ("CAUSEWAY_LOG", node.directory().join("agent.log")),
    ];
    if json {
        let map: serde_json::Map<_, _> =
            variables.iter().map(|(key, path)| ((*key).into(), json!(path))).collect();
        return print(&Value::Object(map));
    }
    for (key, path) in &variables {
        println!("export {key}={}", path.display());
    }
    println!("# enter the node:  nsenter --net=$NODE_NAMESPACE");
    println!(
        "# call the plugin: CNI_COMMAND=VERSION $CNI_PATH/causeway-cni <<<'{{\"cniVersion\":\"1.1.0\"}}'"
    );
    Ok(())
}

/// What the wire does.
pub fn wire(status: &SwitchStatus, json: bool) -> anyhow::Result<()> {
    if json {
        return print(&serde_json::to_value(status)?);
    }
    println!(
        "wire: {}",
        if status.words.is_empty() { "does nothing to frames".into() } else { status.words.join(" ") }
    );
    for (port, tally) in &status.ports {
        println!(
            "  {port:6} received {} sent {} lost {} cut {} doubled {} reordered {} corrupted {} oversize {} overflow {}",
            tally.received,
            tally.sent,
            tally.lost,
            tally.cut,
            tally.duplicated,
            tally.reordered,
            tally.corrupted,
            tally.oversize,
            tally.overflow
        );
    }
    Ok(())
}
