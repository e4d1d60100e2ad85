//! A browser without a screen, over the DevTools protocol: JSON with a NUL behind it, on two pipes.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Skipped;
use crate::qemu::tethered;
use crate::setup;

/// How long it may take to start, or to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// It reads commands from descriptor 3 and writes to descriptor 4.
const START: &str = r#"exec chromium --headless --no-sandbox --disable-gpu --no-first-run --no-proxy-server \
    --disable-component-update --disable-background-networking --disable-dev-shm-usage \
    --remote-debugging-pipe --user-data-dir="$0" about:blank 3<&0 4>&1 0</dev/null 1>&2 2>/dev/null"#;

/// A browser with one tab. Dropping it ends it.
pub struct Browser {
    child: Child,
    messages: Receiver<Value>,
    profile: PathBuf,
    session: Option<Value>,
    number: u64,
    /// What it told by itself.
    pub events: Vec<Value>,
}

impl Browser {
    /// Starts one; the test is skipped where there is none.
    pub fn start() -> Result<Self> {
        setup::ensure_browser().map_err(|error| Skipped(format!("{error:#}")))?;
        let name = format!("ringfence-{}-{:x}.browser", std::process::id(), fastrand::u64(..));
        let profile = std::env::temp_dir().join(name);
        let mut command = tethered("sh", vec!["-c".into(), START.into(), profile.clone().into()])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start a browser")?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                if serde_json::from_slice(&message).is_ok_and(|value| sender.send(value).is_err()) {
                    break;
                }
            }
        });
        let (session, events) = (None, Vec::new());
        let mut browser = Self { child, messages, profile, session, number: 0, events };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?["targetId"].take();
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }))?;
        browser.session = Some(attached["sessionId"].clone());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Calls a method of the tab; returns the result.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone();
        }
        let input = self.child.stdin.as_mut().context("no pipe")?;
        input.write_all(format!("{message}\0").as_bytes()).context("the browser has ended")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message =
                self.messages.recv_timeout(left).with_context(|| format!("{method}: no answer"))?;
            if message["id"] != self.number {
                self.events.push(message);
                continue;
            }
            ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
            return Ok(message["result"].take());
        }
    }

    /// The value of an expression, or of its promise.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut result = self.call("Runtime.evaluate", parameters)?;
        ensure!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        Ok(result["result"]["value"].take())
    }

    /// Waits until a condition holds.
    pub fn wait_until(&mut self, condition: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.evaluate(condition)? != true {
            if start.elapsed() > limit {
                bail!(
                    "not in {} s: {condition}; the page says {}",
                    limit.as_secs(),
                    self.evaluate("document.body.innerText")?
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The parameters of each event of this name so far.
    pub fn told<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["method"] == name).map(|event| &event["params"])
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
