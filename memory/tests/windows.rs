//! A device's windows: what views of them show, who owns them, and what becomes of their memory.
#![allow(clippy::undocumented_unsafe_blocks)]

use ringfence_memory::fuchsia::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;
use ringfence_testkit::machine::{PAGE, System, SystemPlatform};

const DEVICE: DeviceId = DeviceId(0x10);
/// Device addresses are physical addresses plus this.
const BUS: u64 = 4 << 30;

fn machine() -> (System, &'static SystemPlatform) {
    let system = System::small();
    let kernel = Box::leak(Box::new(SystemPlatform { space: system.space, bus: BUS }));
    (system, kernel)
}

/// The device wrote exactly the pages that were lent for it.
#[test]
fn windows_record_what_a_device_writes() {
    let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
    let region = windows.allocate(4 * 4096).unwrap();
    let at = windows.publish(region.address(4095).unwrap()).unwrap();
    let view = windows.snapshot::<AtomicBitmap>(Direction::FromDevice).unwrap();
    view.write_slice(&[1, 2], at).unwrap();
    let bitmap = view.iter().next().unwrap().bitmap();
    assert_eq!([0, 1, 2, 3].map(|page| bitmap.is_bit_set(page)), [true, true, false, false]);
    bitmap.reset();
    view.translate(DriverRange::try_from((at.0 + 4096 + 1, 4)).unwrap()).unwrap();
    assert_eq!((bitmap.dirty_pages(), bitmap.dirty_at(2 * 4096), bitmap.len()), (1, true, 4));
}

#[test]
fn a_snapshot_is_frozen_and_keeps_its_regions() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::for_model(host, DEVICE).unwrap();
    let region = windows.allocate(4096).unwrap();
    let at = windows.publish(region.address(0).unwrap()).unwrap();
    region.as_volatile_slice().write_obj(7_u8, 0).unwrap();
    let (before, generation) = (windows.readable().unwrap(), windows.generation());
    let later = windows.allocate(4096).unwrap();
    assert_ne!(windows.generation(), generation);
    assert_eq!((before.num_regions(), windows.readable().unwrap().num_regions()), (1, 2));
    drop((region, later));
    assert_eq!(windows.readable().unwrap().num_regions(), 0, "closed for whoever asks now");
    assert_eq!(before.read_obj::<u8>(at), Ok(7), "but not pulled away");
    assert_eq!(windows.reset_model().unwrap_err(), ResetError::Timeout, "somebody looks at the memory");
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 8192), 8192), "the device was told of something");
    drop(before);
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 8192), 8192));
    windows.reset_model().unwrap();
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0));
}

/// What is dropped before the device is told of anything is not quarantined, whoever looks at it meanwhile.
#[test]
fn what_a_device_was_not_told_of_goes_back_with_its_last_view() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::for_model(host, DEVICE).unwrap();
    let [first, second] = [(); 2].map(|()| windows.allocate(4096).unwrap());
    let view = windows.readable().unwrap();
    drop(first);
    assert_eq!((windows.usage(), host.dma_in_use()), ((4096, 0), 8192), "the view has it");
    windows.publish(second.address(0).unwrap()).unwrap();
    drop(view);
    assert_eq!((windows.usage(), host.dma_in_use()), ((4096, 0), 4096));
}

