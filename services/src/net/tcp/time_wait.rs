//! Connections that are over, of which segments may still come: TIME-WAIT.

use alloc::collections::VecDeque;

use hashbrown::HashMap;

use super::Micros;
use super::handshake::Keys;
use super::segment::{Flow, Seq};

/// How long (RFC 9293, 3.4.2 asks for two maximum lifetimes of a segment; Linux takes the same).
const TIME: Micros = 60_000_000;

/// The latest of them, with the numbers that come next: ours and the peer's.
pub struct TimeWaits {
    numbers: HashMap<Flow, (Seq, Seq, Micros), Keys>,
    ends: VecDeque<(Micros, Flow)>,
    most: usize,
}

impl TimeWaits {
    /// With room for `most`, if there is memory.
    pub fn new(keys: Keys, most: usize) -> Self {
        let (mut numbers, mut ends) = (HashMap::with_hasher(keys), VecDeque::new());
        let there_is = numbers.try_reserve(most).is_ok() && ends.try_reserve_exact(most).is_ok();
        Self { numbers, ends, most: if there_is { most } else { 0 } }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Notes a connection. The oldest gives way.
    pub fn insert(&mut self, flow: Flow, numbers: (Seq, Seq), now: Micros) {
        if self.most == 0 {
            return;
        }
        self.expire(now);
        if self.ends.len() >= self.most {
            self.drop_oldest();
        }
        let until = now.saturating_add(TIME);
        self.numbers.insert(flow, (numbers.0, numbers.1, until));
        self.ends.push_back((until, flow));
    }

    /// The numbers of a connection that is over.
    pub fn get(&mut self, flow: &Flow, now: Micros) -> Option<(Seq, Seq)> {
        if self.numbers.is_empty() {
            return None;
        }
        self.expire(now);
        self.numbers.get(flow).map(|&(ours, theirs, _)| (ours, theirs))
    }

    /// Forgets a connection, which begins anew.
    pub fn remove(&mut self, flow: &Flow) {
        self.numbers.remove(flow);
    }

    fn expire(&mut self, now: Micros) {
        while self.ends.front().is_some_and(|(until, _)| *until <= now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((until, flow)) = self.ends.pop_front()
            && self.numbers.get(&flow).is_some_and(|&(_, _, other)| other == until)
        {
            self.numbers.remove(&flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn flow(port: u16) -> Flow {
        Flow { local: IpAddr::from([10, 0, 2, 15]), remote: IpAddr::from([10, 0, 2, 2]), port }
    }

    #[test]
    fn the_oldest_give_way_and_all_end() {
        let mut waits = TimeWaits::new(Keys(1, 2), 3);
        for port in 1..=5 {
            waits.insert(flow(port), (Seq(port.into()), Seq(9)), port.into());
        }
        assert_eq!((waits.len(), waits.get(&flow(2), 5)), (3, None));
        assert_eq!(waits.get(&flow(4), 5), Some((Seq(4), Seq(9))));
        // One that begins anew and ends again counts from its new end.
        waits.remove(&flow(3));
        waits.insert(flow(3), (Seq(30), Seq(9)), 100);
        assert_eq!(waits.get(&flow(3), TIME + 99), Some((Seq(30), Seq(9))));
        assert_eq!(waits.get(&flow(5), TIME + 99), None);
        assert_eq!(waits.get(&flow(3), TIME + 100), None);
        assert_eq!(waits.len(), 0);
        let mut none = TimeWaits::new(Keys(1, 2), 0);
        none.insert(flow(1), (Seq(1), Seq(2)), 1);
        assert_eq!(none.get(&flow(1), 1), None);
    }
}
