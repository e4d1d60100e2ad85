//! What was sent and is not acknowledged yet, and which of it is lost (RACK, RFC 8985).
//!
//! One entry for each segment, in the order of their sequence numbers. A segment is lost when one that was
//! sent later has arrived, and some time has passed for those that overtook each other.

use alloc::collections::VecDeque;

use super::Micros;
use super::congestion::RoundTrip;
use super::segment::Seq;
use crate::text::NoMemory;

/// Segments on their way at most: what a peer that takes one byte at a time can make us keep.
const MOST: usize = 4096;
/// Duplicate acknowledgments that tell of a loss, for a peer without selective ones (RFC 5681, 3.2).
const DUPLICATES: u32 = 3;

/// A segment that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// The number behind its last.
    end: Seq,
    /// When it was sent last.
    at: Micros,
    /// Whether it was sent more than once: it measures no round trip then (Karn).
    again: bool,
    state: State,
}

impl Sent {
    /// Whether it was sent before the one that ends at the second of these, and was sent at the first.
    fn is_before(&self, (at, end): (Micros, Seq)) -> bool {
        self.at < at || self.at == at && end.is_after(self.end)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    OnItsWay,
    /// The peer has it, and not what comes before it.
    Arrived,
    /// To be sent again.
    Lost,
}

/// The segments from the first that is not acknowledged.
#[derive(Debug, Default)]
pub struct Flight {
    sent: VecDeque<Sent>,
    /// The first number that is not acknowledged.
    start: Seq,
    /// Bytes that may still be on their way.
    under_way: u32,
    /// Segments in the other two states.
    arrived: usize,
    lost: usize,
    /// When the latest that arrived was sent, and the number behind it; and its round trip.
    latest: (Micros, Seq),
    rtt: Micros,
    /// Bytes that were ever lost.
    lost_bytes: u32,
    /// Acknowledgments that acknowledge nothing new, of a peer that does not say what it has.
    duplicates: u32,
}

/// What an acknowledgment said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acknowledged {
    /// Numbers that are acknowledged now.
    pub bytes: u32,
    /// A measured round trip.
    pub rtt: Option<Micros>,
    /// Whether something is known as lost that was not.
    pub lost: bool,
    /// When to look again for what is lost.
    pub look_at: Option<Micros>,
}

impl Flight {
    /// Nothing is sent yet; `start` will be first.
    pub fn new(start: Seq) -> Self {
        Self { start, ..Self::default() }
    }

    /// The first number that is not acknowledged.
    pub fn start(&self) -> Seq {
        self.start
    }

    /// The number behind the last that was sent.
    pub fn end(&self) -> Seq {
        self.sent.back().map_or(self.start, |sent| sent.end)
    }

    /// Bytes that may still be on their way.
    pub fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Bytes that were ever lost; it wraps.
    pub fn lost_bytes(&self) -> u32 {
        self.lost_bytes
    }

    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Makes room for one more.
    ///
    /// # Errors
    /// If there is none now.
    pub fn reserve(&mut self) -> Result<(), NoMemory> {
        if self.sent.len() >= MOST {
            return Err(NoMemory);
        }
        self.sent.try_reserve(1).map_err(|_| NoMemory)
    }

    /// A new segment was sent, for which there is room.
    pub fn push(&mut self, end: Seq, now: Micros) {
        let length = end.from(self.end());
        self.sent.push_back(Sent { end, at: now, again: false, state: State::OnItsWay });
        self.under_way = self.under_way.saturating_add(length);
    }

    /// The first segment that is lost.
    pub fn first_lost(&self) -> Option<(Seq, Seq)> {
        if self.lost == 0 {
            return None;
        }
        self.segments().find(|(_, sent)| sent.state == State::Lost).map(|(start, sent)| (start, sent.end))
    }

    /// The last segment that has not arrived.
    pub fn last(&self) -> Option<(Seq, Seq)> {
        let (start, sent) = self.segments().filter(|(_, sent)| sent.state != State::Arrived).last()?;
        Some((start, sent.end))
    }

    /// The segment that starts at `start` was sent again, up to `end` only.
    pub fn sent_again(&mut self, start: Seq, end: Seq, now: Micros) {
        let Some(index) = self.segments().position(|(first, _)| first == start) else { return };
        let Some(sent) = self.sent.get_mut(index) else { return };
        let (rest, was) = (*sent, sent.state);
        *sent = Sent { end, at: now, again: true, state: State::OnItsWay };
        if was == State::Lost {
            self.lost = self.lost.saturating_sub(1);
            self.under_way = self.under_way.saturating_add(end.from(start));
        }
        if rest.end.is_after(end) && self.sent.try_reserve(1).is_ok() {
            self.sent.insert(index.saturating_add(1), rest);
            self.lost = self.lost.saturating_add(usize::from(was == State::Lost));
        } else if let Some(sent) = self.sent.get_mut(index) {
            sent.end = rest.end;
        }
    }

    /// The segments, each with its first number.
    fn segments(&self) -> impl Iterator<Item = (Seq, &Sent)> {
        self.sent.iter().scan(self.start, |start, sent| Some((core::mem::replace(start, sent.end), sent)))
    }

