//! What the tests of devices share: the machine's functions, drivers brought up as the kernel does, and the
//! executor.
#![allow(dead_code, reason = "each test image uses a part")]

use alloc::vec::Vec;
use core::future::Future;
use core::time::Duration;

use ringfence_drivers::block::{Block, Options};
use ringfence_drivers::net::Net;
use ringfence_drivers::pci::{self, Function};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::acpi::Tables;
use ringfence_kernel::boot::Boot;
use ringfence_kernel::devices::bus::BusTransport;
use ringfence_kernel::devices::{bring_up, config_access};
use ringfence_kernel::interrupts::device::DeviceInterrupts;
use ringfence_kernel::memory::space;
use ringfence_kernel::{executor, fw_cfg, testing, time};
use ringfence_memory::{ConfigAccess, DmaWindows};
use spin::Once;

pub type Disk = Block<BusTransport>;
pub type Card = Net<BusTransport>;

static TABLES: Once<Tables> = Once::new();
static ACCESS: Once<&'static dyn ConfigAccess> = Once::new();

/// Keeps what the tests need of the boot.
pub fn keep(boot: Boot) {
    TABLES.call_once(|| boot.acpi);
}

pub fn tables() -> &'static Tables {
    TABLES.get().expect("the image's `main` keeps them")
}

/// Configuration space the way the kernel chooses.
pub fn config() -> &'static dyn ConfigAccess {
    *ACCESS.call_once(|| config_access(tables()))
}

pub fn functions() -> Vec<Function> {
    pci::enumerate(config(), 0).collect()
}

/// The functions of a kind.
pub fn functions_for(kind: DeviceType) -> Vec<Function> {
    functions().into_iter().filter(|function| probe(function) == Match::Virtio(kind)).collect()
}

/// The ring features that QEMU offers here (virtio 1.4, section 6): those that the host says, and RING_RESET.
pub fn rings() -> u64 {
    let said = fw_cfg::option("rings").expect("the host says what it offers");
    said.parse::<u64>().expect("a number") | 1 << 40
}

pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const RING_PACKED: u64 = 1 << 34;

/// The first disk, with a queue of up to `size` descriptors.
pub fn start_disk(size: u16) -> (Disk, DeviceInterrupts, DmaWindows) {
    start_disk_with(&Options { queue_size: size, ..Options::default() })
}

pub fn start_disk_with(options: &Options) -> (Disk, DeviceInterrupts, DmaWindows) {
    let function = functions_for(DeviceType::BLOCK)[0];
    bring_up(&function, options.queues, |transport, grant, windows| {
        Block::with_options(transport, grant, windows, options)
    })
    .expect("the disk starts")
}

pub fn start_card(function: &Function) -> (Card, DeviceInterrupts, DmaWindows) {
    bring_up(function, 2, Net::new).expect("the network card starts")
}

/// The page tables are as they should be.
#[track_caller]
pub fn assert_audit_clean() {
    let report = space().audit();
    let findings: Vec<_> = report.findings().collect();
    assert!(report.ok(), "{findings:?}");
}

/// Tries until there is something.
#[track_caller]
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = time::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(time::now() - start < Duration::from_secs(10), "{what}: not within 10 s");
        core::hint::spin_loop();
    }
}

/// Runs a future as the first task of the executor, and ends the test when it ends.
pub fn run(test: impl Future<Output = ()> + 'static) -> ! {
    run_with(Vec::new(), test)
}

pub use executor::Task;

/// Runs `tasks` beside `test`.
pub fn run_with(tasks: Vec<Task>, test: impl Future<Output = ()> + 'static) -> ! {
    executor::run(|spawner| {
        for task in tasks {
            executor::spawn(&spawner, task);
        }
        executor::spawn(&spawner, async {
            test.await;
            testing::pass();
        });
    })
}

/// The same numbers in each run, well mixed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// What the host filled a `blk-numbered` disk with: each 8 bytes are their own byte offset.
pub fn numbered(sector: u64, len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|word| (sector * 512 + word * 8).to_le_bytes()).collect()
}
