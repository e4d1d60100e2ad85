//! Who owns DMA memory when: regions, pools, quarantine, and what a device can reach.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

const DEVICE: DeviceId = DeviceId(0x08);

fn platform() -> &'static HostPlatform {
    Box::leak(Box::new(HostPlatform::new()))
}

fn model(host: &'static HostPlatform) -> DmaWindows {
    DmaWindows::for_model(host, DEVICE).unwrap()
}

fn number(windows: &DmaWindows, address: DmaAddr<'_>) -> u64 {
    windows.publish(address).unwrap().raw_value()
}

#[test]
fn the_device_reaches_a_region_by_its_device_address_alone() {
    let host = platform();
    let windows = model(host);
    let region = windows.allocate(5000).unwrap();
    assert_eq!((region.len(), region.is_empty()), (8192, false));
    region.as_volatile_slice().write_slice(b"across", 4095).unwrap();
    let address = number(&windows, region.address(4095).unwrap());
    let mut seen = [0; 6];
    host.translate(DEVICE, address, 6).unwrap().slice().read_slice(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"across");
    assert!(host.translate(DeviceId(9), address, 6).is_none(), "another device sees nothing");
    assert!(host.translate(DEVICE, address, 8192).is_none(), "nothing beyond the end");
    let pointer = region.as_volatile_slice().as_ptr().as_ptr() as u64;
    assert!(host.translate(DEVICE, pointer, 1).is_none(), "a pointer is no device address");
    assert_eq!(region.address(8191).map(|address| number(&windows, address)), Some(address + 4096));
    assert!(region.address(8192).is_none() && region.address(usize::MAX).is_none(), "nothing behind the end");
    drop(region);
    windows.reset_model().unwrap();
    assert!(host.translate(DEVICE, address, 1).is_none(), "nothing after the reset");
}

#[test]
fn an_address_of_another_device_platform_or_life_is_refused() {
    let host = platform();
    let ours = model(host);
    let own = ours.allocate(1).unwrap();
    let strangers = [
        DmaWindows::for_model(host, DeviceId(9)).unwrap(),
        DmaWindows::for_model(platform(), DEVICE).unwrap(),
        DmaWindows::new(host, DEVICE).unwrap(),
    ];
    for stranger in &strangers {
        let region = stranger.allocate(1).unwrap();
        assert_eq!(ours.publish(region.address(0).unwrap()), Err(DmaError::WrongDevice));
        assert_ne!(region.address(0), own.address(0));
    }
    let old = own.address(0).unwrap();
    assert_eq!(Some(old), own.address(0));
    ours.reset_model().unwrap();
    assert_eq!(ours.publish(old), Err(DmaError::WrongLife));
    assert_ne!(Some(old), own.address(0));
    assert!(
        ours.publish(own.address(0).unwrap()).is_ok(),
        "the memory is still ours, and has an address in this life"
    );
    let pool = DmaPool::new(&ours, 2, 100).unwrap();
    let buffers = [pool.take().unwrap(), pool.take().unwrap()];
    let at = buffers.each_ref().map(|buffer| number(&ours, buffer.address()));
    assert_eq!(at[1], at[0] + 100);
}

#[test]
fn bad_lengths_are_typed_errors() {
    let windows = model(platform());
    assert_eq!(windows.allocate(0).unwrap_err(), DmaError::BadLength);
    assert_eq!(DmaPool::new(&windows, 0, 64).unwrap_err(), DmaError::BadLength);
    assert_eq!(DmaPool::new(&windows, usize::MAX, 2).unwrap_err(), DmaError::BadLength);
    for count in [0, usize::MAX, usize::MAX / 16, usize::MAX / 16 + 1] {
        let table = DescriptorTable::<Packed>::new(&windows, count, 0, Direction::Both);
        assert!(matches!(table, Err(DmaError::BadLength | DmaError::Platform(_))), "{count} descriptors");
    }
    assert!(DescriptorTable::<Split>::new(&windows, 1, usize::MAX, Direction::Both).is_err());
    assert_eq!(windows.usage(), (0, 0));
}