/// Only one driver at a time has a device's windows, and the next one gets the same table: else an address
/// from one table, told to the device through another, would be unknown to the table that decides what is
/// quarantined.
#[test]
fn a_device_has_one_table_and_one_owner() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    for claim in [DmaWindows::new, DmaWindows::for_model] {
        let (one, stranger) = (claim(host, DEVICE).unwrap(), claim(host, DeviceId(77)).unwrap());
        assert_eq!(claim(host, DEVICE).unwrap_err(), DmaError::Claimed);
        let (region, life) = (one.allocate(4096).unwrap(), one.life());
        drop(one.clone());
        drop(one);
        assert_eq!(claim(host, DEVICE).unwrap_err(), DmaError::Claimed, "its memory is somebody's");
        let array = region.array::<u8>(0, 1).unwrap();
        drop(region);
        assert_eq!(claim(host, DEVICE).unwrap_err(), DmaError::Claimed, "a part of it is");
        drop(array);
        let next = claim(host, DEVICE).unwrap();
        assert_eq!(next.life(), life);
        assert_ne!(next.life(), stranger.life());
    }
    assert_ne!(
        DmaWindows::new(host, DEVICE).unwrap().life(),
        DmaWindows::for_model(host, DEVICE).unwrap().life(),
        "a model is no device on a bus"
    );
}

#[test]
fn the_next_driver_finds_what_is_left() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let one = DmaWindows::for_model(host, DEVICE).unwrap();
    let region = one.allocate(4096).unwrap();
    one.publish(region.address(0).unwrap()).unwrap();
    drop(region);
    assert_eq!(one.usage(), (0, 4096));
    drop(one);
    let next = DmaWindows::for_model(host, DEVICE).unwrap();
    assert_eq!(next.usage(), (0, 4096));
    next.reset_model().unwrap();
    assert_eq!((next.usage(), host.dma_in_use()), ((0, 0), 0));
    let stranger = DmaWindows::for_model(host, DeviceId(77)).unwrap().allocate(1).unwrap();
    assert_eq!(next.publish(stranger.address(0).unwrap()), Err(DmaError::WrongDevice));
}

/// What a device on a bus may reach, nobody in this program reaches in its place.
#[test]
fn a_bus_device_has_no_stand_in() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::new(host, DEVICE).unwrap();
    let region = windows.allocate(4096).unwrap();
    assert_eq!(windows.publish(region.address(0).unwrap()), Err(DmaError::WrongDevice));
    assert_eq!(windows.reset_model().unwrap_err(), ResetError::WrongDevice);
    for view in [windows.readable().unwrap(), windows.writable().unwrap()] {
        let start = view.iter().next().unwrap().start_addr();
        assert!(view.check_range(start, 4096), "an IOMMU can be told the addresses");
        assert_eq!(view.read_obj::<u8>(start), Err(GuestMemoryError::HostAddressNotAvailable));
        assert_eq!(view.write_obj(1_u8, start), Err(GuestMemoryError::HostAddressNotAvailable));
        assert!(view.translate(DriverRange(start.0 as usize..start.0 as usize + 1)).is_none());
    }
}

#[test]
fn quarantined_frames_have_their_own_owner() {
    let (system, kernel) = machine();
    let count = |owner| system.space.frames().count(owner);
    let windows = DmaWindows::for_model(kernel, DEVICE).unwrap();
    let (idle, region) = (count(Owner::DmaIdle), windows.allocate(3 * 4096).unwrap());
    let snapshot = windows.writable().unwrap();
    windows.publish(region.address(0).unwrap()).unwrap();
    drop(region);
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, 3), "though a snapshot still has it");
    drop(snapshot);
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, 3));
    system.check();
    let others: Vec<_> = std::iter::from_fn(|| windows.allocate(4096).ok()).collect();
    assert!(!others.is_empty() && count(Owner::Quarantined) == 3);
    windows.reset_model().unwrap();
    assert_eq!(count(Owner::Quarantined), 0);
    drop(others);
    assert!(count(Owner::DmaIdle) >= idle + 3 && count(Owner::Dma) == 0);
    system.check();
}

