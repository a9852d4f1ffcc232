//! The operator's page names every drop reason with its sentence.

use causeway_model::DropReason;

#[test]
fn every_drop_reason_stands_in_the_operators_page() {
    let page = include_str!("../../docs/operations.md");
    for reason in DropReason::ALL {
        let row = format!("| `{reason}` | {} |", reason.help());
        assert!(page.lines().any(|line| line == row), "docs/operations.md lacks: {row}");
    }
}
