//! Rules put into the kernel wrong, on purpose: a story that tells of them must fail.

use std::process::Command;

use super::*;

/// Names the fault of this run.
const SWITCH: &str = "CAUSEWAY_KERNEL_FAULT";

/// The faults, and a story that must fail of each.
const FAULTS: [(&str, &str); 8] = [
    ("identities-ignored", "rules_are_asked_in_order_and_denials_counted_by_rule_and_pod"),
    ("order-reversed", "rules_are_asked_in_order_and_denials_counted_by_rule_and_pod"),
    ("pass-lets-through", "stages_are_asked_one_after_the_other_and_both_ends_must_allow"),
    ("deny-ignored", "stages_are_asked_one_after_the_other_and_both_ends_must_allow"),
    ("holes-filled", "unknown_is_not_the_world_and_holes_are_not_of_their_block"),
    ("range-ends-ignored", "ranges_of_ports_are_told_apart_by_protocol_to_the_last_port"),
    ("ports-ignored", "sctp_has_ports_and_icmp_has_none"),
    ("epoch-kept", "changes::established_flows_are_judged_again_both_ways_and_others_go_on"),
];

pub(super) fn has(fault: &str) -> bool {
    std::env::var(SWITCH).is_ok_and(|own| own == fault)
}

/// Rules as they are laid out with the fault of this run.
pub(super) fn bent(rules: &[Said]) -> Vec<Said> {
    let mut rules = rules.to_vec();
    match std::env::var(SWITCH).unwrap_or_default().as_str() {
        "order-reversed" => rules.reverse(),
        "deny-ignored" => rules.retain(|rule| rule.action != Action::Deny),
        fault => rules.iter_mut().for_each(|rule| bend(rule, fault)),
    }
    rules
}

fn bend(rule: &mut Said, fault: &str) {
    match fault {
        "identities-ignored" if !rule.identities.is_empty() => rule.identities = vec![A, B, SERVER],
        "pass-lets-through" if rule.action == Action::Pass => rule.action = Action::Accept,
        "holes-filled" => rule.blocks.iter_mut().for_each(|(_, holes)| holes.clear()),
        "ports-ignored" => rule.ports = None,
        "range-ends-ignored" => {
            for (_, range) in rule.ports.iter_mut().flatten() {
                *range = *range.start()..=*range.start();
            }
        }
        _ => {}
    }
}

#[test]
fn every_wrong_compile_is_seen() {
    let own = std::env::current_exe().unwrap();
    for (fault, story) in FAULTS {
        let story = format!("policy::{story}");
        let run = Command::new(&own).args(["--exact", &story]).env(SWITCH, fault).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(!run.status.success() && said.contains("1 failed"), "{story} passes with {fault}: {said}");
    }
}
