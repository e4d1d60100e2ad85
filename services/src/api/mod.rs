//! The machine's own state over HTTP: `/metrics`, `/api/devices`, `/api/memory`, and for people `/dashboard`.

mod dashboard;
mod metrics;

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::{iter, mem};

use embassy_futures::yield_now;
use serde::Serialize;

use crate::http::{Broken, Connection, Exchange, Routes, Status, Stream};
use crate::text::{Text, room};

const JSON: &str = "application/json";
/// What a [`System`] may take of the heap to describe one device, or all frames and findings, and the JSON of
/// that. It allocates without asking, so it is only asked when there is so much.
const ROOM: usize = 32 << 10;

/// One virtqueue of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueInfo {
    /// Number of the queue in the device.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// MSI-X vector, if the queue has one.
    pub vector: Option<u16>,
    /// Buffers that the device has now.
    pub in_flight: u64,
    /// Notifications sent to the device.
    pub kicks: u64,
    /// Interrupts received.
    pub interrupts: u64,
    /// Buffers that came back and were accepted.
    pub completions: u64,
    /// Completions that broke the rules and were refused.
    pub rejected: u64,
    /// Requests that were given up, as the device did not answer in time.
    pub given_up: u64,
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Segment, bus, device and function, e.g. `0000:00:03.0`.
    pub address: String,
    /// Vendor and device, e.g. `1af4:1041`.
    pub id: String,
    /// What it is, for a person.
    pub name: String,
    /// The driver that runs it, if any.
    pub driver: Option<String>,
    /// Names of the features negotiated.
    pub features: Vec<&'static str>,
    /// Its queues, if a driver runs it.
    pub queues: Vec<QueueInfo>,
}

/// Adjacent frames (4 KiB) of RAM whose owner is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first one: its physical address divided by 4096.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// Who has them, e.g. `free`; `used` if that is not known from where they are.
    pub owner: &'static str,
}

/// Memory that a device may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The device's [address](DeviceInfo::address).
    pub device: String,
    /// Physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether its driver is gone and the device was not reset since.
    pub quarantined: bool,
}

/// Use of the kernel's heap, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Heap {
    /// Allocated now.
    pub used: u64,
    /// Size of the whole heap.
    pub size: u64,
}

/// What the kernel tells about itself. Every call answers for the moment of the call.
pub trait System {
    /// The devices in the order of their addresses; `None` from the first index past the end.
    fn device(&self, index: usize) -> Option<DeviceInfo>;

