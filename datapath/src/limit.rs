/// A token bucket; time is nanoseconds of a clock that never goes back.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: u64,
    filled: u64,
}

impl Bucket {
    /// Errors a second, and how many at once after a silence: what Linux allows itself.
    const RATE: u64 = 1000;
    const BURST: u64 = 50;
    const TOKEN: u64 = 1_000_000_000 / Self::RATE;

    pub(crate) const fn full() -> Self {
        Self { tokens: Self::BURST, filled: 0 }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.filled) / Self::TOKEN;
        if earned > 0 {
            self.tokens = (self.tokens + earned.min(Self::BURST)).min(Self::BURST);
            self.filled += earned * Self::TOKEN;
        }
        let allowed = self.tokens > 0;
        self.tokens -= u64::from(allowed);
        allowed
    }
}

/// What one worker may say to senders whose packets it cannot forward (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
#[derive(Debug)]
pub(crate) struct ErrorLimits {
    /// Its own bucket, so that nobody's traceroute keeps another from learning its path MTU.
    pub(crate) too_big: Bucket,
    pub(crate) others: Bucket,
}

impl ErrorLimits {
    pub(crate) const fn full() -> Self {
        Self { too_big: Bucket::full(), others: Bucket::full() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_for_ever() {
        let mut bucket = Bucket::full();
        let start = 5_000_000_000;
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 50);
        assert!(!bucket.take(start + 999_999));
        let second = (0..10_000).filter(|n| bucket.take(start + n * 100_000)).count();
        assert!((999..=1001).contains(&second), "{second} in a second");
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_gives_nothing() {
        let mut bucket = Bucket::full();
        while bucket.take(1_000_000_000) {}
        assert!(!bucket.take(1_000_000_000));
        assert!(!bucket.take(0));
    }
}
