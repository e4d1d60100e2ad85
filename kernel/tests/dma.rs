//! Memory for devices, and their registers.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

mod common;

use alloc::vec::Vec;
use core::num::NonZeroUsize;

use common::{
    ABSENT, MIB, NO_EXECUTE, PAGE, Seen, address, assert_fault, assert_sound, count, counts, execute,
    physical, read, take_all_frames, walk,
};
use ringfence_kernel::memory::image;
use ringfence_kernel::memory::space;
use ringfence_kernel::platform::KERNEL;
use ringfence_memory::{
    Bytes, ClaimError, DeviceId, Direction, Dma, DmaPool, DmaWindows, FrameRange, FrameRequest, MappedPages,
    MmioRegion, Owner, PAGE_SIZE, PhysAddr, Platform, PlatformError, Protection, ResetError,
};
use x86_64::structures::paging::PageTableFlags as Flags;

ringfence_kernel::test_image!();

const DEVICE: DeviceId = DeviceId(0x18);

/// The high-precision timer of every machine here: a device that no one claims, with known contents.
const HPET: u64 = 0xfed0_0000;
/// Revision 1, 3 timers, 64 bits, QEMU's vendor number (IA-PC HPET specification 1.0a, 2.3.4).
const HPET_ID: u32 = 0x8086_a201;

fn frames(start: u64, count: usize) -> FrameRange {
    FrameRange::new(PhysAddr::new(start).expect("52 bits"), count).expect("aligned")
}

fn allocate(pages: usize) -> MappedPages<Dma> {
    space().allocate_dma(FrameRequest::new(pages)).expect("there is memory")
}

/// All bytes of DMA memory that nobody else looks at.
fn bytes(memory: &mut MappedPages<Dma>) -> &mut [u8] {
    // SAFETY: no device was told of this memory, and the mapping is borrowed as long as the bytes.
    unsafe { core::slice::from_raw_parts_mut(memory.as_ptr(), memory.size_in_bytes() as usize) }
}

/// It is contiguous, where it says it is, zero whoever had it before, and not to be executed.
#[test_case]
fn dma_memory_is_zeroed_and_contiguous() {
    let (mut seen, mut reused) = (Seen::below(128 * MIB), 0);
    for pages in [1, 1, 5, 64, 64, 512, 512, 5, 100] {
        let mut memory = allocate(pages);
        let (start, frame) = (address(&memory), memory.physical_address().value());
        for offset in (0..pages as u64).map(|page| page * PAGE) {
            assert_eq!(physical(start + offset), Some(frame + offset));
            reused += usize::from(!seen.insert(frame + offset));
        }
        assert_fault(execute(start), start, NO_EXECUTE);
        assert!(bytes(&mut memory).iter().all(|byte| *byte == 0), "{pages} pages are not zero");
        bytes(&mut memory).fill(0xa5);
        drop(memory);
        assert_fault(read(start), start, ABSENT);
        assert_eq!(count(Owner::Dma), 0);
    }
    assert!(reused >= 577, "only {reused} pages were used before");
    assert_sound();
}

/// Where it lies can be asked for.
#[test_case]
fn dma_requests_are_met() {
    let limit = PhysAddr::new(16 * MIB);
    let low =
        space().allocate_dma(FrameRequest { below: limit, ..FrameRequest::new(100) }).expect("there is room");
    assert!(low.physical_address().value() + low.size_in_bytes() <= 16 * MIB);
    let aligned =
        space().allocate_dma(FrameRequest { align: 64, ..FrameRequest::new(3) }).expect("there is room");
    assert!(aligned.physical_address().value().is_multiple_of(64 * PAGE));
    assert_sound();
}

