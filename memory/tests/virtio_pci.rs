//! What a virtio device says of its structures (virtio 1.4, 4.1.4), and where they are then.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::collections::BTreeSet;
use std::fmt::Display;

use ringfence_memory::*;
use ringfence_testkit::heap::{LARGEST, Scarce};
use ringfence_testkit::registers::*;

#[global_allocator]
static HEAP: Scarce = Scarce;

/// Where the card's capabilities are in configuration space.
const CAPABILITIES: [(u8, u16); 4] = [(1, 0x40), (3, 0x54), (4, 0x68), (2, 0x7c)];
const MSIX_CAPABILITY: u16 = 0x90;
const END: u32 = BAR_LEN as u32;
const AT: [u32; 5] = [0, 0, NOTIFY as u32, ISR as u32, DEVICE_CONFIG as u32];

/// A structure is used if its capability is long enough and of a kind and in a BAR that there are, and if it
/// is aligned and there is enough of it in its BAR: else it is as if it were not there. How much more of it
/// there should be does not matter (4.1.4.1).
#[test]
fn a_structure_is_where_its_capability_says() {
    let usable: &[[u32; 5]] = &[
        [16, 1, 0, 0, 0x38],
        [255, 1, 0, 4, 0x38],
        [16, 1, 0, END - 0x38, 0x38],
        [16, 1, 0, END - 0x38, 0x40],
        [16, 1, 0, 0, u32::MAX],
        [21, 2, 0, AT[2], 2],
        [255, 2, 0, AT[2], 2],
        [17, 3, 0, AT[3], 1],
        [255, 3, 0, AT[3], 1],
        [17, 4, 0, AT[4], 1],
        [255, 4, 0, AT[4], 1],
        [20, 2, 0, AT[2], 2],
        [20, 2, 0, AT[2] + 2, 0x1000 - 2],
        [20, 2, 0, END - 2, 2],
        [20, 2, 0, END - 2, u32::MAX],
        [16, 3, 0, AT[3], 1],
        [16, 3, 0, AT[3] + 1, 1],
        [16, 3, 0, END - 1, 1],
        [16, 3, 0, END - 1, u32::MAX],
        [16, 4, 0, AT[4], 1],
        [16, 4, 0, AT[4] + 4, 0x1000],
        [16, 4, 0, END - 4, 4],
        [16, 4, 0, 0, END],
        [16, 4, 0, END - 4, 5],
    ];
    for &row @ [_, kind, _, offset, length] in usable {
        let card = Card::new();
        card.pattern();
        let place = CAPABILITIES.iter().find(|(of, _)| u32::from(*of) == kind).unwrap().1;
        card.describe(place, row);
        assert!(VirtioPci::is_modern(&card.config()));
        let mut virtio = card.virtio();
        let there = length.min(END - offset) as usize;
        match kind {
            1 => {
                let queues = virtio.common.read::<u16>(common::NUM_QUEUES).unwrap();
                assert_eq!(queues, card.at::<u16>(offset + common::NUM_QUEUES as u32), "{row:x?}");
                assert_eq!(virtio.common.read::<u16>(there.min(0x40)), Err(MmioError::OutOfBounds));
            }
            2 => {
                virtio.notify.notifier(0x1234, 0, false).unwrap().notify(0);
                assert_eq!(card.at::<u16>(offset), 0x1234, "{row:x?}");
                let end = virtio.notify.notifier(0, there.div_ceil(4) as u16, false);
                assert_eq!(end.unwrap_err(), VirtioPciError::Mmio(MmioError::OutOfBounds));
            }
            3 => assert_eq!(virtio.isr.read(), card.at::<u8>(offset), "{row:x?}"),
            _ => {
                let device = virtio.device.unwrap();
                assert_eq!(device.read::<u8>(0), Ok(card.at::<u8>(offset)), "{row:x?}");
                assert_eq!(device.len(), there.min(0x1000));
            }
        }
    }
    // The first number is where it would be; what follows is what is wrong with it.
    let unusable: &[(u8, [u32; 5])] = &[
        (1, [15, 1, 0, 0, 0x38]),
        (1, [16, 1, 0, 0, 0x37]),
        (1, [16, 1, 0, 2, 0x38]),
        (1, [16, 1, 0, END - 0x34, 0x38]),
        (1, [16, 1, 0, 0x7000, 0x34]),
        (1, [16, 1, 0, 0xffff_fffc, 0x38]),
        (1, [16, 1, 1, 0, 0x38]),
        (1, [16, 1, 2, 0, 0x38]),
        (1, [16, 1, 6, 0, 0x38]),
        (1, [16, 1, 255, 0, 0x38]),
        (1, [16, 0, 0, 0, 0x38]),
        (1, [16, 5, 0, 0, 0x38]),
        (1, [16, 8, 0, 0, 0x38]),
        (2, [19, 2, 0, AT[2], 2]),
        (2, [20, 2, 0, AT[2] + 1, 2]),
        (2, [20, 2, 0, AT[2], 1]),
        (2, [20, 2, 0, END, 2]),
        (3, [15, 3, 0, AT[3], 1]),
        (3, [16, 3, 0, AT[3], 0]),
        (3, [16, 3, 0, END, 1]),
        (4, [15, 4, 0, AT[4], 4]),
        (4, [16, 4, 0, AT[4] + 2, 4]),
        (4, [16, 4, 0, AT[4], 0]),
        (4, [16, 4, 0, END, 5]),
    ];
    for &(kind, row) in unusable {
        let card = Card::new();
        // An I/O BAR.
        card.poke(0x18, 0x8001);
        let place = CAPABILITIES.iter().find(|(of, _)| *of == kind).unwrap().1;
        card.describe(place, row);
        let [cap_len, now, bar, ..] = row;
        let modern = kind != 1 || now == 1 && cap_len >= 16 && bar < 6;
        assert_eq!(VirtioPci::is_modern(&card.config()), modern, "{row:x?}");
        match VirtioPci::new(card.platform, card.config()) {
            Ok(virtio) => assert!(kind == 4 && virtio.device.is_none(), "{row:x?}"),
            Err(error) => assert_eq!(error, VirtioPciError::MissingCapability(kind), "{row:x?}"),
        }
    }
}

