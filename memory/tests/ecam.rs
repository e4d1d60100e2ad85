//! Memory-mapped configuration space, on a platform that has no address space to give away.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::*;
use ringfence_testkit::host_does;

const WINDOW: u64 = 0xb000_0000;
const MIB: usize = 1 << 20;

/// Maps one bus at a time, and so many in all.
struct Small {
    host: HostPlatform,
    left: AtomicUsize,
}

unsafe impl Platform for Small {
    host_does!(host: dma_allocate, now, registry);

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        assert_eq!(device, None);
        let left = self.left.load(SeqCst).checked_sub(1).filter(|_| len <= MIB);
        let left = left.ok_or(PlatformError::OutOfMemory)?;
        let registers = self.host.mmio_map(device, start, len)?;
        self.left.store(left, SeqCst);
        Ok(registers)
    }
}

/// The window of four buses, from bus 4 on, of which nobody answers on any; and who maps `count` of them.
fn window(count: usize) -> (&'static Small, HostMemory, PhysAddr) {
    let small = Small { host: HostPlatform::new(), left: AtomicUsize::new(count) };
    let registers = small.host.add_registers(WINDOW, 4 * MIB);
    registers.slice().fill(0xff).unwrap();
    (Box::leak(Box::new(small)), registers, PhysAddr::new(WINDOW).unwrap())
}

fn address(bus: u8, device: u8) -> PciAddress {
    PciAddress::new(0, bus, device, 0).unwrap()
}

/// Whether somebody else could map a bus.
fn is_free(platform: &Small, bus: u64) -> bool {
    platform.host.mmio_map(None, PhysAddr::new(WINDOW + (bus << 20)).unwrap(), 4096).is_ok()
}

#[test]
fn buses_are_mapped_one_by_one() {
    let (small, registers, start) = window(2);
    for (bus, device) in [(0, 0), (1, 31), (3, 2)] {
        registers.slice().write_obj(0x1042_1af4_u32, bus * MIB + device * 0x8000).unwrap();
    }
    let ecam = unsafe { Ecam::new(small, start, 0, 4, 7) }.unwrap();
    let read = |bus, device| ecam.read(address(bus, device), 0);
    assert_eq!((read(4, 0), ecam.last_bus()), (0x1042_1af4, 7), "the first is there");
    assert_eq!((read(5, 31), is_free(small, 1)), (u32::MAX, true), "the others must be opened");
    unsafe { ecam.write(address(5, 31), 4, 7) };
    assert_eq!(
        registers.slice().read_obj::<u32>(MIB + 31 * 0x8000 + 4),
        Ok(u32::MAX),
        "nor are they written"
    );
    for _ in 0..3 {
        ecam.open_bus(0, 5);
        assert_eq!((read(5, 31), is_free(small, 1)), (0x1042_1af4, false));
    }
    // There is no room for another.
    ecam.open_bus(0, 7);
    assert_eq!(read(7, 2), u32::MAX);
    small.left.store(1, SeqCst);
    ecam.open_bus(0, 7);
    assert_eq!(read(7, 2), 0x1042_1af4, "it can be tried again");
    drop(ecam);
    assert!((0..4).all(|bus| is_free(small, bus)));
}

#[test]
fn a_bus_where_nobody_answers_is_not_kept() {
    let (small, registers, start) = window(usize::MAX);
    registers.slice().write_obj(0x1042_1af4_u32, 2 * MIB + 4096).unwrap(); // Without function 0.
    let ecam = unsafe { Ecam::new(small, start, 0, 4, 7) }.unwrap();
    for (segment, bus) in [(0, 5), (0, 6), (1, 7), (0, 3), (0, 8), (0, 255)] {
        ecam.open_bus(segment, bus);
    }
    assert_eq!([0, 1, 2, 3].map(|bus| is_free(small, bus)), [false, true, true, true]);
    registers.slice().write_obj(0x1042_1af4_u32, 3 * MIB).unwrap();
    ecam.open_bus(1, 7);
    assert!(is_free(small, 3), "another segment's");
    ecam.open_bus(0, 7);
    assert!(!is_free(small, 3), "who came later is found");
}

#[test]
fn what_cannot_be_there_is_refused() {
    let (small, _, start) = window(0);
    let new = |start, first, last| unsafe { Ecam::new(small, start, 0, first, last) }.err();
    assert_eq!(new(start, 4, 7), Some(PlatformError::OutOfMemory), "not even the first bus");
    small.left.store(usize::MAX, SeqCst);
    assert_eq!(new(start, 4, 3), Some(PlatformError::BadRange));
    assert_eq!(new(PhysAddr::new(1 << 40).unwrap(), 0, 0), Some(PlatformError::BadRange));
    let last = PhysAddr::new((1 << 52) - (1 << 20)).unwrap();
    small.host.add_registers(last.value(), MIB);
    assert_eq!((new(last, 0, 0), new(last, 0, 1)), (None, Some(PlatformError::BadRange)));
    assert_eq!(new(start, 4, 7), None);
}

/// Whoever comes second has what the first one mapped.
#[test]
fn two_open_the_same_bus() {
    for _ in 0..50 {
        let (small, registers, start) = window(2);
        registers.slice().write_obj(0x1042_1af4_u32, MIB).unwrap();
        let ecam = unsafe { Ecam::new(small, start, 0, 4, 7) }.unwrap();
        thread::scope(|scope| {
            let open = || {
                ecam.open_bus(0, 5);
                ecam.read(address(5, 0), 0)
            };
            let others = [scope.spawn(open), scope.spawn(open)];
            assert_eq!(others.map(|other| other.join().unwrap()), [0x1042_1af4; 2]);
        });
    }
}
