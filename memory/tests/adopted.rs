//! Memory that a kernel has already and lends to a device: [`DmaWindows::adopt`].
#![allow(clippy::undocumented_unsafe_blocks)]

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;
use ringfence_testkit::host_does;

const PAGE: usize = 4096;
const DEVICE: DeviceId = DeviceId(0x18);

/// A page of a cache, and whether the cache has it back.
struct Page(Arc<AtomicBool>);

impl Drop for Page {
    fn drop(&mut self) {
        assert!(!self.0.swap(true, SeqCst), "given back twice");
    }
}

/// `pages` pages with bytes in them, that the device finds at `address`.
fn cached(pages: usize, address: u64) -> (DmaMemory, *mut u8, Arc<AtomicBool>) {
    let bytes = vec![0_u64; (pages + 1) * PAGE / 8].leak().as_mut_ptr().cast::<u8>();
    let start = bytes.map_addr(|at| at.next_multiple_of(PAGE));
    (0..pages * PAGE).for_each(|at| unsafe { start.add(at).write(at as u8 ^ 0x5a) });
    let back = Arc::new(AtomicBool::new(false));
    let owner = Box::new(Page(back.clone()));
    let memory = unsafe { DmaMemory::new(NonNull::new(start).unwrap(), pages * PAGE, address, owner) };
    (memory, start, back)
}

fn windows() -> DmaWindows {
    DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap()
}

/// What the cache had written is what the device reads, and the other way; nothing was copied or zeroed.
#[test]
fn the_device_has_the_caches_own_bytes() {
    let windows = windows();
    let (memory, start, back) = cached(2, 0x7000_0000);
    let region = windows.adopt(memory, Direction::Both).unwrap();
    assert_eq!((region.len(), windows.usage()), (2 * PAGE, (2 * PAGE, 0)));
    let at = windows.publish(region.address(PAGE).unwrap()).unwrap();
    assert_eq!(at.0, 0x7000_0000 + PAGE as u64);
    let mut seen = [0; 3];
    windows.readable().unwrap().read_slice(&mut seen, at).unwrap();
    assert_eq!(seen, [0x5a, 0x5b, 0x58]);
    windows.writable().unwrap().write_slice(&[1, 2, 3], at).unwrap();
    assert_eq!(unsafe { start.add(PAGE + 1).read_volatile() }, 2);
    assert!(!back.load(SeqCst));
}

/// The cache has its page back when the device can no longer write there, and not a moment sooner.
#[test]
fn the_cache_has_it_back_when_the_device_is_quiet() {
    let windows = windows();
    let (memory, _, untold) = cached(1, 0x7000_0000);
    drop(windows.adopt(memory, Direction::FromDevice).unwrap());
    assert!(untold.load(SeqCst), "the device was not told of anything");
    let (memory, _, back) = cached(1, 0x7000_0000);
    let region = windows.adopt(memory, Direction::FromDevice).unwrap();
    windows.publish(region.address(0).unwrap()).unwrap();
    let view = windows.writable().unwrap();
    drop(region);
    assert_eq!(windows.usage(), (0, PAGE));
    assert_eq!(windows.reset_model().err(), Some(ResetError::Timeout), "somebody still looks");
    assert!(!back.load(SeqCst));
    drop(view);
    windows.reset_model().unwrap();
    assert!(back.load(SeqCst));
}

/// Two windows to one address would be one too many: the second is refused, and its memory is given back.
#[test]
fn no_address_is_adopted_twice() {
    let windows = windows();
    let region = windows.adopt(cached(4, 0x7000_4000).0, Direction::Both).unwrap();
    for (pages, address) in [(1, 0x7000_4000), (1, 0x7000_7000), (2, 0x7000_3000), (9, 0x7000_0000)] {
        let (memory, _, back) = cached(pages, address);
        let (error, memory) = windows.adopt(memory, Direction::Both).unwrap_err();
        assert_eq!(error, DmaError::Overlap, "{pages} pages at {address:#x}");
        assert!(!back.load(SeqCst));
        drop(memory);
        assert!(back.load(SeqCst));
    }
    assert_eq!(windows.usage(), (4 * PAGE, 0));
    let beside =
        [0x7000_3000, 0x7000_8000].map(|address| windows.adopt(cached(1, address).0, Direction::Both));
    assert!(beside.iter().all(Result::is_ok));
    windows.publish(region.address(0).unwrap()).unwrap();
    drop(region);
    let (memory, ..) = cached(1, 0x7000_5000);
    let (error, memory) = windows.adopt(memory, Direction::Both).unwrap_err();
    assert_eq!(error, DmaError::Overlap, "the device may still write there");
    windows.reset_model().unwrap();
    windows.adopt(memory, Direction::Both).expect("it is quiet");
}

/// A buffer is the only value that reaches its bytes: none is made of a region in which there is an array.
#[test]
fn a_region_with_an_array_is_no_buffer() {
    let windows = windows();
    let region = windows.allocate(PAGE).unwrap();
    let array = region.array::<u64>(8, 1).unwrap();
    let (error, region) = DmaBuf::from_region(region).unwrap_err();
    assert_eq!(error, DmaError::Shared);
    let (error, mut regions) = DmaPool::of(vec![windows.allocate(PAGE).unwrap(), region], 64).unwrap_err();
    assert_eq!((error, regions.len()), (DmaError::Shared, 2));
    drop(array);
    DmaBuf::from_region(regions.pop().unwrap()).expect("it is the only one now");
}

