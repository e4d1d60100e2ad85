//! The registers of a device on the bus: what can be written to them.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;
use ringfence_testkit::registers::*;

#[test]
fn a_queue_is_told_where_it_is_and_nothing_else() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    card.negotiate(&virtio, &windows, 0);
    let ring = Ring::new(&windows, 16);
    virtio.common.set_queue(&windows, 2, &ring.addresses()).unwrap();
    let at =
        [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE].map(|register| card.told(register));
    ring.driver.as_volatile_slice().write_obj(*b"available", 0).unwrap();
    let seen = card.platform.translate(card.address.id(), at[1], 9).unwrap();
    assert_eq!(seen.slice().read_obj(0), Ok(*b"available"));
    assert_eq!(at.map(|at| card.platform.translate(card.address.id(), at, 256).is_some()), [true; 3]);
    assert_eq!(card.told(0x38), 0, "nothing behind them");
    let field = |offset| virtio.common.read_queue::<u16>(2, offset).unwrap();
    let fields = [common::QUEUE_SELECT, common::QUEUE_SIZE, common::QUEUE_ENABLE].map(field);
    assert_eq!(fields, [2, 16, 1]);
    // Not while it is in use, nor one that there is not.
    let more = Ring::new(&windows, 16);
    assert_eq!(virtio.common.set_queue(&windows, 2, &more.addresses()), Err(SetQueueError::Unavailable));
    card.forget_queue();
    assert_eq!(virtio.common.set_queue(&windows, QUEUES, &more.addresses()), Err(SetQueueError::Unavailable));
    assert_eq!(card.told(common::QUEUE_DESC), 0);
}

/// How far the device goes is decided by the size that it is told: no queue is larger than its table and its
/// areas, which are aligned and for it to read and to write.
#[test]
fn a_queue_ends_where_its_memory_does() {
    let windows = Card::new().windows();
    let (page, two) = (windows.allocate(4096).unwrap(), windows.allocate(4097).unwrap());
    let table = |count| DescriptorTable::<Split>::new(&windows, count, 0, Direction::ToDevice).unwrap();
    let (short, misaligned) = (VolatileError::OutOfBounds, VolatileError::Misaligned);
    let split = |size: usize, region: &DmaRegion, [driver, device]: [usize; 2]| {
        let at = |offset| region.address(offset).unwrap();
        table(size).queue(at(driver), at(device)).map(|queue| usize::from(queue.size()))
    };
    // 6 + 2 n bytes and 6 + 8 n.
    for (size, at, expected) in [
        (256, [0, 0], Ok(())),
        (512, [0, 0], Err(short)),
        (2048, [0, 0], Err(short)),
        (1, [4096 - 8, 4096 - 16], Ok(())),
        (1, [4096 - 6, 4096 - 16], Err(short)),
        (1, [4096 - 8, 4096 - 12], Err(short)),
        (1, [1, 0], Err(misaligned)),
        (1, [2, 2], Err(misaligned)),
        (1, [2, 4], Ok(())),
    ] {
        let expected = expected.map(|()| size).map_err(DmaError::Access);
        assert_eq!(split(size, &page, at), expected, "{size} descriptors, {at:?}");
    }
    for size in [3, 0x1_0000] {
        assert_eq!(split(size, &two, [0, 0]), Err(DmaError::BadLength));
    }
    for (at, expected) in [
        ([0, 8192 - 8 - 8 * 512], Ok(512)),
        ([0, 8192 - 4 - 8 * 512], Err(DmaError::Access(short))),
        ([8192 - 6 - 2 * 512, 0], Ok(512)),
        ([8192 - 4 - 2 * 512, 0], Err(DmaError::Access(short))),
    ] {
        assert_eq!(split(512, &two, at), expected, "{at:?}");
    }
    let packed = |count| DescriptorTable::<Packed>::new(&windows, count, 0, Direction::Both).unwrap();
    for (size, at, expected) in [
        (7, 4092, Ok(true)),
        (7, 4093, Err(DmaError::Access(short))),
        (7, 2, Err(DmaError::Access(misaligned))),
        (0x8000, 0, Ok(true)),
        (0x8001, 0, Err(DmaError::BadLength)),
    ] {
        let (table, at, start) = (packed(size), page.address(at).unwrap(), page.address(0).unwrap());
        assert_eq!(table.queue(at, start).map(|queue| queue.is_packed()), expected, "{size} descriptors");
        assert_eq!(table.queue(start, at).map(|queue| queue.is_packed()), expected, "{size} descriptors");
    }
    let reads = windows.allocate_for(4096, Direction::ToDevice).unwrap();
    let writes = windows.allocate_for(4096, Direction::FromDevice).unwrap();
    let (read, write, table) = (reads.address(0).unwrap(), writes.address(0).unwrap(), table(4));
    let refused = Err(DmaError::Access(VolatileError::NotPermitted));
    assert_eq!(table.queue(read, write).map(|queue| queue.size()), Ok(4));
    assert_eq!(table.queue(write, write).map(|queue| queue.size()), refused);
    assert_eq!(table.queue(read, read).map(|queue| queue.size()), refused);
}

