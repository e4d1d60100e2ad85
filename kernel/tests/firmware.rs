//! Firmware tables that are wrong: whatever they say, the result is sound.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

use alloc::vec::Vec;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use ringfence_kernel::acpi::{Ecam, Memory, Power, Tables};
use ringfence_kernel::boot::memory_map::{MAX_REGIONS, build};
use ringfence_kernel::devices::mmio::{Place, places};

ringfence_kernel::test_image!();

const USABLE: MemoryRegionKind = MemoryRegionKind::Usable;
const RESERVED: MemoryRegionKind = MemoryRegionKind::UnknownBios(2);

fn region(start: u64, end: u64, kind: MemoryRegionKind) -> MemoryRegion {
    MemoryRegion { start, end, kind }
}

/// Small pseudo-random numbers (xorshift), so that a failure can be repeated.
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

/// Reserved parts are cut out, partial pages are dropped, page 0 is never usable, neighbours are joined.
#[test_case]
fn memory_map_is_put_in_order() {
    let map = build(&[
        region(0x20_0800, 0x40_0000, USABLE),
        region(0, 0x9_f800, USABLE),
        region(0x9_f800, 0xa_0000, RESERVED),
        region(0x30_0000, 0x30_0001, RESERVED),
        region(0x40_0000, 0x50_0000, USABLE),
        region(0x60_0000, 0x50_0000, USABLE),
    ]);
    let expected = [
        region(0, 0x1000, MemoryRegionKind::UnknownBios(0)),
        region(0x1000, 0x9_f000, USABLE),
        region(0x9_f000, 0xa_0000, RESERVED),
        region(0x20_1000, 0x30_0000, USABLE),
        region(0x30_0000, 0x30_1000, RESERVED),
        region(0x30_1000, 0x50_0000, USABLE),
    ];
    assert_eq!(map.as_slice(), expected);
}

/// For random maps, a page is usable exactly if a usable region has all of it and no other region has any of
/// it. Where there are too many regions, pages may be missing, but none is added.
#[test_case]
fn memory_map_matches_page_by_page() {
    const PAGES: u64 = 256;
    let mut state = 0x2545_f491_4f6c_dd1d;
    for round in 0..2_000 {
        let count = if round % 10 == 0 { 300 } else { random(&mut state, 20) };
        let regions: Vec<MemoryRegion> = (0..count)
            .map(|_| {
                let start = random(&mut state, PAGES * 8) * 512;
                let end = start + random(&mut state, if count > 20 { 20 } else { 400 }) * 512;
                region(start, end, if random(&mut state, 3) == 0 { RESERVED } else { USABLE })
            })
            .collect();
        let map = build(&regions);
        assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].start), "in order, without overlap");
        for page in 0..PAGES {
            let (start, end) = (page * 4096, (page + 1) * 4096);
            let covers =
                |region: &&MemoryRegion| region.kind == USABLE && region.start <= start && end <= region.end;
            // Adjacent parts of a page make a page only if one region has it all.
            let whole =
                regions.iter().filter(|region| region.start < region.end).any(|region| covers(&region));
            let touched = regions.iter().any(|region| {
                region.kind != USABLE && region.start < end && start < region.end && region.start < region.end
            });
            let usable = map.iter().any(|region| covers(&region));
            let expected = whole && !touched && page != 0;
            assert!(
                usable == expected || !usable && count > MAX_REGIONS as u64,
                "round {round}, page {page}"
            );
        }
    }
}

/// The end of the address space does not overflow.
#[test_case]
fn memory_map_reaches_the_end() {
    let map = build(&[region(0x1000, u64::MAX, USABLE), region(u64::MAX - 1, u64::MAX, RESERVED)]);
    assert_eq!(map.last().map(|last| (last.start, last.kind)), Some((0x1000, USABLE)));
}

/// Physical memory made of bytes.
struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(address).ok()?;
        Some(self.0.get(start..start.checked_add(len)?)?.to_vec())
    }
}

const RSDP: u64 = 0x40;
const ROOT: usize = 0x100;
const MCFG: usize = 0x200;
const MADT: usize = 0x300;
const FADT: usize = 0x400;
const DSDT: usize = 0x500;

fn checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
}

fn put_table(memory: &mut [u8], at: usize, signature: &[u8; 4], body: &[u8]) {
    let table = &mut memory[at..at + 36 + body.len()];
    table[..4].copy_from_slice(signature);
    table[4..8].copy_from_slice(&(36 + body.len() as u32).to_le_bytes());
    table[36..].copy_from_slice(body);
    checksum(table, 9);
}

/// Tables as QEMU makes them: RSDP, RSDT, one ECAM range, a local APIC that was moved, a power button.
fn good() -> Vec<u8> {
    let mut memory = alloc::vec![0; 4096];
    let rsdp = &mut memory[RSDP as usize..][..20];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[16..20].copy_from_slice(&(ROOT as u32).to_le_bytes());
    checksum(rsdp, 8);
    let addresses = [MCFG as u32, MADT as u32, 0xffff_fff0, FADT as u32].map(u32::to_le_bytes);
    put_table(&mut memory, ROOT, b"RSDT", addresses.as_flattened());
    let mut ecam = [0; 24];
    ecam[8..16].copy_from_slice(&0xb000_0000u64.to_le_bytes());
    ecam[19] = 255;
    put_table(&mut memory, MCFG, b"MCFG", &ecam);
    let mut madt = [0; 8 + 8 + 12];
    madt[..4].copy_from_slice(&0xfee0_0000u32.to_le_bytes());
    madt[8..10].copy_from_slice(&[0, 8]);
    madt[16..18].copy_from_slice(&[5, 12]);
    madt[20..28].copy_from_slice(&0xfec1_0000u64.to_le_bytes());
    put_table(&mut memory, MADT, b"APIC", &madt);
    let mut fadt = [0; 244 - 36];
    let mut put = |at: usize, bytes: &[u8]| fadt[at - 36..][..bytes.len()].copy_from_slice(bytes);
    put(40, &(DSDT as u32).to_le_bytes());
    put(46, &[9, 0, 0xb2, 0, 0, 0, 2]);
    put(56, &0x600u32.to_le_bytes());
    put(64, &0x604u32.to_le_bytes());
    put(88, &[4, 2]);
    put_table(&mut memory, FADT, b"FACP", &fadt);
    put_table(&mut memory, DSDT, b"DSDT", b"\x5b\x80_S5_\x08_S5_\x12\x06\x04\x0a\x05\0\0\0");
    memory
}

