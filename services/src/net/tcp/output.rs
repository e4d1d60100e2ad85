//! What a connection sends, and when it does so without being asked.

use super::Micros;
use super::connection::{Ack, Connection, Fin, Recovery};
use super::queue::PIECES;
use super::segment::{Fields, Seq};
use crate::net::checksum::Sum;

/// After this long without a word from a peer that should answer, it is gone.
const SILENCE: Micros = 60_000_000;
/// How long a peer may wait with its acknowledgment (RFC 8985, 7.2: WCDelAckT).
const WORST_ACK: Micros = 200_000;
/// Bytes of data in a segment that every path carries, tried where longer ones are lost without a word
/// (RFC 4821).
const CAREFUL: [u16; 2] = [1220, 536];

/// What to do when nothing was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Send the last segment once more, for an acknowledgment that tells what is lost (RFC 8985, 7).
    Probe,
    /// Take all for lost.
    TimeOut,
    /// Ask for the window.
    Persist,
}

/// How far a connection came with sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// There is nothing to send now.
    All,
    /// It had its turn, and has more.
    More,
    /// The device has no room.
    Full,
}

/// Sends a frame of which the first part are the headers: false if there is no room.
pub trait Output {
    /// See there.
    fn send(&mut self, headers: &[u8], data: &[&[u8]; PIECES]) -> bool;
}

impl Connection {
    /// Sends up to `turn` segments of what may be sent.
    pub fn send(&mut self, output: &mut impl Output, turn: usize, now: Micros) -> Sent {
        if self.reset {
            let (seq, _) = self.numbers();
            let fields = Fields { seq, ack: Some(self.next), rst: true, ..Fields::default() };
            self.reset = !output.send(self.headers.write(&fields), &[&[]; PIECES]);
            return if self.reset { Sent::Full } else { Sent::All };
        }
        if self.gone {
            return Sent::All;
        }
        if self.flight.is_empty() && now.saturating_sub(self.sent) > self.round_trip.time_out() {
            self.congestion.restart(self.mss, now);
        }
        let before = self.flight.end();
        let sent = self.send_segments(output, turn, now);
        let is_untimed = self.timer.is_none() && !self.flight.is_empty();
        if is_untimed || self.flight.end() != before {
            self.set_timer(now);
        }
        sent
    }

    fn send_segments(&mut self, output: &mut impl Output, turn: usize, now: Micros) -> Sent {
        for _ in 0..turn {
            let Some((start, end, again)) = self.next_segment() else {
                return self.send_ack(output, now);
            };
            if !again && self.flight.reserve().is_err() {
                return self.send_ack(output, now);
            }
            let Some(end) = self.emit(output, start, end) else { return Sent::Full };
            self.book(start, end, again, now);
        }
        Sent::More
    }

    /// The segment to send next, and whether it is one that is lost.
    fn next_segment(&self) -> Option<(Seq, Seq, bool)> {
        let (window, under_way) = (self.congestion.window(), self.flight.under_way());
        let room = window.saturating_sub(under_way);
        let mss = u32::from(self.mss);
        if let Some((start, end)) = self.flight.first_lost() {
            let end = end.min(start.plus(mss));
            // One at least, to have something to hear of.
            return (room >= end.from(start) || under_way == 0).then_some((start, end, true));
        }
        let start = self.flight.end();
        let written = self.flight.start().plus(self.queue.len() as u32);
        let left = written.from(start);
        let allowed = self.flight.start().plus(self.window).from(start).min(room);
        let length = left.min(mss).min(allowed);
        let fin = self.fin == Fin::Wanted && length == left;
        // A part of a segment is worth it if that is all, or nothing else is on its way (RFC 9293,
        // 3.8.6.2.1).
        let worth = length == mss || length == left || self.flight.is_empty();
        (worth && (length > 0 || fin)).then(|| (start, start.plus(length).plus(u32::from(fin)), false))
    }

    /// Sends the segment between two numbers, or the first part of it if it is of many pieces, and says where
    /// it ended: `None` if there is no room.
    fn emit(&mut self, output: &mut impl Output, start: Seq, end: Seq) -> Option<Seq> {
        let offset = start.from(self.flight.start());
        let written = self.flight.start().plus(self.queue.len() as u32);
        // The end of our half is behind what is written.
        let fin = end.is_after(written);
        let wanted = end.min(written).from(start) as usize;
        let edge = self.edge.max(self.next.plus(self.offer()));
        let (data, length) = self.queue.slices(offset as usize, wanted);
        let fin = fin && length == wanted;
        let end = start.plus(length as u32).plus(u32::from(fin));
        let pieces = data.iter().take_while(|piece| !piece.is_empty());
        let sum = pieces.fold(Sum::default(), |sum, piece| sum.add(piece));
        let fields = Fields {
            seq: start,
            ack: Some(self.next),
            window: edge.from(self.next) as u16,
            fin,
            push: length > 0 && !written.is_after(end),
            length,
            sum,
            ..Fields::default()
        };
        if !output.send(self.headers.write(&fields), &data) {
            return None;
        }
        (self.edge, self.ack) = (edge, Ack::No);
        Some(end)
    }

