//! The PCI transport over a configuration space and registers that are plain memory: what is written can be
//! seen, and what the device would say is put there beforehand.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use ringfence_drivers::block::{Block, Request};
use ringfence_drivers::net::Net;
use ringfence_drivers::virtio::{Error, InterruptStatus, features};
use ringfence_memory::{Bytes, DmaError, DmaPool, DmaWindows, MmioError, PlatformError};
use ringfence_testkit::config::virtio_capability;
use ringfence_testkit::disk::answer_read;
use ringfence_testkit::pci::*;
use ringfence_testkit::{Clocked, DeviceRing, ID, RING_PACKED, RING_RESET, grant};

#[test]
fn a_block_device_end_to_end() {
    let card = card(&qemu_capabilities());
    let windows = card.windows();
    let transport = card.transport().unwrap();
    assert_eq!((transport.msix_vectors(), transport.device_id()), (3, ID));
    assert_eq!(card.command(), MEMORY | INTX_OFF, "it answers, but neither writes memory nor interrupts");
    let mut block = Block::new(transport, &grant(), windows.clone()).unwrap();
    assert_eq!(card.command(), MEMORY | BUS_MASTER | INTX_OFF);
    assert_eq!((block.control.features(), block.queue.geometry().sectors), (features::VERSION_1, 100));
    assert_eq!(card.registers.slice().read_obj::<u8>(COMMON + 0x14), Ok(0x0f));
    assert_eq!(card.get16(COMMON + 0x1a), 0xffff, "no vector");
    assert_eq!((card.get16(COMMON + 0x18), card.get16(COMMON + 0x1c)), (64, 1));

    let doorbell = NOTIFY + 5 * 4;
    card.put16(doorbell, 0xffff);
    let pool = DmaPool::new(&windows, 1, 512).unwrap();
    block.queue.submit(Request::Read { sector: 7, buffer: pool.take().unwrap(), len: 512 }).unwrap();
    assert_eq!(card.get16(doorbell), 0xffff);
    block.queue.kick();
    assert_eq!(card.get16(doorbell), 0, "the queue's index, at its own place");
    let addresses = [0x20, 0x28, 0x30].map(|offset| card.get64(COMMON + offset));
    answer_read(&mut block.queue, DeviceRing::new(card.platform, ID, 64, addresses, 0));
    drop(block);
    assert_eq!(card.registers.slice().read_obj::<u8>(COMMON + 0x14), Ok(0));
    assert_eq!(card.get16(COMMON + 0x1c), 1, "a queue is not disabled, but the device reset (4.1.4.3.2)");
    assert_eq!(card.command() & BUS_MASTER, 0);
    assert_eq!(windows.usage().1, 0);
}

/// Of all bits those are accepted that the driver implements on PCI (2.2.1), and so the device is told.
#[test]
fn everything_offered() {
    let card = card_with(u64::MAX);
    card.put32(COMMON + 0x04, u32::MAX);
    card.put32(DEVICE + 8, 4096); // size_max
    let block = card.block().unwrap();
    let common = features::VERSION_1 | features::ACCESS_PLATFORM | features::QUEUES;
    // SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH, MQ.
    let own = [1, 2, 5, 6, 9, 12].into_iter().fold(0, |bits, bit| bits | 1 << bit);
    assert_eq!(block.control.features(), common | own);
    let told = card.registers.slice().read_obj::<u32>(COMMON + 0x0c).unwrap();
    assert_eq!(u64::from(told), block.control.features() >> 32, "the upper half, after the lower");
}

/// Nothing is written to the device configuration, before the features are chosen or after (3.1.1, 5.1.4.1).
#[test]
fn the_device_configuration_is_only_read() {
    for (kind, works) in [(0x1042_u16, true), (0x1041, false)] {
        let card = card_of(kind, &qemu_capabilities(), BAR4, 0x4000);
        card.put32(COMMON + 0x04, 1 | 1 << 3 | 1 << 5 | 1 << 16 | 1 << 6 | 1 << 2);
        (0..0x400).for_each(|word| card.put32(DEVICE + 4 * word, 0x200 << (word % 2)));
        let config = || {
            let mut bytes = vec![0; 0x1000];
            card.registers.slice().read_slice(&mut bytes, DEVICE).unwrap();
            bytes
        };
        let before = config();
        if works {
            let mut block = card.block().unwrap();
            assert_eq!(block.control.config_changed(), Ok(false));
        } else {
            // These registers have one queue, and a card needs two.
            let result = Net::new(card.transport().unwrap(), &grant(), card.windows());
            assert_eq!(result.map(drop), Err(Error::QueueUnavailable(1)));
        }
        assert!(config() == before, "{kind:#x}");
    }
}

