//! `/metrics` and `/api/…`: read back by a JSON parser and by a strict reader of the Prometheus text format.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::client::{Client, Then, responses};
use common::{Machine, Tree, mounted, quick_limits};
use futures::executor::block_on;
use ringfence_services::api::Api;
use ringfence_services::http::Server;
use serde_json::{Value, json};

/// Status, type and body.
fn get(server: &Server<Tree, Api<Machine>>, path: &str) -> (u16, String, String) {
    let mut client = Client::new(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes(), Then::Finish);
    block_on(server.serve(&mut client, || false));
    let response = responses(&client.output, &[]).remove(0);
    (response.status, response.field("Content-Type").unwrap().to_string(), response.text())
}

fn server(machine: Machine) -> Server<Tree, Api<Machine>> {
    let files = Tree::default().with("/a.txt", "0123456789");
    Server::new(mounted(files), Api(machine), quick_limits())
}

#[test]
fn devices() {
    let (status, mime, body) = get(&server(Machine::default()), "/api/devices");
    assert_eq!((status, mime.as_str()), (200, "application/json"));
    let expected = json!([
        { "address": "0000:00:01.0", "id": "1af4:1042", "name": "a \"quoted\\\"\nname <\u{1}>", "driver": null,
          "features": [], "queues": [] },
        { "address": "0000:00:02.0", "id": "1af4:1042", "name": "disk", "driver": "virtio-blk",
          "features": ["VIRTIO_F_VERSION_1"],
          "queues": [{ "index": 0, "size": 256, "vector": 1, "in_flight": 4, "kicks": 3, "interrupts": 2,
                       "completions": 5, "rejected": 1, "given_up": 6 }] },
    ]);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    // Longer than any chunk.
    let (_, _, body) = get(&server(Machine { many: 200, ..Machine::default() }), "/api/devices");
    assert!(body.len() > 20_000);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap().as_array().unwrap().len(), 200);
}

#[test]
fn memory() {
    let frames = json!({ "free": 1000, "dma": 24, "od\"d\n": 1 });
    let (status, _, body) = get(&server(Machine::default()), "/api/memory");
    let window = |frame: u64, quarantined: bool| json!({ "device": "0000:00:\"02\".0", "start": frame << 12, "bytes": 4096, "quarantined": quarantined });
    let expected = json!({ "audit": { "ok": true, "findings": [] }, "frames": frames,
                           "heap": { "used": 123, "size": 456 },
                           "windows": [window(1008, false), window(1010, true)],
                           "runs": [[0, 1, "od"], [1, 995, "free"], [1000, 5, "free"], [1008, 25, "dma"]] });
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected));
    let findings = vec!["frame 7 is \"mapped\" twice".to_string()];
    let (_, _, body) =
        get(&server(Machine { findings: findings.clone(), ..Machine::default() }), "/api/memory");
    let got = serde_json::from_str::<Value>(&body).unwrap();
    assert_eq!(got["audit"], json!({ "ok": false, "findings": findings }));
    // Longer than any chunk.
    let (_, _, body) = get(&server(Machine { many: 5000, ..Machine::default() }), "/api/memory");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["runs"].as_array().unwrap().len(), 5004);
}

/// What the machine does not answer itself is looked for on the disk.
#[test]
fn unknown_addresses() {
    for path in ["/api", "/api/", "/api/none", "/api/devices/x", "/api/devices/", "/metrics/x", "/dashboard/"]
    {
        assert_eq!(get(&server(Machine::default()), path).0, 404, "{path}");
    }
}

/// Reads the text format: every family described once and whole, every sample unique, nothing else.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut lines = text.lines().filter(|line| !line.contains(" is left out here: ")).peekable();
    while let Some(line) = lines.next() {
        let (family, help) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')).expect(line);
        assert!(!help.is_empty() && families.insert(family.to_string()), "{line}");
        let kind = lines.next().and_then(|l| l.strip_prefix("# TYPE ")).and_then(|l| l.strip_prefix(family));
        let parts: &[&str] = if kind == Some(" histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
        if parts.len() == 1 {
            assert_eq!(
                kind,
                Some(if family.ends_with("_total") { " counter" } else { " gauge" }),
                "{family}"
            );
        }
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = sample.rsplit_once(' ').unwrap();
            let name = series.split('{').next().and_then(|name| name.strip_prefix(family));
            assert!(name.is_some_and(|part| parts.contains(&part)), "{sample}");
            let before = samples.insert(series.to_string(), value.parse().expect("a number"));
            assert_eq!(before, None, "{sample}");
        }
    }
    samples
}

