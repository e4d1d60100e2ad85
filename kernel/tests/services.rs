//! The kernel's own parts between drivers and services: a disk with many readers, and network cards under the
//! stack.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

mod support;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Poll;

use embassy_time::{Duration, Instant, Timer, with_timeout};
use ringfence_drivers::net::Phy;
use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{Counters, DeviceType};
use ringfence_kernel::devices::disk::Disk;
use ringfence_kernel::devices::nic::Nic;
use ringfence_kernel::devices::{Devices, Home, Started, disk};
use ringfence_kernel::interrupts::device::DeviceInterrupts;
use ringfence_kernel::platform::KERNEL;
use ringfence_kernel::testing::On;
use ringfence_kernel::{executor, interrupts};
use ringfence_memory::{ConfigAccess, ConfigSpace, DmaWindows, PciAddress};
use ringfence_services::block::{BlockError, BlockSource, MAX_READ};
use ringfence_services::net::{Addressing, Config, Stack, TcpConfig};

use support::{
    Random, Task, assert_audit_clean, config, functions_for, numbered, run_with, start_card, start_disk,
    tables,
};

ringfence_kernel::entry!(main);

fn main(boot: ringfence_kernel::boot::Boot) -> ! {
    support::keep(boot);
    run_tests();
    unreachable!("the harness leaves QEMU")
}

const READERS: usize = 64;
const SECTORS: u64 = 32768;

/// The drivers of all devices, as the system starts them, with a task for each disk.
fn start() -> (Devices, Vec<&'static Disk>, Vec<Nic>, Vec<Task>) {
    let (devices, Started { disks, nics, .. }) = Devices::start(tables());
    devices.log();
    let all = disks.iter().map(|(disk, _)| *disk).collect();
    let tasks = disks.into_iter().flat_map(|(disk, calls)| disk.tasks(calls)).collect();
    (devices, all, nics, tasks)
}

/// What the disk's only queue has done.
fn counters(disk: &Disk) -> Counters {
    disk.queues()[0].counters()
}

/// How often the disk has interrupted for its only queue, as shown.
fn interrupts_of(devices: &Devices, disk: &Disk) -> u64 {
    let address = disk.address().to_string();
    let mut all = (0..).map_while(|index| devices.info(index));
    let shown = all.find(|info| info.address == address).expect("it is listed");
    shown.queues[0].interrupts
}

/// Reads something and checks it. Most reads are of one page, some are long.
async fn read_some(disk: &Disk, random: &mut Random) -> Result<(), BlockError> {
    let pages = if random.below(8) == 0 { 2 + random.below(MAX_READ as u64 / 4096 - 1) } else { 1 };
    let sector = random.below(SECTORS - pages * 8);
    let mut bufs: Vec<Vec<u8>> = (0..pages).map(|_| alloc::vec![0; 4096]).collect();
    let mut slices: Vec<&mut [u8]> = bufs.iter_mut().map(Vec::as_mut_slice).collect();
    disk.read(sector, &mut slices).await?;
    for (page, buf) in (0..).zip(&bufs) {
        assert!(*buf == numbered(sector + page * 8, 4096), "page {page} of {pages} from sector {sector}");
    }
    Ok(())
}

/// `READERS` tasks that read `reads` times each. `left` is how many are still at it, `failed` how many reads
/// failed.
fn read_as_tasks(
    disk: &'static Disk,
    reads: usize,
    left: &Rc<Cell<usize>>,
    failed: &Rc<Cell<usize>>,
) -> Vec<Task> {
    left.set(READERS);
    let reader = |reader| {
        let (left, failed) = (left.clone(), failed.clone());
        Box::pin(async move {
            let mut random = Random(reader as u64);
            for _ in 0..reads {
                if let Err(error) = read_some(disk, &mut random).await {
                    assert_eq!(error, BlockError::Device);
                    failed.set(failed.get() + 1);
                }
            }
            left.set(left.get() - 1);
        }) as Task
    };
    (0..READERS).map(reader).collect()
}

async fn all_done(left: &Cell<usize>, limit: Duration) {
    let done = async {
        while left.get() > 0 {
            Timer::after_millis(5).await;
        }
    };
    assert!(with_timeout(limit, done).await.is_ok(), "{} readers still wait", left.get());
}