#[test]
fn msix_vectors_are_set_read_back_and_shared() {
    for (count, queue_vector) in [(3, 1), (2, 1), (1, 0)] {
        let card = card(&qemu_capabilities());
        let mut transport = card.transport().unwrap();
        assert_eq!(transport.use_msix(&[]), Err(Error::NoVector));
        assert_eq!(transport.use_msix(&messages(4)), Err(Error::NoVector), "more than the table holds");
        transport.use_msix(&messages(count)).unwrap();
        for vector in 0..count as usize {
            let entry: [u32; 4] = card.msix.slice().read_obj(16 * vector).unwrap();
            assert_eq!(entry, [0xfee0_0000, 7, 0x40 + vector as u32, 0]);
        }
        let control = card.config.word(card.function.address(), MSIX_AT) >> 16;
        assert_eq!(control & 0xc000, 0x8000, "enabled, not masked");
        let block = Block::new(transport, &grant(), card.windows()).unwrap();
        assert_eq!((card.get16(COMMON + 0x10), card.get16(COMMON + 0x1a)), (0, queue_vector));
        drop(block);
        assert_eq!(card.config.word(card.function.address(), MSIX_AT) >> 31, 0, "off again");
    }
}

/// The table is where the capability says, and as long; what is around it is left alone.
#[test]
fn the_msix_table_is_where_it_should_be() {
    let mut list = qemu_capabilities();
    // Enabled by firmware; 3 entries at 0x800.
    list[0].1 = [&[0x02, 0x80][..], &[0x01, 0x08, 0, 0], &[0x04, 0x10, 0, 0]].concat();
    let card = card(&list);
    card.msix.slice().fill(0xee).unwrap();
    let mut transport = card.transport().unwrap();
    assert_eq!(transport.msix_vectors(), 3);
    transport.use_msix(&messages(3)).unwrap();
    let mut bytes = vec![0; 0x1000];
    card.msix.slice().read_slice(&mut bytes, 0).unwrap();
    let expected: Vec<u8> = (0..3_u32)
        // The reserved bits of the last word stay.
        .flat_map(|vector| [0xfee0_0000, 7, 0x40 + vector, 0xeeee_eeee])
        .flat_map(u32::to_le_bytes)
        .collect();
    assert_eq!(&bytes[0x800..0x830], expected);
    assert!(bytes[..0x800].iter().chain(&bytes[0x830..]).all(|&byte| byte == 0xee));
}

#[test]
fn the_interrupt_line() {
    let card = card(&qemu_capabilities());
    assert_eq!(card.function.interrupt_line(), Some((11, 1)));
    let mut transport = card.transport().unwrap();
    transport.use_msix(&messages(2)).unwrap();
    let isr = transport.use_intx();
    assert_eq!(card.command() & INTX_OFF, 0);
    assert_eq!(card.config.word(card.function.address(), MSIX_AT) >> 31, 0, "not both");
    for (bits, queue, config) in
        [(0_u8, false, false), (1, true, false), (2, false, true), (3, true, true), (0xff, true, true)]
    {
        card.registers.slice().write_obj(bits, ISR).unwrap();
        assert_eq!(isr.acknowledge(), InterruptStatus { queue, config });
    }
    let _block = Block::new(transport, &grant(), card.windows()).unwrap();
    assert_eq!((card.get16(COMMON + 0x10), card.get16(COMMON + 0x1a)), (0xffff, 0xffff));
}

#[test]
fn registers_are_claimed_once() {
    let card = card(&qemu_capabilities());
    let transport = card.transport().unwrap();
    assert_eq!(card.transport().unwrap_err(), Error::Platform(PlatformError::Claimed));
    drop(transport);
    assert!(card.transport().is_ok());
}

