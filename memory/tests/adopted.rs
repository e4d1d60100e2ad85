//! Memory that a kernel has already and lends to a device: [`DmaWindows::adopt`].
#![allow(clippy::undocumented_unsafe_blocks)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;

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
        assert_eq!(error, DmaError::Claimed, "{pages} pages at {address:#x}");
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
    assert_eq!(error, DmaError::Claimed, "the device may still write there");
    windows.reset_model().unwrap();
    windows.adopt(memory, Direction::Both).expect("it is quiet");
}