fn many_readers_get_their_own_data() {
    let (devices, disks, _, mut tasks) = start();
    let disk = disks[0];
    let (left, failed) = (Rc::default(), Rc::default());
    tasks.extend(read_as_tasks(disk, 100, &left, &failed));
    run_with(tasks, async move {
        all_done(&left, Duration::from_secs(20)).await;
        assert_eq!(failed.get(), 0);
        let counters = counters(disk);
        assert_eq!((counters.completions, counters.rejected), (READERS as u64 * 100, 0));
        assert!(counters.kicks < counters.submitted, "requests share notifications: {counters:?}");
        assert!(interrupts_of(&devices, disk) > 0 && executor::halts() > 0);
        assert_eq!(interrupts::unexpected(), 0);
        assert_audit_clean();
    })
}

/// Sixty-four tasks, more than there are buffers; each reads what it asked for.
#[test_case]
const MANY: On = On("blk-numbered", &many_readers_get_their_own_data);

fn readers_over_mmio_get_their_own_data() {
    many_readers_get_their_own_data();
}
/// The same over registers in memory, by a line of its own.
#[test_case]
const OVER_MMIO: On = On("microvm,blk-numbered,formats", &readers_over_mmio_get_their_own_data);

fn slow_disk_keeps_nobody_else_waiting() {
    let (_devices, disks, _, mut tasks) = start();
    let (left, failed) = (Rc::default(), Rc::default());
    tasks.extend(read_as_tasks(disks[0], 2, &left, &failed));
    run_with(tasks, async move {
        let start = Instant::now();
        while left.get() > 0 {
            let before = Instant::now();
            Timer::after_millis(10).await;
            assert!(before.elapsed() < Duration::from_millis(250), "10 ms took {:?}", before.elapsed());
        }
        assert_eq!(failed.get(), 0);
        let elapsed = start.elapsed();
        assert!(elapsed > Duration::from_millis(500), "the disk was to be slow: {elapsed:?}");
    })
}

/// While 64 tasks wait for the disk, timers are on time.
#[test_case]
const SLOW: On = On("blk-numbered=100", &slow_disk_keeps_nobody_else_waiting);

fn errors_reach_every_reader() {
    let (_devices, disks, _, mut tasks) = start();
    let (left, failed) = (Rc::default(), Rc::default());
    tasks.extend(read_as_tasks(disks[0], 20, &left, &failed));
    run_with(tasks, async move {
        all_done(&left, Duration::from_secs(10)).await;
        assert_eq!(failed.get(), READERS * 20);
        assert!(!disks[0].is_gone());
    })
}

/// A disk that fails every read: each reader learns of it, also those that wait for a buffer.
#[test_case]
const ERRORS: On = On("blk-eio", &errors_reach_every_reader);

/// A disk from which nobody reads anything any more, from `stop` on, is given up within `limit`.
fn is_given_up(stop: fn(), limit: Duration) {
    let (devices, disks, _, mut tasks) = start();
    let disk = disks[0];
    let ended = Rc::new(Cell::new(0));
    for number in 0..READERS as u64 {
        let ended = ended.clone();
        tasks.push(Box::pin(async move {
            let mut random = Random(number);
            // Once the device has stopped, nobody reads anything.
            let error = loop {
                if let Err(error) = read_some(disk, &mut random).await {
                    break error;
                }
            };
            assert_eq!(error, BlockError::Gone);
            ended.set(ended.get() + 1);
        }));
    }
    run_with(tasks, async move {
        Timer::after_millis(100).await;
        assert_eq!((ended.get(), disk.is_gone()), (0, false));
        stop();
        let start = Instant::now();
        while ended.get() < READERS {
            Timer::after_millis(10).await;
            assert!(start.elapsed() < limit, "{} readers still wait", READERS - ended.get());
        }
        assert!(disk.is_gone());
        assert_eq!(disk.read(0, &mut [&mut [0; 512]]).await, Err(BlockError::Gone));
        assert!(devices.info(1).is_some_and(|info| info.queues[0].completions == counters(disk).completions));
        assert_audit_clean();
    })
}

fn stopped_disk_is_given_up() {
    // QEMU stops a virtio device that may not master the bus, and takes DRIVER_OK out of its status.
    is_given_up(|| functions_for(DeviceType::BLOCK)[0].config().disable_bus_master(), Duration::from_secs(12))
}