/// What the tables say is found.
#[test_case]
fn tables_are_read() {
    let tables = Tables::read(&Bytes(good()), Some(RSDP));
    let ecam = Ecam { base: 0xb000_0000, segment: 0, first_bus: 0, last_bus: 255 };
    let power = Power {
        line: 9,
        turn_on: Some((0xb2, 2)),
        status: 0x600,
        enable: 0x602,
        control: 0x604,
        off: Some(5),
    };
    assert_eq!(tables, Tables { ecam: alloc::vec![ecam], local_apic: 0xfec1_0000, power: Some(power) });
}

/// Without tables there are the places that everyone uses.
#[test_case]
fn tables_may_be_absent() {
    let none = Tables { ecam: Vec::new(), local_apic: 0xfee0_0000, power: None };
    for rsdp in [None, Some(0), Some(4095), Some(u64::MAX)] {
        assert_eq!(Tables::read(&Bytes(good()), rsdp), none);
    }
}

/// A table with a wrong byte is left out by its checksum; one with right checksums and random contents does
/// no harm.
#[test_case]
fn broken_tables_do_no_harm() {
    log::set_max_level(log::LevelFilter::Off);
    let right = Tables::read(&Bytes(good()), Some(RSDP));
    let none = Tables { ecam: Vec::new(), local_apic: 0xfee0_0000, power: None };
    for at in 0..0x540 {
        let mut memory = good();
        memory[at] ^= 0x10;
        let found = Tables::read(&Bytes(memory), Some(RSDP));
        let fields = [
            (found.ecam == right.ecam, found.ecam == none.ecam),
            (found.local_apic == right.local_apic, found.local_apic == none.local_apic),
            (found.power == right.power, found.power.is_none_or(|power| power.off.is_none())),
        ];
        assert!(fields.iter().all(|(right, none)| *right || *none), "byte {at:#x}: {found:?}");
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..20_000 {
        let mut memory = good();
        for _ in 0..1 + random(&mut state, 8) {
            let at = ROOT + random(&mut state, 0x440) as usize;
            memory[at] = random(&mut state, 256) as u8;
        }
        for table in [ROOT, MCFG, MADT, FADT, DSDT] {
            let len = u32::from_le_bytes([
                memory[table + 4],
                memory[table + 5],
                memory[table + 6],
                memory[table + 7],
            ]);
            let end = table.saturating_add(len as usize).clamp(table + 36, memory.len());
            checksum(&mut memory[table..end], 9);
        }
        let found = Tables::read(&Bytes(memory), Some(RSDP));
        assert!(found.local_apic != 0 && found.local_apic.is_multiple_of(4096));
        assert!(found.ecam.iter().all(|one| one.first_bus <= one.last_bus && one.base != 0));
        assert!(found.power.is_none_or(|power| power.status != 0 && power.off.is_none_or(|off| off < 8)));
    }
}

/// Devices over MMIO are where the command line says, in the words that QEMU, Firecracker and Linux have for
/// it. What makes no sense names none, and neither does what lies across one that was named before.
#[test_case]
fn a_command_line_names_devices() {
    let place = |start, len, line| Place { start, len, line };
    let line = "console=ttyS0 virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=4K@0xd0000000:5:1 \
                virtio_mmio.device=0x200@4276092928:11 virtio_mmio.device=1000K@0xd0002000:255";
    let expected = [
        place(0xfeb0_0e00, 512, 12),
        place(0xd000_0000, 4096, 5),
        place(0xfee0_0000, 512, 11),
        place(0xd000_2000, 4096, 255),
    ];
    assert_eq!(places(line), expected);
    for wrong in [
        "",
        "virtio_mmio.device=",
        "virtio_mmio.device=512@0xfeb00e00",
        "virtio_mmio.device=512@0xfeb00e00:",
        "virtio_mmio.device=512@0xfeb00e00:256",
        "virtio_mmio.device=512@0xfeb00e00:-1",
        "virtio_mmio.device=512@feb00e00:12",
        "virtio_mmio.device=512@0xfeb00e02:12",
        "virtio_mmio.device=0@0xfeb00e00:12",
        "virtio_mmio.device=512@0xffffffffffffff00:12",
        "virtio_mmio.device=512@0x1ffffffffffffff00:12",
        "virtio_mmio.device=99999999999999999K@0xfeb00e00:12",
        "xvirtio_mmio.device=512@0xfeb00e00:12",
    ] {
        assert_eq!(places(wrong), [], "{wrong}");
    }
    let across = "virtio_mmio.device=512@0x1000:5 virtio_mmio.device=512@0x11fc:5 virtio_mmio.device=512@0xe04:5 \
                  virtio_mmio.device=512@0x1000:6 virtio_mmio.device=512@0x1200:7";
    assert_eq!(places(across), [place(0x1000, 512, 5), place(0x1200, 512, 7)]);
}
