//! What QEMU does to a running guest on command.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::served::files_disk;
use super::{Kernel, Run, Server, machine};
use crate::qemu::Machine;
use crate::test::client::{compare, start_download};
use crate::test::qmp::Qmp;

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[("events::nmi", nmi)];

/// Interrupts that nothing masks, whatever the guest does just now: each is reported, and it goes on.
fn nmi(kernel: &Kernel) -> Result<()> {
    const COUNT: usize = 50;
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    let port = Qmp::listen(&mut machine)?;
    let mut server = Server::start(machine)?;
    let mut qmp = Qmp::connect(port)?;
    qmp.execute("inject-nmi", json!({}))?;
    let log = server.wait_for_log("hardware has failed\n")?;
    ensure!(log.contains("non-maskable interrupt at 0xffffffff8"), "it does not say where:\n{log}");
    let download = start_download(&server.url("/16m.bin"), 60)?;
    for _ in 0..COUNT {
        qmp.execute("inject-nmi", json!({}))?;
        sleep(Duration::from_millis(5));
    }
    compare(download, 8, 16 << 20)?;
    server.finish()
}
