//! Memory and registers of devices, on the machine of `common`.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::*;
use ringfence_testkit::machine::*;

#[test]
fn dma_memory_never_becomes_private() {
    let system = System::small();
    let below = PhysAddr::new(2048 * PAGE);
    let dma = system.space.allocate_dma(FrameRequest { below, align: 4, ..FrameRequest::new(5) }).unwrap();
    let physical = dma.physical_address().value();
    assert!(physical.is_multiple_of(4 * PAGE) && physical + 5 * PAGE <= 2048 * PAGE);
    let words: *mut u64 = dma.as_ptr().cast();
    for index in 0..5 * 512 {
        assert_eq!(unsafe { words.add(index).read_volatile() }, 0);
        unsafe { words.add(index).write_volatile(u64::MAX) };
    }
    assert_eq!(system.machine.word(physical + 4 * PAGE), u64::MAX, "adjacent");
    // Three frames more are in the same block.
    let held = [Owner::Dma, Owner::Allocated].map(|owner| system.space.frames().count(owner));
    assert_eq!(held, [5, 3]);
    let arena = 5 + 3 + system.space.frames().count(Owner::DmaIdle);
    system.check();
    drop(dma);
    system.check();
    // Take everything that is left for private use: none of it is the arena's.
    let mut private = Vec::new();
    while let Ok(mapped) = system.space.allocate(1, Protection::ReadWrite) {
        let frame = system.machine.walk(mapped.start_address().value()).unwrap().frame;
        assert!(!(physical..physical + 5 * PAGE).contains(&(frame * PAGE)));
        private.push(mapped);
    }
    assert_eq!(system.space.frames().count(Owner::DmaIdle), arena);
    // Devices still get it, zeroed again.
    let dma = system.space.allocate_dma(FrameRequest { below, align: 4, ..FrameRequest::new(5) }).unwrap();
    assert_eq!(dma.physical_address().value(), physical);
    let words: *mut u64 = dma.as_ptr().cast();
    assert!((0..5 * 512).all(|index| unsafe { words.add(index).read_volatile() } == 0));
    system.check();
}

#[test]
fn registers_are_claimed_once_each() {
    let system = System::small();
    let before = system.state();
    let (space, mmio) = (system.space, |start: u64, count| frames(4096 + start, count));
    unsafe {
        space.offer_mmio(mmio(0, 4)).unwrap();
        space.offer_mmio(mmio(4, 1)).unwrap();
        assert_eq!(space.offer_mmio(mmio(3, 2)), Err(ClaimError::Overlap));
        assert_eq!(space.offer_mmio(mmio(0, 4)), Err(ClaimError::Overlap));
        assert_eq!(space.offer_mmio(FrameRange::empty()), Err(ClaimError::ZeroLength));
        assert_eq!(space.offer_mmio(frames(4095, 2)), Err(ClaimError::Ram));
        assert_eq!(space.offer_mmio(frames(0, 1)), Err(ClaimError::Ram));
    }
    let claim = |frames| space.claim_mmio(frames, None).map(|_| ()).unwrap_err();
    assert_eq!(claim(mmio(3, 2)), ClaimError::NotOffered, "of two ranges");
    assert_eq!(claim(mmio(8, 1)), ClaimError::NotOffered);
    assert_eq!(claim(frames(100, 1)), ClaimError::NotOffered, "RAM");
    let bar = space.claim_mmio(mmio(0, 4), None).unwrap();
    assert_eq!(claim(mmio(0, 4)), ClaimError::AlreadyClaimed);
    assert_eq!(bar.physical_address(), mmio(0, 4).start_address());
    unsafe { bar.as_ptr().add(3 * 4096).cast::<u32>().write_volatile(0x1234) };
    assert_eq!(system.machine.word((4096 + 3) * PAGE) as u32, 0x1234);
    // Uncached: PCD and PWT.
    let entry = system.machine.word(system.machine.entry(bar.start_address().value(), 0));
    assert_eq!(entry & 0x18, 0x18);
    system.check();
    drop(bar);
    system.check();
    // A part is claimed for itself, and the rest is there for others.
    let parts = [mmio(1, 1), mmio(3, 1), mmio(2, 1)].map(|part| space.claim_mmio(part, None).unwrap());
    for taken in [mmio(0, 4), mmio(0, 2), mmio(1, 1), mmio(2, 2), mmio(1, 3)] {
        assert_eq!(claim(taken), ClaimError::AlreadyClaimed, "{taken:?}");
    }
    system.check();
    let [first, last, middle] = parts;
    drop(last);
    assert_eq!(claim(mmio(2, 2)), ClaimError::AlreadyClaimed);
    drop(space.claim_mmio(mmio(3, 1), None).unwrap());
    system.check();
    drop((first, middle));
    drop(space.claim_mmio(mmio(0, 4), None).unwrap());
    // Nothing in one offer is two devices': the first to claim a part keeps others out of all of it.
    let claim_for = |device, frames| space.claim_mmio(frames, device);
    let [one, two] = [8, 16].map(|id| Some(DeviceId(id)));
    let held = [mmio(2, 1), mmio(0, 1)].map(|part| claim_for(one, part).unwrap());
    for (device, part) in [(two, mmio(1, 1)), (None, mmio(3, 1)), (two, mmio(3, 1)), (two, mmio(0, 1))] {
        assert_eq!(claim_for(device, part).err(), Some(ClaimError::AlreadyClaimed), "{device:?} {part:?}");
    }
    drop(claim_for(two, mmio(4, 1)).expect("another offer"));
    drop(claim_for(one, mmio(3, 1)).unwrap());
    drop(held);
    drop(claim_for(two, mmio(1, 1)).expect("nobody has any of it"));
    let next = claim_for(two, mmio(4, 1)).unwrap();
    drop(claim_for(one, mmio(0, 1)).expect("what lies behind it is another offer"));
    drop(next);
    system.check();
    for index in 0..126 {
        unsafe { space.offer_mmio(mmio(8 + index, 1)).unwrap() };
    }
    assert_eq!(unsafe { space.offer_mmio(mmio(500, 1)) }, Err(ClaimError::Full));
    system.check();
    assert_eq!(system.state(), before);
}

