//! `/metrics` in the Prometheus text format, version 0.0.4.

use core::fmt::Write as _;

use embassy_time::Instant;
use embedded_io_async::{Read, Write};

use super::{DeviceInfo, QueueInfo, ROOM, System};
use crate::http::{Broken, Request, Stats, Status, Stream, Wire};
use crate::text::{Text, room};

/// A counter that every queue has.
type QueueCounter = (&'static str, &'static str, fn(&QueueInfo) -> u64);

const QUEUE_COUNTERS: [QueueCounter; 4] = [
    ("queue_kicks_total", "Notifications sent to the device.", |q| q.kicks),
    ("queue_interrupts_total", "Interrupts received for the queue.", |q| q.interrupts),
    ("queue_completions_total", "Buffers returned by the device and accepted.", |q| q.completions),
    ("queue_rejected_total", "Completions that broke the rules and were refused.", |q| q.rejected),
];

pub(super) async fn send<S: System, C: Read + Write>(
    system: &S,
    stats: &Stats,
    wire: &mut Wire<'_, C>,
    request: &Request,
    keep: bool,
) -> Result<(), Broken> {
    let mut stream = Stream::begin(wire, request, keep, "text/plain; version=0.0.4; charset=utf-8").await?;
    http(&mut stream.text, stats);
    stream.pass().await?;
    room(ROOM)?;
    memory(&mut stream.text, system);
    system.counters(&mut |name, help, value| single(&mut stream.text, name, help, value));
    single(&mut stream.text, "uptime_seconds", "Time since start.", Instant::now().as_secs());
    for (name, help, value) in QUEUE_COUNTERS {
        family(&mut stream.text, name, help);
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

fn http(out: &mut Text, stats: &Stats) {
    family(out, "http_requests_total", "Responses sent, by status code.");
    for status in Status::all() {
        let (code, count) = (status.code(), stats.responses(status));
        let _ = writeln!(out, "ringfence_http_requests_total{{code=\"{code}\"}} {count}");
    }
    single(out, "http_received_bytes_total", "Bytes received from clients.", stats.received.get());
    single(out, "http_sent_bytes_total", "Bytes sent to clients.", stats.sent.get());
    single(out, "http_connections_total", "Connections served.", stats.connections.get());
    single(out, "http_connections_active", "Connections open now.", stats.active.get());
}

fn memory<S: System>(out: &mut Text, system: &S) {
    family(out, "frames", "Frames of 4 KiB, by owner.");
    for (owner, count) in system.frames() {
        let _ = write!(out, "ringfence_frames{{owner=");
        label(out, owner);
        let _ = writeln!(out, "}} {count}");
    }
    let heap = system.heap();
    single(out, "heap_used_bytes", "Kernel heap allocated now.", heap.used);
    single(out, "heap_size_bytes", "Size of the kernel heap.", heap.size);
}

fn queues(out: &mut Text, name: &str, device: &DeviceInfo, value: fn(&QueueInfo) -> u64) {
    for queue in &device.queues {
        let _ = write!(out, "ringfence_{name}{{device=");
        label(out, &device.address);
        let _ = writeln!(out, ",queue=\"{}\"}} {}", queue.index, value(queue));
    }
}

fn single(out: &mut Text, name: &str, help: &str, value: u64) {
    family(out, name, help);
    let _ = writeln!(out, "ringfence_{name} {value}");
}

fn family(out: &mut Text, name: &str, help: &str) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let _ = write!(out, "# HELP ringfence_{name} {help}\n# TYPE ringfence_{name} {kind}\n");
}

/// A quoted label value.
fn label(out: &mut Text, value: &str) {
    out.push_str("\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => {
                let _ = out.write_char(c);
            }
        }
    }
    out.push_str("\"");
}