    /// Frames (4 KiB) by owner, e.g. `("free", 1234)`. Owners do not repeat.
    fn frames(&self) -> Vec<(&'static str, u64)>;

    /// All RAM by rising addresses. Of what changes between two items either state is told.
    fn runs(&self) -> impl Iterator<Item = Run>;

    /// The windows of all devices.
    fn windows(&self) -> impl Iterator<Item = Window>;

    /// Begins an audit of the live page tables. Each call of what is returned goes on a little, and the last
    /// returns one sentence per finding; none means that all is well. Other tasks may run between the calls.
    fn audit(&self) -> impl FnMut() -> Option<Vec<String>>;

    /// The heap now.
    fn heap(&self) -> Heap;

    /// Any further counters for `/metrics`: calls `emit(name, help, value)` for each, with the name without
    /// `ringfence_` in front, ending in `_total` if the number only grows. What has a name already is left
    /// out.
    fn counters(&self, emit: &mut dyn FnMut(&'static str, &str, u64)) {
        let _ = emit;
    }
}

#[derive(Serialize)]
struct Audit {
    ok: bool,
    findings: Vec<String>,
}

/// The routes to what a system tells: `/metrics`, `/api/devices`, `/api/memory`, `/dashboard`.
pub struct Api<S>(pub S);

impl<S: System> Routes for Api<S> {
    fn is_reserved(&self, path: &[u8]) -> bool {
        [&b"/metrics"[..], b"/api/devices", b"/api/memory", b"/dashboard"].contains(&path)
    }

    async fn answer<C: Connection>(
        &self,
        exchange: &mut Exchange<'_, '_, C>,
        path: &[u8],
    ) -> Result<(), Broken> {
        let Self(system) = self;
        // While nothing is said yet, there is still a better answer than a body cut short.
        if room(ROOM).is_err() {
            return Err(exchange.wire.give_up().await);
        }
        match path {
            b"/metrics" => metrics::send(system, exchange).await,
            b"/api/devices" => devices(system, exchange).await,
            b"/api/memory" => memory(system, exchange).await,
            b"/dashboard" => dashboard::send(exchange).await,
            _ => {
                let head = exchange.head(Status::NotFound);
                exchange.respond(head, "text/plain; charset=utf-8", "404 Not Found\n").await
            }
        }
    }
}

async fn devices<S: System, C: Connection>(
    system: &S,
    exchange: &mut Exchange<'_, '_, C>,
) -> Result<(), Broken> {
    let mut stream = Stream::begin(exchange, JSON).await?;
    stream.text.push_str("[");
    let mut index = 0_usize;
    room(ROOM)?;
    while let Some(device) = system.device(index) {
        stream.text.push_str(if index == 0 { "\n" } else { ",\n" });
        stream.text.push_str(&json(&device));
        stream.pass().await?;
        index = index.saturating_add(1);
        room(ROOM)?;
    }
    stream.text.push_str("\n]\n");
    stream.finish().await
}

async fn memory<S: System, C: Connection>(
    system: &S,
    exchange: &mut Exchange<'_, '_, C>,
) -> Result<(), Broken> {
    let mut stream = Stream::begin(exchange, JSON).await?;
    let mut step = system.audit();
    let findings = loop {
        // For the findings, which come last.
        room(ROOM)?;
        match step() {
            Some(findings) => break findings,
            None => yield_now().await,
        }
    };
    let audit = Audit { ok: findings.is_empty(), findings };
    let frames: BTreeMap<_, _> = system.frames().into_iter().collect();
    stream.text.push_all(["{\"audit\":", &json(&audit), ",\n\"frames\":", &json(&frames)]);
    stream.text.push_all([",\n\"heap\":", &json(&system.heap()), ",\n\"windows\":["]);
    let windows = system.windows().map(Part::Window);
    let mut parts = windows.chain([Part::EndOfWindows]).chain(joined(system.runs()).map(Part::Run));
    let mut separator = "\n";
    loop {
        room(ROOM)?;
        let Some(part) = parts.next() else { break };
        part.write(&mut stream.text, &mut separator);
        stream.pass().await?;
    }
    stream.text.push_str("]}\n");
    stream.finish().await
}

/// What is told of places in memory.
enum Part {
    Window(Window),
    EndOfWindows,
    Run(Run),
}

impl Part {
    fn write(&self, out: &mut Text, separator: &mut &'static str) {
        match self {
            Self::Window(window) => out.push_all([mem::replace(separator, ",\n"), &json(window)]),
            Self::EndOfWindows => {
                out.push_str("],\n\"runs\":[");
                *separator = "\n";
            }
            Self::Run(Run { start, count, owner }) => {
                let before = mem::replace(separator, ",\n");
                let _ = write!(out, "{before}[{start},{count},\"{owner}\"]");
            }
        }
    }
}

/// The runs, as few as they can be.
fn joined(mut runs: impl Iterator<Item = Run>) -> impl Iterator<Item = Run> {
    let mut next = runs.next();
    iter::from_fn(move || {
        let mut run = next?;
        loop {
            next = runs.next();
            match next {
                Some(more)
                    if more.owner == run.owner && more.start == run.start.saturating_add(run.count) =>
                {
                    run.count = run.count.saturating_add(more.count);
                }
                _ => return Some(run),
            }
        }
    })
}

/// These types hold nothing that JSON cannot say, so this does not fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_string())
}
