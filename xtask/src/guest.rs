//! A running QEMU whose serial port is captured.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A started program with what it has printed so far. Dropping it kills the program.
pub struct Guest {
    child: Child,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

/// More than this of a guest's output is not kept: a guest that prints for ever must not fill our memory.
const MOST_OUTPUT: usize = 16 << 20;

impl Guest {
    /// Starts `command`, standard output and standard error captured together.
    pub fn start(mut command: Command) -> Result<Self> {
        let (mut reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        drop(command); // and with it our ends of the pipe
        let output = Arc::new(Output::default());
        let shared = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                let mut state = shared.lock();
                if state.0.len() < MOST_OUTPUT {
                    state.0.extend_from_slice(&chunk[..count]);
                }
                shared.changed.notify_all();
            }
            shared.lock().1 = true;
            shared.changed.notify_all();
        });
        Ok(Self { child, output })
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        text(&self.output.lock().0)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `done` holds for the output; returns the output. An error if it ends first, or in `limit`.
    pub fn wait_until(&mut self, limit: Duration, done: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut state = self.output.lock();
        loop {
            let (output, ended) = (text(&state.0), state.1);
            if done(&output) {
                return Ok(output);
            } else if ended {
                drop(state);
                bail!("QEMU ended too early ({}): {}", self.child.wait()?, last_line(&output));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("nothing in {} s; last line: {}", limit.as_secs_f32(), last_line(&output));
            }
            state = self.output.changed.wait_timeout(state, left).expect("the reader does not panic").0;
        }
    }

    /// Waits for its end; `None` if that has not come in `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            } else if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills it and waits for the rest of its output; returns all of it.
    pub fn kill(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut state = self.output.lock();
        while !state.1 && Instant::now() < deadline {
            state = self
                .output
                .changed
                .wait_timeout(state, Duration::from_millis(50))
                .expect("the reader does not panic")
                .0;
        }
        text(&state.0)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().expect("the reader does not panic")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

/// The last line that says something.
pub fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output").trim()
}
