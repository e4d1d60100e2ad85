//! Our device side of the split ring, with the block driver of the `virtio-drivers` crate in front of it: a
//! RAM disk that reaches memory only through the windows of its device.

#![cfg(not(ringfence_loom))]

mod common;

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::noise;
use proptest::prelude::*;
use proptest::sample::Index;
use ringfence_device_side::chain::{ReadableChain, WritableChain};
use ringfence_device_side::queue::{DescChain, DriverNotify, Position, RingMemory};
use ringfence_drivers::virtio::features::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{Bytes, DeviceId, Direction, DmaRegion, DmaSnapshot, DmaWindows};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const SECTORS: usize = 64;
const ID: DeviceId = DeviceId(0x20);

/// The memory of the one machine that there is: `Hal` has no `self`.
static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);
/// Held by the test that uses the machine.
static TURN: Mutex<()> = Mutex::new(());

struct Machine {
    windows: DmaWindows,
    /// What the driver shares now, by device address.
    shared: BTreeMap<u64, DmaRegion>,
    /// Regions to use again.
    spare: Vec<DmaRegion>,
}

fn machine<T>(use_it: impl FnOnce(&mut Machine) -> T) -> T {
    use_it(MACHINE.lock().unwrap_or_else(PoisonError::into_inner).as_mut().unwrap())
}

impl Machine {
    fn share(&mut self, len: usize, direction: BufferDirection) -> (u64, &DmaRegion) {
        let direction = match direction {
            BufferDirection::DriverToDevice => Direction::ToDevice,
            BufferDirection::DeviceToDriver => Direction::FromDevice,
            BufferDirection::Both => Direction::Both,
        };
        let fits = |region: &DmaRegion| region.direction() == direction && region.len() >= len;
        let region = match self.spare.iter().position(fits) {
            Some(at) => self.spare.swap_remove(at),
            None => self.windows.allocate_for(len, direction).unwrap(),
        };
        let address = self.windows.publish(region.address(0).unwrap()).unwrap().0;
        assert!(!self.shared.contains_key(&address));
        (address, self.shared.entry(address).or_insert(region))
    }
}

struct HostHal;

// SAFETY: `dma_alloc` gives out fresh zeroed pages, aligned to 4096, that are kept in `shared` until
// `dma_dealloc`.
unsafe impl Hal for HostHal {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        machine(|machine| {
            let (address, region) = machine.share(pages * 4096, direction);
            region.as_volatile_slice().fill(0).unwrap();
            (address, region.as_volatile_slice().as_ptr())
        })
    }

    unsafe fn dma_dealloc(address: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        machine(|machine| machine.shared.remove(&address).map_or(-1, |_| 0))
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("no MMIO")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        machine(|machine| {
            let (address, region) = machine.share(buffer.len(), direction);
            // What the driver has not written the device must not see, and the reverse.
            region.as_volatile_slice().fill(0xa5).unwrap();
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller's promise.
                region.as_volatile_slice().write_slice(unsafe { buffer.as_ref() }, 0).unwrap();
            }
            address
        })
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        machine(|machine| {
            let region = machine.shared.remove(&address).expect("not shared");
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's promise.
                region.as_volatile_slice().read_slice(unsafe { buffer.as_mut() }, 0).unwrap();
            }
            machine.spare.push(region);
        })
    }
}

/// The disk, and the registers in front of it.
struct Disk {
    windows: DmaWindows,
    offered: u64,
    accepted: u64,
    status: DeviceStatus,
    size: u16,
    /// Descriptor table, available ring, used ring.
    addresses: Option<[u64; 3]>,
    position: Position,
    bytes: Vec<u8>,
    /// Serve when notified, or only when told to.
    prompt: bool,
    kicks: u64,
    interrupts: u64,
    /// Determines the order of completions.
    seed: u64,
}

impl Disk {
    /// One look at the ring: takes all chains and returns them in any order. Says how many.
    fn serve(&mut self) -> usize {
        let Some(addresses) = self.addresses else { return 0 };
        let (readable, writable) = (self.windows.readable().unwrap(), self.windows.writable().unwrap());
        let memory = RingMemory::find([&readable, &writable], false, self.size, addresses);
        let interrupts = AtomicU64::new(0);
        let interrupt = || {
            interrupts.fetch_add(1, Relaxed);
        };
        let queue = memory.and_then(|memory| memory.queue(interrupt)).unwrap();
        let queue = queue.with_features(self.accepted).resume(self.position).unwrap();
        let mut chains: Vec<DescChain<'_, '_, _>> = Vec::new();
        while let Some(chain) = queue.next_chain().unwrap() {
            chains.push(chain);
        }
        let count = chains.len();
        while !chains.is_empty() {
            self.seed += 1;
            let which = usize::from(noise(self.seed, 1)[0]) % chains.len();
            self.handle(chains.swap_remove(which), &readable, &writable);
        }
        drop(chains);
        self.position = queue.position();
        drop(queue);
        self.interrupts += interrupts.load(Relaxed);
        count
    }

