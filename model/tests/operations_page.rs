//! The operator's page names every drop reason with its sentence, and every code of the plugin.

use causeway_model::DropReason;
use causeway_model::plugin::Failure;

#[test]
fn every_drop_reason_stands_in_the_operators_page() {
    let page = include_str!("../../docs/operations.md");
    for reason in DropReason::ALL {
        let row = format!("| `{reason}` | {} |", reason.help());
        assert!(page.lines().any(|line| line == row), "docs/operations.md lacks: {row}");
    }
}

#[test]
fn every_code_of_the_plugin_stands_in_the_operators_page_and_no_other() {
    let page = include_str!("../../docs/operations.md");
    let table = page.split("\n| code | means |").nth(1).and_then(|rest| rest.split("\n\n").next());
    let rows = table.unwrap_or_default().lines().filter_map(|row| row.split('|').nth(1)?.trim().parse().ok());
    let told: Vec<u32> = rows.collect();
    let known = [
        Failure::INCOMPATIBLE_VERSION,
        Failure::UNSUPPORTED_FIELD,
        Failure::UNKNOWN_CONTAINER,
        Failure::INVALID_ENVIRONMENT,
        Failure::IO,
        Failure::DECODING,
        Failure::INVALID_CONFIG,
        Failure::TRY_AGAIN,
        Failure::NOT_AVAILABLE,
        Failure::LIMITED,
        Failure::RANGE_EXHAUSTED,
        Failure::EXISTS,
        Failure::DATAPATH,
        Failure::NOT_AS_MADE,
        Failure::HOST_PORT_TAKEN,
    ];
    assert_eq!(told, known);
}
