//! What TCP segments may do to a connection (RFC 9293, RFC 5961): a judge without memory of its own.

use causeway_wire::{Tcp, TcpFlags};

use super::entry::{State, Window};
use super::key::End;
use causeway_model::connection::Stage;

/// How far an acknowledgment may lie behind what was acknowledged before, at least: receivers that shrink their window.
const SLACK: u32 = 66_000;
/// TCP option kinds (RFC 9293 §3.2, RFC 7323 §2.2).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const WINDOW_SCALE: u8 = 3;

/// What of a segment matters to the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) flags: TcpFlags,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
    pub(super) window: u16,
    /// The bytes of sequence space that it takes.
    pub(super) len: u32,
    /// The window scale that a SYN offers.
    pub(super) scale: Option<u8>,
}

impl Segment {
    /// Reads a segment whose data has `data` bytes.
    #[inline]
    pub(super) fn of(tcp: &Tcp, options: &[u8], data: usize) -> Self {
        let flags = tcp.flags();
        let takes_one = |flag| u32::from(flags.contains(flag));
        let syn = flags.contains(TcpFlags::SYN);
        Self {
            flags,
            sequence: tcp.sequence(),
            acknowledgment: tcp.acknowledgment(),
            window: tcp.window(),
            len: data as u32 + takes_one(TcpFlags::SYN) + takes_one(TcpFlags::FIN),
            scale: if syn { scale(options) } else { None },
        }
    }

    fn has(&self, flags: TcpFlags) -> bool {
        self.flags.contains(flags)
    }

    /// One beyond its last byte.
    fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.len)
    }
}

#[cold]
fn scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match *options {
            [] | [END_OF_OPTIONS, ..] => return None,
            [NO_OPERATION, ref rest @ ..] => options = rest,
            [WINDOW_SCALE, 3, scale, ..] => return Some(scale.min(14)),
            [_, len, ..] => options = options.get(usize::from(len.max(2))..)?,
            [_] => return None,
        }
    }
}

/// Everything about a connection that segments change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Track {
    pub(super) state: State,
    pub(super) windows: [Window; 2],
    /// The last segment repeated what was sent before.
    pub(super) repeated: bool,
}

/// What became of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Judgement {
    /// It belongs to the connection, which is now this.
    Passes(Track),
    /// It begins another connection with the same addresses and ports.
    BeginsAnew,
    /// It does not belong to it.
    Invalid,
}