#[test]
fn large_register_ranges_use_large_leaves() {
    let config = Config { mmio_frames: 4096, ..Config::default() };
    let system = System::new(config);
    let before = system.state();
    let range = frames(4096, 1024 + 1);
    unsafe { system.space.offer_mmio(range).unwrap() };
    let mapped = system.space.claim_mmio(range, None).unwrap();
    assert_eq!(system.machine.walk(mapped.start_address().value()).unwrap().level, 1);
    let entry = system.machine.word(system.machine.entry(mapped.start_address().value(), 1));
    assert_eq!(entry & 0x98, 0x98);
    system.check();
    drop(mapped);
    drop(system.space.claim_mmio(range, None).unwrap());
    system.check();
    assert_eq!(system.state(), before);
}

/// As many parts can be claimed at a time as there is room for, and again when they are given back.
#[test]
fn so_many_claims_at_a_time() {
    let system = System::new(Config { mmio_frames: 0, ..Config::default() });
    unsafe { system.space.offer_mmio(frames(5000, 300)).unwrap() };
    for _ in 0..2 {
        let claim = |index| system.space.claim_mmio(frames(5000 + index, 1), None);
        // From both ends.
        let order = (0..128_u64).flat_map(|index| [index, 299 - index]);
        let held: Vec<_> = order.map(|index| claim(index).unwrap()).collect();
        assert_eq!(claim(150).unwrap_err(), ClaimError::Full);
        assert_eq!(claim(0).unwrap_err(), ClaimError::AlreadyClaimed);
        system.check();
        drop(held);
    }
    drop(system.space.claim_mmio(frames(5000, 300), None).unwrap());
}

/// Registers are offered in any order, side by side but not over each other, and each range is found again.
#[test]
fn registers_are_offered_in_any_order() {
    let system = System::new(Config { mmio_frames: 0, ..Config::default() });
    let offer = |frames| unsafe { system.space.offer_mmio(frames) };
    // 128 ranges of two frames, every second one first, each next to the others.
    let range = |index: u64| frames(5000 + 2 * index, 2);
    let order = (0..128).map(|index| index * 37 % 128);
    for index in order.clone() {
        assert_eq!(offer(range(index)), Ok(()), "{index}");
        for (start, count) in [(0, 2), (1, 1), (0, 1), (1, 2)] {
            let wrong = frames(5000 + 2 * index + start, count);
            assert_eq!(offer(wrong), Err(ClaimError::Overlap), "{wrong:?}");
        }
        assert_eq!(offer(frames(4999 + 2 * index, 2)), Err(ClaimError::Overlap));
    }
    assert_eq!(
        (offer(frames(9000, 1)), offer(frames(4098, 1))),
        (Err(ClaimError::Full), Err(ClaimError::Full))
    );
    let claim = |frames| system.space.claim_mmio(frames, None);
    let held: Vec<_> = order.map(|index| claim(range(index)).unwrap()).collect();
    assert!((0..128).all(|index| claim(range(index)).unwrap_err() == ClaimError::AlreadyClaimed));
    system.check();
    drop(held);
    let some = claim(range(64)).unwrap();
    assert_eq!(some.physical_address(), range(64).start_address());
    // A page of registers that nobody claimed, below, inside and above what is offered.
    let private = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let entry = system.machine.entry(private.start_address().value(), 0);
    let before = system.machine.word(entry);
    for frame in [4999, 5000, 5128, 5129, 5255, 5256, 9000] {
        system.machine.set_word(entry, frame << 12 | 1 << 63 | 3 << 9 | 0x1b);
        let report = system.space.audit();
        system.machine.set_word(entry, before);
        let wanted = Finding::UnclaimedMmio(private.start_address());
        assert!(report.findings().any(|found| *found == wanted), "frame {frame}");
    }
    system.check();
}
