//! Configuration space, and what a device says there about itself.
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use std::thread;

use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;
use support::*;

/// O20: whoever revokes has the last word.
#[test]
fn a_revoked_bus_master_bit_stays_away() {
    let card = Card::new();
    let (config, virtio) = (card.config(), card.virtio());
    config.enable_bus_master(&card.grant()).unwrap();
    let command = || config.read_u32(COMMAND);
    thread::scope(|scope| {
        let noise = scope.spawn(|| {
            for round in 0..2000 {
                config.enable_intx(round % 2 == 0);
                config.enable_memory();
                config.bars();
                assert!(virtio.msix.as_ref().unwrap().enable(round % 2 == 0));
            }
        });
        loop {
            config.enable_bus_master(&card.grant()).unwrap();
            config.disable_bus_master();
            assert_eq!(command() & BUS_MASTER, 0, "it came back");
            if noise.is_finished() {
                break;
            }
        }
    });
    let stranger = unsafe { DmaGrant::without_iommu(DeviceId(0x77)) };
    assert_eq!(config.enable_bus_master(&stranger), Err(DmaError::WrongDevice));
    assert_eq!(command() & (BUS_MASTER | MEMORY), MEMORY);
}

/// What is written to configuration space is the command register, the BARs' own values and MSI-X's control: no other
/// word, whatever is called.
#[test]
fn nothing_else_is_written_to_configuration_space() {
    let card = Card::new();
    let (config, virtio) = (card.config(), card.virtio());
    let bar = config.read_u32(0x10);
    config.bars();
    config.enable_memory();
    config.enable_intx(true);
    config.enable_bus_master(&card.grant()).unwrap();
    config.disable_bus_master();
    config.capabilities().for_each(drop);
    let msix = virtio.msix.unwrap();
    assert!(msix.enable(true) && msix.enable(false));
    let written = card.written.lock().unwrap().clone();
    let control = 0x90;
    for (offset, value) in &written {
        match *offset {
            COMMAND => assert_eq!(value & 0xffff_0000, 0, "status bits are cleared by ones"),
            0x10..0x28 => {}
            offset => assert_eq!(offset, control, "{value:#x}"),
        }
    }
    assert_eq!(config.read_u32(0x10), bar);
    assert!(written.iter().any(|(offset, _)| *offset == control));
}

/// Structures that lie across each other: what is notified must not be where addresses are.
#[test]
fn structures_that_overlap_are_refused() {
    for (at, offset) in
        [(0x7c + 8, 0_u32), (0x7c + 8, 0x34), (0x7c + 8, MSIX as u32), (0x7c + 8, MSIX as u32 + 0x30)]
    {
        let card = Card::new();
        card.poke(at, offset);
        let found = VirtioPci::new(card.platform, card.config()).unwrap_err();
        assert_eq!(found, VirtioPciError::MissingCapability(2), "the notify structure at {offset:#x}");
    }
    // A table of messages across the common structure is not used at all.
    let card = Card::new();
    card.poke(0x94, COMMON as u32);
    assert!(card.virtio().msix.is_none());
}

/// O29: a window of configuration space ends where its buses do.
#[test]
fn ecam_stays_in_its_window() {
    let host: &'static HostPlatform = platform();
    let window = host.add_registers(BAR, 2 << 20);
    let start = PhysAddr::new(BAR).unwrap();
    let ecam = unsafe { Ecam::new(host, start, 0, 4, 5) }.unwrap();
    assert_eq!(ecam.last_bus(), 5);
    for (bus, device, function, offset) in [(4, 0, 0, 0), (4, 31, 7, 4092), (5, 3, 1, 0x40), (5, 31, 7, 4092)]
    {
        let address = PciAddress::new(0, bus, device, function).unwrap();
        let at =
            usize::from(bus - 4) << 20 | usize::from(device) << 15 | usize::from(function) << 12 | offset;
        unsafe { ecam.write(address, offset as u16, 0xc0de_0000 | at as u32 & 0xffff) };
        assert_eq!(window.slice().read_obj::<u32>(at), Ok(0xc0de_0000 | at as u32 & 0xffff));
        assert_eq!(ecam.read(address, offset as u16), 0xc0de_0000 | at as u32 & 0xffff);
    }
    for (segment, bus, offset) in [(0, 3, 0), (0, 6, 0), (1, 4, 0), (0, 4, 4096), (0, 5, u16::MAX)] {
        let address = PciAddress::new(segment, bus, 0, 0).unwrap();
        unsafe { ecam.write(address, offset, 7) };
        assert_eq!(ecam.read(address, offset), u32::MAX);
    }
    drop(ecam);
    assert_eq!(unsafe { Ecam::new(host, start, 0, 4, 6) }.err(), Some(PlatformError::BadRange));
    assert_eq!(unsafe { Ecam::new(host, start, 0, 4, 3) }.err(), Some(PlatformError::BadRange));
}
