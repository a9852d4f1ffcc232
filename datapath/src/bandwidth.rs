//! Limits of pods' bandwidth: a token bucket for each limited direction, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use causeway_model::{DropReason, Path, RateLimit, Snapshot};

use crate::burst::Kept;
use crate::world::World;
use crate::{Buffer, Burst, Frame, Pool, Port, Slots, Worker};

/// Units of time in a nanosecond: at 100 Gbit/s the shortest frame takes five.
const UNITS: u64 = 16;
const UNITS_PER_SECOND: u64 = UNITS * 1_000_000_000;

/// A token bucket as the time at which it will be full again: one word, whoever takes from it.
#[derive(Debug)]
struct Bucket {
    limit: RateLimit,
    /// How long an empty one takes to fill.
    depth: u64,
    full_at: AtomicU64,
}

impl Bucket {
    fn new(limit: RateLimit) -> Self {
        Self { limit, depth: span(limit.burst_bytes(), limit), full_at: AtomicU64::new(0) }
    }

    /// Takes a frame's bytes unless it is empty. The last frame may take more than there is, which those behind it wait for: so
    /// the longest frame passes the smallest bucket, and the rate holds all the same.
    fn take(&self, bytes: u64, now: u64) -> bool {
        let (now, cost) = (now.saturating_mul(UNITS), span(bytes, self.limit));
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let from = full_at.max(now);
            (from - now <= self.depth).then(|| from.saturating_add(cost))
        });
        taken.is_ok()
    }
}

/// How long bytes take at a limit's rate.
fn span(bytes: u64, limit: RateLimit) -> u64 {
    let units =
        u128::from(bytes) * u128::from(UNITS_PER_SECOND) / u128::from(limit.bytes_per_second().max(1));
    u64::try_from(units).unwrap_or(u64::MAX)
}

/// The buckets of one pod.
#[derive(Clone, Debug, Default)]
struct Buckets {
    to_pod: Option<Arc<Bucket>>,
    from_pod: Option<Arc<Bucket>>,
}

/// The buckets of all pods, by slot.
#[derive(Clone, Debug)]
pub(crate) struct Limits(Box<[Buckets]>);

impl Limits {
    /// None while no pod has a limit.
    pub(crate) fn new(snapshot: &Snapshot, slots: &Slots) -> Option<Self> {
        let limited = snapshot.endpoints.values().filter(|e| e.path == Path::Fast && !e.bandwidth.is_none());
        let mut limits: Option<Self> = None;
        for endpoint in limited {
            let Some(slot) = slots.of(&endpoint.key) else { continue };
            let all =
                limits.get_or_insert_with(|| Self(vec![Buckets::default(); slots.capacity().into()].into()));
            let bucket = |limit: Option<RateLimit>| limit.map(|limit| Arc::new(Bucket::new(limit)));
            all.0[usize::from(slot)] = Buckets {
                to_pod: bucket(endpoint.bandwidth.to_pod),
                from_pod: bucket(endpoint.bandwidth.from_pod),
            };
        }
        limits
    }

    /// Goes on with the buckets of an earlier world, as full as they are, where the limits are the same.
    pub(crate) fn inherit(&mut self, before: &Self) {
        let same = |new: &mut Option<Arc<Bucket>>, old: &Option<Arc<Bucket>>| {
            if let (Some(new), Some(old)) = (new, old)
                && new.limit == old.limit
            {
                new.clone_from(old);
            }
        };
        for (new, old) in self.0.iter_mut().zip(&before.0) {
            same(&mut new.to_pod, &old.to_pod);
            same(&mut new.from_pod, &old.from_pod);
        }
    }
}

/// Lets through what a pod may send.
#[inline]
pub(crate) fn limit_sender<P: Pool>(
    burst: &mut Burst<P::Buffer>,
    slot: u16,
    world: &World,
    worker: &mut Worker<P>,
    now: u64,
) {
    let Some(limits) = &world.limits else { return };
    let Some(bucket) = limits.0.get(usize::from(slot)).and_then(|buckets| buckets.from_pod.as_deref()) else {
        return;
    };
    burst.sift(|frame, _| {
        let verdict = charge(bucket, frame, now);
        worker.keeps(verdict, frame, Port::Endpoint(slot), world, now)
    });
}

/// Lets through what pods may be sent.
#[inline]
pub(crate) fn limit_receivers<P: Pool>(
    burst: &mut Burst<P::Buffer>,
    from: Port,
    world: &World,
    worker: &mut Worker<P>,
    now: u64,
) {
    let Some(limits) = &world.limits else { return };
    burst.sift(|frame, _| {
        let Port::Endpoint(slot) = frame.egress else { return true };
        let bucket = limits.0.get(usize::from(slot)).and_then(|buckets| buckets.to_pod.as_deref());
        let verdict = bucket.map_or(Ok(Kept::Whole), |bucket| charge(bucket, frame, now));
        worker.keeps(verdict, frame, from, world, now)
    });
}

fn charge<B: Buffer>(bucket: &Bucket, frame: &Frame<B>, now: u64) -> Result<Kept, DropReason> {
    if bucket.take(wire_bytes(frame), now) { Ok(Kept::Whole) } else { Err(DropReason::RateLimited) }
}

/// What a frame has on an Ethernet link: each packet that it stands for has headers of its own.
fn wire_bytes<B: Buffer>(frame: &Frame<B>) -> u64 {
    let len = frame.len() as u64;
    frame.offload.gso.map_or(len, |gso| {
        let (headers, size) = (u64::from(gso.headers), u64::from(gso.size.max(1)));
        let segments = len.saturating_sub(headers).div_ceil(size);
        len + headers * segments.saturating_sub(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Bytes that pass in so many seconds when frames of a size come one after another at ten times the rate.
    fn passed(limit: RateLimit, frame: u64, seconds: u64) -> u64 {
        let bucket = Bucket::new(limit);
        let step = span(frame, limit) / UNITS / 10;
        let (mut now, mut passed) = (5 * SECOND, 0);
        let end = now + seconds * SECOND;
        while now < end {
            passed += if bucket.take(frame, now) { frame } else { 0 };
            now += step.max(1);
        }
        passed
    }

    #[test]
    fn what_passes_is_the_rate_and_one_burst_and_at_most_one_frame_more() {
        for rate in [80_000, 8_000_000, 8_000_000_000] {
            for frame in [64, 1514, 65_000] {
                let limit = RateLimit { rate, burst: rate / 10 };
                let seconds = if rate > 1_000_000_000 { 1 } else { 10 };
                let (least, passed) = (rate / 8 * seconds, passed(limit, frame, seconds));
                let most = least + rate / 80 + frame;
                // The rounding of a frame's time.
                let slack = least / 500 + frame;
                assert!(
                    passed + slack >= least && passed <= most + slack,
                    "{limit}, {frame}: {passed} of {least}"
                );
            }
        }
    }

    #[test]
    fn a_silence_fills_the_bucket_and_no_more() {
        let limit = RateLimit { rate: 8_000, burst: 80_000 };
        let bucket = Bucket::new(limit);
        let burst = |now: u64| (0..1000).filter(|_| bucket.take(100, now)).count();
        assert_eq!(burst(SECOND), 101, "the burst and one frame more");
        assert_eq!(burst(SECOND), 0);
        assert_eq!(burst(2 * SECOND), 10);
        assert_eq!(burst(1000 * SECOND), 101);
    }
}