/// A ring is told to a device that will read it as it was written: else what is a length or an index to the
/// one were a flag to the other.
#[test]
fn a_queue_has_the_format_that_was_negotiated() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    let common = &virtio.common;
    let wrong = Err(SetQueueError::WrongFormat);
    let area = windows.allocate(4096).unwrap();
    let split = || {
        let ring = Ring::new(&windows, 4);
        common.set_queue(&windows, 0, &ring.addresses())
    };
    let packed = || {
        let table = DescriptorTable::<Packed>::new(&windows, 4, 0, Direction::Both).unwrap();
        let queue = table.queue(area.address(0).unwrap(), area.address(8).unwrap()).unwrap();
        common.set_queue(&windows, 0, &queue)
    };
    // What somebody else told the device, before us, is not known.
    card.set_status(0x0f);
    assert!(common.set_driver_features(0));
    common.set_status(0x0b);
    assert_eq!(split(), wrong);
    common.reset(&windows, LIMIT).unwrap();
    assert!(common.set_driver_features(0));
    common.set_status(3);
    assert_eq!(split(), wrong, "not final");
    common.set_status(FEATURES_OK);
    assert!(!common.set_driver_features(RING_PACKED), "final");
    assert_eq!(card.registers.slice().read_obj::<u32>(common::DRIVER_FEATURE), Ok(0));
    assert_eq!((packed(), split()), (wrong, Ok(())));
    card.negotiate(&virtio, &windows, RING_PACKED);
    assert_eq!((split(), packed()), (wrong, Ok(())));
    card.forget_queue();
    // Nobody is there, so nobody was asked to reset.
    card.poke(0, u32::MAX);
    assert_eq!(common.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    card.poke(0, 0x1042_1af4);
    assert_eq!(packed(), Ok(()));
    card.forget_queue();
    // The device was asked, and not seen to do it: what it knows is not known.
    let reads = AtomicUsize::new(0);
    *card.on_read.lock() = Some(Box::new(move |card, offset| {
        if offset == COMMAND && reads.fetch_add(1, Ordering::Relaxed) == 4 {
            card.poke(0, u32::MAX);
        }
    }));
    assert_eq!(common.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    *card.on_read.lock() = None;
    card.poke(0, 0x1042_1af4);
    common.set_status(0x0b);
    assert_eq!((packed(), split()), (wrong, wrong));
    card.negotiate(&virtio, &windows, RING_PACKED);
    assert_eq!(packed(), Ok(()));
}

/// Registers that go together are accessed together, from however many threads.
#[test]
fn selectors_and_what_they_select() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    card.negotiate(&virtio, &windows, 0);
    let ring = Ring::new(&windows, 16);
    thread::scope(|scope| {
        for index in 0..2 {
            let common = &virtio.common;
            scope.spawn(move || {
                for _ in 0..20_000 {
                    assert_eq!(common.read_queue::<u16>(index, common::QUEUE_SELECT), Ok(index));
                }
            });
        }
        for _ in 0..2_000 {
            virtio.common.set_queue(&windows, 2, &ring.addresses()).unwrap();
            card.registers.slice().write_obj(0_u16, COMMON + common::QUEUE_ENABLE).unwrap();
        }
    });
}