    /// Notes that a segment was sent.
    fn book(&mut self, start: Seq, end: Seq, again: bool, now: Micros) {
        self.sent = now;
        if again {
            self.flight.sent_again(start, end, now);
            return;
        }
        self.flight.push(end, now);
        let written = self.flight.start().plus(self.queue.len() as u32);
        if end.is_after(written) && self.fin == Fin::Wanted {
            self.fin = Fin::Sent;
            self.first = !self.ended;
        }
    }

    fn send_ack(&mut self, output: &mut impl Output, now: Micros) -> Sent {
        let waits = self.flight.is_empty() && self.window == 0 && self.queue.len() > 0;
        if waits && self.timer.is_none() {
            self.timer = Some((now.saturating_add(self.round_trip.time_out()), Timer::Persist));
        }
        if self.ack != Ack::Now {
            return Sent::All;
        }
        let seq = self.flight.end();
        if self.emit(output, seq, seq).is_some() { Sent::All } else { Sent::Full }
    }

    /// What is to be done if nothing is heard from now on.
    pub(super) fn set_timer(&mut self, now: Micros) {
        if self.flight.is_empty() {
            self.timer = None;
            return;
        }
        let time_out = self.round_trip.time_out();
        let smoothed = self.round_trip.smoothed();
        let one = self.flight.under_way() <= u32::from(self.mss);
        let probe = smoothed.saturating_mul(2).max(2000).max(if one {
            smoothed.saturating_add(WORST_ACK)
        } else {
            0
        });
        let may_probe = smoothed > 0 && self.round_trip.backoffs() == 0 && probe < time_out;
        let (time, timer) = if may_probe { (probe, Timer::Probe) } else { (time_out, Timer::TimeOut) };
        self.timer = Some((now.saturating_add(time), timer));
    }

    /// When it wants to be looked at next.
    pub fn due(&self) -> Option<Micros> {
        let ack = match self.ack {
            Ack::At(time) => Some(time),
            _ => None,
        };
        [self.timer.map(|(at, _)| at), self.look_at, self.until, ack].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn look(&mut self, output: &mut impl Output, now: Micros) {
        if matches!(self.ack, Ack::At(at) if at <= now) {
            self.ack = Ack::Now;
        }
        if self.until.is_some_and(|until| until <= now) {
            return self.end(false);
        }
        if self.look_at.is_some_and(|at| at <= now) {
            let (lost, again) = self.flight.find_lost(&self.round_trip, now);
            self.look_at = again;
            self.note_loss(lost);
        }
        let Some((_, timer)) = self.timer.filter(|(at, _)| *at <= now) else { return };
        let silent = now.saturating_sub(self.heard) > SILENCE;
        if silent {
            return self.end(false);
        }
        match timer {
            Timer::Probe => {
                if let Some((start, end)) = self.flight.last()
                    && let Some(end) = self.emit(output, start, end)
                {
                    self.flight.sent_again(start, end, now);
                }
                self.timer = Some((now.saturating_add(self.round_trip.time_out()), Timer::TimeOut));
            }
            Timer::TimeOut => self.time_out(now),
            Timer::Persist => {
                let seq = self.flight.start().plus(u32::MAX);
                self.ask(output, seq);
                self.round_trip.back_off();
                self.timer = Some((now.saturating_add(self.round_trip.time_out()), Timer::Persist));
            }
        }
    }

    /// Sends what is no news, for an answer to it.
    fn ask(&mut self, output: &mut impl Output, seq: Seq) {
        let fields = Fields {
            seq,
            ack: Some(self.next),
            window: self.edge.from(self.next) as u16,
            ..Fields::default()
        };
        let _ = output.send(self.headers.write(&fields), &[&[]; PIECES]);
    }

    /// Sends less, if something is lost and that is the first loss in a window.
    pub(super) fn note_loss(&mut self, lost: bool) {
        if lost && self.recovery.is_none() {
            self.congestion.lost(self.mss, &self.round_trip);
            self.recover();
        }
    }

    /// Until all that is on its way now has arrived, no other loss counts.
    fn recover(&mut self) {
        self.recovery = Some(Recovery { end: self.flight.end(), lost: self.flight.lost_bytes() });
    }

    fn time_out(&mut self, now: Micros) {
        self.round_trip.back_off();
        let way = core::mem::replace(&mut self.other_way, self.headers.hardware());
        self.headers.set_hardware(way);
        self.congestion.timed_out(self.mss, &self.round_trip);
        self.flight.lose_all();
        self.recover();
        // A router that drops long packets without saying so.
        if self.round_trip.backoffs() >= 2
            && let Some(careful) = CAREFUL.into_iter().find(|&careful| careful < self.mss)
        {
            self.shrink(careful);
        }
        self.timer = Some((now.saturating_add(self.round_trip.time_out()), Timer::TimeOut));
    }
}
