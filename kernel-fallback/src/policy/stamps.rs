//! Under what a flow has been judged: a stamp per endpoint and direction, borne by the connection's mark.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::policy::Direction;

/// The bits of a connection's mark that are ours: four say under which stamp of who began the connection it was judged, four
/// under which of who answers.
pub(crate) const MARK: u32 = 0xff00_0000;
/// How many stamps there are.
pub(super) const STAMPS: u8 = 15;

/// Where a direction's stamp lies in the mark.
pub(super) fn field(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => 0xf000_0000,
        Direction::Ingress => 0x0f00_0000,
    }
}

/// From 1 to 15; a mark with 0 has never been judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(pub(super) u8);

impl Stamp {
    /// As it lies in the mark.
    pub(super) fn as_mark(self, direction: Direction) -> u32 {
        u32::from(self.0) << field(direction).trailing_zeros()
    }

    /// The one that a mark bears.
    pub(super) fn of_mark(mark: u32, direction: Direction) -> Option<Self> {
        let stamp = (mark & field(direction)) >> field(direction).trailing_zeros();
        u8::try_from(stamp).ok().filter(|stamp| *stamp != 0).map(Self)
    }

    fn next(self) -> Self {
        Self(self.0 % STAMPS + 1)
    }
}

/// Whose stamp: an endpoint's address, and the direction in which the table holds.
pub(super) type Judge = (IpAddr, Direction);

#[derive(Clone, Copy, Debug)]
struct State {
    /// None until the first table.
    stamp: Option<Stamp>,
    /// The epoch it stands for; none if that is not known.
    epoch: Option<u32>,
    /// So many of the stamps that come next are borne by no flow.
    fresh: u8,
}

/// The stamps that hold. What was given to an address stays known after its endpoint has gone: another one may get the address while
/// flows of the first are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamps(BTreeMap<Judge, State>);

impl Stamps {
    /// What an earlier process left, all other stamps having been taken off all flows.
    pub(super) fn found(stamps: impl IntoIterator<Item = (Judge, Stamp)>) -> Self {
        let state = |stamp| State { stamp: Some(stamp), epoch: None, fresh: STAMPS - 1 };
        Self(stamps.into_iter().map(|(judge, stamp)| (judge, state(stamp))).collect())
    }

    /// The stamp that holds.
    pub(super) fn of(&self, address: IpAddr, direction: Direction) -> Option<Stamp> {
        self.0.get(&(address, direction)).and_then(|state| state.stamp)
    }

    /// Whether an epoch takes a stamp that some flow may still bear.
    pub(super) fn is_exhausted(&self, judge: Judge, epoch: u32) -> bool {
        self.0.get(&judge).is_some_and(|state| state.epoch != Some(epoch) && state.fresh == 0)
    }

    /// The judges that have used up half of the stamps that no flow bears.
    pub(super) fn low(&self) -> BTreeSet<Judge> {
        let low = self.0.iter().filter(|(_, state)| state.fresh <= STAMPS / 2);
        low.map(|(judge, _)| *judge).collect()
    }

    /// All stamps but the one that holds have been taken off the flows of a judge.
    pub(super) fn refresh(&mut self, judge: Judge) {
        if let Some(state) = self.0.get_mut(&judge) {
            state.fresh = STAMPS - 1;
        }
    }

    /// Gives an epoch a stamp of its own.
    pub(super) fn assign(&mut self, judge: Judge, epoch: u32) {
        let state = self.0.entry(judge).or_insert(State { stamp: None, epoch: None, fresh: STAMPS });
        if state.epoch != Some(epoch) || state.stamp.is_none() {
            state.stamp = Some(state.stamp.map_or(Stamp(1), Stamp::next));
            state.epoch = Some(epoch);
            state.fresh = state.fresh.saturating_sub(1);
        }
    }

    /// What was judged so far counts no more: each next assignment gives another stamp.
    pub(super) fn distrust(&mut self) {
        self.0.values_mut().for_each(|state| state.epoch = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUDGE: Judge = (IpAddr::V4(std::net::Ipv4Addr::new(10, 70, 1, 3)), Direction::Ingress);

    #[test]
    fn no_stamp_comes_again_before_it_was_taken_off_all_flows() {
        let mut stamps = Stamps::default();
        let mut borne = BTreeSet::new();
        for epoch in 0..100 {
            if stamps.is_exhausted(JUDGE, epoch) {
                borne.retain(|stamp| Some(*stamp) == stamps.of(JUDGE.0, JUDGE.1));
                stamps.refresh(JUDGE);
            }
            stamps.assign(JUDGE, epoch);
            stamps.assign(JUDGE, epoch);
            assert!(borne.insert(stamps.of(JUDGE.0, JUDGE.1).unwrap()), "epoch {epoch}");
        }
    }

    #[test]
    fn half_of_the_stamps_is_few() {
        let mut stamps = Stamps::default();
        for epoch in 0..8 {
            assert_eq!(stamps.low(), BTreeSet::new(), "epoch {epoch}");
            stamps.assign(JUDGE, epoch);
        }
        assert_eq!(stamps.low(), BTreeSet::from([JUDGE]));
        stamps.refresh(JUDGE);
        assert_eq!(stamps.low(), BTreeSet::new());
    }

    #[test]
    fn what_was_found_or_is_distrusted_is_not_assigned_again() {
        let mut stamps = Stamps::found([(JUDGE, Stamp(15))]);
        stamps.assign(JUDGE, 7);
        assert_eq!(stamps.of(JUDGE.0, JUDGE.1), Some(Stamp(1)));
        stamps.distrust();
        stamps.assign(JUDGE, 7);
        assert_eq!(stamps.of(JUDGE.0, JUDGE.1), Some(Stamp(2)));
    }

    #[test]
    fn fields_of_the_mark_are_apart_and_nobody_elses() {
        for direction in Direction::BOTH {
            let mark = Stamp(15).as_mark(direction);
            assert_eq!(mark, field(direction));
            assert_eq!(Stamp::of_mark(mark, direction), Some(Stamp(15)));
            assert_eq!(Stamp::of_mark(!mark, direction), None);
        }
        // kube-proxy's and portmap's.
        assert_eq!(MARK & (0x4000 | 0x8000 | 0x2000), 0);
        assert_eq!(MARK, Direction::BOTH.into_iter().map(field).sum::<u32>());
    }
}