#[test]
fn a_grant_for_another_device() {
    let card = card(&qemu_capabilities());
    // SAFETY: nothing is there to write memory.
    let other = unsafe { ringfence_memory::DmaGrant::without_iommu(ringfence_memory::DeviceId(1)) };
    let result = Block::new(card.transport().unwrap(), &other, card.windows());
    assert!(matches!(result.map(drop), Err(Error::Dma(DmaError::WrongDevice))));
    assert_eq!(card.command() & BUS_MASTER, 0);
    let windows = DmaWindows::new(card.platform, ringfence_memory::DeviceId(1)).unwrap();
    let result = Block::new(card.transport().unwrap(), &grant(), windows);
    assert!(result.is_err(), "memory of another device");
}

#[test]
fn devices_that_are_not_there_or_lie() {
    let gone = card(&qemu_capabilities());
    gone.registers.slice().fill(0xff).unwrap();
    assert_eq!(gone.block().map(drop), Err(Error::Gone));

    type Change = fn(&Card);
    let cases: [(Change, Error); 7] = [
        (|card| card.put32(COMMON + 0x04, 0), Error::MissingFeature(32)),
        (|card| card.put16(COMMON + 0x12, 0), Error::QueueUnavailable(0)),
        (|card| card.put16(COMMON + 0x18, 0), Error::QueueUnavailable(0)),
        (|card| card.put16(COMMON + 0x18, 2), Error::QueueUnavailable(0)),
        (|card| card.put16(COMMON + 0x1c, 1), Error::QueueUnavailable(0)),
        (|card| card.put16(COMMON + 0x1e, 0x400), Error::Mmio(ringfence_memory::MmioError::OutOfBounds)),
        (|card| card.put16(COMMON + 0x1e, 0xffff), Error::Mmio(ringfence_memory::MmioError::OutOfBounds)),
    ];
    for (number, (change, expected)) in cases.into_iter().enumerate() {
        let card = card(&qemu_capabilities());
        change(&card);
        assert_eq!(card.block().map(drop), Err(expected), "case {number}");
        assert_eq!(card.platform.dma_in_use(), 0);
        assert_eq!(card.command() & BUS_MASTER, 0);
        assert_eq!(card.registers.slice().read_obj::<u8>(COMMON + 0x14), Ok(128), "FAILED");
    }
    // A size that is no power of two is rounded down.
    let odd = card(&qemu_capabilities());
    odd.put16(COMMON + 0x18, 100);
    assert_eq!(odd.block().unwrap().queue.queue_size(), 64);
}

#[test]
fn legacy_devices_are_left_alone() {
    let card = card(&[(0x11, vec![0; 10])]);
    let before = card.command();
    assert_eq!(card.transport().unwrap_err(), Error::LegacyOnly);
    assert_eq!(card.command(), before);
}