#[test]
fn metrics() {
    let server = server(Machine { many: 40, ..Machine::default() });
    get(&server, "/a.txt");
    get(&server, "/a.txt");
    get(&server, "/none");
    let (status, mime, body) = get(&server, "/metrics");
    assert_eq!((status, mime.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    assert!(body.ends_with('\n'));
    let samples = samples(&body);
    for (series, value) in [
        // The response that is being written counts too.
        ("ringfence_http_requests_total{code=\"200\"}", 3),
        ("ringfence_http_requests_total{code=\"404\"}", 1),
        ("ringfence_http_requests_total{code=\"503\"}", 0),
        ("ringfence_http_connections_total", 4),
        ("ringfence_http_connections_active", 1),
        ("ringfence_http_received_bytes_total", 2 * 23 + 22 + 25),
        ("ringfence_http_made_room_total", 0),
        ("ringfence_http_gave_way_total", 0),
        ("ringfence_frames{owner=\"free\"}", 1000),
        ("ringfence_frames{owner=\"od\\\"d\\n\"}", 1),
        ("ringfence_heap_used_bytes", 123),
        ("ringfence_heap_size_bytes", 456),
        ("ringfence_cache_hits_total", 7),
        ("ringfence_queue_kicks_total{device=\"0000:00:02.0\",queue=\"0\"}", 3),
        ("ringfence_queue_interrupts_total{device=\"0000:00:02.0\",queue=\"0\"}", 2),
        ("ringfence_queue_completions_total{device=\"0000:00:02.0\",queue=\"0\"}", 5),
        ("ringfence_queue_rejected_total{device=\"0000:00:02.0\",queue=\"0\"}", 1),
        ("ringfence_queue_given_up_total{device=\"0000:00:02.0\",queue=\"0\"}", 6),
        ("ringfence_queue_in_flight{device=\"0000:00:02.0\",queue=\"0\"}", 4),
        ("ringfence_queue_size{device=\"0000:00:02.0\",queue=\"0\"}", 256),
        // Of the one that is being written only the first byte is known.
        ("ringfence_http_first_byte_seconds_count", 4),
        ("ringfence_http_request_duration_seconds_count", 3),
        ("ringfence_http_request_duration_seconds_bucket{le=\"+Inf\"}", 3),
        ("ringfence_http_request_duration_seconds_bucket{le=\"10.000000\"}", 3),
        ("ringfence_queue_kicks_total{device=\"0000:00:27.0\",queue=\"0\"}", 3),
    ] {
        assert_eq!(samples.get(series), Some(&f64::from(value)), "{series}\n{body}");
    }
    assert!(samples.contains_key("ringfence_uptime_seconds"));
    assert!(samples.keys().all(|name| name.starts_with("ringfence_")));
}

/// What took long is in the buckets from its own on, and in the sum.
#[test]
fn durations() {
    let files = Tree::default().with("/a.txt", "0123456789");
    files.delay.set(std::time::Duration::from_millis(40));
    let server = Server::new(mounted(files), Api(Machine::default()), quick_limits());
    get(&server, "/a.txt");
    get(&server, "/none");
    let (_, _, body) = get(&server, "/metrics");
    let samples = samples(&body);
    let counts = |le: &str| {
        let [first, whole] = ["first_byte", "request_duration"]
            .map(|name| samples[&format!("ringfence_http_{name}_seconds_bucket{{le=\"{le}\"}}")]);
        (first, whole)
    };
    // The first byte waits for the file's, and is the last one's too. What is not there takes no time.
    assert_eq!(counts("0.030000"), (2.0, 1.0));
    assert_eq!(counts("0.300000"), (3.0, 2.0));
    assert!((0.04..0.3).contains(&samples["ringfence_http_request_duration_seconds_sum"]), "{body}");
}

/// Whoever tells a number that has been told already, the text stays one that can be read.
#[test]
fn no_family_is_told_twice() {
    let repeated = [
        ("uptime_seconds", "Time since boot.", 77),
        ("heap_used_bytes", "Again.", 77),
        ("frames", "A family with labels.", 77),
        ("queue_kicks_total", "One that comes later.", 77),
        ("cache_hits_total", "The same source, twice.", 77),
    ];
    let extra = [("halts_total", "A back\\slash and\na line.", 5)];
    let counters = [&repeated[..], &extra].concat();
    let (_, _, body) = get(&server(Machine { counters, ..Machine::default() }), "/metrics");
    let samples = samples(&body);
    assert_eq!(samples["ringfence_cache_hits_total"], 7.0);
    assert_eq!(samples["ringfence_heap_used_bytes"], 123.0);
    assert_eq!(samples["ringfence_halts_total"], 5.0);
    assert!(body.contains("# HELP ringfence_halts_total A back\\\\slash and\\na line.\n"), "{body}");
    assert_eq!(body.matches("left out").count(), 5, "{body}");
    // And there is an end to it.
    let names: Vec<&'static str> = (0..500).map(|n| &*format!("n{n}").leak()).collect();
    let counters = names.iter().map(|name| (*name, "One of many.", 1)).collect();
    let (_, _, body) = get(&server(Machine { counters, ..Machine::default() }), "/metrics");
    assert!(self::samples(&body).len() > 60);
}

/// Prometheus' own checker, where there is one.
#[test]
fn promtool_has_nothing_to_say() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        return common::skip::skip(
            "promtool_has_nothing_to_say",
            "there is no promtool here (package prometheus)",
        );
    };
    let counters = vec![
        ("uptime_seconds", "Time since boot.", 3),
        ("halts_total", "A back\\slash and\na line.", 5),
        ("cache_misses_total", "Page cache.", 7),
    ];
    let (_, _, body) = get(&server(Machine { many: 40, counters, ..Machine::default() }), "/metrics");
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{body}", String::from_utf8_lossy(&said));
}