#[test]
fn a_pool_of_the_smallest_buffer() {
    let windows = model(platform());
    let pool = DmaPool::new_for(&windows, 1, 1, Direction::FromDevice).unwrap();
    assert_eq!((pool.slot_len(), pool.available()), (1, 1));
    let buffer = pool.take().unwrap();
    assert_eq!((buffer.len(), buffer.is_empty(), buffer.direction()), (1, false, Direction::FromDevice));
    assert!(pool.take().is_none());
    assert_eq!(buffer.as_volatile_slice().len(), 1);
}

/// A buffer that was given up while the device has it is nobody's until the device is reset, and not in its
/// pool again.
#[test]
fn an_abandoned_buffer_stays_away() {
    let host = platform();
    let windows = model(host);
    let pool = DmaPool::new(&windows, 2, 2048).unwrap();
    let (given_up, kept) = (pool.take().unwrap(), pool.take().unwrap());
    windows.publish(given_up.address()).unwrap();
    given_up.abandon();
    assert_eq!(pool.available(), 0);
    drop(kept);
    assert_eq!(pool.available(), 1);
    drop(pool);
    assert_eq!(windows.usage(), (0, 4096));
    windows.reset_model().unwrap();
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0));
}

/// The memory goes when the pool and the last buffer have gone, in whatever order and on whatever thread.
#[test]
fn a_pool_and_its_buffers_go_in_any_order() {
    for order in 0..24_usize {
        let host = platform();
        let windows = model(host);
        let pool = DmaPool::new(&windows, 3, 1000).unwrap();
        let mut parts: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for (number, buffer) in std::iter::from_fn(|| pool.take()).enumerate() {
            parts.push(if number == 1 {
                Box::new(move || buffer.abandon())
            } else {
                Box::new(move || drop(buffer))
            });
        }
        parts.insert(order % 4, Box::new(move || drop(pool)));
        let mut left = order / 4;
        while !parts.is_empty() {
            assert_eq!(windows.usage(), (4096, 0), "order {order}");
            parts.remove(left % parts.len())();
            left /= 2;
        }
        assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0), "order {order}");
    }
}

/// A buffer is one thread's at a time, however many take and give back at once.
#[test]
fn threads_share_a_pool() {
    let host = platform();
    let windows = model(host);
    let pool = DmaPool::new(&windows, 3, 8).unwrap();
    let (pool, rounds) = (&pool, 20_000_u64);
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            scope.spawn(move || {
                for round in 0..rounds {
                    let Some(mut buffer) = pool.take() else { continue };
                    let mark = (thread << 32 | round).to_ne_bytes();
                    buffer.write_slice(&mark, 0).unwrap();
                    std::hint::spin_loop();
                    let mut seen = [0; 8];
                    buffer.read_slice(&mut seen, 0).unwrap();
                    assert_eq!(seen, mark, "somebody else has the buffer");
                }
            });
        }
    });
    assert_eq!(pool.available(), 3);
    // The pool is dropped while its buffers are out on other threads.
    for _ in 0..200 {
        let pool = DmaPool::new(&windows, 2, 8).unwrap();
        let buffers = [pool.take().unwrap(), pool.take().unwrap()];
        std::thread::scope(|scope| {
            for buffer in buffers {
                scope.spawn(move || drop(buffer));
            }
            drop(pool);
        });
    }
    assert_eq!(windows.usage(), (4096, 0));
}

/// Whoever does not want back what was refused writes `?`.
#[test]
fn a_refusal_works_with_a_question_mark() {
    let pool = || -> Result<DmaPool, DmaError> { Ok(DmaPool::of(Vec::new(), 64)?) };
    assert_eq!(pool().err(), Some(DmaError::BadLength));
}

