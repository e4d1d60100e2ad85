//! The kernel of examples/minikernel: whether what it says is so.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Kernel, Run};
use crate::guest::Guest;
use crate::qemu::{MICROVM, Machine, exit};
use crate::{minikernel, root, work_folder};

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[
    ("minikernel::q35", |kernel| works(kernel, "q35")),
    ("minikernel::pc", |kernel| works(kernel, "pc")),
    ("minikernel::microvm", |kernel| works(kernel, MICROVM)),
    ("minikernel::without_msix", without_msix),
    ("minikernel::failing_flush", failing_flush),
    ("minikernel::size", |_| size()),
];

/// Bytes that it reads from the start of the disk, and writes behind them.
const COPIED: usize = 32 * 4096;
/// The address that QEMU's gateway, 10.0.2.2, has.
const GATEWAY: &str = "52:55:0a:00:02:02";
/// What it says when its devices have given back all memory.
const NO_PAGES: &str = "pages lent  0 of";

/// It does all that it is there for.
fn works(kernel: &Kernel, kind: &str) -> Result<()> {
    let (disk, mut content) = disk(kind)?;
    let machine = minikernel::machine(&kernel.mini, kind, json!({ "driver": "file", "filename": disk }));
    let (code, log) = ends(&machine)?;
    ensure!(code == Some(exit::PASS), "it ended with {code:?}:\n{log}");

    content.copy_within(..COPIED, COPIED);
    ensure!(std::fs::read(&disk)? == content, "the disk has not what it should:\n{log}");
    let said = |what: &str| -> Vec<&str> { log.lines().filter_map(|line| line.strip_prefix(what)).collect() };
    let sum = format!("{:016x}", checksum(&content[..COPIED]));
    ensure!(said("checksum    ") == [sum.as_str(); 2], "{sum} is what the disk has:\n{log}");
    for (what, count) in [("read        ", 2), ("write       ", 1)] {
        ensure!(said(what) == vec!["32 at once"; count], "not 32 requests at once:\n{log}");
    }
    ensure!(said("answer      ") == [GATEWAY], "{GATEWAY} is the gateway's address:\n{log}");
    let features = said("features    ");
    ensure!(features.len() == 2 && features.iter().all(|names| names.contains("VERSION_1")), "{log}");
    let pci = log.matches(", MSI-X").count();
    ensure!(pci == if kind == MICROVM { 0 } else { 2 }, "{pci} devices have MSI-X:\n{log}");
    // The disk's at least once for each batch.
    let interrupts: Vec<u32> = said("interrupts  ").iter().filter_map(|count| count.parse().ok()).collect();
    ensure!(interrupts.len() == 2 && interrupts[0] >= 4 && interrupts[1] >= 1, "too few interrupts:\n{log}");
    ensure!(log.contains(NO_PAGES), "not all pages came back:\n{log}");
    Ok(())
}

/// Without MSI-X it says so: where it does not, there is MSI-X.
fn without_msix(kernel: &Kernel) -> Result<()> {
    let (disk, _) = disk("without-msix")?;
    let mut machine = minikernel::machine(&kernel.mini, "q35", json!({ "driver": "file", "filename": disk }));
    machine.add("-global virtio-blk-pci.vectors=0");
    fails(&machine, "virtio block at 0000:00:01.0, MSI-X", "cannot assign an interrupt vector")
}

/// The flush reaches the disk: it says so if that fails.
fn failing_flush(kernel: &Kernel) -> Result<()> {
    let (disk, _) = disk("failing-flush")?;
    let node = json!({
        "driver": "blkdebug", "image": { "driver": "file", "filename": disk },
        "inject-error": [{ "event": "none", "iotype": "flush", "errno": 5 }],
    });
    let machine = minikernel::machine(&kernel.mini, "q35", node);
    fails(&machine, "flush       1 at once", "a request failed: the disk reports an error")
}

/// What a kernel has anyway takes less than 300 lines of code, and the README has this number and that of all
/// lines, up to tens.
fn size() -> Result<()> {
    const OWN: [&str; 3] = ["boot.rs", "interrupts.rs", "memory.rs"];
    let (mut own, mut all) = (0, 0);
    for entry in std::fs::read_dir(root().join("examples/minikernel/src"))? {
        let entry = entry?;
        let text = std::fs::read_to_string(entry.path())?;
        let is_code = |line: &&str| !line.is_empty() && !line.starts_with("//");
        let lines = text.lines().map(str::trim).filter(is_code).count();
        all += lines;
        own += if OWN.iter().any(|name| entry.file_name() == *name) { lines } else { 0 };
    }
    ensure!(own < 300, "{OWN:?} have {own} lines");
    let said = format!("{} lines of code, {} of which", all.next_multiple_of(10), own.next_multiple_of(10));
    ensure!(std::fs::read_to_string(root().join("README.md"))?.contains(&said), "README.md has no {said:?}");
    Ok(())
}

/// A new image called `name`, and what is on it.
fn disk(name: &str) -> Result<(PathBuf, Vec<u8>)> {
    let disk = work_folder("minikernel")?.join(format!("{name}.img"));
    let content = minikernel::content();
    std::fs::write(&disk, &content)?;
    Ok((disk, content))
}

/// It goes as far as to `last`, says why it fails, and has all memory back.
fn fails(machine: &Machine, last: &str, why: &str) -> Result<()> {
    let (code, log) = ends(machine)?;
    let lines: Vec<&str> = log.lines().collect();
    let said = matches!(lines[..], [.., before, pages, failed]
        if before == last && pages.starts_with(NO_PAGES) && failed == format!("failed      {why}"));
    ensure!(code == Some(exit::FAIL) && said, "{last}, {why} was expected, not {code:?}:\n{log}");
    Ok(())
}

/// How `machine` ends, and what it has printed.
fn ends(machine: &Machine) -> Result<(Option<i32>, String)> {
    let mut guest = Guest::start(machine.command()?)?;
    let status = guest.wait_exit(Duration::from_secs(20))?;
    let log = guest.kill();
    let status = status.with_context(|| format!("it does not end:\n{log}"))?;
    Ok((status.code(), log))
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
