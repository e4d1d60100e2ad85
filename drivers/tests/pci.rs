//! Enumeration, BARs, capabilities and names over configuration spaces that are right, and ones that are not.

use std::collections::BTreeSet;

use proptest::prelude::*;
use ringfence_drivers::pci::{Bar, Capability, Header, enumerate};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::DeviceType;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{Bytes, ConfigAccess, Ecam, PciAddress, PhysAddr, Platform, VirtioPci};
use ringfence_testkit::config::{FakeConfig, FakeFunction, address, virtio_capability};

const MULTIFUNCTION: u8 = 0x80;

fn plain() -> FakeFunction {
    FakeFunction::new(0x8086, 0x1237, [6, 0, 0], 0)
}

fn bridge(secondary: u8) -> FakeFunction {
    let mut bridge = FakeFunction::new(0x1b36, 0x000c, [6, 4, 0], 1);
    bridge.put(0x18, &[0, secondary, secondary]);
    bridge
}

fn addresses(config: &'static FakeConfig) -> Vec<PciAddress> {
    enumerate(config, 0).map(|function| function.address()).collect()
}

#[test]
fn functions_behind_bridges() {
    let mut several = plain();
    several.words[3] |= u32::from(MULTIFUNCTION) << 16;
    let config = FakeConfig::leak([
        (address(0, 0, 0), plain()),
        (address(0, 0, 1), plain()), // not reached: function 0 has no multifunction bit
        (address(0, 3, 0), several),
        (address(0, 3, 5), plain()),
        (address(0, 3, 7), bridge(9)),
        (address(0, 31, 0), bridge(4)),
        (address(4, 0, 0), bridge(2)),
        (address(9, 1, 0), plain()),
        (address(2, 30, 0), plain()),
        (address(0, 5, 3), plain()), // without function 0
    ]);
    let mut found = addresses(config);
    found.sort();
    let mut expected = [
        address(0, 0, 0),
        address(0, 3, 0),
        address(0, 3, 5),
        address(0, 3, 7),
        address(0, 31, 0),
        address(2, 30, 0),
        address(4, 0, 0),
        address(9, 1, 0),
    ];
    expected.sort();
    assert_eq!(found, expected);
}

/// Two host bridges besides the one of bus 0, with bridges of their own.
#[test]
fn other_root_buses() {
    let config = FakeConfig::leak([
        (address(0, 1, 0), bridge(1)),
        (address(1, 0, 0), plain()),
        (address(128, 31, 0), bridge(130)),
        (address(130, 0, 0), bridge(131)),
        (address(131, 7, 0), plain()),
        (address(128, 2, 0), plain()),
        (address(255, 4, 0), plain()),
        (address(200, 4, 1), plain()), // without function 0
    ]);
    let found = |other_roots| -> Vec<u8> {
        let functions = enumerate(config, 0).other_roots(other_roots);
        functions.map(|function| function.address().bus).collect()
    };
    let (none, one) = ([0, 1], [0, 1, 128, 128, 130, 131]);
    let all = [&one[..], &[255]].concat();
    assert_eq!((found(0), found(1)), (none.to_vec(), one.to_vec()));
    assert_eq!((found(2), found(3), found(usize::MAX)), (all.clone(), all.clone(), all.clone()));
    assert_eq!(enumerate(config, 0).count(), all.len());
}

/// Only the header of a device says whose board it is; a bridge has something else there (PCI 3.0, 6.2.4).
#[test]
fn a_bridge_has_no_board() {
    let of = |mut function: FakeFunction| {
        function.words[0x2c / 4] = 0x1234_5678;
        let config = FakeConfig::leak([(address(0, 1, 0), function)]);
        let function = enumerate(config, 0).next().unwrap();
        (function.subsystem_vendor, function.subsystem)
    };
    assert_eq!((of(plain()), of(bridge(1))), ((0x5678, 0x1234), (0, 0)));
}

/// A line is known if there is a pin, and firmware wired it (PCI 3.0, 6.2.4).
#[test]
fn interrupt_lines() {
    for pin in 0..=255 {
        for line in [0, 1, 11, 0xfe, 0xff] {
            let mut function = plain();
            function.put(0x3c, &[line, pin]);
            let config = FakeConfig::leak([(address(0, 1, 0), function)]);
            let expected = ((1..=4).contains(&pin) && line != 0xff).then_some((line, pin));
            assert_eq!(enumerate(config, 0).next().unwrap().interrupt_line(), expected);
        }
    }
}

