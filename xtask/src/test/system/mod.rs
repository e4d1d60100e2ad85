//! `system::` tests: the whole guest, seen from outside. Each is a function in one of these tables.

mod api;
mod bench;
mod boot;
mod command_line;
mod conformance;
mod dashboard;
mod disks;
mod events;
mod fairness;
mod files;
mod http;
mod machines;
mod minikernel;
mod namespace;
mod served;
mod slow_disk;
mod tap;

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::{self, Reply};
use super::{Kernel, Test};
use crate::guest::{Guest, last_line};
use crate::image::Image;
use crate::qemu::{Boot, Machine};

type Run = fn(&Kernel) -> Result<()>;

/// All of them.
pub fn tests(kernel: &Kernel) -> Vec<Test> {
    let tables = [
        api::TESTS,
        conformance::TESTS,
        disks::TESTS,
        files::TESTS,
        http::TESTS,
        machines::TESTS,
        minikernel::TESTS,
    ];
    let mut tests = files::combinations(kernel);
    tests.extend(tables.concat().into_iter().map(|(name, run)| test(name, kernel, run)));
    let measured = [
        bench::TESTS,
        boot::TESTS,
        command_line::TESTS,
        dashboard::TESTS,
        events::TESTS,
        fairness::TESTS,
        slow_disk::TESTS,
        tap::TESTS,
    ];
    tests.extend(
        measured.concat().into_iter().map(|(name, run)| Test { alone: true, ..test(name, kernel, run) }),
    );
    tests
}

fn test(name: &str, kernel: &Kernel, run: Run) -> Test {
    let kernel = kernel.clone();
    Test::new(format!("system::{name}"), move || run(&kernel))
}

/// A guest that serves a disk.
pub struct Server {
    guest: Guest,
    pub port: u16,
}

impl Server {
    /// Starts `machine` with a network device and waits until it says where it serves.
    pub fn start(machine: Machine) -> Result<Self> {
        Self::start_at(machine, free_port()?)
    }

    /// The same at a port that is free.
    pub fn start_at(mut machine: Machine, port: u16) -> Result<Self> {
        machine.port = Some(port);
        let mut guest = Guest::start(machine.command()?)?;
        let url = format!("http://127.0.0.1:{port}/");
        guest
            .wait_until(Duration::from_secs(30), |log| log.contains(&url))
            .context("the guest does not come up")?;
        Ok(Self { guest, port })
    }

    /// Starts the kernel by PVH on q35 with `disk`.
    pub fn with_disk(kernel: &Kernel, disk: Option<Image>) -> Result<Self> {
        Self::start(Machine { disk, ..machine(&kernel.pvh) })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What curl gets for `path`.
    pub fn get(&self, path: &str, arguments: &[&str]) -> Result<Reply> {
        client::get(&self.url(path), arguments)
    }

    /// The JSON that is served at `path`.
    pub fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.get(path, &[])?.expect(200)?.body)?)
    }

    /// What comes back for `request` as it is.
    pub fn raw(&self, request: &[u8]) -> Result<Vec<u8>> {
        client::raw(self.port, request, Duration::from_secs(15))
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        self.guest.output()
    }

    /// What it printed once that contains `part`.
    pub fn wait_for_log(&mut self, part: &str) -> Result<String> {
        self.guest
            .wait_until(Duration::from_secs(5), |log| log.contains(part))
            .with_context(|| format!("no {part} in its log"))
    }

    /// Ends a test: the guest must be well, answer, and have a clean audit.
    pub fn finish(self) -> Result<()> {
        let memory = self.json("/api/memory").context("at the end");
        let log = self.log();
        let panic = log.lines().find(|line| line.to_lowercase().contains("panic"));
        ensure!(panic.is_none(), "the guest panicked: {}", panic.unwrap_or_default());
        let memory = memory.with_context(|| format!("the guest's last line: {}", last_line(&log)))?;
        ensure!(memory["audit"]["ok"] == true, "the audit found {}", memory["audit"]["findings"]);
        Ok(())
    }
}

/// The machine that `run` starts, but for its disk and network.
pub fn machine(boot: &Boot) -> Machine {
    Machine::new(boot.clone())
}

/// A port on 127.0.0.1 that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
