//! Ends connections that were not seen for too long, and forgets paths that were learned long ago, on a thread of its own.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use causeway_datapath::Tracking;
use causeway_datapath::connection::Ended;

use crate::clock;
use crate::table::Shared;

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Every place is looked at once in so many periods; a small table is looked at whole each time.
const ROUNDS: u32 = 10;
const AT_ONCE: u32 = 32_768;

/// Starts it.
pub(crate) fn spawn(tracking: Option<Tracking>, shared: Arc<Shared>) -> anyhow::Result<()> {
    let run = move || sweep(tracking.as_ref(), &shared);
    thread::Builder::new().name("sweeper".into()).spawn(run).context("starting the sweeper")?;
    Ok(())
}

fn sweep(tracking: Option<&Tracking>, shared: &Shared) -> ! {
    let (mut from, mut waiting) = (0, None::<(Ended, Vec<u64>)>);
    loop {
        thread::sleep(PERIOD);
        let world = shared.world();
        if let Some(world) = &world {
            world.forget_paths(clock::now());
        }
        let Some(Tracking { connections, .. }) = tracking else { continue };
        if let Some((ended, turns)) = waiting.take() {
            if shared.have_turned(&turns) {
                connections.settle(ended);
            } else {
                waiting = Some((ended, turns));
            }
        }
        let used = connections.used();
        let to = from + (used / ROUNDS).max(AT_ONCE);
        let timeouts = world.map(|world| world.timeouts).unwrap_or_default();
        connections.sweep(from..to, (clock::now() / 1_000_000) as u32, &timeouts);
        from = if to >= used { 0 } else { to };
        if waiting.is_none() {
            let ended = connections.ended();
            waiting = (!ended.is_empty()).then(|| (ended, shared.turns()));
        }
    }
}
