//! The running system: devices, file system, network stack and HTTP server, each as tasks of one executor.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::x86_64::{__cpuid, _rdrand64_step};
use core::fmt::Arguments;
use core::time::Duration;

use embassy_executor::Spawner;
use embassy_futures::yield_now;
use embassy_time::Timer;
use ringfence_memory::PAGE_SIZE;
use ringfence_services::api::Api;
use ringfence_services::block::{BlockSource, Part};
use ringfence_services::fs::{Choice, FileSystem, open_first};
use ringfence_services::http::{self, Limits, Server};
use ringfence_services::net::{Addressing, Config, Stack, TcpConfig};
use smoltcp::wire::Ipv4Cidr;

use crate::acpi::Power;
use crate::boot::Boot;
use crate::devices::Devices;
use crate::devices::disk::Disk;
use crate::devices::nic::Nic;
use crate::devices::rng::Entropy;
use crate::devices::slots;
use crate::devices::status::{Files, Networks, Status};
use crate::static_address::StaticAddress;
use crate::{executor, fw_cfg, memory, power, time};

const HTTP_PORT: u16 = 80;
/// How long answers may take that are under way when the system is asked to end.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

type HttpServer = Server<FileSystem<Part<&'static Disk>>, Api<Status>>;

/// Runs the system for good.
pub fn run(boot: Boot) -> ! {
    log::info!("Ringfence {}\n{boot}", env!("CARGO_PKG_VERSION"));
    let (devices, started) = Devices::start(&boot.acpi);
    log::info!("devices");
    devices.log();
    let devices = Rc::new(devices);

    let ram = memory::space().frames().total() as u64 * PAGE_SIZE as u64;
    let (files, networks) = (Rc::new(Files::new()), Rc::new(Networks::default()));
    let status = Status::new(devices.clone(), files.clone(), networks.clone());
    let server = Server::new(files.clone(), Api(status), Limits::default()).with_clock(time::wall);
    let server: &'static HttpServer = Box::leak(Box::new(server));
    // What is spawned last runs first: disk and network have something to do before the rest is ready for it.
    executor::run(|spawner| {
        executor::spawn(&spawner, settle());
        executor::spawn(&spawner, end_when_asked(boot.acpi.power, server, devices.clone()));
        executor::spawn(&spawner, slots::watch(started.slots, devices));
        if started.nics.is_empty() {
            log::warn!("there is no usable network device: nothing can be served");
        }
        let tcp = TcpConfig::for_memory(HTTP_PORT, ram / started.nics.len().max(1) as u64);
        // What the options say is about the first card.
        let mut options = NetOptions::read();
        for nic in started.nics {
            let NetOptions { addressing, url } = core::mem::take(&mut options);
            let config = Config { addressing, seed: seed(started.entropy.as_deref()), tcp };
            let stack: &'static Stack<Nic> = Box::leak(Box::new(Stack::new(nic, config)));
            networks.borrow_mut().push(stack);
            executor::spawn(&spawner, start_workers(spawner, stack, server, tcp.connections));
            executor::spawn(&spawner, announce(stack, addressing, url));
            executor::spawn(&spawner, async { stack.run().await });
        }
        let disks: Vec<&'static Disk> = started.disks.iter().map(|(disk, _)| *disk).collect();
        for (disk, interrupts) in started.disks {
            disk.tasks(interrupts).into_iter().for_each(|task| executor::spawn(&spawner, task));
        }
        executor::spawn(&spawner, open_disk(files, disks, ram));
    })
}

/// Starts the tasks that serve connections, one for each that finds no task free: up to `most`, and as memory
/// allows. They stay.
async fn start_workers(
    spawner: Spawner,
    stack: &'static Stack<Nic>,
    server: &'static HttpServer,
    most: usize,
) {
    for _ in 0..most {
        stack.wait_unserved().await;
        let worker = || async { http::worker(stack, server).await };
        while executor::try_spawn(&spawner, worker()).is_err() {
            Timer::after_millis(100).await;
        }
        // It looks for its connection first.
        yield_now().await;
    }
}

/// What can wait until the system serves.
async fn settle() {
    time::refine().await;
    log_audit().await;
}

/// What a card is told by options.
struct NetOptions {
    addressing: Addressing,
    /// Where clients find the server, if not at the card's address.
    url: Option<String>,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { addressing: Addressing::Dhcp, url: None }
    }
}

impl NetOptions {
    /// Those of the command line. An address that is none is not used.
    fn read() -> Self {
        let mut options = Self { url: fw_cfg::option("url"), ..Self::default() };
        let Some(text) = fw_cfg::option("address") else { return options };
        match text.parse() {
            Ok(StaticAddress { address, prefix, gateway }) => {
                options.addressing = Addressing::Static { address: Ipv4Cidr::new(address, prefix), gateway };
            }
            Err(why) => log::warn!("option address={} is ignored: {why}", text.escape_debug()),
        }
        options
    }
}