#[test]
fn malformed_capabilities() {
    let with = |kind: u8, bar: u8, offset: u32, length: u32, multiplier: Option<u32>| {
        let mut list = qemu_capabilities();
        let bad = virtio_capability(kind, bar, offset, length, multiplier);
        let place = list.iter().position(|(id, body)| *id == 9 && body[1] == kind).unwrap();
        list[place] = bad.clone();
        // The bad one alone, and the bad one in front of a good one.
        let mut both = qemu_capabilities();
        both.insert(0, bad);
        (card(&list).transport().map(drop), card(&both).transport().map(drop))
    };
    for (bar, offset, length) in [
        (6, 0, 0x1000),
        (255, 0, 0x1000),
        (0, 0, 0x1000),
        (4, 0x4000, 0x1000),
        (4, 0x4000 - 0x34, 0x38),
        (4, u32::MAX - 3, 0x38),
        (4, 0, 0x37),
        (4, 2, 0x1000),
        (4, 0, 0),
    ] {
        let result = with(1, bar, offset, length, None);
        // One in a reserved BAR must be ignored, and then nothing speaks of virtio 1.x.
        let expected = if bar > 5 { Error::LegacyOnly } else { Error::MissingCapability(1) };
        assert_eq!(result, (Err(expected), Ok(())), "bar {bar}, {length:#x} at {offset:#x}");
    }
    assert_eq!(with(2, 4, NOTIFY as u32, 0x1000, None).0, Err(Error::MissingCapability(2)), "too short");
    assert_eq!(with(2, 4, NOTIFY as u32 + 1, 0x100, Some(4)).0, Err(Error::MissingCapability(2)));
    assert_eq!(with(3, 4, ISR as u32, 0, None).0, Err(Error::MissingCapability(3)));
    // One structure on top of another is the device's own business, unless notifications would be addresses.
    assert_eq!(with(4, 4, COMMON as u32, 0x4000, None), (Ok(()), Ok(())));
    let refused = Err(Error::MissingCapability(2));
    assert_eq!(with(2, 4, COMMON as u32 + 0x3e, 0x1000, Some(4)).0, refused, "the common configuration");
    assert_eq!(with(2, 1, 0x2e, 0x800, Some(4)).0, refused, "the MSI-X table");
    assert_eq!(with(2, 1, 0x30, 0x800, Some(4)).0, Ok(()), "behind it");
    // An MSI-X table that is not in its BAR: no MSI-X.
    for table in [[0x01, 0x10, 0, 0], [0x07, 0, 0, 0], [0x00, 0, 0, 0], [0xf9, 0xff, 0xff, 0xff]] {
        let mut list = qemu_capabilities();
        list[0].1[2..6].copy_from_slice(&table);
        let transport = card(&list).transport().unwrap();
        assert_eq!(transport.msix_vectors(), 0);
    }
    // One across the common configuration: none either, since its entries are addresses to others.
    for (table, vectors) in [(0x38_u32, 0), (0x40, 3)] {
        let mut list = qemu_capabilities();
        list[0].1[2..6].copy_from_slice(&(table | 4).to_le_bytes());
        assert_eq!(card(&list).transport().unwrap().msix_vectors(), vectors, "at {table:#x}");
    }
}

/// However large a BAR is, and its structures say that they are, what is used of them is mapped: here nothing
/// else is there.
#[test]
fn large_bars_and_structures() {
    const BIG: u64 = 0x100_0000_0000;
    const MIB: u32 = 1 << 20;
    for (size, device, notify, lengths, multiplier) in [
        (128 << 20, DEVICE as u32, NOTIFY as u32, 0x1000, 4),
        (128 << 20, 96 * MIB, 97 * MIB, 0x1000, 4),
        (128 << 20, 96 * MIB, NOTIFY as u32, 64 * MIB, 4 * MIB),
        (BIG, DEVICE as u32, NOTIFY as u32, u32::MAX, 512 * MIB),
        (BIG, u32::MAX - 3, NOTIFY as u32, u32::MAX, 0),
    ] {
        let mut list = qemu_capabilities();
        list[2] = virtio_capability(2, 4, notify, lengths, Some(multiplier));
        list[3] = virtio_capability(4, 4, device, lengths, None);
        list[4] = virtio_capability(3, 4, ISR as u32, lengths, None);
        list[5] = virtio_capability(1, 4, COMMON as u32, lengths, None);
        let card = card_of(0x1042, &list, BIG, size);
        let page = |at: u64| {
            let near = at < 0x4000;
            let start = if near { 0 } else { at / 0x1000 * 0x1000 };
            let memory =
                if near { card.registers.clone() } else { card.platform.add_registers(BIG + start, 0x2000) };
            (memory, (at - start) as usize)
        };
        let (capacity, at) = page(device.into());
        capacity.slice().write_obj(100_u64, at).unwrap();
        let (doorbell, at) = page(u64::from(notify) + 5 * u64::from(multiplier));
        doorbell.slice().write_obj(0xffff_u16, at).unwrap();
        let mut block = card.block().unwrap();
        assert_eq!(block.queue.geometry().sectors, 100);
        let pool = DmaPool::new(&card.windows(), 1, 512).unwrap();
        block.queue.submit(Request::Read { sector: 7, buffer: pool.take().unwrap(), len: 512 }).unwrap();
        block.queue.kick();
        assert_eq!(doorbell.slice().read_obj::<u16>(at), Ok(0));
    }
}