    fn handle<N: DriverNotify>(
        &mut self,
        chain: DescChain<'_, '_, N>,
        readable: &DmaSnapshot,
        writable: &DmaSnapshot,
    ) {
        let mut input = ReadableChain::new(chain, readable);
        let mut header = [0; 16];
        assert_eq!(input.read(&mut header).unwrap(), 16);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let start = u64::from_le_bytes(header[8..].try_into().unwrap()) as usize * SECTOR_SIZE;
        let len = input.remaining().unwrap().bytes;
        if kind == 1 {
            assert_eq!(input.read(&mut self.bytes[start..start + len]).unwrap(), len);
        } else {
            assert_eq!(len, 0);
        }
        let mut output = WritableChain::from_readable(input, writable).unwrap();
        let len = output.remaining().unwrap().bytes - 1;
        let status = match kind {
            0 => {
                assert_eq!(output.write(&self.bytes[start..start + len]).unwrap(), len);
                0
            }
            1 => 0,
            _ => 2,
        };
        assert_eq!(output.write(&[status]).unwrap(), 1);
        assert_eq!(output.written() as usize, len + 1);
        output.return_complete().unwrap();
    }
}

#[derive(Clone)]
struct Bus(Arc<Mutex<Disk>>);

impl Bus {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Bus {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        self.disk().offered
    }

    fn write_driver_features(&mut self, features: u64) {
        self.disk().accepted = features;
    }

    fn max_queue_size(&mut self, _: u16) -> u32 {
        128
    }

    fn notify(&mut self, queue: u16) {
        assert_eq!(queue, 0);
        let mut disk = self.disk();
        disk.kicks += 1;
        if disk.prompt {
            disk.serve();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.disk().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.disk().status = status;
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        assert_eq!(queue, 0);
        let mut disk = self.disk();
        disk.size = size as u16;
        disk.addresses = Some([descriptors, driver, device]);
        disk.position = Position::SPLIT;
    }

    fn queue_unset(&mut self, _: u16) {
        self.disk().addresses = None;
    }

    fn queue_used(&mut self, _: u16) -> bool {
        self.disk().addresses.is_some()
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut config = [0; 64];
        config[..8].copy_from_slice(&(SECTORS as u64).to_le_bytes());
        Ok(T::read_from_bytes(&config[offset..offset + size_of::<T>()]).unwrap())
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        unreachable!("nothing to configure")
    }
}

/// The driver, its disk, and what should be on the disk.
struct Bench {
    driver: VirtIOBlk<HostHal, Bus>,
    bus: Bus,
    model: Vec<u8>,
    seed: u64,
}

const MODES: [u64; 4] = [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX];

impl Bench {
    fn new(features: u64, seed: u64) -> Self {
        let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), ID).unwrap();
        let machine = Machine { windows: windows.clone(), shared: BTreeMap::new(), spare: Vec::new() };
        *MACHINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
        let disk = Disk {
            windows,
            offered: features | VERSION_1,
            accepted: 0,
            status: DeviceStatus::empty(),
            size: 0,
            addresses: None,
            position: Position::SPLIT,
            bytes: noise(seed, SECTORS * SECTOR_SIZE),
            prompt: true,
            kicks: 0,
            interrupts: 0,
            seed,
        };
        let (model, bus) = (disk.bytes.clone(), Bus(Arc::new(Mutex::new(disk))));
        let driver = VirtIOBlk::new(bus.clone()).unwrap();
        assert_eq!((driver.capacity() as usize, bus.disk().accepted), (SECTORS, features | VERSION_1));
        Self { driver, bus, model, seed }
    }

    /// Starts a request for `count` sectors.
    fn start(&mut self, write: bool, sector: usize, count: usize) -> virtio_drivers::Result<Box<Flight>> {
        self.seed += 1;
        let data = noise(self.seed, count * SECTOR_SIZE);
        let mut flight = Box::new(Flight { data, write, sector, ..Flight::default() });
        let Flight { request, data, response, .. } = &mut *flight;
        // SAFETY: the flight is in a box and stays as it is until `complete`.
        flight.token = unsafe {
            match write {
                true => self.driver.write_blocks_nb(sector, request, data, response)?,
                false => self.driver.read_blocks_nb(sector, request, data, response)?,
            }
        };
        if write {
            self.model[sector * SECTOR_SIZE..][..flight.data.len()].copy_from_slice(&flight.data);
        }
        Ok(flight)
    }

    /// Takes the result of a request that is done.
    #[expect(clippy::boxed_local, reason = "the driver was given addresses in the box")]
    fn complete(&mut self, mut flight: Box<Flight>) {
        let Flight { request, data, response, write, sector, token } = &mut *flight;
        // SAFETY: the same buffers as in `start`.
        let result = unsafe {
            match *write {
                true => self.driver.complete_write_blocks(*token, request, data, response),
                false => self.driver.complete_read_blocks(*token, request, data, response),
            }
        };
        result.unwrap();
        assert!(data[..] == self.model[*sector * SECTOR_SIZE..][..data.len()], "sectors from {sector} on");
    }

    /// One request, which the device serves as soon as it is notified.
    fn one(&mut self, write: bool, sector: usize, count: usize) {
        let flight = self.start(write, sector, count).unwrap();
        assert_eq!(self.driver.peek_used(), Some(flight.token), "not served: was the device notified?");
        self.complete(flight);
    }

    /// Several requests in flight, to different sectors, which come back in any order.
    fn batch(&mut self, requests: &[(bool, usize)]) {
        self.bus.disk().prompt = false;
        let kicks = self.bus.disk().kicks;
        let mut flights = Vec::<Box<Flight>>::new();
        for &(write, sector) in requests {
            if flights.iter().any(|flight| flight.sector == sector) {
                continue;
            }
            match self.start(write, sector, 1) {
                Ok(flight) => flights.push(flight),
                Err(error) => {
                    assert_eq!(error, virtio_drivers::Error::QueueFull);
                    break;
                }
            }
        }
        assert!(self.bus.disk().kicks > kicks, "the device was not notified");
        assert_eq!(self.bus.disk().serve(), flights.len());
        while let Some(token) = self.driver.peek_used() {
            let at = flights.iter().position(|flight| flight.token == token).expect("a token out of nothing");
            let flight = flights.swap_remove(at);
            self.complete(flight);
        }
        assert_eq!(flights.len(), 0, "not all came back");
        self.bus.disk().prompt = true;
    }

    fn finish(self) {
        let Self { driver, bus, model, .. } = self;
        assert!(bus.disk().bytes == model);
        assert!(bus.disk().interrupts > 0 && bus.disk().kicks > 0);
        drop(driver);
        machine(|machine| assert_eq!(machine.shared.len(), 0, "all was taken back"));
    }
}

