//! Counters of the server, for `/metrics`.

use core::cell::Cell;

use embassy_time::Instant;

use super::Status;

/// What the server has done since start.
#[derive(Default)]
pub struct Stats {
    responses: [Cell<u64>; Status::COUNT],
    /// Connections being served now.
    pub active: Gauge,
    /// Connections served, ended ones too.
    pub connections: Counter,
    /// Bytes read from clients.
    pub received: Counter,
    /// Bytes written to clients.
    pub sent: Counter,
    /// Connections that ended with a response, against the client's wish, because others waited for a place.
    pub made_room: Counter,
    /// Responses cut short because the client took them slowly while others waited for a place.
    pub gave_way: Counter,
    /// From a request's complete head to the first byte of its response.
    pub first_byte: Durations,
    /// From there to the last byte, which the network stack has taken then.
    pub duration: Durations,
}

impl Stats {
    /// Counts a response.
    pub fn response(&self, status: Status) {
        if let Some(cell) = self.responses.get(status as usize) {
            cell.set(cell.get().saturating_add(1));
        }
    }

    /// Responses sent with `status`.
    pub fn responses(&self, status: Status) -> u64 {
        self.responses.get(status as usize).map_or(0, Cell::get)
    }
}

/// A number that only grows.
#[derive(Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: usize) {
        self.0.set(self.0.get().saturating_add(n as u64));
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// How long something took, each time.
#[derive(Default)]
pub struct Durations {
    /// By the first of [`BOUNDS`](Self::BOUNDS) that is not exceeded; the last one is for all that are.
    buckets: [Cell<u64>; Self::BOUNDS.len() + 1],
    micros: Cell<u64>,
}

impl Durations {
    /// In microseconds.
    pub const BOUNDS: [u64; 10] =
        [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000];

    /// Counts one that began at `start` and ends now.
    // In line it costs its callers more registers than it has instructions.
    #[inline(never)]
    pub(super) fn add_since(&self, start: Instant) {
        self.add(start.elapsed().as_micros());
    }

    #[inline]
    fn add(&self, micros: u64) {
        let bucket = Self::BOUNDS.iter().position(|bound| micros <= *bound);
        if let Some(cell) = self.buckets.get(bucket.unwrap_or(Self::BOUNDS.len())) {
            cell.set(cell.get().wrapping_add(1));
        }
        self.micros.set(self.micros.get().wrapping_add(micros));
    }

    /// How many took at most each of the bounds, and in the end how many there were.
    pub fn counts(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = Self::BOUNDS.iter().copied().map(Some).chain([None]);
        let mut count = 0_u64;
        bounds.zip(&self.buckets).map(move |(bound, cell)| {
            count = count.wrapping_add(cell.get());
            (bound, count)
        })
    }

    /// The sum of all, in microseconds.
    pub fn micros(&self) -> u64 {
        self.micros.get()
    }
}

/// A number of things that exist now.
#[derive(Default)]
pub struct Gauge(Cell<u64>);

impl Gauge {
    /// Counts one until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        self.0.set(self.0.get().saturating_add(1));
        Entered(self)
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// See [`Gauge::enter`].
pub struct Entered<'a>(&'a Gauge);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let durations = Durations::default();
        for micros in [0, 100, 101, 300, 10_000_000, 10_000_001, 20_000_000] {
            durations.add(micros);
        }
        let counts: Vec<_> = durations.counts().collect();
        assert_eq!(counts[..3], [(Some(100), 2), (Some(300), 4), (Some(1000), 4)]);
        assert_eq!(counts[8..], [(Some(1_000_000), 4), (Some(10_000_000), 5), (None, 7)]);
        assert_eq!(durations.micros(), 40_000_502);
    }
}
