use causeway_wire::TcpFlags as F;
use proptest::prelude::*;

use super::super::table::beginning;
use super::*;

const ISN: (u32, u32) = (u32::MAX - 100, 5000);

fn segment(flags: F, sequence: u32, acknowledgment: u32, data: u32, window: u16) -> Segment {
    let takes_one = |flag| u32::from(flags.contains(flag));
    let len = data + takes_one(F::SYN) + takes_one(F::FIN);
    Segment { flags, sequence, acknowledgment, window, len, scale: None }
}

/// A connection between Low, which begins it, and High; sequence numbers count from each end's SYN.
struct Story {
    track: Track,
}

impl Story {
    fn begun(scales: (Option<u8>, Option<u8>)) -> Self {
        let syn = Segment { scale: scales.0, ..segment(F::SYN, ISN.0, 0, 0, 1000) };
        let track = begin(&syn, End::Low, beginning(End::Low, Stage::New)).expect("a SYN begins");
        let mut story = Self { track };
        let answer =
            Segment { scale: scales.1, ..segment(F::SYN | F::ACK, ISN.1, ISN.0.wrapping_add(1), 0, 2000) };
        assert_eq!(story.hear(End::High, answer), Some(Stage::SynReceived));
        story
    }

    fn established() -> Self {
        let mut story = Self::begun((None, None));
        assert_eq!(story.low(F::ACK, 1, 1, 0), Some(Stage::Established));
        story
    }

    fn hear(&mut self, from: End, segment: Segment) -> Option<Stage> {
        match judge(self.track, from, &segment) {
            Judgement::Passes(track) => {
                self.track = track;
                Some(track.state.stage)
            }
            Judgement::BeginsAnew | Judgement::Invalid => None,
        }
    }

    fn low(&mut self, flags: F, sequence: i64, acknowledgment: i64, data: u32) -> Option<Stage> {
        let at = |base: u32, offset: i64| base.wrapping_add(offset as u32);
        self.hear(End::Low, segment(flags, at(ISN.0, sequence), at(ISN.1, acknowledgment), data, 1000))
    }

    fn high(&mut self, flags: F, sequence: i64, acknowledgment: i64, data: u32) -> Option<Stage> {
        let at = |base: u32, offset: i64| base.wrapping_add(offset as u32);
        self.hear(End::High, segment(flags, at(ISN.1, sequence), at(ISN.0, acknowledgment), data, 2000))
    }
}

#[test]
fn an_orderly_life() {
    let mut story = Story::established();
    assert_eq!(story.low(F::ACK | F::PSH, 1, 1, 500), Some(Stage::Established));
    assert_eq!(story.high(F::ACK, 1, 501, 0), Some(Stage::Established));
    assert_eq!(story.high(F::ACK, 1, 501, 900), Some(Stage::Established));
    assert_eq!(story.low(F::ACK | F::FIN, 501, 901, 0), Some(Stage::FinWait));
    assert_eq!(story.high(F::ACK, 901, 502, 100), Some(Stage::FinWait), "half closed: the other may go on");
    assert_eq!(story.low(F::ACK, 502, 1001, 0), Some(Stage::FinWait));
    assert_eq!(story.high(F::ACK | F::FIN, 1001, 502, 0), Some(Stage::LastAck));
    assert_eq!(story.low(F::ACK, 502, 1002, 0), Some(Stage::TimeWait));
    assert_eq!(
        story.high(F::ACK | F::FIN, 1001, 502, 0),
        Some(Stage::TimeWait),
        "a repeated FIN changes nothing"
    );
}

#[test]
fn what_lies_outside_of_the_window_is_nobodys() {
    let mut story = Story::established();
    let table = [
        (F::ACK, 1 + 2000 + 1, 1, 10, "beyond what the receiver lets it send"),
        (F::ACK, -100_000, 1, 10, "long before what was acknowledged"),
        (F::ACK, 1, 2, 10, "an acknowledgment of what was never sent (RFC 5961 §5)"),
        (F::ACK, 1, -70_000, 10, "an acknowledgment of long ago (RFC 5961 §5)"),
        (F::RST, 1 + 3000, 0, 0, "a reset beyond the window"),
        (F::FIN | F::ACK, 1 << 20, 1, 0, "an end beyond the window"),
        (F::RST | F::ACK, 1, 2, 0, "a reset that acknowledges what was never sent"),
    ];
    for (flags, sequence, acknowledgment, data, what) in table {
        assert_eq!(story.low(flags, sequence, acknowledgment, data), None, "{what}");
        assert_eq!(story.track.state.stage, Stage::Established, "{what}: and it changes nothing");
    }
    assert_eq!(story.low(F::ACK, 1, 1, 1000), Some(Stage::Established), "the next good one passes");
}

