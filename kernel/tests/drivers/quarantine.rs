//! A queue that is dropped while its disk is still writing, and nobody has seen the disk reset.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ptr;
use core::time::Duration;

use ringfence_drivers::block::{Block, Request};
use ringfence_drivers::virtio::{ConfigField, DeviceType, Error, QueueSetup, RESET_LIMIT, Transport};
use ringfence_kernel::devices::bring_up;
use ringfence_kernel::devices::bus::{BusNotifier, BusTransport};
use ringfence_kernel::memory::space;
use ringfence_kernel::testing::On;
use ringfence_kernel::time;
use ringfence_memory::{
    Dma, DmaBuf, DmaGrant, DmaPool, DmaWindows, FrameRequest, MappedPages, Owner, PAGE_SIZE, Quiet,
    ResetError,
    rust_vmm::{GuestMemory, GuestMemoryRegion},
};

use crate::support::{assert_audit_clean, functions_for, numbered, start_disk, until};

const REQUESTS: usize = 40;
/// What the buffers hold until the disk writes to them.
const BLANK: u8 = 0xa5;

/// The disk's own transport, but the driver never sees a reset once it is started, and cannot stop the
/// device.
struct Unproven {
    transport: Rc<RefCell<BusTransport>>,
    started: bool,
}

impl Transport for Unproven {
    type Notifier = BusNotifier;

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        if self.started {
            Err(ResetError::Timeout)
        } else {
            self.transport.borrow_mut().reset(windows, limit)
        }
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        self.started = true;
        self.transport.borrow_mut().start(grant)
    }

    fn stop(&mut self) {}

    fn device_type(&self) -> DeviceType {
        self.transport.borrow().device_type()
    }

    fn status(&self) -> u8 {
        self.transport.borrow().status()
    }

    fn set_status(&mut self, status: u8) {
        self.transport.borrow_mut().set_status(status);
    }

    fn device_features(&mut self) -> u64 {
        self.transport.borrow_mut().device_features()
    }

    fn set_driver_features(&mut self, features: u64) {
        self.transport.borrow_mut().set_driver_features(features);
    }

    fn config_generation(&self) -> u32 {
        self.transport.borrow().config_generation()
    }

    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        self.transport.borrow().read_config(offset)
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.transport.borrow_mut().queue_max_size(index)
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<BusNotifier, Error> {
        self.transport.borrow_mut().set_up_queue(windows, queue)
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        self.transport.borrow_mut().begin_reset_queue(index)
    }

    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        self.transport.borrow_mut().poll_reset_queue(index)
    }
}

/// A page that the disk was told to fill.
struct Target {
    start: *const u8,
    sector: u64,
}

impl Target {
    /// The mapping of quarantined memory stays, so this can be called whoever owns the page.
    fn contents(&self) -> Vec<u8> {
        // SAFETY: the page is mapped until the disk is reset, which comes after the last call; it is read as
        // memory that a device writes.
        (0..PAGE_SIZE).map(|offset| unsafe { ptr::read_volatile(self.start.add(offset)) }).collect()
    }

    fn is_blank(&self) -> bool {
        self.contents().iter().all(|&byte| byte == BLANK)
    }

    fn is_read(&self) -> bool {
        self.contents() == numbered(self.sector, PAGE_SIZE)
    }
}

/// All frames that the device may read or write.
fn frames(windows: &DmaWindows) -> Vec<u64> {
    let views =
        [windows.readable().expect("room for the list"), windows.writable().expect("room for the list")];
    let windows = views.iter().flat_map(GuestMemory::iter);
    // Without an IOMMU a device address is a physical address.
    let ranges = windows.map(|window| window.start_addr().0..window.start_addr().0 + window.len());
    let mut frames: Vec<u64> = ranges.flat_map(|range| range.step_by(PAGE_SIZE)).collect();
    frames.sort_unstable();
    frames.dedup();
    frames
}

/// All DMA memory that there is to have.
fn take_all() -> Vec<MappedPages<Dma>> {
    let mut all = Vec::with_capacity(4096);
    for pages in (0..12).rev().map(|shift| 1 << shift) {
        while let Ok(memory) = space().allocate_dma(FrameRequest::new(pages)) {
            assert!(all.len() < all.capacity(), "the list must not grow");
            all.push(memory);
        }
    }
    all
}