/// What is said to be for interrupt handlers takes no lock.
#[test]
fn what_an_interrupt_handler_may_do() {
    let windows = model(platform());
    let pool = DmaPool::new(&windows, 2, 64).unwrap();
    let region = windows.allocate(4096).unwrap();
    let array = region.array::<u32>(0, 4).unwrap();
    let mut table = DescriptorTable::<Split>::new(&windows, 4, 0, Direction::ToDevice).unwrap();
    ringfence_memory::host::interrupt(|| {
        let mut buffer = pool.take().unwrap();
        buffer.write_slice(&[1], 0).unwrap();
        buffer.read_slice(&mut [0], 0).unwrap();
        table
            .store(0, &buffer.segment(0, 64, false).unwrap(), 0, std::sync::atomic::Ordering::Relaxed)
            .unwrap();
        table.hold(1, [(&buffer.segment(0, 64, false).unwrap(), 0)]).unwrap();
        assert!(table.store_held(std::sync::atomic::Ordering::Release));
        array.store(0, 7, std::sync::atomic::Ordering::Release).unwrap();
        assert_eq!(array.load(0, std::sync::atomic::Ordering::Acquire), Some(7));
        region.as_volatile_slice().write_obj(1_u8, 9).unwrap();
        drop(buffer);
        pool.take().unwrap().abandon();
    });
    let caught = std::thread::scope(|scope| {
        scope.spawn(|| ringfence_memory::host::interrupt(|| windows.usage())).join()
    });
    assert!(caught.is_err(), "and what takes one is noticed");
}

#[test]
fn memory_of_a_live_device_is_quarantined_until_its_life_ends() {
    let host = platform();
    let windows = model(host);
    let (untold, region) = (windows.allocate(4096).unwrap(), windows.allocate(4096).unwrap());
    drop(untold);
    assert_eq!((windows.usage(), host.dma_in_use()), ((4096, 0), 4096), "the device knew nothing of it");
    let address = number(&windows, region.address(0).unwrap());
    drop(region);
    assert_eq!(windows.usage(), (0, 4096));
    let late = host.translate(DEVICE, address, 8).expect("a late device write still hits DMA memory");
    late.slice().write_slice(b"too late", 0).unwrap();
    drop(late);
    let (life, quiet) = (windows.life(), windows.reset_model().unwrap());
    assert!(quiet.ends(&life) && !quiet.ends(&windows.life()));
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0));
    // From the arena, and zero again.
    let next = windows.allocate(4096).unwrap();
    assert_eq!(next.as_volatile_slice().read_obj::<[u64; 512]>(0), Ok([0; 512]));
}

/// A table of descriptors may name whatever there is from then on, so nothing goes before the device's life
/// has ended.
#[test]
fn a_descriptor_table_makes_everything_stay() {
    let host = platform();
    let windows = DmaWindows::new(host, DEVICE).unwrap();
    let region = windows.allocate(4096).unwrap();
    let table = DescriptorTable::<Split>::new(&windows, 4, 0, Direction::ToDevice).unwrap();
    drop(region);
    assert_eq!(windows.usage(), (4096, 4096));
    drop(table);
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 8192), 8192));
}

#[test]
fn quarantine_that_nobody_can_release_is_leaked_not_reused() {
    let host = platform();
    let windows = model(host);
    let region = windows.allocate(4096).unwrap();
    windows.publish(region.address(0).unwrap()).unwrap();
    let view = windows.writable().unwrap();
    drop((windows, region));
    assert_eq!(host.dma_in_use(), 4096);
    drop(view);
    assert_eq!(host.dma_in_use(), 4096);
    let taken: Vec<_> =
        (0..4).map(|_| DmaWindows::new(host, DEVICE).unwrap().allocate(4096).unwrap()).take(1).collect();
    assert_eq!(host.dma_in_use(), 8192);
    drop(taken);
}

/// O22: dropping allocates nothing, before a reset and after it.
#[test]
fn dropping_allocates_nothing() {
    let windows = model(platform());
    for _ in 0..2 {
        let regions: Vec<_> = (0..8).map(|_| windows.allocate(4096).unwrap()).collect();
        windows.publish(regions[0].address(0).unwrap()).unwrap();
        let before = ALLOCATIONS.get();
        regions.into_iter().for_each(drop);
        assert_eq!(ALLOCATIONS.get(), before);
        windows.reset_model().unwrap();
    }
}

