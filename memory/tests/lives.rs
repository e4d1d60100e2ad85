//! What is counted and said of windows and lives, how far lengths go, and when the platform is called.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ringfence_memory::host::HostPlatform;
use ringfence_memory::rust_vmm::GuestMemory;
use ringfence_memory::*;

const DEVICE: DeviceId = DeviceId(0x08);

fn model(host: &'static HostPlatform, device: u32) -> DmaWindows {
    DmaWindows::for_model(host, DeviceId(device.into())).unwrap()
}

#[test]
fn a_life_is_present_until_it_ends() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let (one, other) = (model(host, 8), model(host, 9));
    let mut ended: Vec<Life> = Vec::new();
    for _ in 0..4 {
        let life = one.life();
        assert!(life.is_present() && life == one.life() && life != other.life());
        assert!(!ended.contains(&life), "no life comes twice");
        let quiet = one.reset_model().unwrap();
        ended.push(life);
        assert!(ended.iter().all(|life| quiet.ends(life) && !life.is_present()));
        assert!(!quiet.ends(&one.life()) && !quiet.ends(&other.life()));
    }
    assert!(other.life().is_present());
}

/// What a device was told in a life that has ended makes nothing stay in the next.
#[test]
fn a_new_life_begins_with_nothing_told() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = model(host, 8);
    let [dropped, kept] = [(); 2].map(|()| windows.allocate(1).unwrap());
    windows.publish(kept.address(0).unwrap()).unwrap();
    drop(dropped);
    assert_eq!(windows.usage(), (4096, 4096));
    windows.reset_model().unwrap();
    assert_eq!((windows.usage(), host.dma_in_use()), ((4096, 0), 4096));
    drop(kept);
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0));
}

/// The generation counts openings and closings, so that it never returns to what it was.
#[test]
fn each_opening_and_closing_is_a_generation() {
    let windows = model(Box::leak(Box::new(HostPlatform::new())), 8);
    let (start, mut changes, mut open) = (windows.generation(), 0, Vec::new());
    for step in 0..60_usize {
        if step % 7 < 4 {
            open.push(windows.allocate(1).unwrap());
        } else {
            let region = open.swap_remove(step % open.len());
            let part = region.array::<u8>(0, 1).unwrap();
            drop(region);
            assert_eq!(windows.generation(), start + changes, "a part of it keeps the window open");
            drop(part);
        }
        changes += 1;
        assert_eq!(windows.generation(), start + changes);
        assert_eq!(windows.readable().unwrap().iter().count(), open.len());
    }
}

#[test]
fn each_error_says_something_of_its_own() {
    fn check(errors: &[&dyn fmt::Display]) {
        let texts: BTreeSet<_> = errors.iter().map(|error| error.to_string()).collect();
        assert!(texts.len() == errors.len() && !texts.contains(""), "{texts:?}");
    }
    let access = DmaError::Access(VolatileError::OutOfBounds);
    let platform = DmaError::Platform(PlatformError::OutOfMemory);
    check(&[
        &platform,
        &DmaError::Claimed,
        &DmaError::BadLength,
        &DmaError::WrongDevice,
        &DmaError::WrongLife,
        &access,
    ]);
    check(&[&ResetError::Timeout, &ResetError::WrongDevice]);
    check(&[&PlatformError::OutOfMemory, &PlatformError::BadRange, &PlatformError::Claimed]);
}

/// Reserves memory without touching it, and is called without locks, as the trait promises.
struct Wary {
    registry: DmaRegistry,
    next: AtomicU64,
    asked: AtomicUsize,
    out: Arc<AtomicUsize>,
}

fn look() {
    assert!(!ringfence_memory::host::locks_held(), "the platform is called under a lock");
}

struct Owner(usize, Arc<AtomicUsize>);

impl Drop for Owner {
    fn drop(&mut self) {
        look();
        self.1.fetch_sub(self.0, SeqCst);
    }
}

impl Wary {
    fn new() -> &'static Self {
        let (registry, next) = (DmaRegistry::new(), AtomicU64::new(1 << 40));
        Box::leak(Box::new(Self { registry, next, asked: AtomicUsize::new(0), out: Arc::default() }))
    }
}

unsafe impl Platform for Wary {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        look();
        let (len, flags) =
            (pages.get() * PAGE_SIZE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        let start = unsafe { libc::mmap(ptr::null_mut(), len, 3, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        self.asked.fetch_add(1, SeqCst);
        self.out.fetch_add(len, SeqCst);
        let (start, owner) = (NonNull::new(start.cast()).unwrap(), Box::new(Owner(len, self.out.clone())));
        Ok(unsafe { DmaMemory::new(start, len, self.next.fetch_add(len as u64, SeqCst), owner) })
    }
    fn mmio_map(&self, _: Option<DeviceId>, _: PhysAddr, _: usize) -> Result<MmioMemory, PlatformError> {
        Err(PlatformError::BadRange)
    }
    fn now(&self) -> Duration {
        look();
        Duration::ZERO
    }
    fn registry(&self) -> &DmaRegistry {
        look();
        &self.registry
    }
}

#[test]
fn the_platform_is_called_without_locks() {
    let platform = Wary::new();
    let windows = DmaWindows::for_model(platform, DEVICE).unwrap();
    drop(windows.allocate(1).unwrap());
    assert_eq!(platform.out.load(SeqCst), 0);
    let regions = [1, 2].map(|pages| windows.allocate(pages * PAGE_SIZE).unwrap());
    windows.publish(regions[0].address(0).unwrap()).unwrap();
    drop(regions);
    assert_eq!((windows.usage().1, platform.out.load(SeqCst)), (3 * PAGE_SIZE, 3 * PAGE_SIZE));
    windows.reset_model().unwrap();
    assert_eq!((windows.now(), platform.out.load(SeqCst)), (Duration::ZERO, 0));
}

/// A pool, and so a segment, is shorter than 4 GiB by 256 KiB (virtio 1.4, 2.7.5: a chain is below 4 GiB).
#[test]
fn lengths_end_below_4_gib() {
    let platform = Wary::new();
    let windows = DmaWindows::for_model(platform, DEVICE).unwrap();
    let most = u32::MAX as usize - (256 << 10);
    for (count, len) in [(1, most + 1), (most + 1, 1), (2, 1 << 31), (1 << 31, 2), (1 << 32, 1 << 32)] {
        assert_eq!(DmaPool::new(&windows, count, len).unwrap_err(), DmaError::BadLength, "{count} of {len}");
    }
    assert_eq!(platform.asked.load(SeqCst), 0, "the platform was not asked");
    let pool = DmaPool::new(&windows, 1, most).unwrap();
    let buffer = pool.take().unwrap();
    assert_eq!((pool.slot_len(), buffer.len()), (most, most));
    for (len, fits) in [(0, false), (1, true), (most, true), (most + 1, false)] {
        for writable in [false, true] {
            let segment = buffer.segment(0, len, writable);
            let seen = segment.map(|segment| (segment.len() as usize, segment.is_writable()));
            assert_eq!(seen, fits.then_some((len, writable)));
        }
    }
}