fn silent_disk_is_given_up() {
    is_given_up(|| {}, Duration::from_secs(40))
}

/// One that does as told and never comes to an end.
#[test_case]
const SILENT: On = On("blk-silent,slow", &silent_disk_is_given_up);

/// A device that no longer does as told is noticed by those who wait for it, and reset.
#[test_case]
const STOPPED: On = On("blk-numbered=500", &stopped_disk_is_given_up);

/// Configuration space in which functions decode their memory only as long as [`LOOKS`] lasts.
struct Fading;

static LOOKS: AtomicUsize = AtomicUsize::new(usize::MAX);
const COMMAND: u16 = 0x04;
/// So many looks it takes to ask a device for a reset.
const TO_ASK: usize = 4;

// SAFETY: it is the kernel's own, but for reads of command registers, in which a test clears a bit.
unsafe impl ConfigAccess for Fading {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let next = |left: usize| left.checked_sub(1);
        let seen =
            offset != COMMAND || LOOKS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok();
        if seen { config().read(function, offset) } else { 0 }
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        // SAFETY: the caller answers for it.
        unsafe { config().write(function, offset, value) }
    }

    fn last_bus(&self) -> u8 {
        config().last_bus()
    }
}

fn readers_do_not_wait_for_a_reset() {
    let address = functions_for(DeviceType::BLOCK)[0].address();
    let function = Function::read(ConfigSpace::new(&Fading, address)).expect("it is there");
    let windows = DmaWindows::new(&KERNEL, address.id()).expect("nobody else has them");
    let (block, interrupts) = disk::open(&windows, &Home::Pci(function), 1).expect("the disk starts");
    let disk = Disk::new(block, windows.clone(), address).expect("there is memory");
    let mut tasks = disk.tasks(interrupts);
    let ended = Rc::new(Cell::new(0));
    for number in 0..READERS as u64 {
        let ended = ended.clone();
        tasks.push(Box::pin(async move {
            let mut random = Random(number);
            while read_some(disk, &mut random).await.is_ok() {}
            ended.set(ended.get() + 1);
        }));
    }
    run_with(tasks, async move {
        Timer::after_millis(100).await;
        let life = windows.life();
        // QEMU stops a virtio device that may not master the bus.
        function.config().disable_bus_master();
        LOOKS.store(TO_ASK, Ordering::Relaxed);
        while !disk.is_gone() {
            Timer::after_millis(10).await;
        }
        let start = Instant::now();
        while ended.get() < READERS {
            Timer::after_millis(10).await;
            assert!(start.elapsed() < Duration::from_secs(1), "{} readers still wait", READERS - ended.get());
        }
        assert!(
            windows.life() == life && LOOKS.load(Ordering::Relaxed) == 0,
            "the disk was not seen to reset"
        );
        // As soon as it is, what its queue held is free.
        LOOKS.store(usize::MAX, Ordering::Relaxed);
        Timer::after_millis(100).await;
        assert!(windows.life() != life);
        assert_audit_clean();
    })
}

/// They have their errors while the device that was given up still resets.
#[test_case]
const RESETTING: On = On("blk-numbered=500", &readers_do_not_wait_for_a_reset);

fn dropped_reads_free_their_buffers() {
    let (_devices, disks, _, mut tasks) = start();
    let disk = disks[0];
    let (left, failed) = (Rc::default(), Rc::default());
    let readers = read_as_tasks(disk, 2, &left, &failed);
    // They start when their turn has come.
    let open = Rc::new(Cell::new(false));
    for reader in readers {
        let open = open.clone();
        tasks.push(Box::pin(async move {
            while !open.get() {
                Timer::after_millis(10).await;
            }
            reader.await;
        }));
    }
    run_with(tasks, async move {
        for round in 0..5 {
            let mut reads: Vec<Pin<Box<_>>> = (0..100)
                .map(|reader| {
                    Box::pin(async move { read_some(disk, &mut Random(reader + 100 * round)).await })
                })
                .collect();
            // Some wait for a buffer, some for the device, some are done and do not know it yet.
            for read in &mut reads {
                poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_ready())).await;
            }
            Timer::after_millis(40).await;
            // In another order than they came.
            while !reads.is_empty() {
                drop(reads.swap_remove(reads.len() / 3));
            }
        }
        open.set(true);
        all_done(&left, Duration::from_secs(15)).await;
        assert_eq!(failed.get(), 0);
        assert_audit_clean();
    })
}

