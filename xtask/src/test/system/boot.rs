//! What a start costs: instructions, time to the first byte, and memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::served::files_disk;
use super::{Kernel, Run, Server, free_port, machine};
use crate::guest::Guest;
use crate::qemu::{Boot, Machine};
use crate::test::client::{compare, start_download};
use crate::work_folder;

/// The tests here; they measure time.
pub const TESTS: &[(&str, Run)] = &[
    ("boot::instructions_to_the_first_read", instructions),
    ("boot::first_byte_for_a_client_from_the_start", |kernel| first_byte(kernel, Duration::ZERO)),
    ("boot::first_byte_for_a_client_before_the_start", |kernel| {
        first_byte(kernel, Duration::from_millis(300))
    }),
    ("boot::small_kernel_serves_in_16_mib", footprint),
];

/// From the kernel's first instruction to the end of the first read of a block.
const MOST_INSTRUCTIONS: u64 = 2_000_000;
/// From the kernel's first instruction to the first byte that a client gets which was there before. The goal
/// is 150 ms; the rest is for machines that have other work, too.
const FIRST_BYTE: Duration = Duration::from_millis(3 * 150);
const ROUNDS: usize = 5;
/// Of the stripped kernel.
const MOST_BYTES: u64 = 1 << 20;
/// Long enough for anything that does not hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Under `-icount` the time-stamp counter counts instructions, and time jumps while the processor halts,
/// which the kernel leaves out.
fn instructions(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, port: Some(free_port()?), ..machine(&kernel.pvh) };
    machine.add("-icount shift=0,sleep=off");
    let mut guest = Guest::start(machine.command()?)?;
    let log = guest.wait_until(PATIENCE, |log| log.contains(" cycles without halts\n"))?;
    let count = log.split(" cycles without halts").next().and_then(|before| before.rsplit(' ').next());
    let count: u64 = count.unwrap_or_default().parse().context("no count in the log")?;
    println!("       {count} instructions from entry to the first block read");
    // Reading configuration space and filling the queues alone takes more than the lower bound.
    ensure!((100_000..=MOST_INSTRUCTIONS).contains(&count), "{count} instructions");
    Ok(())
}

/// The median of some starts, with a client that connected `before` the machine starts, or as soon as it can.
fn first_byte(kernel: &Kernel, before: Duration) -> Result<()> {
    let mut times = (0..ROUNDS).map(|_| time_first_byte(kernel, before)).collect::<Result<Vec<_>>>()?;
    times.sort();
    let median = times[ROUNDS / 2];
    println!("       {median:.1?} from entry to the first byte, of {times:.1?}");
    ensure!(median <= FIRST_BYTE, "{median:?} from entry to the first byte");
    Ok(())
}

fn time_first_byte(kernel: &Kernel, before: Duration) -> Result<Duration> {
    let (port, monitor) = (free_port()?, free_port()?);
    let mut machine = Machine { disk: files_disk()?, port: Some(port), ..machine(&kernel.pvh) };
    machine.add(&format!("-S -monitor tcp:127.0.0.1:{monitor},server=on,wait=off"));
    let mut guest = Guest::start(machine.command()?)?;
    let mut client = connect(port)?;
    client.write_all(b"GET /notes.txt HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
    sleep(before);
    // Kept open: QEMU forgets what it has not read of a connection that is closed.
    let mut monitor = connect(monitor)?;
    monitor.write_all(b"cont\n")?;

    let reads = std::thread::spawn(move || -> Result<_> {
        client.read_exact(&mut [0])?;
        Ok(Instant::now())
    });
    // The guest says how long after its first instruction it prints this line.
    let log = guest.wait_until(PATIENCE, |log| log.contains(" ms after start\n"))?;
    let printed = Instant::now();
    let since = log.split(" ms after start").next().and_then(|before| before.rsplit(' ').next());
    let since = Duration::from_millis(since.unwrap_or_default().parse().context("no time in the log")?);
    let entry = printed.checked_sub(since).context("the guest started before this computer")?;
    let first = reads.join().expect("reading does not panic").context("no answer")?;
    Ok(first.saturating_duration_since(entry))
}

/// A connection to what QEMU listens on, as soon as it does.
fn connect(port: u16) -> Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(connection) => {
                connection.set_read_timeout(Some(PATIENCE))?;
                return Ok(connection);
            }
            Err(error) => ensure!(Instant::now() < deadline, error),
        }
        sleep(Duration::from_millis(1));
    }
}

/// The kernel without its symbols, in 16 MiB of RAM: long files for several at once, and all that it tells
/// about itself.
fn footprint(kernel: &Kernel) -> Result<()> {
    let Boot::Pvh(elf) = &kernel.pvh else { unreachable!("it is loaded by QEMU") };
    let stripped = work_folder("scratch")?.join("stripped-kernel");
    let strip =
        Command::new("strip").arg("-o").args([&stripped, elf]).output().context("cannot start strip")?;
    ensure!(strip.status.success(), "strip: {}", String::from_utf8_lossy(&strip.stderr));
    let bytes = stripped.metadata()?.len();
    println!("       {bytes} bytes without symbols");
    ensure!(bytes <= MOST_BYTES, "the stripped kernel has {bytes} bytes");

    let boot = Boot::Pvh(stripped);
    let server = Server::start(Machine { disk: files_disk()?, memory: 16, ..machine(&boot) })?;
    let downloads = (0..8).map(|_| start_download(&server.url("/16m.bin"), 120));
    for download in downloads.collect::<Result<Vec<_>>>()? {
        compare(download, 8, 16 << 20)?;
    }
    for path in ["/", "/many/", "/metrics", "/api/devices"] {
        server.get(path, &[])?.expect(200).context(path)?;
    }
    server.finish()
}
