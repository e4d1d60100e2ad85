//! Finding functions: configuration space, base address registers, and what is left alone.

use alloc::vec::Vec;

use ringfence_drivers::pci::{Bar, Function, enumerate};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::devices::Devices;
use ringfence_kernel::memory::space;
use ringfence_kernel::platform::CONFIG_PORTS;
use ringfence_kernel::testing::On;
use ringfence_memory::{FrameRange, PhysAddr};
use x86_64::instructions::port::Port;

use crate::support::{assert_audit_clean, config, functions, functions_for, tables};

const COMMAND: u16 = 0x04;

fn ids(functions: &[Function]) -> Vec<(u16, u16)> {
    functions.iter().map(|function| (function.vendor, function.device)).collect()
}

/// All that a function's header says.
fn describe(function: &Function) -> (alloc::string::String, [u8; 3], u8, u16, [Option<Bar>; 6]) {
    let Function { class, revision, subsystem, .. } = *function;
    (alloc::format!("{function:?}"), class, revision, subsystem, function.bars())
}

fn ecam_and_ports_agree() {
    let [ecam] = &tables().ecam[..] else { panic!("q35 has one range: {:?}", tables().ecam) };
    assert_eq!((ecam.segment, ecam.first_bus, ecam.last_bus), (0, 0, 255));
    let by_ports: Vec<Function> = enumerate(&CONFIG_PORTS, 0).collect();
    let by_memory = functions();
    assert_eq!(
        by_memory.iter().map(describe).collect::<Vec<_>>(),
        by_ports.iter().map(describe).collect::<Vec<_>>()
    );
    // Mapped are the two buses with devices, and no other.
    let is_free = |bus: u64| {
        let start = PhysAddr::new(ecam.base + (bus << 20)).expect("firmware says so");
        let frames = FrameRange::from_phys_addr(start, 1 << 20).expect("a bus is 1 MiB");
        space().claim_mmio(frames, None).is_ok()
    };
    assert_eq!((0..256).filter(|bus| !is_free(*bus)).collect::<Vec<_>>(), [0, 1]);
    // It is not the ports twice: they end at 256 bytes, where a root port goes on.
    assert_eq!(by_memory[1].config().read_u32(0x100) & 0xffff, 1, "error reporting comes first");
    assert!(by_ports.iter().all(|function| function.config().read_u32(0x100) == u32::MAX));
    // Host bridge, root port, a disk behind it, network, random numbers, ISA bridge, disk controller, SMBus.
    let expected = [
        (0x8086, 0x29c0),
        (0x1b36, 0x000c),
        (0x1af4, 0x1000),
        (0x1af4, 0x1005),
        (0x8086, 0x2918),
        (0x8086, 0x2922),
        (0x8086, 0x2930),
        (0x1af4, 0x1042),
    ];
    assert_eq!(ids(&by_memory), expected);
    assert_eq!(by_memory.last().map(|disk| disk.address().bus), Some(1));
}

/// Both ways into configuration space show the same functions, also behind a bridge.
#[test_case]
const Q35: On = On("root-port,net,rng", &ecam_and_ports_agree);

fn ports_find_all_functions() {
    assert!(tables().ecam.is_empty());
    let expected = [
        (0x8086, 0x1237),
        (0x8086, 0x7000),
        (0x8086, 0x7010),
        (0x8086, 0x7113),
        (0x1af4, 0x1001),
        (0x1af4, 0x1000),
    ];
    assert_eq!(ids(&functions()), expected);
}

/// Without ECAM the ports serve.
#[test_case]
const PC: On = On("pc,blk,net", &ports_find_all_functions);

fn bars_have_their_sizes() {
    let disk = functions_for(DeviceType::BLOCK)[0];
    let command = disk.config().read_u16(COMMAND);
    let bars = disk.bars();
    // As QEMU's `info pci` shows them: legacy ports, MSI-X table, and the structures of virtio 1.x.
    let Some(Bar::Io { size: 0x80, .. }) = bars[0] else { panic!("{bars:x?}") };
    let Some(Bar::Memory { size: 0x1000, address: Some(table), prefetchable: false }) = bars[1] else {
        panic!("{bars:x?}")
    };
    let Some(Bar::Memory { size: 0x4000, address: Some(structures), prefetchable: true }) = bars[4] else {
        panic!("{bars:x?}")
    };
    assert!([bars[2], bars[3], bars[5]].iter().all(Option::is_none), "{bars:x?}");
    assert!(table.value().is_multiple_of(0x1000) && structures.value().is_multiple_of(0x4000));
    assert_eq!(disk.config().read_u16(COMMAND), command, "sizing leaves the function as it was");
    assert_eq!(disk.bars(), bars);
}

/// Addresses are firmware's, sizes the device's.
#[test_case]
const BARS: On = On("blk", &bars_have_their_sizes);

fn others_are_left_alone() {
    let all = functions();
    let found = |id| *all.iter().find(|function| function.device == id).expect("QEMU was told so");
    let (legacy, unknown) = (found(0x1002), found(0x1003));
    assert_eq!((probe(&legacy), probe(&unknown)), (Match::LegacyOnly, Match::Virtio(DeviceType(3))));
    let Some(Bar::Io { port, .. }) = legacy.bars()[0] else { panic!("a legacy device has ports") };
    // Device status of the legacy interface (virtio 1.4, 4.1.4.10).
    // SAFETY: reading it has no effect.
    let status = || unsafe { Port::<u8>::new(port as u16 + 18).read() };
    let commands = || [legacy, unknown].map(|function| function.config().read_u16(COMMAND));
    let before = commands();

    let (devices, started) = Devices::start(tables());
    devices.log();
    assert_eq!((started.disks.len(), started.nics.len()), (1, 0));
    assert_eq!((commands(), status()), (before, 0));
    let info: Vec<_> = (0..all.len()).filter_map(|index| devices.info(index)).collect();
    let drivers: Vec<_> = info.iter().map(|info| (info.id.as_str(), info.driver.as_deref())).collect();
    assert!(drivers.contains(&("1af4:1002", None)) && drivers.contains(&("1af4:1003", None)), "{drivers:?}");
    assert_eq!(drivers.iter().filter(|(_, driver)| driver.is_some()).count(), 1, "{drivers:?}");
    assert!(devices.info(all.len()).is_none());
    assert_audit_clean();
}

/// Unknown devices and legacy-only ones are listed, and not written to.
#[test_case]
const OTHERS: On = On("blk,console,legacy", &others_are_left_alone);

fn legacy_disk_is_not_driven() {
    assert_eq!(functions_for(DeviceType::BLOCK).len(), 0);
    assert!(functions().iter().any(|function| probe(function) == Match::LegacyOnly));
    let (_, started) = Devices::start(tables());
    assert!(started.disks.is_empty());
    assert_eq!(config().last_bus(), 255);
}

/// There is a driver for disks, but not for this interface.
#[test_case]
const LEGACY_DISK: On = On("blk-legacy", &legacy_disk_is_not_driven);
