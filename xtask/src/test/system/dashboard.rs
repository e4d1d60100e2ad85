//! `/dashboard` in a browser.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::served::files_disk;
use super::{Kernel, Run, Server, free_port, machine};
use crate::qemu::Machine;
use crate::test::browser::Browser;

/// The tests here; they measure time.
pub const TESTS: &[(&str, Run)] = &[
    ("dashboard::numbers", numbers),
    ("dashboard::can_be_read", can_be_read),
    ("dashboard::end_and_new_start", end_and_new_start),
    ("dashboard::grafana", grafana),
];

const LIMIT: Duration = Duration::from_secs(20);
const LIVE: &str = "document.getElementById('state')?.textContent === 'live'";
/// Texts of a table's cells, and the plots' lines.
const HELP: &str = r##"
    const table = (id) => [...document.getElementById(id).rows].map((row) => [...row.cells].map((cell) =>
        [...cell.children].map((part) => part.textContent).filter((text) => text)));
    const lines = (id) =>
        [...document.querySelectorAll(`#${id} > svg path`)].map((path) => path.getAttribute("d"));
    const drawn = () =>
        [...document.querySelectorAll("#map rect")].reduce((sum, part) => sum + part.width.baseVal.value, 0);
    undefined"##;

/// Opens the page of a server, and waits for its first numbers.
fn open(browser: &mut Browser, server: &Server) -> Result<()> {
    browser.call("Page.navigate", json!({ "url": server.url("/dashboard") }))?;
    browser.wait_until(LIVE, LIMIT)?;
    browser.evaluate(HELP)?;
    Ok(())
}

/// Neither an exception, nor a message of the console, nor a request elsewhere.
fn is_content(browser: &Browser, server: &Server) -> Result<()> {
    for bad in ["Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"] {
        let told: Vec<_> = browser.told(bad).collect();
        ensure!(told.is_empty(), "{bad}: {told:?}");
    }
    let (mut asked, mut open) = (BTreeSet::new(), None);
    for event in &browser.events {
        let id = &event["params"]["requestId"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                let url = event["params"]["request"]["url"].as_str().context("no address")?;
                if url.starts_with("data:") {
                    continue;
                }
                let path =
                    url.strip_prefix(&server.url("")).with_context(|| format!("{url} is elsewhere"))?;
                asked.insert(path.to_owned());
                // The page itself ends after its script has begun.
                let is_ours = event["params"]["type"] == "Fetch";
                ensure!(open.is_none() || !is_ours, "{path} is asked for while something else is");
                open = is_ours.then_some(id);
            }
            Some("Network.loadingFinished" | "Network.loadingFailed") if open == Some(id) => open = None,
            _ => {}
        }
    }
    let expected = ["/api/devices", "/api/memory", "/dashboard", "/metrics"].map(str::to_owned);
    ensure!(asked == BTreeSet::from(expected), "asked for {asked:?}");
    Ok(())
}

/// A number as the page writes it, without its unit.
fn number(text: &Value) -> Result<u64> {
    let digits = text.as_str().context("no text")?.split(' ').next().unwrap_or_default().replace(',', "");
    digits.parse().with_context(|| format!("{text} is no number"))
}