/// Of several capabilities of a kind the first that can be used is (4.1.4.1).
#[test]
fn the_first_structure_that_can_be_used() {
    for (bar, expected) in [(0, 0_u32), (6, 0x2000), (1, 0x2000)] {
        let card = Card::new();
        card.pattern();
        card.describe(0x40, [16, 1, bar, 0, 0x38]);
        card.describe(0x68, [16, 1, 0, 0x2000, 0x38]);
        let virtio = card.virtio();
        assert_eq!(virtio.common.read::<u32>(0), Ok(card.at::<u32>(expected)));
        assert!(virtio.device.is_none());
    }
}

/// Where queues are notified there is no byte of the common structure or the table of messages; next to them
/// there may be. The same offset in another BAR is another place.
#[test]
fn structures_may_touch() {
    let table = MSIX as u32;
    for (bar, offset, length, refused) in [
        (0, 0x440, 0x100, false),
        (0, 0x43e, 2, true),
        (0, 0x3fe, 2, false),
        (0, 0x3fe, 4, true),
        (0, table + 0x40, 2, false),
        (0, table + 0x3e, 2, true),
        (0, table - 2, 2, false),
        (0, table - 2, 3, true),
        (1, 0x400, 0x400, false),
        (1, table, 0x40, false),
    ] {
        let card = Card::new();
        let second = card.platform.add_registers(SECOND, BAR_LEN);
        card.poke(0x14, SECOND as u32);
        card.describe(0x40, [16, 1, 0, 0x400, 0x400]);
        card.describe(0x7c, [20, 2, bar, offset, length]);
        match VirtioPci::new(card.platform, card.config()) {
            Ok(mut virtio) => {
                assert!(!refused, "{bar}, {offset:#x}");
                virtio.notify.notifier(0x1234, 0, false).unwrap().notify(0);
                let there = if bar == 0 { &card.registers } else { &second };
                assert_eq!(there.slice().read_obj::<u16>(offset as usize), Ok(0x1234));
            }
            Err(error) => {
                assert!(refused, "{bar}, {offset:#x}");
                assert_eq!(error, VirtioPciError::MissingCapability(2));
            }
        }
    }
}

/// Of the card at 1; cards are 1 MiB apart.
const SECOND: u64 = BAR + 0x18_0000;

/// A piece of a BAR: its index, the first byte and the number of bytes.
type Piece = (usize, u32, u32);

