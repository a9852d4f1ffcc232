//! The page of services across clusters.

use std::net::SocketAddr;

use causeway_model::clusterset::{
    Clusterset, ConditionStatus, ConflictStatus, ExportStatus, ImportPortStatus, ImportStatus, Refused,
    RemoteBackend,
};

use super::{Table, list, or};

/// The page of services across clusters.
pub fn clusterset(page: &Clusterset) -> String {
    let mut exports = Table::of(&["EXPORT", "CLUSTER", "VALID", "READY", "CONFLICT"]);
    for ExportStatus { namespace, name, cluster, conditions } in &page.exports {
        let of = |kind: &str| {
            conditions.iter().find(|condition| condition.kind == kind).map_or("-".to_owned(), said)
        };
        exports.row([
            format!("{namespace}/{name}"),
            cluster.to_string(),
            of("Valid"),
            of("Ready"),
            of("Conflict"),
        ]);
    }
    let mut imports = Table::of(&["IMPORT", "ADDRESSES", "EXPORTED BY", "READY", "CHOICE", "HITS"]);
    let mut backends = Table::of(&["IMPORT", "FRONTEND", "BACKEND", "CLUSTER", "TIER", "STATE", "WEIGHT"]);
    let mut notes = Vec::new();
    for import in &page.imports {
        let ImportStatus { namespace, name, headless, addresses, clusters, ready, conflicts, .. } = import;
        let own = format!("{namespace}/{name}");
        let at = if *headless { "headless".to_owned() } else { or(list(addresses), "none") };
        imports.row([
            own.clone(),
            at,
            list(clusters),
            said(ready),
            import.choice.clone(),
            import.hits.to_string(),
        ]);
        for ImportPortStatus { name: port, frontend, backends: serving, .. } in &import.ports {
            let own = if port.is_empty() { own.clone() } else { format!("{own}:{port}") };
            for RemoteBackend { cluster, backend, ready, tier, weight } in serving {
                let state = if *ready { "ready" } else { "drains" };
                backends.row([
                    own.clone(),
                    frontend.to_string(),
                    SocketAddr::new(backend.address, backend.port).to_string(),
                    cluster.to_string(),
                    tier.map_or_else(|| "-".to_owned(), |tier| tier.to_string()),
                    state.to_owned(),
                    weight.to_string(),
                ]);
            }
        }
        for ConflictStatus { about, said } in conflicts {
            let said: Vec<_> = said.iter().map(|(what, who)| format!("{} says {what}", list(who))).collect();
            notes.push(format!("{own}: {about}: {}", said.join("; ")));
        }
        let strange = |(cluster, address)| format!("{own}: {address} is left out: it cannot be {cluster}'s");
        notes.extend(import.left_out.iter().map(|(cluster, address)| strange((cluster, address))));
    }
    for Refused { cluster, reasons, .. } in &page.refused {
        notes.push(format!("cluster {cluster} has no part: {}", reasons.join("; ")));
    }
    for (cluster, age) in &page.lost {
        notes.push(format!("cluster {cluster} is lost: what was known of it was {age} s old"));
    }
    let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
    format!("{}\n{}\n{}\n{notes}", exports.text(""), imports.text(""), backends.text(""))
}

/// A condition in a word, or two where it is not as it should be.
fn said(condition: &ConditionStatus) -> String {
    let ConditionStatus { kind, status, reason, message } = condition;
    let good = if kind == "Conflict" { "False" } else { "True" };
    match (status == good, kind == "Conflict" || message.is_empty()) {
        (true, _) => status.clone(),
        (false, true) => format!("{status}: {reason}"),
        (false, false) => format!("{status}: {reason} ({message})"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exports_imports_backends_and_conflicts_are_shown() {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"kind": kind, "status": status, "reason": reason, "message": message});
        let page: Clusterset = serde_json::from_value(json!({
            "own": "oslo",
            "exports": [
                {"namespace": "shop", "name": "web", "cluster": "lyon", "conditions": [
                    condition("Valid", "True", "Valid", ""), condition("Ready", "True", "Exported", ""),
                    condition("Conflict", "True", "PortConflict", "it is long")]},
                {"namespace": "shop", "name": "db", "cluster": "oslo", "conditions": [
                    condition("Valid", "False", "NoService", "there is none"), condition("Ready", "False", "Failed", ""),
                    condition("Conflict", "False", "NoConflicts", "")]}],
            "imports": [{
                "namespace": "shop", "name": "web", "headless": false, "addresses": ["172.30.0.7"], "clusters": ["lyon"],
                "ready": condition("Ready", "True", "Ready", ""), "choice": "all alike", "hits": 3,
                "conflicts": [{"about": "PortConflict", "said": [["80", ["lyon"]], ["81", ["turin"]]]}],
                "left_out": [["lyon", "127.0.0.1"]],
                "ports": [{"name": "http", "frontend": {"at": {"address": "172.30.0.7"}, "protocol": "tcp", "port": 80}, "hits": 3,
                    "backends": [{"cluster": "lyon", "address": "10.80.1.4", "port": 8080, "ready": true, "tier": 1, "weight": 2}]}],
            }],
            "refused": [{"cluster": "rome", "codes": ["duplicate-id:lyon"], "reasons": ["its id 2 is that of cluster lyon"]}],
            "lost": [["bari", 45]],
        }))
        .expect("a page");
        let page = clusterset(&page);
        for line in [
            "shop/web  lyon     True                              True           True: PortConflict",
            "shop/db   oslo     False: NoService (there is none)  False: Failed  False",
            "shop/web  172.30.0.7  lyon         True   all alike  3",
            "shop/web:http  172.30.0.7:80/tcp  10.80.1.4:8080  lyon     1     ready  2",
            "shop/web: PortConflict: lyon says 80; turin says 81",
            "shop/web: 127.0.0.1 is left out: it cannot be lyon's",
            "cluster rome has no part: its id 2 is that of cluster lyon",
            "cluster bari is lost: what was known of it was 45 s old",
        ] {
            assert!(page.lines().any(|found| found == line), "{line:?} is not in\n{page}");
        }
    }
}
