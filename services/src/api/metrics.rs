//! `/metrics` in the Prometheus text format, version 0.0.4.

use core::fmt::{self, Write as _};

use embassy_time::Instant;
use heapless::Vec;

use super::{DeviceInfo, QueueInfo, ROOM, System};
use crate::http::{Broken, Connection, Durations, Exchange, Stats, Status, Stream};
use crate::text::{Text, room};

/// A number that every queue has.
type QueueNumber = (&'static str, &'static str, fn(&QueueInfo) -> u64);

const QUEUE_NUMBERS: [QueueNumber; 7] = [
    ("queue_size", "Descriptors of the queue.", |q| q.size.into()),
    ("queue_in_flight", "Buffers that the device has now.", |q| q.in_flight),
    ("queue_kicks_total", "Notifications sent to the device.", |q| q.kicks),
    ("queue_interrupts_total", "Interrupts received for the queue.", |q| q.interrupts),
    ("queue_completions_total", "Buffers returned by the device and accepted.", |q| q.completions),
    ("queue_rejected_total", "Completions that broke the rules and were refused.", |q| q.rejected),
    ("queue_given_up_total", "Requests that the device did not answer in time.", |q| q.given_up),
];

pub(super) async fn send<S: System, C: Connection>(
    system: &S,
    exchange: &mut Exchange<'_, '_, C>,
) -> Result<(), Broken> {
    let stats = exchange.wire.stats;
    let mut stream = Stream::begin(exchange, "text/plain; version=0.0.4; charset=utf-8").await?;
    let mut families = Families::default();
    http(&mut stream.text, &mut families, stats);
    stream.pass().await?;
    room(ROOM)?;
    memory(&mut stream.text, &mut families, system);
    system.counters(&mut |name, help, value| families.single(&mut stream.text, name, help, value));
    families.single(&mut stream.text, "uptime_seconds", "Time since start.", Instant::now().as_secs());
    for (name, help, value) in QUEUE_NUMBERS {
        if !families.begin(&mut stream.text, name, help, kind(name)) {
            continue;
        }
        let mut index = 0_usize;
        room(ROOM)?;
        while let Some(device) = system.device(index) {
            queues(&mut stream.text, name, &device, value);
            stream.pass().await?;
            index = index.saturating_add(1);
            room(ROOM)?;
        }
    }
    stream.finish().await
}

/// The families that were told. Each may be told once only, whoever knows about it: a reader refuses all of a
/// text that repeats one.
#[derive(Default)]
struct Families(Vec<&'static str, 64>);

impl Families {
    /// Writes what comes before the samples of a family; false if it has none to be written. A comment then
    /// says so.
    fn begin(&mut self, out: &mut Text, name: &'static str, help: &str, kind: &str) -> bool {
        if self.0.contains(&name) || self.0.push(name).is_err() {
            let _ = writeln!(out, "# ringfence_{name} is left out here: a second one, or one too many");
            return false;
        }
        let _ = write!(out, "# HELP ringfence_{name} ");
        escape(out, help, false);
        let _ = write!(out, "\n# TYPE ringfence_{name} {kind}\n");
        true
    }

    fn single(&mut self, out: &mut Text, name: &'static str, help: &str, value: u64) {
        if self.begin(out, name, help, kind(name)) {
            let _ = writeln!(out, "ringfence_{name} {value}");
        }
    }

    fn histogram(&mut self, out: &mut Text, name: &'static str, help: &str, durations: &Durations) {
        if !self.begin(out, name, help, "histogram") {
            return;
        }
        let mut all = 0;
        for (bound, count) in durations.counts() {
            let _ = match bound {
                Some(bound) => writeln!(out, "ringfence_{name}_bucket{{le=\"{}\"}} {count}", Seconds(bound)),
                None => writeln!(out, "ringfence_{name}_bucket{{le=\"+Inf\"}} {count}"),
            };
            all = count;
        }
        let sum = Seconds(durations.micros());
        let _ = writeln!(out, "ringfence_{name}_sum {sum}\nringfence_{name}_count {all}");
    }
}

/// The type of a family that is no histogram.
fn kind(name: &str) -> &'static str {
    if name.ends_with("_total") { "counter" } else { "gauge" }
}

/// Microseconds as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

fn http(out: &mut Text, families: &mut Families, stats: &Stats) {
    if families.begin(out, "http_requests_total", "Responses sent, by status code.", "counter") {
        for status in Status::all() {
            let (code, count) = (status.code(), stats.responses(status));
            let _ = writeln!(out, "ringfence_http_requests_total{{code=\"{code}\"}} {count}");
        }
    }
    for (name, help, value) in [
        ("http_received_bytes_total", "Bytes received from clients.", stats.received.get()),
        ("http_sent_bytes_total", "Bytes sent to clients.", stats.sent.get()),
        ("http_connections_total", "Connections served.", stats.connections.get()),
        ("http_connections_active", "Connections open now.", stats.active.get()),
        (
            "http_made_room_total",
            "Connections that ended with a response, against the client's wish, because others waited.",
            stats.made_room.get(),
        ),
        (
            "http_gave_way_total",
            "Responses cut short because the client took them slowly while others waited.",
            stats.gave_way.get(),
        ),
    ] {
        families.single(out, name, help, value);
    }
    for (name, help, durations) in [
        (
            "http_first_byte_seconds",
            "From a request's complete head to the first byte of its response.",
            &stats.first_byte,
        ),
        (
            "http_request_duration_seconds",
            "From a request's complete head until the network stack has the last byte of its response.",
            &stats.duration,
        ),
    ] {
        families.histogram(out, name, help, durations);
    }
}

fn memory<S: System>(out: &mut Text, families: &mut Families, system: &S) {
    if families.begin(out, "frames", "Frames of 4 KiB, by owner.", "gauge") {
        for (owner, count) in system.frames() {
            out.push_str("ringfence_frames{owner=");
            label(out, owner);
            let _ = writeln!(out, "}} {count}");
        }
    }
    let heap = system.heap();
    families.single(out, "heap_used_bytes", "Kernel heap allocated now.", heap.used);
    families.single(out, "heap_size_bytes", "Size of the kernel heap.", heap.size);
}

fn queues(out: &mut Text, name: &str, device: &DeviceInfo, value: fn(&QueueInfo) -> u64) {
    for queue in &device.queues {
        let _ = write!(out, "ringfence_{name}{{device=");
        label(out, &device.address);
        let _ = writeln!(out, ",queue=\"{}\"}} {}", queue.index, value(queue));
    }
}

/// A quoted label value.
fn label(out: &mut Text, value: &str) {
    out.push_str("\"");
    escape(out, value, true);
    out.push_str("\"");
}

/// Text within a line; a `quoted` one may not end early.
fn escape(out: &mut Text, text: &str, quoted: bool) {
    for c in text.chars() {
        let _ = match c {
            '\\' => out.write_str("\\\\"),
            '"' if quoted => out.write_str("\\\""),
            '\n' => out.write_str("\\n"),
            c => out.write_char(c),
        };
    }
}