/// Whether `a` comes before `b`, or is it, in sequence space.
pub(super) fn not_after(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

/// The connection that a first segment makes; none that a segment which can only be an answer makes.
pub(super) fn begin(segment: &Segment, from: End, mut state: State) -> Option<Track> {
    let mut windows = [Window::default(); 2];
    let (own, other) = (from.index(), from.other().index());
    let ends = segment.has(TcpFlags::RST) || segment.has(TcpFlags::FIN);
    if ends || !is_sensible(segment.flags) || (segment.has(TcpFlags::SYN) && segment.has(TcpFlags::ACK)) {
        return None;
    }
    windows[own].end = segment.end();
    windows[own].offered = u32::from(segment.window).max(1);
    if segment.has(TcpFlags::SYN) {
        windows[own].limit = segment.end();
        state.scales[own] = segment.scale;
        return Some(Track { state, windows, repeated: false });
    }
    if !segment.has(TcpFlags::ACK) {
        return None;
    }
    // Taken up in the middle: what the windows are scaled by is not known, so the largest scale is assumed.
    state.stage = Stage::Established;
    state.scales = [Some(14), Some(14)];
    state.picked_up = true;
    windows[own].offered = u32::from(segment.window) << 14;
    windows[own].limit = segment.end().wrapping_add(windows[own].offered.max(SLACK));
    windows[own].acknowledged = segment.acknowledgment;
    windows[other].end = segment.acknowledgment;
    windows[other].limit = segment.acknowledgment.wrapping_add(windows[own].offered.max(SLACK));
    windows[other].offered = SLACK;
    Some(Track { state, windows, repeated: false })
}

/// Judges a segment of a connection.
#[inline]
pub(super) fn judge(track: Track, from: End, segment: &Segment) -> Judgement {
    const KIND: u8 = TcpFlags::SYN.0 | TcpFlags::RST.0 | TcpFlags::FIN.0 | TcpFlags::ACK.0;
    let is_plain = segment.flags.0 & KIND == TcpFlags::ACK.0;
    if is_plain && track.state.stage == Stage::Established {
        return in_window(track, from, segment).map_or(Judgement::Invalid, Judgement::Passes);
    }
    judge_rare(track, from, segment)
}

#[cold]
fn judge_rare(track: Track, from: End, segment: &Segment) -> Judgement {
    if !is_sensible(segment.flags) {
        return Judgement::Invalid;
    }
    let passes = |track: Option<Track>| track.map_or(Judgement::Invalid, Judgement::Passes);
    let by_originator = from == track.state.originator;
    if segment.has(TcpFlags::SYN) {
        return match track.state.stage {
            Stage::New if by_originator && !segment.has(TcpFlags::ACK) => syn_again(track, from, segment),
            Stage::New if !by_originator => passes(syn_answer(track, from, segment)),
            // Both began at once.
            Stage::SynReceived if by_originator && segment.has(TcpFlags::ACK) => {
                passes(in_window(track, from, segment))
            }
            Stage::Closed | Stage::TimeWait if is_new_incarnation(&track, from, segment) => {
                Judgement::BeginsAnew
            }
            // Who has begun it says so again, or again gets the answer, or its receiver must challenge it (RFC 5961 §4.2): nothing
            // changes here. The other way round it is of no connection, as Linux has it.
            _ if !by_originator
                && segment.has(TcpFlags::ACK)
                && acknowledges_another(&track, from, segment) =>
            {
                Judgement::Passes(anew(track, from, segment))
            }
            _ if by_originator != segment.has(TcpFlags::ACK) => {
                Judgement::Passes(Track { repeated: true, ..track })
            }
            _ => Judgement::Invalid,
        };
    }
    match track.state.stage {
        Stage::New => match (by_originator, segment.has(TcpFlags::RST)) {
            // A listener's refusal acknowledges the SYN (RFC 9293 §3.5.2).
            (false, true) if segment.acknowledgment == track.windows[from.other().index()].end => {
                passes(Some(closed(track)))
            }
            (true, true) if segment.sequence == track.windows[from.index()].end => {
                passes(Some(closed(track)))
            }
            // Another one is for its receiver to judge, unless it acknowledges what was never sent.
            (false, true) if !acknowledges_more(&track, from, segment) => passes(Some(track)),
            // What a receiver that still knows an earlier connection says to a SYN (RFC 5961 §4.2): its sender will reset that one,
            // at numbers of which nothing is known here.
            (true, true) => passes(Some(track)),
            (false, false) if segment.has(TcpFlags::ACK) && !segment.has(TcpFlags::FIN) => {
                passes(Some(track))
            }
            _ => Judgement::Invalid,
        },
        Stage::Closed => passes(in_window(track, from, segment)),
        _ if segment.has(TcpFlags::RST) => passes(reset(track, from, segment)),
        _ => passes(in_window(track, from, segment).map(|track| advance(track, from, segment))),
    }
}

/// Whether a segment's flags mean anything together (RFC 9293 §3.10.7; Linux takes the same ones).
fn is_sensible(flags: TcpFlags) -> bool {
    const ACK: u8 = TcpFlags::ACK.0;
    const URG: u8 = TcpFlags::URG.0;
    const MATTERS: u8 = 0x3f & !TcpFlags::PSH.0;
    match flags.0 & MATTERS & !URG {
        ACK => true,
        kind if kind == TcpFlags::SYN.0 || kind == TcpFlags::FIN.0 | ACK => true,
        kind if kind == TcpFlags::SYN.0 | ACK => flags.0 & URG == 0,
        kind => kind & !ACK == TcpFlags::RST.0 && flags.0 & URG == 0,
    }
}

fn closed(mut track: Track) -> Track {
    track.state.stage = Stage::Closed;
    track
}

/// A SYN once more: the same, or one with which the originator begins again before anybody answered.
fn syn_again(mut track: Track, from: End, segment: &Segment) -> Judgement {
    let own = from.index();
    track.repeated = track.windows[own].end == segment.end();
    track.windows[own].end = segment.end();
    track.windows[own].limit = segment.end();
    track.state.scales[own] = segment.scale;
    Judgement::Passes(track)
}

/// The other end's SYN: with the acknowledgment of ours, or without when both began at once (RFC 9293 §3.5).
fn syn_answer(mut track: Track, from: End, segment: &Segment) -> Option<Track> {
    let (own, other) = (from.index(), from.other().index());
    // It may leave out data that came with the SYN (RFC 7413 §3).
    let sent = track.windows[other].end;
    let fits = not_after(segment.acknowledgment, sent)
        && not_after(sent.wrapping_sub(SLACK), segment.acknowledgment);
    if segment.has(TcpFlags::ACK) && !fits {
        // One to an earlier SYN is for its receiver to refuse (RFC 9293 §3.5.1).
        return not_after(segment.acknowledgment, sent).then_some(track);
    }
    track.state.scales[own] = segment.scale;
    if track.state.scales.contains(&None) {
        // Scaling needs both (RFC 7323 §2.2).
        track.state.scales = [None; 2];
    }
    track.state.stage = Stage::SynReceived;
    // The window of a SYN is never scaled.
    let offered = u32::from(segment.window).max(1);
    let first = u32::from(track.windows[other].offered as u16).max(1);
    track.windows[own] = Window {
        end: segment.end(),
        limit: segment.end().wrapping_add(first),
        offered,
        acknowledged: track.windows[other].end,
    };
    track.windows[other].limit = track.windows[other].end.wrapping_add(offered);
    Some(track)
}

/// Whether a segment acknowledges what the other end has not sent.
fn acknowledges_more(track: &Track, from: End, segment: &Segment) -> bool {
    let sent = track.windows[from.other().index()].end;
    segment.has(TcpFlags::ACK) && !not_after(segment.acknowledgment, sent)
}

/// Whether an answer is to another SYN than the one that this connection began with: both ends have lost it and begin again.
fn acknowledges_another(track: &Track, from: End, segment: &Segment) -> bool {
    const OLD: u32 = 1 << 24;
    let behind = track.windows[from.other().index()].end.wrapping_sub(segment.acknowledgment);
    behind >= OLD
}

/// The connection that such an answer makes: that SYN is not remembered, so the windows are not known.
fn anew(mut track: Track, from: End, segment: &Segment) -> Track {
    let own = Window {
        end: segment.end(),
        limit: segment.end().wrapping_add(SLACK),
        offered: SLACK,
        acknowledged: segment.acknowledgment,
    };
    let (end, limit) = (segment.acknowledgment, segment.acknowledgment.wrapping_add(SLACK));
    track.windows[from.index()] = own;
    track.windows[from.other().index()] =
        Window { end, limit, offered: SLACK, acknowledged: segment.sequence };
    track.state.scales = [Some(14), Some(14)];
    (track.state.stage, track.state.finished, track.state.picked_up) = (Stage::SynReceived, [false; 2], true);
    Track { repeated: false, ..track }
}

/// Whether a SYN can begin a new connection on the remains of this one (RFC 9293 §3.6.1, RFC 6191).
fn is_new_incarnation(track: &Track, from: End, segment: &Segment) -> bool {
    let beyond = !not_after(segment.sequence, track.windows[from.index()].end);
    !segment.has(TcpFlags::ACK) && (track.state.stage == Stage::Closed || beyond)
}

/// A reset counts when it is exactly where its receiver is (RFC 5961 §3.2). One that is only in the window is for the receiver
/// to challenge, and changes nothing here; one that is not even there is nobody's.
fn reset(track: Track, from: End, segment: &Segment) -> Option<Track> {
    if !track.state.picked_up && acknowledges_more(&track, from, segment) {
        return None;
    }
    let other = &track.windows[from.other().index()];
    let exact = segment.sequence == other.acknowledged
        || (track.state.stage == Stage::SynReceived && is_start(&track, from, segment));
    if exact {
        return Some(closed(track));
    }
    if track.state.picked_up {
        // Where its receiver is, only that knows.
        return Some(track);
    }
    in_window(track, from, segment)
}

/// Whether a reset comes where the connection has only just begun: nothing was acknowledged yet.
fn is_start(track: &Track, from: End, segment: &Segment) -> bool {
    segment.sequence == track.windows[from.index()].end
}

/// Checks a segment against what both ends have said (the four bounds of "Real Stateful TCP Packet Filtering in IP Filter",
/// van Rooij 2001) and takes up what it says.
#[inline]
fn in_window(mut track: Track, from: End, segment: &Segment) -> Option<Track> {
    let (own, other) = (from.index(), from.other().index());
    let (mut sender, mut receiver) = (track.windows[own], track.windows[other]);
    let end = segment.end();
    let scale = track.state.scales[own].unwrap_or(0);
    let offered = u32::from(segment.window) << scale;
    let has_ack = segment.has(TcpFlags::ACK);
    let acknowledgment = if has_ack { segment.acknowledgment } else { receiver.end };
    let fits = not_after(segment.sequence, sender.limit)
        && not_after(sender.end.wrapping_sub(receiver.offered).wrapping_sub(1), end)
        && not_after(acknowledgment, receiver.end)
        && not_after(receiver.end.wrapping_sub(sender.offered.max(SLACK)).wrapping_sub(1), acknowledgment);
    // Of a connection that was taken up in the middle more may have been sent, and offered, than was seen: what does not fit says
    // where it is now. A reset has been looked at before.
    let windows_hold = !track.state.picked_up || segment.has(TcpFlags::RST);
    if windows_hold && !fits {
        return None;
    }
    track.repeated = segment.len > 0 && not_after(end, sender.end) && end != sender.end.wrapping_add(1);
    if !not_after(end, sender.end) {
        sender.end = end;
    }
    if has_ack {
        sender.offered = sender.offered.max(offered).max(1);
        if not_after(sender.acknowledged, acknowledgment) || track.state.stage == Stage::SynReceived {
            sender.acknowledged = acknowledgment;
        }
        let limit = acknowledgment.wrapping_add(offered.max(1));
        if not_after(receiver.limit, limit) {
            receiver.limit = limit;
        }
    }
    track.windows[own] = sender;
    track.windows[other] = receiver;
    Some(track)
}

/// The stages of an orderly life.
fn advance(mut track: Track, from: End, segment: &Segment) -> Track {
    let Track { state, windows, .. } = &mut track;
    if segment.has(TcpFlags::FIN) {
        state.finished[from.index()] = true;
    }
    let all_acknowledged = not_after(windows[0].end, windows[1].acknowledged)
        && not_after(windows[1].end, windows[0].acknowledged);
    state.stage = match (state.stage, state.finished) {
        (Stage::SynReceived, [false, false]) if from == state.originator && segment.has(TcpFlags::ACK) => {
            Stage::Established
        }
        (stage, [false, false]) => stage,
        (Stage::TimeWait, _) => Stage::TimeWait,
        (_, [true, true]) if all_acknowledged => Stage::TimeWait,
        (_, [true, true]) => Stage::LastAck,
        _ => Stage::FinWait,
    };
    track
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