/// What the card does while its driver waits, from the moment on when `waits` is 1: one thing after another.
/// The one of these registers reads 0 before the other.
fn slow_reset(card: &'static Card, waits: &'static AtomicUsize, zero: [usize; 2]) -> Clocked<impl Fn()> {
    Clocked(card.platform, move || match waits.load(Ordering::Relaxed) {
        0 => {}
        step => {
            waits.store(step + 1, Ordering::Relaxed);
            match step {
                1 => {
                    let asked =
                        [QUEUE_RESET, QUEUE_SELECT, QUEUE_ENABLE].map(|register| card.get16(register));
                    assert_eq!(asked, [1, 0, 1]);
                    QUEUE_ADDRESSES.into_iter().for_each(|offset| card.put32(offset, 0xdead_0000));
                    card.put16(QUEUE_VECTOR, 0xffff);
                }
                5 => card.put16(zero[0], 0),
                9 => {
                    assert_eq!((card.get16(QUEUE_SIZE), card.get16(QUEUE_VECTOR)), (0x1111, 0xffff));
                    assert_eq!(card.get64(QUEUE_ADDRESSES[0]) as u32, 0xdead_0000);
                    card.put16(zero[1], 0);
                }
                _ => {}
            }
        }
    })
}

#[test]
fn a_queue_is_reset_as_the_registers_want_it() {
    for (format, zero) in [(0, [QUEUE_RESET, QUEUE_ENABLE]), (RING_PACKED, [QUEUE_ENABLE, QUEUE_RESET])] {
        let card: &'static Card = Box::leak(Box::new(card_with(RING_RESET | format)));
        let mut transport = card.transport().unwrap();
        transport.use_msix(&messages(3)).unwrap();
        let waits: &AtomicUsize = Box::leak(Box::default());
        let windows = DmaWindows::new(Box::leak(Box::new(slow_reset(card, waits, zero))), ID).unwrap();
        let mut block = Block::new(transport, &grant(), windows.clone()).unwrap();
        assert_eq!(block.control.features() & (RING_RESET | RING_PACKED), RING_RESET | format);
        let before = QUEUE_ADDRESSES.map(|offset| card.get64(offset));
        let pool = DmaPool::new(&windows, 1, 512).unwrap();
        let read = || Request::Read { sector: 7, buffer: pool.take().unwrap(), len: 512 };
        block.queue.submit(read()).unwrap();
        block.queue.kick();
        assert_eq!(block.control.reset_queue(&mut block.queue), Err(Error::Busy));
        assert_eq!((card.get16(QUEUE_RESET), card.get16(QUEUE_ENABLE)), (0, 1), "the device was not asked");
        let mut ring = DeviceRing::new(card.platform, ID, 64, before, format);
        let chain = ring.take().unwrap();
        ring.write(&chain.segments[2], &[1]);
        ring.complete(chain.head, 1);
        assert_eq!(block.queue.reap(drop), Ok(1));

        // What the device has lost is to be written again, but not before it has finished.
        card.put16(QUEUE_SELECT, 9);
        card.put16(QUEUE_SIZE, 0x1111);
        waits.store(1, Ordering::Relaxed);
        assert_eq!(block.control.reset_queue(&mut block.queue), Ok(()));
        assert!(waits.load(Ordering::Relaxed) > 9);
        assert_eq!((card.get16(QUEUE_SIZE), card.get16(QUEUE_VECTOR), card.get16(QUEUE_ENABLE)), (64, 1, 1));
        assert_eq!(QUEUE_ADDRESSES.map(|offset| card.get64(offset)), before);
        assert_eq!(card.registers.slice().read_obj::<u8>(COMMON + 0x14), Ok(0x0f), "the device goes on");
        let mut ring = DeviceRing::new(card.platform, ID, 64, before, format);
        assert_eq!(ring.pending(), 0);
        block.queue.submit(read()).unwrap();
        block.queue.kick();
        let chain = ring.take().unwrap();
        ring.write(&chain.segments[2], &[0]);
        ring.complete(chain.head, 513);
        assert_eq!(block.queue.reap(|done| assert_eq!(done.result, Ok(()))), Ok(1));
    }
}