#[test]
fn only_an_exact_reset_ends_a_connection() {
    let mut story = Story::established();
    story.low(F::ACK, 1, 1, 100);
    story.high(F::ACK, 1, 101, 0);
    // RFC 5961 §3.2: in the window, and not where the receiver is: for the receiver to challenge.
    assert_eq!(story.low(F::RST, 150, 1, 0), Some(Stage::Established));
    assert_eq!(story.low(F::RST, 101, 1, 0), Some(Stage::Closed));
}

#[test]
fn a_syn_in_an_established_connection_changes_nothing() {
    let mut story = Story::established();
    let before = story.track;
    // RFC 5961 §4.2: its receiver answers with a challenge, whatever its number.
    assert_eq!(story.low(F::SYN, 77_777, 0, 0), Some(Stage::Established));
    assert_eq!((story.track.state, story.track.windows), (before.state, before.windows));
}

#[test]
fn a_refusal_must_acknowledge_the_syn() {
    let syn = segment(F::SYN, ISN.0, 0, 0, 1000);
    let track = begin(&syn, End::Low, beginning(End::Low, Stage::New)).unwrap();
    let mut story = Story { track };
    assert_eq!(story.high(F::RST | F::ACK, 0, 2, 0), None);
    assert_eq!(story.high(F::SYN | F::ACK, 0, 2, 0), None, "nor does a wrong answer count");
    assert_eq!(story.low(F::ACK, 1, 1, 0), None, "nothing was answered yet");
    assert_eq!(story.low(F::SYN, 0, 0, 0), Some(Stage::New), "once more");
    assert!(story.track.repeated);
    assert_eq!(story.high(F::RST | F::ACK, 0, 1, 0), Some(Stage::Closed));
}

/// A connection whose first SYN nobody has answered.
fn half_open() -> Story {
    let syn = segment(F::SYN, ISN.0, 0, 0, 1000);
    Story { track: begin(&syn, End::Low, beginning(End::Low, Stage::New)).unwrap() }
}

#[test]
fn who_still_knows_an_earlier_connection_may_challenge_a_syn() {
    let mut story = half_open();
    // RFC 5961 §4.2: the acknowledgment leads to a reset, and that to a new beginning.
    assert_eq!(story.high(F::ACK, 7000, -9000, 0), Some(Stage::New));
    assert_eq!(story.low(F::RST, -9000, 0, 0), Some(Stage::New));
    assert_eq!(story.high(F::RST | F::ACK, 7000, -9000, 0), Some(Stage::New), "for its receiver to judge");
    assert_eq!(story.high(F::SYN | F::ACK, 0, -90_000, 0), Some(Stage::New), "an answer to an earlier SYN");
    assert_eq!(story.high(F::FIN | F::ACK, 0, 1, 0), None);
    assert_eq!(story.high(F::SYN | F::ACK, 0, 1, 0), Some(Stage::SynReceived));
}

#[test]
fn an_answer_may_leave_out_data_that_came_with_the_syn() {
    // RFC 7413 §3
    let syn = segment(F::SYN, ISN.0, 0, 500, 1000);
    let mut story = Story { track: begin(&syn, End::Low, beginning(End::Low, Stage::New)).unwrap() };
    assert_eq!(story.high(F::SYN | F::ACK, 0, 1, 0), Some(Stage::SynReceived));
    assert_eq!(story.low(F::ACK, 1, 1, 500), Some(Stage::Established));
}