#[derive(Default)]
struct Flight {
    request: BlkReq,
    data: Vec<u8>,
    response: BlkResp,
    write: bool,
    sector: usize,
    token: u16,
}

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Debug)]
enum Step {
    Write(Index, Index),
    Read(Index, Index),
    Batch(Vec<(bool, usize)>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<(Index, Index)>().prop_map(|(sector, count)| Step::Write(sector, count)),
        any::<(Index, Index)>().prop_map(|(sector, count)| Step::Read(sector, count)),
        prop::collection::vec((any::<bool>(), 0..SECTORS), 1..20).prop_map(Step::Batch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reads_and_writes_a_disk(
        mode in prop::sample::select(&MODES[..]),
        seed in any::<u32>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let _turn = turn();
        let mut bench = Bench::new(mode, seed.into());
        bench.one(true, 0, 1);
        for step in steps {
            match step {
                Step::Write(sector, count) => {
                    let sector = sector.index(SECTORS);
                    bench.one(true, sector, 1 + count.index(SECTORS - sector));
                }
                Step::Read(sector, count) => {
                    let sector = sector.index(SECTORS);
                    bench.one(false, sector, 1 + count.index(SECTORS - sector));
                }
                Step::Batch(requests) => bench.batch(&requests),
            }
        }
        bench.finish();
    }
}

#[test]
fn indices_wrap_with_and_without_events() {
    let _turn = turn();
    for mode in MODES {
        let mut bench = Bench::new(mode, mode);
        for round in 0..35_000 {
            bench.one(true, round % SECTORS, 1);
            bench.one(false, (round + 7) % SECTORS, 1);
        }
        assert_eq!(bench.bus.disk().position.used, 70_000_u32 as u16);
        bench.finish();
    }
}

#[test]
fn no_interrupts_when_they_are_not_wanted() {
    let _turn = turn();
    let mut bench = Bench::new(0, 1);
    bench.one(true, 1, 1);
    assert_eq!(bench.bus.disk().interrupts, 1);
    bench.driver.disable_interrupts();
    bench.one(true, 2, 1);
    assert_eq!(bench.bus.disk().interrupts, 1);
    bench.driver.enable_interrupts();
    bench.one(false, 1, 2);
    assert_eq!(bench.bus.disk().interrupts, 2);
    bench.finish();
}
