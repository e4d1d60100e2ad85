//! Honest clients beside crowds that are not, on the whole guest: `crowd.py` plays the crowds.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::served::files_disk;
use super::{Kernel, Run, machine, namespace};
use crate::guest::Guest;
use crate::qemu::{self, Machine};
use crate::test::client::content;

/// The tests here; they measure time.
pub const TESTS: &[(&str, Run)] = &[
    ("fairness::with_512_mib", |kernel| fairness(kernel, 512)),
    ("fairness::with_16_mib", |kernel| fairness(kernel, 16)),
];

const HONEST: usize = 20;
/// Bytes that each of them fetches.
const BYTES: u64 = 100_000;
/// The median may take so long, or so many times what it takes without a crowd on a machine that has more to
/// do.
const LIMIT: Duration = Duration::from_secs(5);
const TIMES: u32 = 30;

const CROWDS: [&[&str]; 9] = [
    &["SlowReaders"],
    &["SlowRequests"],
    &["Idle"],
    &["Syns"],
    &["Resets"],
    &["Bodies"],
    &["LastAnswers"],
    &["SlowReaders", "SlowRequests", "Idle", "Syns", "Resets"],
    &["SlowReaders", "SlowRequests", "Idle", "Syns", "Resets"],
];

/// All honest clients get all bytes beside each crowd, one after the other, in the median within 5 s; and
/// what the crowds leave behind, tasks and what the cache holds, is at most a quarter of RAM.
fn fairness(kernel: &Kernel, memory: u32) -> Result<()> {
    let server = Server::start(kernel, memory)?;
    let (alone, last) = server.serves()?;
    println!("       {memory} MiB: median {alone:.2?}, slowest {last:.2?}, alone");
    for kinds in CROWDS {
        server.serves_beside(kinds, alone).with_context(|| format!("{memory} MiB, {kinds:?}"))?;
    }
    let (most, rest) = (u64::from(memory) << 20 >> 2, server.memory_at_rest()?);
    println!("       {memory} MiB: heap at rest {rest} bytes");
    ensure!(rest < most, "the crowds left {rest} bytes of heap in use");
    Ok(())
}

/// A crowd, that leaves when this is dropped.
struct Crowd(Child);

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

struct Server {
    guest: Guest,
    expected: Vec<u8>,
}

impl Server {
    fn start(kernel: &Kernel, memory: u32) -> Result<Self> {
        let machine = Machine {
            memory,
            disk: files_disk()?,
            tap: Some(namespace::TAP.into()),
            address: Some("10.77.0.2/24,10.77.0.1".parse()?),
            ..machine(&kernel.pvh)
        };
        let mut arguments = namespace::arguments("10.77.0.1/24", "qemu-system-x86_64");
        arguments.extend(machine.arguments());
        let mut guest = Guest::start(qemu::tethered("unshare", arguments)?)?;
        let up = guest.wait_until(Duration::from_secs(60), |log| log.contains("serving at   http://10.77"));
        up.context("the guest does not come up")?;
        Ok(Self { guest, expected: content(6, 0, BYTES) })
    }

    fn serves_beside(&self, kinds: &[&str], alone: Duration) -> Result<()> {
        let script = include_str!("crowd.py");
        let mut python = namespace::inside(self.guest.id(), "python3");
        python.args(["-c", script]).args(kinds).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut crowd = Crowd(python.spawn().context("cannot start Python")?);
        let mut line = String::new();
        BufReader::new(crowd.0.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "here\n", "the crowd did not come");
        let (median, last) = self.serves()?;
        println!("       median {median:.2?}, slowest {last:.2?}, beside {}", kinds.join(", "));
        ensure!(median < LIMIT.max(alone * TIMES), "the median is {median:?}, and {alone:?} alone");
        Ok(())
    }

    /// How long honest clients that come at once took: the median, and the slowest.
    fn serves(&self) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        let clients = (0..HONEST).map(|_| {
            let mut curl = namespace::curl(self.guest.id(), 50, "http://10.77.0.2/1m.bin");
            curl.args(["-r", &format!("0-{}", BYTES - 1)]).stdout(Stdio::piped()).stderr(Stdio::piped());
            Ok(curl.spawn()?)
        });
        let clients = clients.collect::<Result<Vec<Child>>>()?;
        let finish = |client: Child| {
            let output = client.wait_with_output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
            ensure!(output.stdout == self.expected, "wrong bytes");
            Ok(start.elapsed())
        };
        let times = std::thread::scope(|scope| {
            let waiting: Vec<_> =
                clients.into_iter().map(|client| scope.spawn(move || finish(client))).collect();
            waiting.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        let failed: Vec<_> = times.iter().filter_map(|time| time.as_ref().err()).collect();
        ensure!(failed.is_empty(), "{} of {HONEST} got nothing: {:#}", failed.len(), failed[0]);
        let mut times: Vec<Duration> = times.into_iter().flatten().collect();
        times.sort_unstable();
        Ok((times[HONEST / 2], times[HONEST - 1]))
    }

    /// Bytes of the heap in use once nobody is connected any more.
    fn memory_at_rest(&self) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut curl = namespace::curl(self.guest.id(), 10, "http://10.77.0.2/metrics");
            let text = String::from_utf8(curl.output()?.stdout)?;
            let value = |name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            if value("ringfence_tcp_connections") == Some(1) {
                return value("ringfence_heap_used_bytes").context("no heap in /metrics");
            }
            ensure!(Instant::now() < deadline, "connections do not end:\n{text}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
