//! A guest that serves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Outcome, Task};
use super::files::{Content, Size};
use super::network;
use crate::bench::lines;
use crate::guest::Guest;
use crate::qemu::Machine;

/// How long a guest may take to serve.
const LIMIT: Duration = Duration::from_secs(60);

/// What a guest prints when it serves.
pub fn url() -> String {
    format!("http://{}/", network::GUEST)
}

/// It ends when this is dropped.
pub struct Server {
    guest: Guest,
    content: Content,
}

impl Server {
    /// Starts `machine`; returns it, and how long it took to answer a request.
    pub fn start(machine: &Machine) -> Result<(Self, Duration)> {
        let content = Content::new();
        let files = vec![Size::byte()];
        let first = Task { name: "first", clients: 1, keep_alive: false, files, limit: None };
        let start = Instant::now();
        let mut guest = Guest::start(machine.command()?)?;
        guest.wait_until(LIMIT, |log| log.contains(&url())).context("the guest does not come up")?;
        let server = Self { guest, content };
        server.run(&first)?;
        Ok((server, start.elapsed()))
    }

    /// Does `task`.
    pub fn run(&self, task: &Task) -> Result<Outcome> {
        task.run((network::GUEST, 80).into(), &self.content)
    }

    /// What it says about itself.
    pub fn info(&self) -> Vec<String> {
        lines(&self.guest.output(), "bench-info: ").map(String::from).collect()
    }
}
