//! The binary that a container runtime finds under the `type` of a network configuration.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_cni::run()
}