/// Where the common, ISR, device and notify structures are, where the table of messages starts, what is
/// claimed for them, and what then for a queue.
type Layout = ([Piece; 4], (usize, u32), &'static [Piece], &'static [Piece]);

/// A page is claimed if something that is used is in it, and no other page is. Neighbours are claimed
/// together, nothing twice, and nothing past the end of a BAR. Where a queue is notified is claimed with it.
#[test]
fn the_pages_that_are_used_are_claimed_once() {
    let layouts: &[Layout] = &[
        // In one page; one reaches into the next; the last that is found is the first there and the longest.
        ([(0, 0, 0x38), (0, 0x100, 1), (0, 0x200, 0x100), (0, 0x800, 2)], (0, 0x400), &[(0, 0, 0x1000)], &[]),
        (
            [(0, 0x100, 0x38), (0, 0x200, 1), (0, 0x800, 0x1000), (0, 0x1900, 2)],
            (0, 0x400),
            &[(0, 0, 0x2000)],
            &[],
        ),
        (
            [(0, 0x1000, 0x38), (0, 0x1100, 1), (0, 0xc00, 0x1000), (0, 0x2000, 2)],
            (0, 0xfc0),
            &[(0, 0, 0x2000)],
            &[(0, 0x2000, 0x1000)],
        ),
        // Side by side, in falling order.
        (
            [(0, 0x3000, 0x38), (0, 0x2000, 1), (0, 0x1000, 0x1000), (0, 0x4000, 2)],
            (0, 0),
            &[(0, 0, 0x4000)],
            &[(0, 0x4000, 0x1000)],
        ),
        // A page apart, and all of them said to go on to the end of the BAR.
        (
            [(0, 0xfc0, END), (0, 0x2fff, END), (0, 0x4000, END), (0, 0x1000, 0x5000)],
            (0, 0x6000),
            &[(0, 0, 0x1000), (0, 0x2000, 0x1000), (0, 0x4000, 0x1000), (0, 0x6000, 0x1000)],
            &[(0, 0x1000, 0x1000)],
        ),
        // At the same places, and side by side, in two BARs.
        (
            [(0, 0, 0x38), (1, 0, 1), (1, 0x1000, 4), (1, 0x2000, 2)],
            (0, 0x1000),
            &[(0, 0, 0x2000), (1, 0, 0x2000)],
            &[(1, 0x2000, 0x1000)],
        ),
        // In a BAR that ends within a page.
        (
            [(2, 0, 0x38), (2, 0x40, 1), (2, 0x80, END), (2, 0x42, 2)],
            (0, 0x7000),
            &[(0, 0x7000, 0x1000), (2, 0, 0x100)],
            &[],
        ),
        // A table that ends past its BAR is not used.
        (
            [(0, 0, 0x38), (0, 0x40, 1), (0, 0x6000, 0x1000), (2, 0x80, 2)],
            (0, END - 0x38),
            &[(0, 0, 0x1000), (0, 0x6000, 0x1000)],
            &[(2, 0, 0x100)],
        ),
    ];
    let bars = [BAR + 0x10_0000, SECOND, SECOND + 0x2_0000];
    for &(structures, (bar, table), for_all, for_queue) in layouts {
        let card = Card::new();
        let more = |bar| card.platform.add_registers(bar, BAR_LEN);
        let registers = [card.registers.clone(), more(bars[1]), more(bars[2])];
        card.bar_lens.lock()[2] = 0x100;
        card.poke(0x14, bars[1] as u32);
        card.poke(0x18, bars[2] as u32);
        card.poke(MSIX_CAPABILITY + 4, table | bar as u32);
        for ((bar, offset, length), (kind, place)) in structures.into_iter().zip(CAPABILITIES) {
            card.describe(place, [20, kind.into(), bar as u32, offset, length]);
            registers[bar].slice().write_obj(kind, offset as usize).unwrap();
        }
        let platform = Clock::of(card);
        let claims = || {
            let mut claims = std::mem::take(&mut *platform.claims.lock());
            claims.sort();
            claims
        };
        let expected = |pieces: &[Piece]| -> Vec<_> {
            pieces.iter().map(|&(bar, start, len)| (bars[bar] + u64::from(start), len as usize)).collect()
        };
        let mut virtio = VirtioPci::new(platform, card.config()).unwrap();
        assert_eq!(claims(), expected(for_all), "{structures:x?}");
        let device = virtio.device.unwrap();
        assert_eq!((virtio.common.read(0), virtio.isr.read(), device.read(0)), (Ok(1_u8), 3, Ok(4_u8)));
        for _ in 0..2 {
            virtio.notify.notifier(9, 0, false).unwrap().notify(0);
        }
        assert_eq!(claims(), expected(for_queue), "{structures:x?}");
        let (bar, offset, _) = structures[3];
        assert_eq!(registers[bar].slice().read_obj::<u16>(offset as usize), Ok(9));
    }
}

