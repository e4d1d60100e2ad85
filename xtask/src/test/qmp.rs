//! QEMU's control channel (`docs/interop/qmp-spec.txt` of QEMU): a line of JSON for each command, answer and
//! event.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::system::free_port;
use crate::qemu::Machine;

/// How long QEMU may take to listen, and to say anything that is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// A connection to a QEMU.
pub struct Qmp {
    lines: BufReader<TcpStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Has `machine` listen; returns the port for [`connect`](Self::connect).
    pub fn listen(machine: &mut Machine) -> Result<u16> {
        let port = free_port()?;
        machine.add(&format!("-qmp tcp:127.0.0.1:{port},server=on,wait=off"));
        Ok(port)
    }

    /// Connects to a machine that has been started.
    pub fn connect(port: u16) -> Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => ensure!(start.elapsed() < LIMIT, error),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut qmp = Self { lines: BufReader::new(stream), events: VecDeque::new() };
        let greeting = qmp.line()?;
        ensure!(greeting["QMP"].is_object(), "no greeting: {greeting}");
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Carries out a command; returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.lines.get_mut().write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut line = self.line().context(command.to_owned())?;
            if line["event"].is_string() {
                self.events.push_back(line);
            } else if line["error"].is_object() {
                bail!("{command}: {}", line["error"]["desc"]);
            } else {
                return Ok(line["return"].take());
            }
        }
    }

    /// The next event called `name`; those before it are left out.
    pub fn wait_for(&mut self, name: &str) -> Result<Value> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.line().with_context(|| format!("no {name}"))?,
            };
            if event["event"] == name {
                return Ok(event);
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).context("QEMU says nothing")?;
        ensure!(count > 0, "QEMU has hung up");
        Ok(serde_json::from_str(&line)?)
    }
}
