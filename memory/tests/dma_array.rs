//! Arrays and descriptors in DMA memory: checked once, and then at each index.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use proptest::prelude::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;

const DEVICE: DeviceId = DeviceId(0x08);
const PAGE: usize = 4096;

fn platform() -> &'static HostPlatform {
    Box::leak(Box::new(HostPlatform::new()))
}

fn windows() -> DmaWindows {
    DmaWindows::new(platform(), DEVICE)
}

/// The number that the device is told.
fn number(windows: &DmaWindows, address: DmaAddr) -> u64 {
    windows.publish(address).unwrap().raw_value()
}

fn out_of_bounds<T>(result: Result<T, DmaError>) -> bool {
    matches!(result, Err(DmaError::Access(VolatileError::OutOfBounds)))
}

fn misaligned<T>(result: Result<T, DmaError>) -> bool {
    matches!(result, Err(DmaError::Access(VolatileError::Misaligned)))
}

#[test]
fn arrays_lie_in_their_region_and_are_aligned() {
    let region = windows().allocate(2 * PAGE).unwrap();
    let len = region.len();
    assert_eq!(region.array::<u64>(0, len / 8).unwrap().len(), len / 8);
    assert_eq!(region.array::<u32>(len - 4, 1).unwrap().len(), 1);
    assert_eq!(region.array::<u8>(len - 1, 1).unwrap().len(), 1);
    assert!(region.array::<u16>(6, 0).unwrap().is_empty());
    for (offset, count) in [
        (0, len / 8 + 1),
        (8, len / 8),
        (len, 1),
        (len + 8, 0),
        (usize::MAX - 7, 1),
        (0, usize::MAX / 8 + 1),
        (8, usize::MAX / 8),
        (usize::MAX, usize::MAX),
    ] {
        assert!(out_of_bounds(region.array::<u64>(offset, count)), "{count} from {offset}");
    }
    for offset in 1..8 {
        assert!(misaligned(region.array::<u64>(offset, 1)));
        assert_eq!(misaligned(region.array::<u32>(offset, 1)), offset % 4 != 0);
        assert_eq!(misaligned(region.array::<u16>(offset, 1)), offset % 2 != 0);
        assert!(region.array::<u8>(offset, 1).is_ok());
    }
}

#[test]
fn descriptors_lie_in_their_region() {
    let region = windows().allocate(PAGE).unwrap();
    let descriptors = DescriptorArray::new(&region, 0, PAGE / 16).unwrap();
    assert_eq!((descriptors.len(), descriptors.is_empty()), (256, false));
    assert!(DescriptorArray::new(&region, 16, 0).unwrap().is_empty());
    assert!(misaligned(DescriptorArray::new(&region, 4, 1)));
    for (offset, count) in [
        (0, 257),
        (16, 256),
        (PAGE, 1),
        (PAGE - 8, 1),
        (0, usize::MAX),
        (0, usize::MAX / 2 + 1),
        (0, usize::MAX / 16 + 1),
    ] {
        assert!(out_of_bounds(DescriptorArray::new(&region, offset, count)), "{count} from {offset}");
    }
}

#[test]
fn nothing_beyond_the_end() {
    let windows = windows();
    let region = windows.allocate(PAGE).unwrap();
    let array = region.array::<u32>(8, 3).unwrap();
    region.as_volatile_slice().fill(0xa5).unwrap();
    for index in [3, 4, 1000, usize::MAX / 4, usize::MAX / 4 + 1, usize::MAX] {
        assert_eq!((array.load(index, Relaxed), array.store(index, 0, Relaxed)), (None, None), "{index}");
        assert!(array.address_of(index, 1).is_none());
    }
    for (index, count) in [(0, 4), (2, 2), (1, usize::MAX), (usize::MAX, 2)] {
        assert!(array.address_of(index, count).is_none(), "{count} from {index}");
    }
    let descriptors = DescriptorArray::new(&region, 32, 2).unwrap();
    for index in [2, 3, 1000, usize::MAX / 2, usize::MAX / 2 + 1, usize::MAX] {
        assert!(out_of_bounds(descriptors.store_rest(index, 0, Relaxed)), "{index}");
        assert!(out_of_bounds(descriptors.store_address(index, region.address(0).unwrap())));
        assert!(descriptors.address(index).is_none());
    }
    let mut bytes = [0; PAGE];
    region.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0xa5; PAGE], "a refused store left no trace");
}

