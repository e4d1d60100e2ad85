//! Counters of the server, for `/metrics`.

use core::cell::Cell;

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