/// Readers that go away at any moment leave the disk to the others.
#[test_case]
const DROPPED: On = On("blk-numbered=200", &dropped_reads_free_their_buffers);

fn sixteen_disks_work_side_by_side() {
    let (devices, disks, _, mut tasks) = start();
    assert_eq!(disks.len(), 16);
    assert_audit_clean();
    let left = Rc::new(Cell::new(16));
    for (number, disk) in disks.iter().copied().enumerate() {
        let left = left.clone();
        tasks.push(Box::pin(async move {
            let name = disk.name().await.expect("it has a name");
            assert_eq!(name, alloc::format!("disk{number}").as_bytes());
            let mut random = Random(number as u64);
            for _ in 0..50 {
                read_some(disk, &mut random).await.expect("the disk is in order");
            }
            left.set(left.get() - 1);
        }));
    }
    run_with(tasks, async move {
        all_done(&left, Duration::from_secs(20)).await;
        for disk in disks {
            let (counters, interrupts) = (counters(disk), interrupts_of(&devices, disk));
            assert!(interrupts > 0 && interrupts <= counters.completions, "{interrupts}, {counters:?}");
        }
        assert_eq!(interrupts::unexpected(), 0);
        assert_audit_clean();
    })
}

/// In the least memory that the kernel is made for.
#[test_case]
const SIXTEEN: On = On("disks=16,mem=24", &sixteen_disks_work_side_by_side);

fn sixteen_disks_share_their_lines() {
    sixteen_disks_work_side_by_side()
}
/// Each line serves four of them, and each counts only its own interrupts.
#[test_case]
const SIXTEEN_LINES: On = On("disks=16,intx", &sixteen_disks_share_their_lines);

fn one_disk_too_many() {
    let (devices, disks, _, mut tasks) = start();
    assert_eq!(disks.len(), 32);
    let drivers = (0..).map_while(|index| devices.info(index)).filter(|info| info.id == "1af4:1001");
    let drivers: Vec<bool> = drivers.map(|info| info.driver.is_some()).collect();
    assert_eq!(drivers.iter().map(|has| usize::from(*has)).sum::<usize>(), 32);
    assert_eq!(drivers.len(), 33);
    let left = Rc::new(Cell::new(1));
    let done = left.clone();
    tasks.push(Box::pin(async move {
        for disk in disks {
            read_some(disk, &mut Random(1)).await.expect("the disk is in order");
        }
        done.set(0);
    }));
    run_with(tasks, async move { all_done(&left, Duration::from_secs(20)).await })
}

/// Not more are started than there is room for; what is left is listed.
#[test_case]
const TOO_MANY: On = On("disks=33", &one_disk_too_many);

/// A stack that asks for an address.
fn stack(nic: Nic) -> &'static Stack<Nic> {
    let tcp = TcpConfig::for_memory(80, 64 << 20);
    let config = Config { addressing: Addressing::Dhcp, seed: 1, tcp };
    Box::leak(Box::new(Stack::new(nic, config)))
}

/// The stack gets an address through every card. `quiet`: nothing wakes the processor when nothing happens.
fn cards_get_addresses(nics: Vec<Nic>, mut tasks: Vec<Task>, quiet: bool) -> ! {
    let count = nics.len();
    let left = Rc::new(Cell::new(count));
    let seen: Vec<_> = nics.iter().map(Nic::shared).collect();
    for nic in nics {
        let stack = stack(nic);
        tasks.push(Box::pin(async { stack.run().await }));
        let left = left.clone();
        tasks.push(Box::pin(async move {
            assert_eq!(stack.wait_address().await.address().octets(), [10, 0, 2, 15]);
            left.set(left.get() - 1);
        }));
    }
    run_with(tasks, async move {
        all_done(&left, Duration::from_secs(15)).await;
        for shared in &seen {
            let [receive, transmit] = [0, 1].map(|queue| shared.counters(queue));
            let interrupts = [0, 1].map(|queue| shared.interrupts.count(queue));
            assert!(shared.link_up.get() && !shared.gone.get());
            assert!(
                receive.completions >= 2 && interrupts[0] <= receive.completions,
                "{interrupts:?}, {receive:?}"
            );
            // None is wanted, but with EVENT_IDX QEMU sends one for the first used element of a queue.
            assert!(transmit.submitted >= 2 && interrupts[1] <= 1, "{interrupts:?}, {transmit:?}");
            // A host that is slow is told again of each, once.
            assert!(transmit.kicks <= 2 * transmit.submitted, "{transmit:?}");
            assert_eq!((receive.rejected, transmit.rejected), (0, 0));
        }
        // Nothing happens on the cable now, and nobody acts as if.
        let halts = executor::halts();
        Timer::after_millis(300).await;
        let halts = executor::halts() - halts;
        assert!(halts < 100 || !quiet, "{halts} wake-ups with nothing to do");
        assert_eq!(interrupts::unexpected(), 0);
        assert_audit_clean();
    })
}

