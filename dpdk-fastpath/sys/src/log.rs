//! DPDK's log lines: to `tracing`, and to the error they explain. Never to stdout.

use crate::ffi;
use std::{cell::RefCell, ffi::c_char, slice};

/// Levels 1 to 5 are what DPDK calls emergency to warning.
const WARNING: u32 = 5;
const KEPT: usize = 4;

thread_local! {
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs `call` and gives back what DPDK complained about on this thread meanwhile.
pub(crate) fn hear<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    HEARD.with(|heard| *heard.borrow_mut() = Some(Vec::new()));
    let result = call();
    let said = HEARD.with(|heard| heard.borrow_mut().take()).unwrap_or_default();
    (result, said)
}

/// Takes over DPDK's log stream; `level` is DPDK's own, 1 to 8.
pub(crate) fn take_over(level: u32) -> i32 {
    // SAFETY: `line` is a function for the life of the process and has the declared signature.
    unsafe { ffi::cw_log_to(Some(line), level) }
}

/// One write of DPDK's log stream: one line as a rule, several if it was buffered.
unsafe extern "C" fn line(level: u32, text: *const c_char, len: usize) {
    if text.is_null() {
        return;
    }
    // SAFETY: the stream hands over `len` readable bytes for the time of this call.
    let bytes = unsafe { slice::from_raw_parts(text.cast::<u8>(), len) };
    for line in String::from_utf8_lossy(bytes).lines().map(str::trim).filter(|line| !line.is_empty()) {
        emit(level, line);
    }
}

fn emit(level: u32, line: &str) {
    match level {
        0..=4 => tracing::error!(target: "dpdk", "{line}"),
        5 => tracing::warn!(target: "dpdk", "{line}"),
        6 => tracing::info!(target: "dpdk", "{line}"),
        7 => tracing::debug!(target: "dpdk", "{line}"),
        _ => tracing::trace!(target: "dpdk", "{line}"),
    }
    if level > WARNING {
        return;
    }
    HEARD.with(|heard| {
        if let Ok(mut heard) = heard.try_borrow_mut()
            && let Some(said) = heard.as_mut()
        {
            if said.len() == KEPT {
                said.remove(0);
            }
            said.push(line.to_owned());
        }
    });
}