/// What a device once had goes to devices only, however much the rest of the kernel wants.
#[test_case]
fn dma_memory_never_becomes_private() {
    let mut seen = Seen::below(128 * MIB);
    let all: Vec<_> = (1..40).map(allocate).collect();
    for memory in &all {
        let start = memory.physical_address().value();
        (0..memory.size_in_bytes())
            .step_by(PAGE_SIZE)
            .for_each(|offset| assert!(seen.insert(start + offset)));
    }
    let lent = count(Owner::Dma);
    assert_eq!(lent, (1..40).sum::<usize>());
    // They are parts of whole blocks, the rest of which nobody else has.
    let rest = (1..40).map(usize::next_power_of_two).sum::<usize>() - lent;
    let before = counts();
    drop(all);
    let after = counts();
    for (owner, before) in Owner::ALL.into_iter().zip(before) {
        let expected = match owner {
            Owner::Dma => 0,
            Owner::DmaIdle => before + lent + rest,
            Owner::Allocated => before - rest,
            _ => before,
        };
        assert_eq!(after[owner as usize], expected, "{owner}");
    }
    let private = take_all_frames(&mut seen);
    assert_sound();
    // The arena still has what it had.
    drop((1..40).map(allocate).collect::<Vec<_>>());
    drop(private);
    assert_sound();
}

/// Quarantined memory is out of use until it is released.
#[test_case]
fn quarantine_keeps_memory() {
    let windows = DmaWindows::for_model(&KERNEL, DEVICE).expect("nobody else has it");
    let region = windows.allocate(3 * PAGE_SIZE).expect("there is memory");
    let frame = physical(region.as_volatile_slice().as_ptr().addr().get() as u64).expect("it is mapped");
    let told = windows.publish(region.address(0).expect("it is inside")).expect("it is this device's");
    assert_eq!((told.0, count(Owner::Dma), count(Owner::Quarantined)), (frame, 3, 0));
    drop(region);
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined), windows.usage()), (0, 3, (0, 3 * PAGE_SIZE)));
    let others: Vec<_> = (0..100).map(|_| allocate(3)).collect();
    let ranges = others.iter().map(|other| other.physical_address().value());
    assert!(ranges.clone().all(|start| start + 3 * PAGE <= frame || frame + 3 * PAGE <= start));
    assert_sound();
    let other = windows.allocate(PAGE_SIZE).expect("there is memory");
    let view = windows.readable().expect("room for the list");
    assert_eq!(windows.reset_model().err(), Some(ResetError::Timeout), "somebody looks at memory");
    assert_eq!((count(Owner::Quarantined), windows.usage()), (3, (PAGE_SIZE, 3 * PAGE_SIZE)));
    drop(view);
    assert!(windows.reset_model().is_ok());
    drop(other);
    assert_eq!((count(Owner::Quarantined), windows.usage()), (0, (0, 0)));
    drop(others);
    let all: Vec<_> = (0..101).map(|_| allocate(3)).collect();
    assert!(all.iter().any(|memory| memory.physical_address().value() == frame), "it serves again");
    drop(all);
    assert_sound();
}

/// Through the platform, as drivers get it: regions and pools, whose memory goes back when the last part is
/// dropped.
#[test_case]
fn regions_return_to_the_arena() {
    let before = count(Owner::Dma);
    let windows = DmaWindows::new(&KERNEL, DEVICE).expect("nobody else has it");
    let region = windows.allocate(5000).expect("there is memory");
    assert_eq!((region.len(), windows.usage(), count(Owner::Dma)), (8192, (8192, 0), before + 2));
    assert_eq!(region.as_volatile_slice().read_obj::<[u8; 8192]>(0), Ok([0; 8192]));
    region.as_volatile_slice().write_slice(&[0xa5; 8192], 0).expect("it fits");
    let pool = DmaPool::new(&windows, 16, 2048).expect("there is memory");
    let buffer = pool.take().expect("none is lent");
    drop((region, pool));
    assert_eq!(count(Owner::Dma), before + 8, "the buffer keeps its pool");
    drop(buffer);
    assert_eq!((count(Owner::Dma), windows.usage()), (before, (0, 0)));
    let region = windows.allocate(8192).expect("there is memory");
    assert_eq!(region.as_volatile_slice().read_obj::<[u8; 8192]>(0), Ok([0; 8192]));
    let too_much = NonZeroUsize::new(1 << 30).expect("not zero");
    assert_eq!(
        KERNEL.dma_allocate(DEVICE, too_much, Direction::Both).err(),
        Some(PlatformError::OutOfMemory)
    );
    assert_sound();
}