fn card_gets_an_address() {
    let (_devices, _, nics, tasks) = start();
    cards_get_addresses(nics, tasks, true)
}
/// By MSI-X.
#[test_case]
const CARD: On = On("net", &card_gets_an_address);

fn card_gets_an_address_by_line() {
    let (_devices, _, nics, tasks) = start();
    cards_get_addresses(nics, tasks, true)
}
/// By the interrupt line.
#[test_case]
const CARD_LINE: On = On("net,intx", &card_gets_an_address_by_line);

fn card_over_mmio_gets_an_address() {
    let (_devices, _, nics, tasks) = start();
    cards_get_addresses(nics, tasks, true)
}
/// By a line whose level counts, over registers in memory.
#[test_case]
const CARD_MMIO: On = On("microvm,net", &card_over_mmio_gets_an_address);

fn two_cards_get_addresses() {
    let (_devices, _, nics, tasks) = start();
    cards_get_addresses(nics, tasks, true)
}
/// Two cards, two networks.
#[test_case]
const TWO_CARDS: On = On("net,net-2,mem=24", &two_cards_get_addresses);

fn card_that_swallows_frames_is_given_up() {
    let (_devices, _, mut nics, mut tasks) = start();
    let (nic, function) = (nics.remove(0), functions_for(DeviceType::NET)[0]);
    let shared = nic.shared();
    // QEMU stops a virtio device that may not master the bus.
    function.config().disable_bus_master();
    let stack = stack(nic);
    tasks.push(Box::pin(async { stack.run().await }));
    run_with(tasks, async move {
        Timer::after_secs(29).await;
        assert!(shared.counters(1).kicks > 0 && !shared.gone.get());
        // It is noticed when the stack tries again.
        let gone = async {
            while !shared.gone.get() {
                Timer::after_millis(10).await;
            }
        };
        assert!(with_timeout(Duration::from_secs(15), gone).await.is_ok(), "{:?}", shared.counters(1));
        Timer::after_millis(100).await;
        assert_audit_clean();
        // Its driver is gone, too: another can have it.
        assert!(start_card(&function).0.control.link_up());
    })
}
/// The stack's frames go nowhere.
#[test_case]
const SWALLOWS: On = On("net,slow", &card_that_swallows_frames_is_given_up);

fn polled() -> DeviceInterrupts {
    DeviceInterrupts::Polled(Timer::after_millis(1))
}

fn polled_disk_serves() {
    let address = functions_for(DeviceType::BLOCK)[0].address();
    let (block, _calls, windows) = start_disk(256);
    let disk = Disk::new(block, windows, address).expect("there is memory");
    let (left, failed) = (Rc::default(), Rc::default());
    let mut tasks = read_as_tasks(disk, 10, &left, &failed);
    tasks.extend(disk.tasks(polled()));
    run_with(tasks, async move {
        all_done(&left, Duration::from_secs(20)).await;
        assert_eq!(failed.get(), 0);
    })
}

/// Where there is no interrupt to be had, a timer serves.
#[test_case]
const POLLED_DISK: On = On("blk-numbered", &polled_disk_serves);

fn polled_card_serves() {
    let (card, _calls, _windows) = start_card(&functions_for(DeviceType::NET)[0]);
    cards_get_addresses(alloc::vec![Nic::new(Phy::new(card), polled())], Vec::new(), false)
}

/// The same for the network.
#[test_case]
const POLLED_CARD: On = On("net", &polled_card_serves);