/// The sum of the samples of /metrics whose lines begin so.
fn sample(metrics: &str, series: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(&format!("ringfence_{series}")));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// What the page shows is what /metrics and /api say; under load there is something to see.
fn numbers(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let mut browser = Browser::start()?;
    open(&mut browser, &server)?;
    for _ in 0..10 {
        server.get("/1m.bin", &[])?.expect(200)?;
        server.get("/nothing", &[])?.expect(404)?;
        std::thread::sleep(Duration::from_millis(300));
    }
    for (plot, most) in [("throughput", "MiB/s"), ("requests", "/s"), ("latency", "ms"), ("connections", "")]
    {
        let drawn = browser.evaluate(&format!("lines('plot-{plot}')"))?;
        let long = |line: &Value| line.as_str().is_some_and(|line| line.matches('L').count() >= 2);
        ensure!(
            drawn.as_array().is_some_and(|lines| lines.len() >= 2 && lines.iter().all(long)),
            "{plot}: {drawn}"
        );
        let said =
            browser.evaluate(&format!("document.querySelector('#plot-{plot} svg[role=img]').ariaLabel"))?;
        ensure!(
            said.as_str().is_some_and(|said| said.trim_end_matches('.').ends_with(most)),
            "{plot}: {said}"
        );
    }
    let before = server.get("/metrics", &[])?.text();
    std::thread::sleep(Duration::from_millis(2500));
    let connections = browser.evaluate("table('connections')")?;
    let (refusals, queues) = (browser.evaluate("table('refusals')")?, browser.evaluate("table('queues')")?);
    let after = server.get("/metrics", &[])?.text();
    let near = |shown: &Value, series: &str| -> Result<()> {
        let (least, shown, most) = (sample(&before, series), number(shown)?, sample(&after, series));
        ensure!((least..=most).contains(&shown), "{series}: {shown} is shown, and was {least} to {most}");
        Ok(())
    };
    near(&connections[3][1][0], "http_connections_total")?;
    near(&connections[4][1][0], "http_requests_total")?;
    near(&refusals[0][1][0], "tcp_turned_away_total")?;
    let rows = refusals.as_array().context("nobody is turned away")?;
    let wrong = rows.iter().find(|row| row[0][0].as_str().is_some_and(|why| why.starts_with("4xx")));
    let wrong = &wrong.context("no clients' mistakes")?[1][0];
    near(wrong, "http_requests_total{code=\"4")?;
    ensure!(number(wrong)? >= 10 && number(&connections[5][1][0])? >= 10 << 10, "{connections}");
    let mut rows = queues.as_array().context("no queues")?.iter();
    for device in server.json("/api/devices")?.as_array().context("no devices")? {
        for queue in device["queues"].as_array().context("no queues")? {
            let (address, index, row) =
                (&device["address"], &queue["index"], rows.next().context("too few")?);
            let name = row[1][0].as_str().unwrap_or_default();
            ensure!(
                row[0][0] == *address && name.starts_with(&format!("{index}: ")),
                "{row} is not {address}"
            );
            let held = row[2][0].as_str().unwrap_or_default();
            ensure!(held.ends_with(&format!(" of {}", queue["size"])), "{row}");
            for (at, counter) in [(3, "kicks"), (4, "interrupts"), (5, "completions")] {
                near(&row[at][1], &format!("queue_{counter}_total{{device={address},queue=\"{index}\"}}"))?;
            }
            near(&row[6][0], &format!("queue_rejected_total{{device={address},queue=\"{index}\"}}"))?;
        }
    }
    ensure!(rows.next().is_none(), "too many queues: {queues}");
    memory(&mut browser, &server)?;
    is_content(&browser, &server)?;
    nothing_else_runs(&mut browser)?;
    server.finish()
}

/// The picture of memory is all of it, and so is the table.
fn memory(browser: &mut Browser, server: &Server) -> Result<()> {
    let memory = server.json("/api/memory")?;
    let all: u64 =
        memory["frames"].as_object().context("no frames")?.values().filter_map(Value::as_u64).sum();
    let owners = browser.evaluate("table('owners')")?;
    let sizes = owners.as_array().context("no owners")?.iter().map(|row| number(&row[1][0]));
    let sizes = sizes.collect::<Result<Vec<_>>>()?;
    let (total, parts) = sizes.split_last().context("no owners")?;
    ensure!(*total == 4 * all && parts.iter().sum::<u64>() == *total, "{all} frames, but: {owners}");
    let (drawn, row) =
        (browser.evaluate("drawn()")?.as_f64().context("no picture")?, all.div_ceil(16) as f64);
    ensure!((drawn * row / 1000.0 - all as f64).abs() < 1.0, "{drawn} is not {all} frames in rows of {row}");
    let windows = browser.evaluate("table('windows')")?;
    let count = windows.as_array().context("no windows")?.iter().map(|row| number(&row[1][0]));
    let count = count.sum::<Result<u64>>()?;
    ensure!(Some(count as usize) == memory["windows"].as_array().map(Vec::len), "{windows}");
    let marked = browser.evaluate("document.querySelectorAll('#map .window').length")?;
    ensure!(marked.as_u64() >= Some(count), "{marked} of {count} windows are marked");
    Ok(())
}

/// The policy keeps what is not the page's own from running.
fn nothing_else_runs(browser: &mut Browser) -> Result<()> {
    let refused = browser.evaluate(
        "new Promise((done) => {
            document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.head.append(script);
            if (window.ran) done('it ran');
        })",
    )?;
    ensure!(refused == "script-src-elem", "{refused}");
    Ok(())
}

/// What cannot be read, how much was looked at, and how light the page is.
const UNREADABLE: &str = include_str!("unreadable.js");