/// Buffers over pages of a cache: the device has the cache's bytes in each, and each page is back when all
/// are.
#[test]
fn buffers_of_adopted_pages() {
    let windows = windows();
    let pages = [0x7000_0000, 0x7800_0000, 0x7001_0000].map(|address| cached(2, address));
    let mut back = vec![];
    let regions = pages.map(|(memory, _, page)| {
        back.push(page);
        windows.adopt(memory, Direction::FromDevice).unwrap()
    });
    let pool = DmaPool::of(regions.into(), 3000).unwrap();
    assert_eq!((pool.available(), pool.slot_len()), (6, 3000), "two in each");
    let buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    let mut seen: Vec<_> =
        buffers.iter().map(|buffer| windows.publish(buffer.address()).unwrap().0).collect();
    seen.sort();
    let starts = [0x7000_0000, 0x7001_0000, 0x7800_0000];
    assert_eq!(seen, starts.iter().flat_map(|&start| [start, start + 3000]).collect::<Vec<_>>());
    for buffer in &buffers {
        let mut bytes = [0; 2];
        buffer.read_slice(&mut bytes, 2998).unwrap();
        let offset = (windows.publish(buffer.address()).unwrap().0 % PAGE as u64) as usize + 2998;
        assert_eq!(bytes, [offset as u8 ^ 0x5a, (offset + 1) as u8 ^ 0x5a]);
        assert_eq!(buffer.direction(), Direction::FromDevice);
    }
    drop(pool);
    drop(buffers);
    assert!(!back.iter().any(|page| page.load(SeqCst)), "the device was told");
    windows.reset_model().unwrap();
    assert!(back.iter().all(|page| page.load(SeqCst)));
}

/// One page is one buffer, for as long as the buffer is there.
#[test]
fn a_buffer_that_is_a_page() {
    let windows = windows();
    let (memory, start, back) = cached(1, 0x7000_0000);
    let region = windows.adopt(memory, Direction::Both).unwrap();
    let mut buffer = DmaBuf::from_region(region).unwrap();
    assert_eq!(buffer.len(), PAGE);
    buffer.write_slice(b"page", 4092).unwrap();
    assert_eq!(unsafe { start.add(4092).read_volatile() }, b'p');
    windows.publish(buffer.address()).unwrap();
    drop(buffer);
    assert!(!back.load(SeqCst));
    windows.reset_model().unwrap();
    assert!(back.load(SeqCst));
}

#[test]
fn regions_that_do_not_belong_together() {
    let (one, two) = (windows(), windows());
    let region =
        |windows: &DmaWindows, address, direction| windows.adopt(cached(1, address).0, direction).unwrap();
    let refused = |regions: Vec<DmaRegion>, len| {
        let count = regions.len();
        let (error, regions) = DmaPool::of(regions, len).unwrap_err();
        assert_eq!(regions.len(), count, "all are given back");
        error
    };
    let mine = region(&one, 0x1000, Direction::Both);
    assert_eq!(refused(vec![mine, region(&two, 0x2000, Direction::Both)], 512), DmaError::WrongDevice);
    let mine = region(&one, 0x3000, Direction::Both);
    assert_eq!(refused(vec![mine, region(&one, 0x4000, Direction::ToDevice)], 512), DmaError::WrongDevice);
    for len in [0, PAGE + 1, usize::MAX] {
        assert_eq!(refused(vec![region(&one, 0x5000, Direction::Both)], len), DmaError::BadLength);
    }
    assert_eq!(refused(vec![], 512), DmaError::BadLength);
}

/// A platform that has no two pages side by side.
struct InPieces(HostPlatform, usize);

unsafe impl Platform for InPieces {
    host_does!(0: mmio_map, now, registry);

    fn dma_allocate(
        &self,
        device: DeviceId,
        pages: NonZeroUsize,
        direction: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        if pages.get() > self.1 {
            Err(PlatformError::OutOfMemory)
        } else {
            self.0.dma_allocate(device, pages, direction)
        }
    }
}

/// Buffers need not lie side by side; only one that is larger than a piece cannot be had.
#[test]
fn a_pool_of_pieces() {
    for (largest, count, len) in [(1, 10, 2048), (1, 128, 4096), (2, 9, 1536), (3, 5, 12288), (1, 7, 100)] {
        let platform = Box::leak(Box::new(InPieces(HostPlatform::new(), largest)));
        let windows = DmaWindows::for_model(platform, DEVICE).unwrap();
        let pool = DmaPool::new(&windows, count, len).unwrap();
        assert_eq!(pool.available(), count, "{largest}, {count} of {len}");
        let buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let starts: BTreeSet<u64> =
            buffers.iter().map(|buffer| windows.publish(buffer.address()).unwrap().0).collect();
        assert!(starts.iter().zip(starts.iter().skip(1)).all(|(one, next)| next - one >= len as u64));
        let view = windows.writable().unwrap();
        for (number, &start) in starts.iter().enumerate() {
            let at = rust_vmm::GuestAddress(start);
            view.write_slice(&vec![number as u8; len], at).expect("all of it is the device's");
        }
        assert_eq!(starts.len(), count);
        drop((view, pool, buffers));
        windows.reset_model().unwrap();
        assert_eq!(windows.usage(), (0, 0));
        let refused = DmaPool::new(&windows, 1, largest * PAGE + 1).err();
        assert_eq!(refused, Some(DmaError::Platform(PlatformError::OutOfMemory)));
        assert_eq!(windows.usage(), (0, 0));
    }
}