/// Without room to note which pages are claimed none is, and the device is not told of anything. A queue
/// whose register is in a page that is claimed needs no room.
#[test]
fn structures_without_heap() {
    let card = Card::new();
    // The card's own list need not grow.
    card.written.lock().reserve(100);
    let platform = Clock::of(card);
    LARGEST.set(0);
    let none = VirtioPci::new(platform, card.config());
    LARGEST.set(usize::MAX);
    assert_eq!(none.err(), Some(VirtioPciError::Platform(PlatformError::OutOfMemory)));
    assert!(platform.claims.lock().is_empty() && card.config_word(COMMAND) & 0xffff == MEMORY);

    let mut notify = card.virtio().notify;
    notify.notifier(0, 0, false).unwrap();
    LARGEST.set(0);
    let all = (0..100).all(|offset| notify.notifier(0, offset, false).is_ok());
    LARGEST.set(usize::MAX);
    assert!(all);
}

/// The table of messages is used if all of it is in a BAR that there is: the low three bits say in which (PCI
/// 3.0, 6.8.2).
#[test]
fn a_table_of_messages_is_where_its_capability_says() {
    for (bar, offset, used) in [
        (0, MSIX as u32, true),
        (0, MSIX as u32 + 8, true),
        (0, END - 0x40, true),
        (0, END - 0x38, false),
        (0, 0xffff_fff8, false),
        (1, 0, true),
        (1, 8, true),
        (2, MSIX as u32, false),
        (6, MSIX as u32, false),
        (7, MSIX as u32, false),
    ] {
        let card = Card::new();
        let second = card.platform.add_registers(SECOND, BAR_LEN);
        card.poke(0x14, SECOND as u32);
        card.poke(MSIX_CAPABILITY + 4, offset | bar);
        let control = || card.config().read_u32(MSIX_CAPABILITY) >> 16;
        let Some(msix) = card.virtio().msix else {
            assert!(!used, "{bar}, {offset:#x}");
            continue;
        };
        assert!(used, "{bar}, {offset:#x}");
        let there = if bar == 0 { &card.registers } else { &second };
        let word = |at: usize| there.slice().read_obj::<u32>(offset as usize + at).unwrap();
        let masked = [0, 1, 2, 3].map(|entry| word(16 * entry + 12));
        assert_eq!((masked, msix.size()), ([1; 4], VECTORS));
        // Bit 15 turns it on, bit 14 would mask all; the size below is not for us to change.
        card.poke(MSIX_CAPABILITY, 0x7803_0011);
        assert!(msix.enable(true));
        assert_eq!(control(), 0xb803);
        assert!(msix.enable(false));
        assert_eq!(control(), 0x3803);
    }
}

/// With the structures come the memory BARs and no interrupt line; the device is not let onto the bus.
#[test]
fn a_device_answers_and_is_silent() {
    for before in [0, BUS_MASTER, 0x402] {
        let card = Card::new();
        card.poke(COMMAND, before);
        let virtio = card.virtio();
        assert_eq!(card.config().read_u32(COMMAND) & 0xffff, before | 0x402);
        assert!(format!("{virtio:?} {:?}", virtio.common).matches("0000:00:01.0").count() == 2);
    }
}

/// The register of a queue is its offset times the multiplier into the structure (4.1.4.4); what is written
/// there is the queue's number, with NOTIFICATION_DATA the position above it (4.1.5.2).
#[test]
fn a_notifier_writes_its_queue() {
    let card = Card::new();
    let mut notify = card.virtio().notify;
    notify.notifier(0x1234, 3, false).unwrap().notify(0x5678);
    assert_eq!(card.at::<u64>(AT[2] + 12), 0x1234);
    notify.notifier(0x1234, 5, true).unwrap().notify(0xabcd);
    assert_eq!(card.at::<u64>(AT[2] + 20), 0xabcd_1234);
    for (offset, with_data, expected) in [(1023, true, None), (1024, false, Some(MmioError::OutOfBounds))] {
        assert_eq!(notify.notifier(0, offset, with_data).err(), expected.map(VirtioPciError::Mmio));
    }
    for (multiplier, offset, expected) in [
        (2, 1, Some(MmioError::Misaligned)),
        (0, 9, None),
        (u32::MAX, u16::MAX, Some(MmioError::OutOfBounds)),
    ] {
        let card = Card::new();
        card.poke(0x7c + 16, multiplier);
        let found = card.virtio().notify.notifier(0, offset, true).err();
        assert_eq!(found, expected.map(VirtioPciError::Mmio));
    }
}