#[test]
fn ends_that_have_forgotten_begin_again() {
    let mut story = Story::established();
    story.low(F::ACK, 1, 1, 100);
    assert_eq!(
        story.high(F::SYN | F::ACK, 0, 1, 0),
        Some(Stage::Established),
        "an old answer changes nothing"
    );
    const FAR: i64 = 1 << 30;
    assert_eq!(story.low(F::SYN, FAR, 0, 0), Some(Stage::Established));
    assert_eq!(story.high(F::SYN | F::ACK, -FAR, FAR + 1, 0), Some(Stage::SynReceived));
    assert_eq!(story.low(F::ACK, FAR + 1, 1 - FAR, 100), Some(Stage::Established));
    assert_eq!(story.high(F::ACK, 1 - FAR, FAR + 101, 100), Some(Stage::Established));
}

#[test]
fn flags_that_mean_nothing_together_are_of_no_connection() {
    let senseless =
        [F(0), F::URG, F::PSH, F::FIN, F::SYN | F::FIN, F::SYN | F::RST, F::FIN | F::RST, F(0x3f)];
    for flags in senseless {
        assert_eq!(Story::established().low(flags, 1, 1, 0), None, "{flags:?}");
        assert_eq!(half_open().high(flags, 0, 1, 0), None, "{flags:?}");
    }
    for flags in [F::ACK | F::URG, F::ACK | F::PSH | F::URG, F(0xc0 | 0x10)] {
        assert_eq!(Story::established().low(flags, 1, 1, 0), Some(Stage::Established), "{flags:?}");
    }
}

#[test]
fn windows_of_a_connection_taken_up_in_the_middle_are_not_known() {
    let first = segment(F::ACK, ISN.0, ISN.1, 10, 1000);
    let track = begin(&first, End::Low, beginning(End::Low, Stage::New)).unwrap();
    let mut story = Story { track };
    assert_eq!(story.high(F::ACK, 1, 5000, 100), Some(Stage::Established), "more was sent than was seen");
    assert_eq!(story.low(F::ACK, 5000, 1 << 20, 100), Some(Stage::Established));
    assert_eq!(story.high(F::RST, 1 << 21, 0, 0), Some(Stage::Established), "for its receiver to judge");
}

#[test]
fn both_may_begin_at_once() {
    let syn = segment(F::SYN, ISN.0, 0, 0, 1000);
    let mut story = Story { track: begin(&syn, End::Low, beginning(End::Low, Stage::New)).unwrap() };
    assert_eq!(story.high(F::SYN, 0, 0, 0), Some(Stage::SynReceived));
    assert_eq!(story.low(F::SYN | F::ACK, 0, 1, 0), Some(Stage::SynReceived));
    assert_eq!(story.high(F::SYN | F::ACK, 0, 1, 0), Some(Stage::SynReceived));
    assert_eq!(story.low(F::ACK, 1, 1, 10), Some(Stage::Established));
    assert_eq!(story.high(F::ACK, 1, 11, 10), Some(Stage::Established));
}

#[test]
fn a_port_is_used_again() {
    let mut story = Story::established();
    story.low(F::ACK | F::FIN, 1, 1, 0);
    story.high(F::ACK | F::FIN, 1, 2, 0);
    assert_eq!(story.low(F::ACK, 2, 2, 0), Some(Stage::TimeWait));
    let again = |sequence: u32| {
        judge(story.track, End::Low, &segment(F::SYN, ISN.0.wrapping_add(sequence), 0, 0, 1000))
    };
    assert_eq!(again(3), Judgement::BeginsAnew);
    assert!(matches!(again(0), Judgement::Passes(_)), "an old duplicate is the end's to judge");
}

#[test]
fn scales_count_only_when_both_offer_them() {
    let big = |story: &mut Story| story.low(F::ACK, 1 + 2000 + 60_000, 1, 10);
    let mut unscaled = Story::begun((Some(7), None));
    unscaled.low(F::ACK, 1, 1, 0);
    unscaled.high(F::ACK, 1, 1, 0);
    assert_eq!(big(&mut unscaled), None);
    let mut scaled = Story::begun((Some(7), Some(7)));
    scaled.low(F::ACK, 1, 1, 0);
    scaled.high(F::ACK, 1, 1, 0);
    assert_eq!(big(&mut scaled), Some(Stage::Established), "2000 << 7");
}