/// What it costs to look for root buses, and that it costs nothing where there are none.
#[test]
fn reads_for_root_buses_are_few() {
    let config = FakeConfig::leak([(address(0, 1, 0), bridge(1)), (address(9, 3, 0), plain())]);
    let reads = |other_roots| {
        let before = *config.reads.lock();
        let count = enumerate(config, 0).other_roots(other_roots).count();
        (count, *config.reads.lock() - before)
    };
    let (none, one, all) = (reads(0), reads(1), reads(usize::MAX));
    assert_eq!((none.0, one.0, all.0), (1, 2, 2));
    // Up to device 3 of bus 9; then bus 9 itself is walked: all vendors, and five registers more of the one
    // device.
    let walk = 32 + 5;
    assert_eq!(one.1 - none.1, 7 * 32 + 4 + walk);
    assert_eq!(all.1 - none.1, 253 * 32 + 4 + walk);
}

/// Of memory-mapped configuration space only buses with devices stay mapped, however these are found.
#[test]
fn empty_buses_stay_unmapped() {
    const WINDOW: u64 = 0xb000_0000;
    for (other_roots, expected) in [(0, vec![0_u8, 2]), (1, vec![0, 2, 9]), (usize::MAX, vec![0, 2, 9])] {
        let host: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
        let registers = host.add_registers(WINDOW, 16 << 20);
        registers.slice().fill(0xff).unwrap();
        let words = |function: FakeFunction, bus: usize, device: usize| {
            function.words.iter().enumerate().for_each(|(index, word)| {
                registers.slice().write_obj(*word, (bus << 20 | device << 15) + 4 * index).unwrap();
            });
        };
        words(bridge(1), 0, 1); // to a bus where nobody is
        words(bridge(2), 0, 2);
        words(plain(), 2, 31);
        words(plain(), 9, 3);
        let start = PhysAddr::new(WINDOW).unwrap();
        // SAFETY: plain memory that stands for configuration space.
        let ecam = unsafe { Ecam::new(host, start, 0, 0, 15) }.unwrap();
        let found = enumerate(Box::leak(Box::new(ecam)), 0).other_roots(other_roots);
        let found: Vec<_> = found.map(|function| function.address().bus).collect();
        assert_eq!(found.iter().collect::<BTreeSet<_>>(), expected.iter().collect());
        let mapped =
            |bus: &u8| host.mmio_map(None, start.checked_add(u64::from(*bus) << 20).unwrap(), 4096).is_err();
        assert_eq!((0..16).filter(mapped).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn bridges_that_lead_back() {
    let config = FakeConfig::leak([
        (address(0, 1, 0), bridge(0)),
        (address(0, 2, 0), bridge(1)),
        (address(0, 3, 0), bridge(1)),
        (address(1, 0, 0), bridge(1)),
        (address(1, 1, 0), bridge(0)),
        (address(1, 2, 0), bridge(255)),
        (address(255, 0, 0), bridge(1)),
    ]);
    assert_eq!(addresses(config).len(), 7, "each once");
}

#[test]
fn nothing_and_everything() {
    assert_eq!(addresses(FakeConfig::leak([])).len(), 0);
    /// Every function of every bus is a bridge to the next bus.
    struct Endless;
    // SAFETY: touches nothing.
    unsafe impl ConfigAccess for Endless {
        fn read(&self, function: PciAddress, offset: u16) -> u32 {
            match offset {
                0 => 0x1234_5678,
                0x0c => 0x0081_0000,
                0x18 => u32::from(function.bus.wrapping_add(function.function())) << 8,
                _ => 0,
            }
        }
        unsafe fn write(&self, _: PciAddress, _: u16, _: u32) {}
        fn last_bus(&self) -> u8 {
            255
        }
    }
    static ENDLESS: Endless = Endless;
    for other_roots in [0, 5, usize::MAX] {
        assert_eq!(enumerate(&ENDLESS, 0).other_roots(other_roots).count(), 65536, "each once");
    }
    /// Whatever is asked, a device without bridges answers.
    struct Everywhere;
    // SAFETY: touches nothing.
    unsafe impl ConfigAccess for Everywhere {
        fn read(&self, _: PciAddress, _: u16) -> u32 {
            0x0080_0000
        }
        unsafe fn write(&self, _: PciAddress, _: u16, _: u32) {}
        fn last_bus(&self) -> u8 {
            255
        }
    }
    static EVERYWHERE: Everywhere = Everywhere;
    let all: BTreeSet<_> = enumerate(&EVERYWHERE, 0).map(|function| function.address()).collect();
    assert_eq!((all.len(), enumerate(&EVERYWHERE, 0).count()), (65536, 65536));
    assert_eq!(enumerate(&EVERYWHERE, 0).other_roots(7).count(), 8 * 256);
}

#[test]
fn bars_of_all_kinds() {
    let mut function = plain();
    function.bar32(0, 0xfebd_0000, 0x1000);
    function.io_bar(1, 0xc040, 0x40);
    function.bar64(2, 0x38_0000_0000, 1 << 33);
    function.words[4 + 2] |= 0b1000;
    function.bar64(4, 0, 0x4000);
    let at = address(0, 4, 0);
    let config = FakeConfig::leak([(at, function.clone())]);
    let bars = enumerate(config, 0).next().unwrap().bars();
    let memory = |address, size, prefetchable| {
        Some(Bar::Memory { address: PhysAddr::new(address).filter(|_| address != 0), size, prefetchable })
    };
    assert_eq!(bars[0], memory(0xfebd_0000, 0x1000, false));
    assert_eq!(bars[1], Some(Bar::Io { port: 0xc040, size: 0x40 }));
    assert_eq!(bars[2], memory(0x38_0000_0000, 1 << 33, true));
    assert_eq!((bars[3], bars[5]), (None, None), "the upper halves");
    assert_eq!(bars[4], memory(0, 0x4000, false), "firmware gave it no address");
    for (word, before) in function.words.iter().enumerate() {
        assert_eq!(config.word(at, word * 4), *before, "sizing leaves all as it was");
    }
}

#[test]
fn senseless_bars() {
    let mut function = plain();
    function.words[4 + 5] = 0xfebd_0004; // 64-bit in the last register
    function.writable[4 + 5] = 0xffff_f000;
    function.words[4] = 0xfebd_0006; // reserved kind
    function.writable[4] = 0xffff_f000;
    function.words[4 + 1] = 1; // no bits that stick
    function.words[4 + 2] = 4; // 64-bit of which no address bit sticks
    let config = FakeConfig::leak([(address(0, 0, 0), function)]);
    assert_eq!(enumerate(config, 0).next().unwrap().bars(), [None; 6]);
}

#[test]
fn capability_lists() {
    let mut function = plain();
    function.capabilities(&[(1, vec![0; 6]), (9, vec![0; 14]), (0x11, vec![0; 10])]);
    let config = FakeConfig::leak([(address(0, 0, 0), function.clone())]);
    let list = |config| -> Vec<(u8, u8)> {
        let function = enumerate(config, 0).next().unwrap();
        function.capabilities().map(|found| (found.id, found.offset)).collect()
    };
    assert_eq!(list(config), [(1, 0x40), (9, 0x48), (0x11, 0x58)]);

    // The last one leads back to the first; low bits of pointers do not count.
    let mut cycle = function.clone();
    cycle.put(0x59, &[0x43]);
    assert_eq!(list(FakeConfig::leak([(address(0, 0, 0), cycle)])), [(1, 0x40), (9, 0x48), (0x11, 0x58)]);
    // Into the header.
    let mut low = function.clone();
    low.put(0x41, &[0x10]);
    assert_eq!(list(FakeConfig::leak([(address(0, 0, 0), low)])), [(1, 0x40)]);
    // No list announced.
    let mut none = function;
    none.words[1] = 0;
    assert_eq!(list(FakeConfig::leak([(address(0, 0, 0), none)])), []);
    let last = Capability { id: 1, offset: 0xfc };
    assert_eq!((last.field(3), last.field(4)), (Some(0xff), None));
}

#[test]
fn virtio_ids() {
    let kind = |device: u16, subsystem: u16| {
        let mut function = FakeFunction::new(0x1af4, device, [0, 0, 0], 0);
        function.words[11] = u32::from(subsystem) << 16 | 0x1af4;
        let config = FakeConfig::leak([(address(0, 0, 0), function)]);
        DeviceType::of(&enumerate(config, 0).next().unwrap()).map(|kind| kind.0)
    };
    // The table of transitional ids (4.1.2.1).
    let table = [1, 2, 5, 3, 8, 4];
    for (device, expected) in (0x1000..).zip(table) {
        assert_eq!(kind(device, 77), Some(expected));
    }
    assert_eq!((kind(0x1009, 77), kind(0x1006, 77)), (Some(9), Some(77)));
    for expected in [1, 2, 16, 63] {
        assert_eq!(kind(0x1040 + expected, 0), Some(expected));
    }
    assert_eq!((kind(0x1080, 2), kind(0x0fff, 2)), (None, None));
}

/// Whatever its revision, a virtio device is one (4.1.2.1, PCI-ID-3).
#[test]
fn any_revision() {
    for revision in [0, 1, 2, 0x7f, 0xff] {
        let mut function = FakeFunction::new(0x1af4, 0x1042, [1, 0, 0], 0);
        function.words[2] |= revision;
        function.capabilities(&[virtio_capability(1, 4, 0, 0x38, None)]);
        let config = FakeConfig::leak([(address(0, 1, 0), function)]);
        let function = enumerate(config, 0).next().unwrap();
        assert_eq!(
            (u32::from(function.revision), probe(&function)),
            (revision, Match::Virtio(DeviceType::BLOCK))
        );
    }
}

#[test]
fn which_kind_and_which_name() {
    let capabilities = [virtio_capability(1, 4, 0, 0x38, None)];
    let mut modern = FakeFunction::new(0x1af4, 0x1042, [1, 0, 0], 0);
    modern.capabilities(&capabilities);
    let mut transitional = FakeFunction::new(0x1af4, 0x1000, [2, 0, 0], 0);
    transitional.capabilities(&capabilities);
    let legacy = FakeFunction::new(0x1af4, 0x1001, [1, 0, 0], 0);
    let legacy_rng = FakeFunction::new(0x1af4, 0x1005, [0xff, 0, 0], 0);
    let mut rng = FakeFunction::new(0x1af4, 0x1044, [0xff, 0, 0], 0);
    rng.capabilities(&capabilities);
    let cases = [
        (modern, Match::Virtio(DeviceType::BLOCK), "virtio block"),
        (transitional, Match::Virtio(DeviceType::NET), "virtio network"),
        (legacy, Match::LegacyOnly, "virtio block"),
        (rng, Match::Virtio(DeviceType(4)), "virtio entropy"),
        (legacy_rng, Match::LegacyOnly, "virtio entropy"),
        (FakeFunction::new(0x8086, 0x29c0, [6, 0, 0], 0), Match::Unknown, "Q35 host bridge"),
        (FakeFunction::new(0x1022, 0x7901, [1, 6, 1], 0), Match::Unknown, "SATA controller"),
        (FakeFunction::new(0x9999, 0x0001, [0x55, 0, 0], 0), Match::Unknown, "unknown device"),
    ];
    for (function, expected, name) in cases {
        let config = FakeConfig::leak([(address(0, 1, 0), function)]);
        let function = enumerate(config, 0).next().unwrap();
        assert_eq!((probe(&function), function.name()), (expected, name));
        assert_eq!(function.header, Header::Device);
    }
}

/// Each type that has a name (5) has one of its own.
#[test]
fn names_of_virtio_devices() {
    let named = [1, 2, 3, 4, 5, 8, 9, 16, 18, 19, 20, 23, 24, 25, 26, 27];
    let names: BTreeSet<_> = named.iter().map(|&kind| DeviceType(kind).name()).collect();
    assert_eq!(names.len(), named.len());
    for kind in 0..100 {
        let name = DeviceType(kind).name();
        assert_eq!(name == "virtio device", !named.contains(&kind), "{kind}");
        assert_eq!(format!("{:?}", DeviceType(kind)), format!("{kind} ({name})"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any 256 bytes: every question is answered and the number of reads is bounded.
    #[test]
    fn any_configuration_space(
        words in
            prop::collection::vec(prop_oneof![any::<u32>(), 0x40_u32..0x100, Just(0), Just(u32::MAX)], 64),
        masks in prop::collection::vec(prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)], 64),
        virtio in any::<bool>(),
    ) {
        let mut function = plain();
        function.words.copy_from_slice(&words);
        function.writable.copy_from_slice(&masks);
        if virtio {
            function.words[0] = 0x1042_1af4;
            function.words[1] |= 0x10 << 16;
        }
        let config = FakeConfig::leak([(address(0, 0, 0), function)]);
        for function in enumerate(config, 0) {
            let before = *config.reads.lock();
            prop_assert!(function.capabilities().count() <= 48);
            function.bars();
            let _ = (probe(&function), function.name(), function.interrupt_line());
            function.config().enable_intx(false);
            function.config().enable_memory();
            prop_assert!(*config.reads.lock() - before < 2000);
            // There are no registers.
            prop_assert!(VirtioPci::new(ringfence_testkit::platform(), function.config()).is_err());
            prop_assert!(*config.reads.lock() - before < 5000);
        }
    }
}