/// Each error has a text of its own.
#[test]
fn errors_say_what_is_wrong() {
    let texts: &[&dyn Display] = &[
        &DmaError::WrongDevice,
        &MmioError::OutOfBounds,
        &MmioError::Misaligned,
        &VirtioPciError::MissingCapability(1),
        &VirtioPciError::MissingCapability(2),
        &VirtioPciError::Platform(PlatformError::Claimed),
        &VirtioPciError::Platform(PlatformError::OutOfMemory),
        &VirtioPciError::Platform(PlatformError::BadRange),
        &VirtioPciError::Mmio(MmioError::OutOfBounds),
        &SetQueueError::Dma(DmaError::WrongLife),
        &SetQueueError::WrongFormat,
        &SetQueueError::Unavailable,
        &SetQueueError::Refused,
    ];
    let different: BTreeSet<_> = texts.iter().map(|text| text.to_string()).collect();
    assert_eq!(different.len(), texts.len());
    assert!(different.iter().all(|text| text.len() > 8), "{different:?}");
}

/// A function whose BAR register says that it is where another's is gets nothing of that, not even what its
/// driver has not claimed.
#[test]
fn another_functions_registers_are_not_claimed() {
    let victim = Card::new();
    let mut held = victim.virtio();
    let other = Card::on(victim.platform, 2);
    other.poke(0x10, (BAR + 0x10_0000) as u32);
    other.describe(0x40, [20, 1, 0, 0x5000, 0x40]);
    other.describe(0x54, [20, 3, 0, 0x6000, 1]);
    other.describe(0x68, [20, 9, 0, 0, 0]);
    other.describe(MSIX_CAPABILITY, [20, 9, 0, 0, 0]);
    other.describe(0x7c, [20, 2, 0, NOTIFY as u32, 0x1000]);
    let stolen = VirtioPci::new(other.platform, other.config());
    assert_eq!(stolen.err(), Some(VirtioPciError::Platform(PlatformError::Claimed)));
    assert!(held.notify.notifier(0, 0, false).is_ok(), "its own driver may");
}

/// A doorbell's page is claimed as long as there is something to ring it.
#[test]
fn pages_of_doorbells_are_given_back() {
    let card = Card::new();
    for offset in [0x7c, 0x8c] {
        card.poke(offset, 0);
    }
    card.describe(0x7c, [20, 2, 0, 0x5000, 0x3000]);
    card.poke(0x8c, 0x1000);
    let mut virtio = card.virtio();
    let claimed = |page: u64| {
        let start = PhysAddr::new(BAR + 0x10_0000 + page * 0x1000).unwrap();
        MmioRegion::map(card.platform, Some(card.address.id()), start, 0x1000).is_err()
    };
    let first = virtio.notify.notifier(0, 0, false).unwrap();
    let second = virtio.notify.notifier(1, 1, false).unwrap();
    assert_eq!([5, 6, 7].map(claimed), [true, true, false]);
    let beside = virtio.notify.notifier(2, 0, false).expect("in a page that is there");
    drop((first, beside));
    let third = virtio.notify.notifier(0, 2, false).unwrap();
    assert_eq!([5, 6, 7].map(claimed), [false, true, true]);
    drop((second, third));
}

/// Firmware's messages go nowhere, also where the table cannot be used.
#[test]
fn an_unused_table_sends_nothing() {
    const ENABLE: u32 = 1 << 31;
    let card = Card::new();
    card.poke(MSIX_CAPABILITY, card.config_word(MSIX_CAPABILITY) | ENABLE);
    card.poke(MSIX_CAPABILITY + 4, 5);
    assert!(card.virtio().msix.is_none());
    assert_eq!(card.config_word(MSIX_CAPABILITY) & ENABLE, 0);
}
