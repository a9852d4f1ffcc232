//! What a bench must put back, whatever ends it: the end of a scope, an error, a panic, Ctrl-C.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

type Action = Box<dyn FnOnce() + Send>;

static OPEN: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());

fn open() -> MutexGuard<'static, BTreeMap<u64, Action>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something to be put back: when this is dropped, or when the bench is ended.
#[must_use = "it is put back at once"]
pub struct Undo(u64);

impl Undo {
    /// From now on this will be done, once.
    pub fn with(action: impl FnOnce() + Send + 'static) -> Self {
        let mut open = open();
        let number = open.last_key_value().map_or(0, |(last, _)| last + 1);
        open.insert(number, Box::new(action));
        Self(number)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let action = open().remove(&self.0);
        if let Some(action) = action {
            action();
        }
    }
}

/// Puts back everything, the newest first.
fn everything() {
    loop {
        let newest = open().pop_last();
        let Some((_, action)) = newest else { return };
        action();
    }
}

/// Whether the bench is being ended.
static ENDING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread ends it.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Puts back everything and ends the process. Whatever fails on other threads meanwhile does so because of this, and waits.
fn end(status: i32) -> ! {
    if !ENDING.swap(true, Ordering::Relaxed) {
        ENDS.set(true);
        everything();
    } else if !ENDS.get() {
        loop {
            std::thread::park();
        }
    }
    exit(status)
}

/// Sees to it that signals and panics, too, put back everything.
pub fn guard() -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\ninterrupted; putting everything back");
            end(128 + signal);
        }
    });
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !ENDING.load(Ordering::Relaxed) {
            said(panic);
        }
        end(101);
    }));
    Ok(())
}