    /// Takes an acknowledgment of everything before `ack`, and of `sack`.
    pub fn acknowledge(
        &mut self,
        ack: Seq,
        sack: &[Option<(Seq, Seq)>],
        rtt: &RoundTrip,
        now: Micros,
    ) -> Acknowledged {
        let mut news = Acknowledged { bytes: ack.from(self.start), ..Acknowledged::default() };
        while let Some(first) = self.sent.front().copied().filter(|sent| !sent.end.is_after(ack)) {
            self.sent.pop_front();
            self.leave(first, first.end.from(self.start), &mut news, now);
            self.start = first.end;
        }
        if ack.is_after(self.start) {
            if self.sent.front().is_some_and(|first| first.state == State::OnItsWay) {
                self.under_way = self.under_way.saturating_sub(ack.from(self.start));
            }
            self.start = ack;
        }
        if news.bytes > 0 {
            self.duplicates = 0;
        }
        sack.iter().flatten().for_each(|&(from, to)| self.arrive(from, to, &mut news, now));
        (news.lost, news.look_at) = self.find_lost(rtt, now);
        news
    }

    /// Books out a segment that arrived.
    fn leave(&mut self, sent: Sent, length: u32, news: &mut Acknowledged, now: Micros) {
        match sent.state {
            State::OnItsWay => self.under_way = self.under_way.saturating_sub(length),
            State::Arrived => {
                self.arrived = self.arrived.saturating_sub(1);
                return;
            }
            State::Lost => self.lost = self.lost.saturating_sub(1),
        }
        if !sent.again {
            self.rtt = now.saturating_sub(sent.at);
            news.rtt = Some(self.rtt);
        }
        if !sent.is_before(self.latest) {
            self.latest = (sent.at, sent.end);
        }
    }

    /// The peer has what is between two numbers.
    fn arrive(&mut self, from: Seq, to: Seq, news: &mut Acknowledged, now: Micros) {
        // Below is a report of what came twice (RFC 2883).
        if !from.is_after(self.start) || !to.is_after(from) || to.is_after(self.end()) {
            return;
        }
        let first = self.sent.partition_point(|sent| !sent.end.is_after(from));
        let mut start =
            first.checked_sub(1).and_then(|at| self.sent.get(at)).map_or(self.start, |sent| sent.end);
        for index in first..self.sent.len() {
            let Some(sent) = self.sent.get(index).copied().filter(|sent| !sent.end.is_after(to)) else {
                return;
            };
            if sent.state != State::Arrived && !from.is_after(start) {
                self.leave(sent, sent.end.from(start), news, now);
                if let Some(sent) = self.sent.get_mut(index) {
                    sent.state = State::Arrived;
                    self.arrived = self.arrived.saturating_add(1);
                }
            }
            start = sent.end;
        }
    }

    /// Marks as lost what was overtaken. Returns whether anything was, and when to look again.
    pub fn find_lost(&mut self, rtt: &RoundTrip, now: Micros) -> (bool, Option<Micros>) {
        // Nothing is overtaken while what arrives is in order, and nothing was sent twice.
        if self.arrived == 0 && self.lost == 0 {
            return (false, None);
        }
        // Those that overtook each other may be apart by a quarter of a round trip (RFC 8985, 6.2).
        let patience = rtt.smoothed().max(self.rtt).saturating_add(rtt.least() / 4);
        let (mut found, mut again, mut start) = (false, None, self.start);
        let latest = self.latest;
        for sent in &mut self.sent {
            let length = sent.end.from(start);
            start = sent.end;
            if sent.state != State::OnItsWay || !sent.is_before(latest) {
                continue;
            }
            let due = sent.at.saturating_add(patience);
            if due <= now {
                sent.state = State::Lost;
                self.lost = self.lost.saturating_add(1);
                self.under_way = self.under_way.saturating_sub(length);
                self.lost_bytes = self.lost_bytes.wrapping_add(length);
                found = true;
            } else {
                again = Some(again.map_or(due, |other: Micros| other.min(due)));
            }
        }
        (found, again)
    }

    /// A peer without selective acknowledgments has acknowledged nothing new, once more. Returns whether
    /// something is lost now.
    pub fn duplicate(&mut self, mss: u16) -> bool {
        self.duplicates = self.duplicates.saturating_add(1);
        // Some segment has arrived, whichever.
        self.under_way = self.under_way.saturating_sub(u32::from(mss));
        self.duplicates == DUPLICATES && self.lose_first()
    }

    /// The first segment is lost, if it is not known yet.
    pub fn lose_first(&mut self) -> bool {
        let Some(first) = self.sent.front_mut().filter(|sent| sent.state == State::OnItsWay) else {
            return false;
        };
        first.state = State::Lost;
        let length = first.end.from(self.start);
        self.lost = self.lost.saturating_add(1);
        self.lost_bytes = self.lost_bytes.wrapping_add(length);
        self.under_way = self.under_way.saturating_sub(length);
        true
    }