/// Nothing is allocated, and no foreign code called, while a lock of the crate is held (O16 to O18): a
/// bitmap's constructor and the platform may call back, and the heap may grow from the same memory.
#[test]
fn foreign_code_runs_without_locks() {
    struct Curious;
    impl Bitmap for Curious {
        fn mark_dirty(&self, _: usize, _: usize) {}
        fn dirty_at(&self, _: usize) -> bool {
            false
        }
    }
    impl WithBitmapSlice<'_> for Curious {
        type S = ();
        fn slice_at(&self, _: usize) {}
    }
    impl Curious {
        fn look() {
            assert!(!ringfence_memory::host::locks_held());
        }
    }
    impl NewBitmap for Curious {
        fn with_len(_: usize) -> Self {
            Self::look();
            Self
        }
    }
    CHECK_LOCKS.set(true);
    let windows = model(platform());
    let regions: Vec<_> = (0..40).map(|_| windows.allocate(4096).unwrap()).collect();
    assert_eq!(windows.snapshot::<Curious>(Direction::ToDevice).unwrap().num_regions(), 40);
    let many: Vec<_> = (0..20).map(|id| DmaWindows::new(platform(), DeviceId(id)).unwrap()).collect();
    windows.publish(regions[3].address(0).unwrap()).unwrap();
    drop((regions, many));
    windows.reset_model().unwrap();
    CHECK_LOCKS.set(false);
}

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static CHECK_LOCKS: Cell<bool> = const { Cell::new(false) };
}

/// Counts, and sees to it that nobody holds a lock.
struct Watched;

fn watch() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    if CHECK_LOCKS.get() && ringfence_memory::host::locks_held() {
        CHECK_LOCKS.set(false);
        panic!("an allocation under a lock");
    }
}

// SAFETY: the system's, which this one only watches.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        watch();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Watched = Watched;

proptest! {
    /// Buffers of a pool never overlap, none is lent twice, and dropping one makes it available again.
    #[test]
    fn pool_buffers_are_disjoint(
        count in 1usize..40,
        len in 1usize..3000,
        steps in prop::collection::vec(any::<(bool, usize)>(), 0..200),
    ) {
        let windows = model(platform());
        let pool = DmaPool::new(&windows, count, len).unwrap();
        let mut lent: Vec<(DmaBuf, u8)> = Vec::new();
        for (tag, (take, pick)) in steps.into_iter().enumerate() {
            let tag = tag as u8;
            if take {
                match pool.take() {
                    Some(mut buf) => {
                        buf.write_slice(&vec![tag; len], 0).unwrap();
                        lent.push((buf, tag));
                    }
                    None => prop_assert_eq!(lent.len(), count),
                }
            } else if !lent.is_empty() {
                lent.swap_remove(pick % lent.len());
            }
            prop_assert_eq!(pool.available() + lent.len(), count);
        }
        for (buf, tag) in &lent {
            let mut bytes = vec![0; len];
            buf.read_slice(&mut bytes, 0).unwrap();
            prop_assert!(bytes.iter().all(|byte| byte == tag));
            prop_assert!(buf.read_slice(&mut bytes, 1).is_err());
        }
    }

    /// Volatile copies at every offset, length and alignment agree with a plain array.
    #[test]
    fn volatile_copies_agree_with_an_array(
        offset in 0usize..64,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        fill: u8,
        skew in 0usize..9,
    ) {
        let windows = model(platform());
        let region = windows.allocate(4096).unwrap();
        let mut model = vec![0; 4096];
        region.as_volatile_slice().subslice(offset, 100).unwrap().fill(fill).unwrap();
        model[offset..offset + 100].fill(fill);
        // `skew` moves the private side off its alignment too.
        let mut skewed = vec![0; skew];
        skewed.extend(&bytes);
        region.as_volatile_slice().write_slice(&skewed[skew..], offset + 10).unwrap();
        model[offset + 10..][..bytes.len()].copy_from_slice(&bytes);
        let mut all = vec![0; 4096 + skew];
        region.as_volatile_slice().read_slice(&mut all[skew..], 0).unwrap();
        prop_assert_eq!(&all[skew..], &model[..]);
        let mut read = vec![0; bytes.len().max(1)];
        let beyond = 4097 - read.len();
        prop_assert!(region.as_volatile_slice().read_slice(&mut read, beyond).is_err());
    }
}