/// Registers have one owner at a time, are read where they are, and bypass the cache.
#[test_case]
fn registers_are_claimed_once() {
    let (timer, start) = (frames(HPET, 1), PhysAddr::new(HPET).expect("52 bits"));
    assert_eq!(space().claim_mmio(timer, None).err(), Some(ClaimError::NotOffered));
    assert_eq!(MmioRegion::map(&KERNEL, None, start, 0x400).err(), Some(PlatformError::BadRange));
    // SAFETY: QEMU's timer is there, and can reach no memory.
    unsafe {
        assert_eq!(space().offer_mmio(timer), Ok(()));
        assert_eq!(space().offer_mmio(timer), Err(ClaimError::Overlap));
        assert_eq!(space().offer_mmio(frames(HPET - PAGE, 4)), Err(ClaimError::Overlap));
        assert_eq!(space().offer_mmio(FrameRange::empty()), Err(ClaimError::ZeroLength));
    }
    assert_eq!(space().claim_mmio(frames(HPET, 2), None).err(), Some(ClaimError::NotOffered));
    for _ in 0..3 {
        let region = MmioRegion::map(&KERNEL, None, start, 0x400).expect("it was offered");
        assert_eq!((region.read::<u32>(0), region.read::<u32>(4)), (Ok(HPET_ID), Ok(10_000_000)));
        assert_eq!(MmioRegion::map(&KERNEL, None, start, 0x400).err(), Some(PlatformError::Claimed));
        assert_eq!(space().claim_mmio(timer, None).err(), Some(ClaimError::AlreadyClaimed));
        let mut found = 0;
        walk(&mut |leaf| {
            if leaf.frame == HPET {
                found += 1;
                let flags = leaf.flags - Flags::ACCESSED - Flags::DIRTY - Flags::BIT_9 - Flags::BIT_10;
                let expected = Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE;
                assert_eq!(flags, expected | Flags::NO_CACHE | Flags::WRITE_THROUGH);
            }
        });
        assert_eq!(found, 1);
        assert_sound();
        drop(region);
    }
    let claimed = space().claim_mmio(timer, None).expect("it was given back");
    assert_eq!((claimed.physical_address(), claimed.flags()), (start, Protection::ReadWrite));
    let at = address(&claimed);
    drop(claimed);
    assert_fault(read(at), at, ABSENT);
    assert_sound();
}

/// RAM cannot be claimed as registers: whoever has it, and even if only a part of the range is RAM.
#[test_case]
fn ram_is_not_offered_as_registers() {
    let private = space().allocate(1, Protection::ReadWrite).expect("there is memory");
    let dma = allocate(1);
    let places = [
        0,
        PAGE,
        MIB,
        physical(image::text().start.as_u64()).expect("it is mapped"),
        physical(common::POOL).expect("it is mapped"),
        physical(address(&private)).expect("it is mapped"),
        dma.physical_address().value(),
        64 * MIB,
    ];
    for start in places {
        for pages in [1, 2, 1 << 20] {
            // SAFETY: expected to be refused.
            let offered = unsafe { space().offer_mmio(frames(start, pages)) };
            assert_eq!(offered, Err(ClaimError::Ram), "{pages} pages at {start:#x}");
        }
        assert_eq!(space().claim_mmio(frames(start, 1), None).err(), Some(ClaimError::NotOffered));
    }
    assert_sound();
}