    /// Nothing was heard for long: all that is not known to have arrived is lost.
    pub fn lose_all(&mut self) {
        for sent in self.sent.iter_mut().filter(|sent| sent.state == State::OnItsWay) {
            sent.state = State::Lost;
            self.lost = self.lost.saturating_add(1);
        }
        (self.under_way, self.duplicates) = (0, 0);
    }

    /// Counts again what may be on its way, for a peer whose duplicates were counted.
    pub fn recount(&mut self) {
        let counted = self.segments().filter(|(_, sent)| sent.state == State::OnItsWay);
        self.under_way = counted.map(|(start, sent)| sent.end.from(start)).fold(0, u32::saturating_add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn flight(count: u32) -> Flight {
        let mut flight = Flight::new(Seq(u32::MAX - 150));
        for n in 1..=count {
            flight.reserve().unwrap();
            flight.push(flight.end().plus(100), u64::from(n) * 10);
        }
        flight
    }

    fn rtt() -> RoundTrip {
        let mut rtt = RoundTrip::default();
        rtt.measure(1000, 0);
        rtt
    }

    fn at(flight: &Flight, offset: u32) -> Seq {
        flight.start().plus(offset)
    }

    /// What was overtaken for longer than a round trip and a quarter is lost, and nothing else is.
    #[test]
    fn what_is_overtaken_is_lost() {
        let mut flight = flight(5);
        let sack = [Some((at(&flight, 200), at(&flight, 300))), None];
        let news = flight.acknowledge(flight.start(), &sack, &rtt(), 1200);
        // The first was sent at 10: not due before 1,260 (a quarter more than a round trip of 1,000).
        assert_eq!((news.lost, news.look_at, news.rtt), (false, Some(1430), Some(1170)));
        assert_eq!(flight.find_lost(&rtt(), 1429), (false, Some(1430)));
        let (lost, again) = flight.find_lost(&rtt(), 1430);
        assert!(lost && again == Some(1440));
        assert_eq!(flight.first_lost(), Some((flight.start(), at(&flight, 100))));
        assert_eq!(flight.find_lost(&rtt(), 1440), (true, None));
        assert_eq!(flight.under_way(), 200);
        // Sent again and overtaken again.
        let (start, end) = flight.first_lost().unwrap();
        flight.sent_again(start, end, 1500);
        flight.push(flight.end().plus(100), 1510);
        let last = Some((at(&flight, 500), at(&flight, 600)));
        let news = flight.acknowledge(flight.start(), &[last], &rtt(), 2600);
        assert!(!news.lost || flight.first_lost() != Some((start, end)));
        assert!(flight.find_lost(&rtt(), 2840).0);
        assert_eq!(flight.first_lost(), Some((start, end)));
    }

    /// A round trip is not measured by what was sent twice.
    #[test]
    fn what_was_sent_twice_measures_nothing() {
        let mut flight = flight(1);
        flight.lose_all();
        let (start, end) = flight.first_lost().unwrap();
        flight.sent_again(start, end, 5000);
        let news = flight.acknowledge(end, &[], &rtt(), 5001);
        assert_eq!((news.bytes, news.rtt), (100, None));
        assert!(flight.is_empty() && flight.under_way() == 0);
    }

    proptest! {
        /// Whatever a peer acknowledges, the counts are those of the segments.
        #[test]
        fn the_books_are_in_order(steps in proptest::collection::vec((0..7, 0u32..3000, 0u32..3000), 1..80)) {
            let (mut flight, mut now) = (flight(3), 0);
            for (step, a, b) in steps {
                now += u64::from(a);
                match step {
                    0 | 1 => {
                        flight.reserve().unwrap();
                        flight.push(flight.end().plus(1 + a % 1460), now);
                    }
                    2 => {
                        let length = flight.end().from(flight.start());
                        flight.acknowledge(at(&flight, a % (length + 1)), &[], &rtt(), now);
                    }
                    3 => {
                        let sack = Some((at(&flight, a), at(&flight, b)));
                        flight.acknowledge(flight.start(), &[sack, sack], &rtt(), now);
                    }
                    4 => {
                        if let Some((start, end)) = flight.first_lost() {
                            flight.sent_again(start, end.min(start.plus(1 + b)), now);
                        }
                    }
                    5 => {
                        if let Some((start, end)) = flight.last() {
                            flight.sent_again(start, end, now);
                        }
                    }
                    _ => {
                        flight.find_lost(&rtt(), now);
                        if b % 5 == 0 {
                            flight.lose_all();
                        }
                    }
                }
                let of = |state| flight.segments().filter(move |(_, sent)| sent.state == state);
                let bytes: u32 = of(State::OnItsWay).map(|(start, sent)| sent.end.from(start)).sum();
                prop_assert_eq!(flight.under_way(), bytes);
                prop_assert_eq!(flight.lost, of(State::Lost).count());
                prop_assert_eq!(flight.arrived, of(State::Arrived).count());
                let ends: Vec<_> = flight.segments().map(|(start, sent)| sent.end.since(start)).collect();
                prop_assert!(ends.iter().all(|length| *length > 0), "{:?}", ends);
            }
        }
    }
}