/// O13: no number that safe code has becomes an address, a size, or a status that takes something back.
#[test]
fn numbers_do_not_reach_what_decides_about_memory() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    let common = &virtio.common;
    card.negotiate(&virtio, &windows, 0);
    card.registers.slice().write_obj([0xa5_u8; 0x20], COMMON + common::QUEUE_SIZE).unwrap();
    let queue = || card.registers.slice().read_obj::<[u8; 0x20]>(COMMON + common::QUEUE_SIZE).unwrap();
    let before = queue();
    common.set_status(0);
    common.set_status(FEATURES_OK);
    assert_eq!((common.status(), card.status()), (0x0b, 0x0b));
    common.set_status(4);
    assert_eq!(card.status(), 0x0f, "bits are set, none is cleared");
    common.set_status(0xff);
    assert_eq!(card.status(), 0xcf, "there are no others");
    assert!(!common.set_driver_features(u64::MAX));
    assert_eq!(common.device_features(), 0);
    assert_eq!(common.set_config_vector(3), Ok(3));
    assert_eq!(queue(), before);
    assert_eq!(common.set_queue_vector(1, 2), Ok(2));
    let mut expected = before;
    expected[2..4].copy_from_slice(&2_u16.to_le_bytes());
    assert_eq!(queue(), expected, "the vector, and nothing else");
    common.reset_queue(1).unwrap();
    assert_eq!(card.registers.slice().read_obj::<u16>(COMMON + common::QUEUE_RESET), Ok(1));
    assert_eq!(common.read::<u8>(0x1000), Err(MmioError::OutOfBounds));
    assert_eq!(common.read_queue::<u32>(0, usize::MAX), Err(MmioError::OutOfBounds));
    assert_eq!(common.read_queue::<u32>(0, 2), Err(MmioError::Misaligned));
}

/// Every bit alone is written, and none is no reset.
#[test]
fn each_bit_of_the_status_is_set() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    for bit in [1, 2, 4, 8, 0x80] {
        virtio.common.reset(&windows, LIMIT).unwrap();
        virtio.common.set_status(bit);
        assert_eq!((card.status(), virtio.common.status()), (bit, bit));
        virtio.common.set_status(0);
        assert_eq!(card.status(), bit);
    }
}

/// An address, and a table, of a life that has ended are told no more.
#[test]
fn what_is_of_another_life_is_refused() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    card.negotiate(&virtio, &windows, 0);
    let old = Ring::new(&windows, 16);
    let addresses = old.addresses();
    virtio.common.set_queue(&windows, 0, &addresses).unwrap();
    let before = card.told(common::QUEUE_DESC);
    card.negotiate(&virtio, &windows, 0);
    for stale in [addresses, old.addresses()] {
        let result = virtio.common.set_queue(&windows, 0, &stale);
        assert_eq!(result, Err(SetQueueError::Dma(DmaError::WrongLife)));
    }
    let new = Ring::new(&windows, 16);
    let mixed = new.descriptors.queue(addresses.addresses()[1], new.device.address(0).unwrap()).unwrap();
    let result = virtio.common.set_queue(&windows, 0, &mixed);
    assert_eq!(result, Err(SetQueueError::Dma(DmaError::WrongLife)));
    assert_eq!(card.told(common::QUEUE_DESC), 0, "nothing was written");
    virtio.common.set_queue(&windows, 0, &new.addresses()).unwrap();
    assert_ne!(card.told(common::QUEUE_DESC), before);
}