#[test]
fn a_descriptor_as_the_device_reads_it() {
    let host = platform();
    let windows = DmaWindows::new(host, DEVICE);
    let (ring, buffer) = (windows.allocate(PAGE).unwrap(), windows.allocate(PAGE).unwrap());
    let descriptors = DescriptorArray::new(&ring, 64, 4).unwrap();
    descriptors.store_address(2, buffer.address(0x123).unwrap()).unwrap();
    descriptors.store_rest(2, 0x0807_0605_0403_0201, Release).unwrap();
    let at = number(&windows, descriptors.address(2).unwrap());
    assert_eq!(at, number(&windows, ring.address(0).unwrap()) + 64 + 2 * 16);
    let seen: [u8; 16] = host.translate(DEVICE, at, 16).unwrap().slice().read_obj(0).unwrap();
    assert_eq!(seen[..8], number(&windows, buffer.address(0x123).unwrap()).to_le_bytes());
    assert_eq!(seen[8..], [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut all = [0; PAGE];
    ring.as_volatile_slice().read_slice(&mut all, 0).unwrap();
    all[64 + 2 * 16..][..16].fill(0);
    assert_eq!(all, [0; PAGE], "and nothing else was written");
}

#[test]
fn another_devices_address_is_refused() {
    let host = platform();
    let (ours, theirs) = (DmaWindows::new(host, DEVICE), DmaWindows::new(host, DeviceId(9)));
    let (region, other) = (ours.allocate(PAGE).unwrap(), theirs.allocate(PAGE).unwrap());
    let descriptors = DescriptorArray::new(&region, 0, 4).unwrap();
    let foreign = other.array::<u64>(0, 4).unwrap();
    for address in [other.address(0).unwrap(), foreign.address_of(1, 2).unwrap()] {
        assert_eq!(descriptors.store_address(0, address), Err(DmaError::WrongDevice));
        assert_eq!(descriptors.store_address(4, address), Err(DmaError::WrongDevice));
    }
    assert_eq!(region.as_volatile_slice().read_obj::<u64>(0), Ok(0), "nothing was written");
    assert_eq!(ours.publish(foreign.address_of(0, 1).unwrap()), None);
    let own = region.array::<u64>(0, 4).unwrap().address_of(0, 4).unwrap();
    assert_eq!(descriptors.store_address(0, own), Ok(()));
}

#[test]
fn memory_lives_as_long_as_the_array_but_its_window_as_long_as_the_region() {
    let host = platform();
    let windows = DmaWindows::new(host, DEVICE);
    let region = windows.allocate(PAGE).unwrap();
    let (array, descriptors) =
        (region.array::<u32>(0, 4).unwrap(), DescriptorArray::new(&region, 64, 1).unwrap());
    array.store(1, 77, Release).unwrap();
    let address = GuestAddress(host_address(host, &windows, &region));
    assert!(windows.readable().check_range(address, PAGE) && windows.writable().check_range(address, PAGE));

    drop(region);
    assert_eq!(windows.usage().0, 0, "no live region");
    assert!(!windows.readable().address_in_range(address), "the window is closed");
    assert!(!windows.writable().address_in_range(address));
    assert_eq!(host.dma_in_use(), PAGE, "the memory is still there");
    assert_eq!(array.load(1, Acquire), Some(77));
    array.store(2, 78, Release).unwrap();
    drop(array);
    assert_eq!((host.dma_in_use(), windows.usage().1), (PAGE, 0), "the other array holds it too");
    descriptors.store_rest(0, 5, Relaxed).unwrap();
    drop(descriptors);
    // The device was told the address: without a reset nobody else may have the memory.
    assert_eq!((host.dma_in_use(), windows.usage()), (PAGE, (0, PAGE)));
    let status = Reset(std::cell::Cell::new(4));
    windows.reset_device(&status, Duration::ZERO).unwrap();
    assert_eq!((host.dma_in_use(), windows.usage()), (0, (0, 0)));
}

fn host_address(host: &HostPlatform, windows: &DmaWindows, region: &DmaRegion) -> u64 {
    let address = number(windows, region.address(0).unwrap());
    assert!(host.translate(DEVICE, address, region.len()).is_some());
    address
}

/// A device that resets at once.
struct Reset(std::cell::Cell<u8>);

// SAFETY: there is no device that could go on.
unsafe impl DeviceStatus for Reset {
    fn read(&self) -> u8 {
        self.0.get()
    }
    fn write(&self, value: u8) {
        self.0.set(value);
    }
}

#[test]
fn arrays_are_shared_between_threads() {
    let region = windows().allocate(PAGE).unwrap();
    let array = region.array::<u32>(0, 2).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 1..=100 {
                array.store(0, value, Release).unwrap();
                while array.load(1, Acquire) != Some(value) {
                    std::thread::yield_now();
                }
            }
        });
        for value in 1..=100 {
            while array.load(0, Acquire) != Some(value) {
                std::thread::yield_now();
            }
            array.store(1, value, Release).unwrap();
        }
    });
    assert_eq!(array.load(0, Acquire), Some(100));
}

proptest! {
    /// Loads and stores agree with a plain array, whatever the index, and touch nothing around it.
    #[test]
    fn agrees_with_an_array(
        offset in (0_usize..40).prop_map(|words| 2 * words),
        count in 0_usize..50,
        steps in prop::collection::vec((0_usize..60, any::<u16>()), 0..100),
    ) {
        let region = windows().allocate(PAGE).unwrap();
        let array = region.array::<u16>(offset, count).unwrap();
        let mut model = vec![0; PAGE];
        for (index, value) in steps {
            prop_assert_eq!(array.store(index, value, Release).is_some(), index < count);
            if index < count {
                model[offset + 2 * index..][..2].copy_from_slice(&value.to_ne_bytes());
                prop_assert_eq!(array.load(index, Acquire), Some(value));
            }
        }
        let mut all = vec![0; PAGE];
        region.as_volatile_slice().read_slice(&mut all, 0).unwrap();
        prop_assert_eq!(all, model);
    }
}