#[test]
fn what_can_only_be_an_answer_begins_nothing() {
    let state = beginning(End::Low, Stage::New);
    for flags in [F::SYN | F::ACK, F::RST, F::RST | F::ACK, F(0), F::FIN, F::PSH, F::FIN | F::ACK] {
        assert_eq!(begin(&segment(flags, 1, 1, 0, 1000), End::Low, state), None, "{flags:?}");
    }
    let picked = begin(&segment(F::ACK, 1, 1, 10, 1000), End::Low, state).unwrap();
    assert!(picked.state.picked_up && picked.state.stage == Stage::Established);
}

#[test]
fn options_are_read_and_never_believed() {
    let table: [(&[u8], Option<u8>); 8] = [
        (&[], None),
        (&[1, 1, 3, 3, 7], Some(7)),
        (&[2, 4, 5, 180, 3, 3, 200], Some(14)),
        (&[0, 3, 3, 7], None),
        (&[3], None),
        (&[3, 2, 7], None),
        (&[2, 0, 3, 3, 7], Some(7)),
        (&[2, 255, 1], None),
    ];
    for (options, expected) in table {
        assert_eq!(scale(options), expected, "{options:?}");
    }
}

/// An honest end: it sends what the other's window lets it, and acknowledges what it has.
#[derive(Clone, Copy, Debug, Default)]
struct Honest {
    next: u32,
    acknowledged: u32,
    limit: u32,
}

proptest! {
    /// Two honest ends that lose, repeat and delay nothing are never refused, whatever they send in which order.
    #[test]
    fn honest_ends_are_never_refused(turns in prop::collection::vec((any::<bool>(), 0_u32..3000, 1_u16..3000), 1..200), isn in any::<(u32, u32)>()) {
        let syn = segment(F::SYN, isn.0, 0, 0, 1000);
        let mut track = begin(&syn, End::Low, beginning(End::Low, Stage::New)).unwrap();
        let mut ends = [
            Honest { next: isn.0.wrapping_add(1), acknowledged: isn.1.wrapping_add(1), limit: isn.0.wrapping_add(2001) },
            Honest { next: isn.1.wrapping_add(1), acknowledged: isn.0.wrapping_add(1), limit: isn.1.wrapping_add(1001) },
        ];
        let opening = [
            (End::High, segment(F::SYN | F::ACK, isn.1, isn.0.wrapping_add(1), 0, 2000)),
            (End::Low, segment(F::ACK, isn.0.wrapping_add(1), isn.1.wrapping_add(1), 0, 1000)),
        ];
        let mut hear = |from, segment: &Segment| match judge(track, from, segment) {
            Judgement::Passes(next) => { track = next; true }
            _ => false,
        };
        for (from, segment) in &opening {
            prop_assert!(hear(*from, segment));
        }
        for (by_low, wish, window) in turns {
            let (own, other, from) = if by_low { (0, 1, End::Low) } else { (1, 0, End::High) };
            let room = ends[own].limit.wrapping_sub(ends[own].next);
            let data = if room > 1 << 30 { 0 } else { wish.min(room) };
            let sent = segment(F::ACK, ends[own].next, ends[own].acknowledged, data, window);
            prop_assert!(hear(from, &sent), "{:?} of {:?}", sent, ends[own]);
            ends[own].next = ends[own].next.wrapping_add(data);
            ends[other].acknowledged = ends[own].next;
            let limit = ends[own].acknowledged.wrapping_add(window.into());
            // A window never shrinks for an honest receiver (RFC 9293 §3.8.6).
            if limit.wrapping_sub(ends[other].limit) < 1 << 31 {
                ends[other].limit = limit;
            }
        }
    }

    /// No segment whatever makes the judge panic, and a refused one changes nothing that lasts.
    #[test]
    fn noise_is_judged(segments in prop::collection::vec((any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), 0_u32..100_000, any::<u16>()), 0..50)) {
        let mut story = Story::established();
        for (by_low, flags, sequence, acknowledgment, data, window) in segments {
            let from = if by_low { End::Low } else { End::High };
            story.hear(from, segment(F(flags), sequence, acknowledgment, data, window));
        }
    }
}