/// Which of `frames` are in `memory`.
fn found(frames: &[u64], memory: &[MappedPages<Dma>]) -> usize {
    let holds = |memory: &MappedPages<Dma>, frame: u64| {
        let offset = frame.checked_sub(memory.physical_address().value());
        offset.is_some_and(|offset| offset < memory.size_in_bytes())
    };
    frames.iter().filter(|&&frame| memory.iter().any(|memory| holds(memory, frame))).count()
}

fn count(owner: Owner) -> usize {
    space().frames().count(owner)
}

fn live_queue_stays_quarantined() {
    let function = functions_for(DeviceType::BLOCK)[0];
    let real = RefCell::new(None);
    let (mut disk, interrupts, windows) = bring_up(&function, 1, |transport, grant, windows| {
        let transport = Rc::new(RefCell::new(transport));
        real.replace(Some(transport.clone()));
        Block::new(Unproven { transport, started: false }, grant, windows)
    })
    .expect("the disk starts");
    let pool = DmaPool::new(&windows, REQUESTS, PAGE_SIZE).expect("there is memory");
    let buffers: Vec<DmaBuf> = core::iter::from_fn(|| pool.take()).collect();
    let mut targets = Vec::new();
    for (buffer, sector) in buffers.into_iter().zip((0..).step_by(128)) {
        let bytes = buffer.as_volatile_slice();
        bytes.fill(BLANK).expect("it may be written");
        targets.push(Target { start: bytes.as_ptr().as_ptr(), sector });
        disk.queue.submit(Request::Read { sector, buffer, len: PAGE_SIZE }).expect("there is room");
    }
    disk.queue.kick();
    let known = frames(&windows);
    assert_eq!(known.len() * PAGE_SIZE, windows.usage().0);
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (known.len(), 0));

    drop((disk, interrupts, pool));
    targets.retain(Target::is_blank);
    assert!(targets.len() > REQUESTS / 2, "the disk was to be slow: {} to come", targets.len());
    assert_eq!(windows.usage(), (0, known.len() * PAGE_SIZE));
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, known.len()));
    assert_audit_clean();

    let all = take_all();
    assert_eq!((count(Owner::Free), count(Owner::DmaIdle)), (0, 0), "nothing is left to have");
    assert_eq!(found(&known, &all), 0);
    assert_audit_clean();
    drop(all);
    // The driver is gone, and the disk is still writing.
    until("late data", || (targets.iter().filter(|target| target.is_read()).count() > 4).then_some(()));
    assert!(targets.iter().any(Target::is_blank), "it has more to write");
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, known.len()));

    let transport = real.take().expect("it was started");
    transport.borrow_mut().reset(&windows, RESET_LIMIT).expect("the disk resets");
    assert_eq!((windows.usage(), count(Owner::Quarantined)), ((0, 0), 0));
    assert_audit_clean();
    let all = take_all();
    assert_eq!(found(&known, &all), known.len(), "every frame serves again");
    let bytes = |memory: &MappedPages<Dma>| {
        // SAFETY: the memory is this function's, and no device knows of it any more.
        unsafe { core::slice::from_raw_parts_mut(memory.as_ptr(), memory.size_in_bytes() as usize) }
    };
    for memory in &all {
        assert!(bytes(memory).iter().all(|&byte| byte == 0), "what the device wrote can be seen");
        bytes(memory).fill(BLANK);
    }
    let start = time::now();
    until("a second", || (time::now() - start > Duration::from_secs(1)).then_some(()));
    assert!(
        all.iter().all(|memory| bytes(memory).iter().all(|&byte| byte == BLANK)),
        "written after the reset"
    );
    drop(all);
    transport.borrow_mut().stop();
    drop((transport, windows));

    let (mut disk, _interrupts, windows) = start_disk(256);
    let pool = DmaPool::new(&windows, 1, PAGE_SIZE).expect("there is memory");
    let id = disk.identify(pool.take().expect("it is new"), Duration::from_secs(2));
    assert_eq!(id.map(|id| id.map(|id| id[..8] == *b"numbered")), Ok(Ok(true)));
    assert_audit_clean();
}

/// Its frames are nobody's until the device status reads 0, and everybody's afterwards.
#[test_case]
const LIVE_QUEUE: On = On("blk-numbered=10", &live_queue_stays_quarantined);