#[test]
fn the_audit_compares_windows_with_regions() {
    let (system, kernel) = machine();
    let windows = DmaWindows::for_model(kernel, DEVICE).unwrap();
    let regions = [windows.allocate(4096).unwrap(), windows.allocate(2 * 4096).unwrap()];
    assert_eq!(system.space.audit().windows, (2, 3));
    system.check();
    // A page of a window that leads to private memory.
    let private = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let page = VirtAddr::from_ptr(regions[0].as_volatile_slice().as_ptr().as_ptr()).unwrap();
    let entry = system.machine.entry(page.value(), 0);
    let before = system.machine.word(entry);
    system
        .machine
        .set_word(entry, system.machine.word(system.machine.entry(private.start_address().value(), 0)));
    let report = system.space.audit();
    system.machine.set_word(entry, before);
    assert!(report.findings().any(|finding| *finding == Finding::WindowNotDma(page)), "{report:?}");
    // A forgotten region stays open; a region whose closing was skipped would be found.
    std::mem::forget(regions);
    assert_eq!(system.space.audit().windows, (2, 3));
    system.check();
}

#[test]
fn the_physical_map_refuses_what_is_not_shared() {
    let (system, kernel) = machine();
    let ram: u64 = system.space.phys_map(&[]).iter().map(|region| region.len()).sum();
    assert_eq!(ram, system.space.frames().total() as u64 * PAGE);
    let private = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let windows = DmaWindows::for_model(kernel, DEVICE).unwrap();
    let regions = [1, 2, 1].map(|pages| windows.allocate(pages * 4096).unwrap());
    // Lent in any order, one twice, one that is of another machine, and one not at all.
    let elsewhere = machine();
    let other = DmaWindows::for_model(elsewhere.1, DEVICE).unwrap().allocate(4096).unwrap();
    let kept = windows.allocate(4096).unwrap();
    let map = system.space.phys_map(&[&regions[2], &regions[0], &other, &regions[1], &regions[0]]);
    assert_eq!(map.iter().map(|region| region.len()).sum::<u64>(), ram, "the same RAM, cut up");
    assert_eq!(map.iter().filter(|region| region.is_shared()).count(), 3);
    let at = |region: &DmaRegion| GuestAddress(windows.publish(region.address(0).unwrap()).unwrap().0 - BUS);
    for region in &regions {
        map.write_obj(0x55_u8, at(region)).unwrap();
        assert_eq!(region.as_volatile_slice().read_obj::<u8>(0), Ok(0x55));
        assert_eq!(
            map.get_slice(at(region), region.len()).unwrap().as_ptr(),
            region.as_volatile_slice().as_ptr()
        );
    }
    let refused = Err(GuestMemoryError::HostAddressNotAvailable);
    let hidden = GuestAddress(system.space.translate(private.start_address()).unwrap().value());
    assert!(map.check_range(hidden, 4096), "it is RAM");
    assert_eq!(map.read_obj::<u8>(at(&kept)), refused, "its owner has not lent it");
    for address in (0..=ram).step_by(4096).flat_map(|page| [page.wrapping_sub(1), page, page + 1]) {
        let linear = map.iter().find(|region| region.to_region_addr(GuestAddress(address)).is_some());
        let found = map.find_region(GuestAddress(address));
        assert_eq!(found.map(|region| region.start_addr()), linear.map(|region| region.start_addr()));
    }
    assert_eq!(map.read_obj::<u8>(hidden), refused);
    assert_eq!(map.write_obj(1_u8, hidden), refused.map(drop));
    assert_eq!(map.get_host_address(hidden), Err(GuestMemoryError::HostAddressNotAvailable));
    for table in [system.pool.start_address(), system.kernel.start_address()] {
        assert_eq!(map.read_obj::<u8>(GuestAddress(table.value())), refused);
        assert!(map.translate(DriverRange(table.value() as usize..table.value() as usize + 8)).is_none());
    }
    let past = GuestAddress(map.last_addr().0 + 1);
    assert_eq!(map.read_obj::<u8>(past), Err(GuestMemoryError::InvalidGuestAddress(past)));
    drop((regions, kept));
    windows.reset_model().unwrap();
    assert_eq!(system.space.frames().count(Owner::Dma), 0);
}
