//! Which CPUs workers run on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that this process may run on, in order.
pub(crate) fn allowed() -> nix::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// The CPU of each worker: the given ones in turn, else one each of those that are allowed. A worker that moves from CPU to CPU
/// in the middle of a burst has the kernel deliver the second half of it beside the first, which changes the order of flows.
/// Workers that are more than there are CPUs are left to the system, which shares out what there is.
pub(crate) fn of_workers(workers: u16, given: &[usize], allowed: &[usize]) -> Vec<Option<usize>> {
    let workers = usize::from(workers);
    if given.is_empty() && workers > allowed.len() {
        return vec![None; workers];
    }
    let cpus = if given.is_empty() { allowed } else { given };
    cpus.iter().copied().cycle().take(workers).map(Some).collect()
}

/// Keeps this thread on one CPU.
pub(crate) fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_have_a_cpu_each_unless_there_are_too_few() {
        assert_eq!(of_workers(2, &[], &[1, 5, 6]), [Some(1), Some(5)]);
        assert_eq!(of_workers(2, &[], &[3]), [None, None]);
        assert_eq!(of_workers(3, &[7, 8], &[1, 2]), [Some(7), Some(8), Some(7)], "as it was told");
    }

    #[test]
    fn a_thread_stays_where_it_was_put() {
        let first = allowed().expect("there are CPUs")[0];
        let of_thread = std::thread::spawn(move || pin(first).and_then(|()| allowed()));
        assert_eq!(of_thread.join().expect("no panic"), Ok(vec![first]));
    }
}