#[test]
fn a_queue_reset_that_never_ends_or_is_not_there() {
    // It stays 1; it reads 0, but the queue stays enabled; nobody answers.
    for answer in [None, Some(0), Some(0xffff)] {
        let card: &'static Card = Box::leak(Box::new(card_with(RING_RESET)));
        let clocked = Clocked(card.platform, move || {
            answer.into_iter().for_each(|answer| card.put16(QUEUE_RESET, answer));
            card.platform.advance(Duration::from_millis(100));
        });
        let windows = DmaWindows::new(Box::leak(Box::new(clocked)), ID).unwrap();
        let mut block = Block::new(card.transport().unwrap(), &grant(), windows).unwrap();
        assert_eq!(block.control.reset_queue(&mut block.queue), Err(Error::Timeout), "{answer:?}");
    }
    // Not offered: the register is left alone.
    let card = card_with(0);
    let mut block = card.block().unwrap();
    assert_eq!(block.control.reset_queue(&mut block.queue), Err(Error::MissingFeature(40)));
    assert_eq!(card.get16(QUEUE_RESET), 0);
    // Offered, by a device whose registers end before it.
    let mut short = qemu_capabilities();
    short[5] = virtio_capability(1, 4, COMMON as u32, 0x38, None);
    let card = self::card(&short);
    card.put32(COMMON + 0x04, 1 | (RING_RESET >> 32) as u32);
    let mut block = card.block().unwrap();
    assert_eq!(block.control.reset_queue(&mut block.queue), Err(Error::Mmio(MmioError::OutOfBounds)));
    assert_eq!(card.get16(QUEUE_RESET), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any capabilities and any register contents: set-up ends, with a device or a reason.
    #[test]
    fn any_device(
        capabilities in prop::collection::vec(
            (1_u8..6, 0_u8..8,
            prop_oneof![0_u32..0x5000, any::<u32>()], prop_oneof![0_u32..0x5000, any::<u32>()],
                prop_oneof![Just(Some(4)), any::<Option<u32>>()]), 0..6),
        good in any::<bool>(),
        contents in prop::collection::vec((0_usize..0x40, any::<u8>()), 0..20),
    ) {
        let mut list: Vec<_> = capabilities
            .into_iter()
            .map(|(kind, bar, offset, length, multiplier)| {
                virtio_capability(kind, bar, offset, length, multiplier)
            })
            .collect();
        list.truncate(3);
        let plain = good && list.is_empty() && contents.is_empty();
        if good {
            list.extend(qemu_capabilities());
        }
        list.truncate(8);
        let card = card(&list);
        for (offset, byte) in contents {
            card.registers.slice().write_obj(byte, offset).unwrap();
        }
        // Whether some capability of this kind describes `least` bytes that a memory BAR has.
        let is_there = |kind, least: u64| list.iter().any(|(id, body)| {
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
            let field = |at: usize| body.get(at..at + 4).map(word);
            let room = match body.get(2) {
                Some(1) => 0x1000,
                Some(4) => 0x4000,
                _ => 0,
            };
            let (Some(offset), Some(length)) = (field(6), field(10)) else { return false };
            *id == 9 && body[1] == kind && length >= least as u32 && u64::from(offset) + least <= room
        });
        let whole = is_there(1, 0x38) && is_there(2, 2) && is_there(4, 8);
        match card.block() {
            Ok(mut block) => {
                prop_assert!(whole, "it came up without its registers");
                prop_assert_eq!(card.command() & (BUS_MASTER | MEMORY), BUS_MASTER | MEMORY);
                let status = card.registers.slice().read_obj::<u8>(COMMON + 0x14);
                prop_assert!(!plain || status == Ok(0x0f), "DRIVER_OK and what leads to it: {status:?}");
                let _ = block.queue.submit(Request::Flush);
                block.queue.kick();
            }
            Err(error) => prop_assert!(!plain, "a proper device was refused: {error}"),
        }
        // What it had is given back, or kept from everybody if the device was not shown quiet.
        prop_assert_eq!(card.platform.dma_in_use(), card.windows().usage().1);
        prop_assert_eq!(card.command() & BUS_MASTER, 0);
    }
}