/// On narrow and wide screens, light and dark; and it stays where it is while numbers change.
fn can_be_read(kernel: &Kernel) -> Result<()> {
    let server = Server::with_disk(kernel, files_disk()?)?;
    let mut browser = Browser::start()?;
    open(&mut browser, &server)?;
    let places = "[...document.querySelectorAll('h2, figure, th')].map((node) =>
        [node.getBoundingClientRect().top, node.textContent])";
    for width in [360, 768, 1600] {
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", size)?;
        for (scheme, is_dark) in [("light", false), ("dark", true)] {
            let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
            browser.call("Emulation.setEmulatedMedia", json!({ "features": features }))?;
            let seen = browser.evaluate(UNREADABLE)?;
            let case = || format!("{scheme}, {width} px wide: {seen}");
            ensure!(seen["found"] == json!([]), "{}", case());
            ensure!(seen["texts"].as_u64() > Some(100) && seen["lines"].as_u64() >= Some(18), "{}", case());
            let light = seen["light"].as_f64().context("no background")?;
            ensure!(if is_dark { light < 0.1 } else { light > 0.8 }, "{}", case());
        }
        let before = browser.evaluate(places)?;
        std::thread::sleep(Duration::from_millis(2500));
        let after = browser.evaluate(places)?;
        let pairs = before.as_array().into_iter().flatten().zip(after.as_array().into_iter().flatten());
        let moved: Vec<_> = pairs.filter(|(before, after)| before[0] != after[0]).take(2).collect();
        ensure!(moved.is_empty(), "on a screen {width} px wide these move: {moved:?}");
    }
    is_content(&browser, &server)?;
    server.finish()
}

/// Requests that the page has made so far.
fn requests(browser: &mut Browser) -> Result<usize> {
    browser.evaluate("0")?; // what was told before this is here now
    Ok(browser.told("Network.requestWillBeSent").count())
}

/// Without its server the page says so and asks ever less often; it goes on with a new one. A tab that nobody
/// sees does not ask at all.
fn end_and_new_start(kernel: &Kernel) -> Result<()> {
    let (port, mut browser) = (free_port()?, Browser::start()?);
    let start = || Server::start_at(Machine { disk: files_disk()?, ..machine(&kernel.pvh) }, port);
    let server = start()?;
    open(&mut browser, &server)?;
    let hide = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
            document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.evaluate(&hide(true))?;
    browser.wait_until("document.getElementById('state').textContent.startsWith('paused')", LIMIT)?;
    let before = requests(&mut browser)?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(requests(&mut browser)? == before, "a hidden tab asks");
    browser.evaluate(&hide(false))?;
    browser.wait_until(LIVE, LIMIT)?;
    for _ in 0..20 {
        server.get("/1k.bin", &[])?.expect(200)?;
    }
    server.finish()?;
    browser.wait_until("document.getElementById('state').className === 'lost'", LIMIT)?;
    let said = browser.evaluate("document.getElementById('state').textContent")?;
    ensure!(said.as_str().is_some_and(|said| said.starts_with("not reachable since ")), "{said}");
    let before = requests(&mut browser)?;
    std::thread::sleep(Duration::from_secs(8));
    let asked = requests(&mut browser)? - before;
    ensure!((1..=3).contains(&asked), "{asked} requests in 8 s, of which none was answered");
    let server = start()?;
    browser.wait_until(LIVE, 2 * LIMIT)?;
    let served = browser.evaluate("table('connections')[3][1][0]")?;
    ensure!(number(&served)? < 10, "{served} is the old one's");
    for bad in ["Runtime.exceptionThrown", "Runtime.consoleAPICalled"] {
        ensure!(browser.told(bad).next().is_none(), "{bad}");
    }
    server.finish()
}

/// Each metric that Grafana's dashboard asks for is there.
fn grafana(kernel: &Kernel) -> Result<()> {
    let file = crate::root().join("docs/grafana.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let server = Server::with_disk(kernel, files_disk()?)?;
    let metrics = server.get("/metrics", &[])?.expect(200)?.text();
    let panels = dashboard["panels"].as_array().context("no panels")?;
    ensure!(panels.len() >= 8, "{} panels", panels.len());
    for panel in panels {
        for target in panel["targets"].as_array().context("no targets")? {
            let query = target["expr"].as_str().context("no query")?;
            let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            let names =
                query.split(|letter| !is_letter(letter)).filter(|word| word.starts_with("ringfence_"));
            let names: Vec<_> = names.collect();
            ensure!(!names.is_empty(), "{query} asks for nothing of ours");
            for name in names {
                let is_it =
                    |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
                ensure!(metrics.lines().any(is_it), "{name} is asked for by {}", panel["title"]);
            }
        }
    }
    server.finish()
}