/// Ends the system in good order when its power button is pressed.
async fn end_when_asked(power: Option<Power>, server: &'static HttpServer, devices: Rc<Devices>) {
    power::pressed(power.as_ref()).await;
    log::info!("power button: {} connections are served to their end", server.open());
    server.stop();
    let served = time::look_for(LAST_ANSWERS, || (server.open() == 0).then_some(())).await;
    if served.is_none() {
        log::warn!("{} connections are cut off", server.open());
    }
    devices.leave(None).await;
    log::info!("off          {} ms after start", time::now().as_millis());
    power::off(power.as_ref())
}

/// Says where to find the server, once it has an address.
async fn announce(stack: &'static Stack<Nic>, addressing: Addressing, url: Option<String>) {
    let address = stack.wait_address().await;
    let origin = match addressing {
        Addressing::Dhcp => "by DHCP",
        Addressing::Static { .. } => "as told",
    };
    log::info!("address      {address} {origin}, {} ms after start", time::now().as_millis());
    match url {
        Some(url) => log::info!("serving at   {url}"),
        None => log::info!("serving at   http://{}/", address.address()),
    }
}

/// Opens the first file system on the disks that can be served, or the partition that is asked for.
async fn open_disk(files: Rc<Files>, disks: Vec<&'static Disk>, ram: u64) {
    if let Some(first) = disks.first() {
        try_out(first).await;
    }
    let opened = files.open(async {
        let named: Vec<(&str, &'static Disk)> = disks.iter().map(|disk| (disk.address(), *disk)).collect();
        let cache = (ram / 8).clamp(1 << 20, 64 << 20) as usize;
        let say = &mut |line: Arguments<'_>| log::info!("not served   {line}");
        // On the heap: whoever passes a future on holds it twice, and this one is large.
        let choice = Box::pin(open_first(&named, wanted_partition(), cache, say)).await?;
        let disk = disks[choice.disk];
        // A few MiB of buffers where there is plenty of RAM, a few hundred KiB where there is not.
        let buffers = (ram >> 24).clamp(2, 16) as usize;
        if let Err(error) = disk.enlarge(buffers) {
            log::warn!("no memory for disk buffers, reads are slower: {error}");
        }
        log_choice(&choice, disk);
        Ok(choice.files)
    });
    if let Err(why) = opened.await {
        log::warn!("no files can be served. {why}");
    }
}

/// The number that the option says.
fn wanted_partition() -> Option<u32> {
    let number = fw_cfg::option("partition")?;
    number.parse().inspect_err(|error| log::warn!("option partition is ignored: {error}")).ok()
}

fn log_choice(choice: &Choice<&'static Disk>, disk: &Disk) {
    let part = choice.partition.map(|number| alloc::format!("partition {number} of ")).unwrap_or_default();
    log::info!(
        "disk         ext4 \"{}\", {} MiB, blocks of {} bytes, on {part}{}",
        String::from_utf8_lossy(choice.files.label()),
        choice.files.size_bytes() >> 20,
        choice.files.block_size(),
        disk.address()
    );
    match (choice.files.blocks_in_journal(), choice.files.fast_commits()) {
        (0, 0) => {}
        (count, 0) => log::info!("             not unmounted; blocks read from its journal: {count}"),
        (count, fast) => {
            log::info!(
                "             not unmounted; blocks read from its journal: {count}, fast commits: {fast}"
            );
        }
    }
}

/// Reads a first block and says what that took. With QEMU's `-icount shift=0` the cycles are instructions.
async fn try_out(disk: &Disk) {
    // From the start of the disk, for the sake of those with large blocks.
    let mut start = alloc::vec![0; PAGE_SIZE];
    if disk.read(0, &mut [&mut start]).await.is_ok() {
        let cycles = time::since_entry().saturating_sub(executor::halted());
        log::info!("first read   after {} ms, {cycles} cycles without halts", time::now().as_millis());
    }
}

async fn log_audit() {
    let mut audit = memory::space().start_audit();
    let report = loop {
        match audit.step() {
            Some(report) => break report,
            None => yield_now().await,
        }
    };
    if report.ok() {
        log::info!("audit        clean: {} tables, {} leaves", report.tables, report.leaves);
    } else {
        log::error!("the audit of the page tables found {} violations", report.violations);
        report.findings().for_each(|finding| log::error!("  {finding}"));
    }
}

/// Bits that the network cannot guess: the kernel's own, and mixed with them those of the entropy device, if
/// there is one, so that a bad device makes them no worse.
fn seed(entropy: Option<&Entropy>) -> u64 {
    let bits = entropy.map(Entropy::bits).transpose();
    own_seed() ^ bits.inspect_err(|error| log::warn!("no entropy: {error}")).ok().flatten().unwrap_or(0)
}

/// From the processor's random numbers where it has them, else from the clock.
fn own_seed() -> u64 {
    // CPUID 1, ECX bit 30.
    if __cpuid(1).ecx & 1 << 30 != 0 {
        let mut bits = 0;
        // SAFETY: the processor has the instruction.
        if (0..10).any(|_| unsafe { rdrand(&mut bits) }) {
            return bits;
        }
    }
    time::tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[target_feature(enable = "rdrand")]
fn rdrand(bits: &mut u64) -> bool {
    _rdrand64_step(bits) == 1
}