#[test]
fn messages_come_from_the_kernel_and_go_to_their_entry() {
    let card = Card::new();
    card.registers.slice().write_obj([0xdead_0000_u32; 15], MSIX).unwrap();
    let msix = card.virtio().msix.unwrap();
    assert_eq!(msix.size(), VECTORS);
    let masked =
        |entry: usize| card.registers.slice().read_obj::<u32>(MSIX + 16 * entry + 12).unwrap() & 1 != 0;
    assert_eq!([0, 1, 2, 3].map(masked), [true; 4], "what was left there is not sent");
    assert!(msix.enable(true));
    assert_eq!([0, 1, 2, 3].map(masked), [true; 4]);
    let message = unsafe { MsiMessage::new(0x1_fee0_1000, 0x41) };
    msix.set(VECTORS - 1, message).unwrap();
    let entry: [u32; 4] = card.registers.slice().read_obj(MSIX + 16 * usize::from(VECTORS - 1)).unwrap();
    assert_eq!(entry, [0xfee0_1000, 1, 0x41, 0]);
    assert_eq!(msix.set(VECTORS, message), Err(MmioError::OutOfBounds));
    assert_eq!(msix.set(u16::MAX, message), Err(MmioError::OutOfBounds));
    assert_eq!(card.registers.slice().read_obj::<u32>(MSIX + 16 * 4), Ok(0));
}

/// O27: registers are one caller's at a time.
#[test]
fn registers_are_checked_and_claimed_once() {
    let host: &HostPlatform = platform();
    let device = host.add_registers(BAR, 4096);
    let start = PhysAddr::new(BAR).unwrap();
    let region = MmioRegion::map(host, None, start, 4096).unwrap();
    assert_eq!(MmioRegion::map(host, None, start, 4096).unwrap_err(), PlatformError::Claimed);
    drop(host.add_registers(BAR + 0x1000, 4096));
    let second = PhysAddr::new(BAR + 0x1000).unwrap();
    let claim = host.mmio_map(None, second, 4096).unwrap();
    assert_eq!(
        host.mmio_map(None, second, 4096).err(),
        Some(PlatformError::Claimed),
        "nobody looks at it, but it is taken"
    );
    drop(claim);
    host.mmio_map(None, second, 4096).unwrap();
    // Pages are claimed for themselves.
    drop(host.add_registers(BAR + 0x2000, 3 * 4096));
    let map = |offset, len| host.mmio_map(None, PhysAddr::new(BAR + 0x2000 + offset).unwrap(), len);
    let middle = map(0x1010, 0x20).unwrap();
    assert_eq!((map(0x1000, 0x10).err(), map(0, 0x3000).err()), [Some(PlatformError::Claimed); 2].into());
    let _others = (map(0, 0x1000).unwrap(), map(0x2000, 0x1000).unwrap());
    drop(middle);
    map(0x1fff, 1).unwrap();
    assert_eq!((map(0x2000, 0x1001).err(), map(0, 0).err()), [Some(PlatformError::BadRange); 2].into());
    assert_eq!(region.read::<u32>(4094).unwrap_err(), MmioError::OutOfBounds);
    assert_eq!(region.read::<u32>(2).unwrap_err(), MmioError::Misaligned);
    assert_eq!(region.read::<u32>(usize::MAX - 1).unwrap_err(), MmioError::OutOfBounds);
    assert_eq!(region.part(4090, 7).unwrap_err(), MmioError::OutOfBounds);
    assert_eq!(region.part(usize::MAX, 2).unwrap_err(), MmioError::OutOfBounds);
    let part = region.part(0x10, 4).unwrap();
    assert_eq!((part.len(), part.is_empty()), (4, false));
    assert_eq!(unsafe { part.write(4, 0_u8) }, Err(MmioError::OutOfBounds));
    assert!(region.part(4096, 0).unwrap().is_empty());
    unsafe { part.write(0, 0x1234_5678_u32) }.unwrap();
    assert_eq!(region.read::<u16>(0x12), Ok(0x1234));
    let register = part.register::<u32>(0).unwrap();
    drop((region, part));
    unsafe { register.write(0xdead_beef) };
    assert_eq!((register.read(), device.slice().read_obj::<u32>(0x10)), (0xdead_beef, Ok(0xdead_beef)));
    assert_eq!(
        MmioRegion::map(host, None, start, 4096).unwrap_err(),
        PlatformError::Claimed,
        "a register keeps the claim"
    );
    drop(register);
    MmioRegion::map(host, None, start, 4096).unwrap();
}
