//! The answer to why.

use std::net::SocketAddr;

use causeway_model::clusterset::Across;
use causeway_model::policy::Traffic;
use causeway_model::why::{Behind, Judged, Outcome, Party, Probe, Side, Through, Why};

use super::{Table, list};

/// The answer to why.
pub fn why(why: &Why) -> String {
    let mut facts = Table::default();
    let party = |party: &Party| format!("{} ({})", party.address, party.who);
    facts.row(["from".to_owned(), party(&why.from)]);
    facts.row(["to".to_owned(), party(&why.to)]);
    let traffic = match why.traffic {
        Traffic::To(protocol, port) => format!("{protocol}/{port}"),
        Traffic::Portless => "without ports".to_owned(),
    };
    facts.row(["traffic".to_owned(), traffic]);
    if let Some(Across { name, clusters, choice, .. }) = why.across.as_deref() {
        facts.row(["import".to_owned(), format!("{name}, exported by {}", list(clusters))]);
        facts.row(["choice".to_owned(), choice.clone()]);
    }
    if let Some(through) = &why.through {
        facts.row(["service".to_owned(), through.reason.clone()]);
    }
    facts.row(["verdict".to_owned(), verdict(why)]);
    sides(&mut facts, &why.sides);
    let behind = || why.through.iter().flat_map(|through| &through.behind);
    let whole: u64 = behind().filter_map(|one| one.weight).map(u64::from).sum();
    for Behind { to, port, weight, verdict, sides: said } in behind() {
        let verdict = verdict.map_or_else(|| "not judged on this node".to_owned(), |v| v.to_string());
        let address = SocketAddr::new(to.address, *port);
        let offered = why.across.iter().flat_map(|across| &across.backends);
        let mut offered =
            offered.filter(|one| (one.backend.address, one.backend.port) == (to.address, *port));
        let tier = offered.next().map_or_else(String::new, |one| match one.tier {
            Some(tier) => format!(" of cluster {}, tier {tier},", one.cluster),
            None => format!(" of cluster {}", one.cluster),
        });
        let part = weight.map_or_else(String::new, |weight| format!(", {weight} of {whole} connections"));
        facts.row(["backend".to_owned(), format!("{address}{tier} ({}{part}): {verdict}", to.who)]);
        sides(&mut facts, said);
    }
    probe(&mut facts, why);
    facts.text("")
}

fn verdict(why: &Why) -> String {
    let mixed = |through: &Through| through.behind.iter().any(|one| one.verdict.is_some());
    match (why.verdict, why.through.as_deref()) {
        (Some(verdict), _) => verdict.to_string(),
        (None, Some(Through { outcome: Outcome::Refused, .. })) => "refused".to_owned(),
        (None, Some(Through { outcome: Outcome::Dropped, .. })) => "dropped".to_owned(),
        (None, Some(through)) if mixed(through) => "it depends on the backend".to_owned(),
        (None, _) => "not judged on this node".to_owned(),
    }
}

/// What either side says.
fn sides(facts: &mut Table, sides: &[Side]) {
    for Side { direction, judged } in sides {
        let said = match judged {
            Judged::Here { path, verdict, reason, .. } => format!("{verdict} ({path} path): {reason}"),
            Judged::Elsewhere { node } => format!("judged on node {node}: ask there"),
            Judged::Nowhere => "not judged: policies are about pods".to_owned(),
        };
        facts.row([direction.to_string(), said]);
        if let Judged::Here { rule: Some(rule), policy, .. } = judged {
            let policy = policy.as_ref().map_or_else(String::new, |policy| format!(" of {policy}"));
            facts.row(["  rule".to_owned(), format!("{rule}{policy}")]);
        }
        if let Judged::Here { audit: Some(rule), .. } = judged {
            facts.row(["  audited".to_owned(), format!("{rule} would deny it")]);
        }
        if let Judged::Here { remedy: Some(remedy), .. } = judged {
            facts.row(["  to allow it".to_owned(), remedy.clone()]);
        }
    }
}

fn probe(facts: &mut Table, why: &Why) {
    if let Some(Probe { outcome, rules, drops }) = &why.probe {
        facts.row(["probe".to_owned(), outcome.clone()]);
        let denied = rules.iter().map(|(rule, count)| (format!("  denied by {rule}"), count));
        let dropped = drops.iter().map(|(reason, count)| (format!("  dropped as {reason}"), count));
        for (what, count) in denied.chain(dropped) {
            facts.row([what, format!("{} packets", count.packets)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn why_names_the_side_that_denies_its_rule_and_what_would_allow_it() {
        let answer: Why = serde_json::from_value(json!({
            "from": {"address": "10.70.2.9", "who": "pod shop/client"},
            "to": {"address": "10.70.1.3", "who": "pod shop/web"},
            "traffic": {"to": ["tcp", 81]},
            "verdict": "deny",
            "sides": [
                {"direction": "egress", "judged": "elsewhere", "node": {"cluster": "lyon", "name": "west"}},
                {"direction": "ingress", "judged": "here", "path": "fast", "verdict": "deny",
                 "rule": "f62e/ingress/isolation", "policy": "NetworkPolicy/shop/web",
                 "reason": "it isolates the pod", "remedy": "a rule"}
            ],
            "probe": {"outcome": "no answer within 1s", "drops": [["policy-denied", {"packets": 1, "bytes": 60}]],
                      "rules": [["f62e/ingress/isolation", {"packets": 1, "bytes": 60}]]}
        }))
        .expect("an answer");
        let page = why(&answer);
        let lines: Vec<_> =
            page.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "from 10.70.2.9 (pod shop/client)",
                "to 10.70.1.3 (pod shop/web)",
                "traffic tcp/81",
                "verdict deny",
                "egress judged on node lyon/west: ask there",
                "ingress deny (fast path): it isolates the pod",
                "rule f62e/ingress/isolation of NetworkPolicy/shop/web",
                "to allow it a rule",
                "probe no answer within 1s",
                "denied by f62e/ingress/isolation 1 packets",
                "dropped as policy-denied 1 packets",
            ]
        );
    }

    #[test]
    fn why_shows_the_service_and_what_holds_of_each_backend() {
        let backend = |address: &str, weight: u32, verdict: &str| {
            let side = json!({"direction": "ingress", "judged": "nowhere"});
            json!({"to": {"address": address, "who": "pod shop/web"}, "port": 8080, "weight": weight, "verdict": verdict, "sides": [side]})
        };
        let behind = [backend("10.70.1.4", 3, "allow"), backend("10.70.1.5", 1, "deny")];
        let answer: Why = serde_json::from_value(json!({
            "from": {"address": "10.70.1.3", "who": "pod shop/client"}, "to": {"address": "10.96.0.1", "who": "a service's address"},
            "traffic": {"to": ["tcp", 80]}, "verdict": null, "sides": [],
            "through": {"outcome": {"served": []}, "reason": "service shop/web leads to one of 2 backends", "behind": behind},
        }))
        .expect("an answer");
        let page = why(&answer);
        for line in [
            "service  service shop/web leads to one of 2 backends",
            "verdict  it depends on the backend",
            "backend  10.70.1.4:8080 (pod shop/web, 3 of 4 connections): allow",
            "backend  10.70.1.5:8080 (pod shop/web, 1 of 4 connections): deny",
        ] {
            assert!(page.lines().any(|found| found == line), "{line:?} is not in\n{page}");
        }
    }
}
