//! Who owns DMA memory when: regions, pools, quarantine, and what a device can reach.

use std::time::Duration;

use proptest::prelude::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;

const DEVICE: DeviceId = DeviceId(0x08);
const STATUS: usize = 0x14;
const REGISTERS: u64 = 0xfe00_0000;

fn platform() -> &'static HostPlatform {
    Box::leak(Box::new(HostPlatform::new()))
}

/// What a device would read from the address field at the start of `region`.
fn published(region: &DmaRegion) -> u64 {
    region.as_volatile_slice().read_obj::<u64>(0).unwrap()
}

#[test]
fn the_device_reaches_a_region_by_its_device_address_alone() {
    let host = platform();
    let windows = DmaWindows::new(host, DEVICE);
    let region = windows.allocate(5000).unwrap();
    assert_eq!(region.len(), 8192);
    region.as_volatile_slice().write_slice(b"across", 4095).unwrap();
    region.write_dma_addr(0, region.address(4095).unwrap()).unwrap();

    let address = published(&region);
    let mut seen = [0; 6];
    host.translate(DEVICE, address, 6).unwrap().slice().read_slice(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"across");
    assert!(host.translate(DeviceId(9), address, 6).is_none(), "another device sees nothing");
    assert!(host.translate(DEVICE, address, 8192).is_none(), "nothing beyond the end");
    let pointer = region.as_volatile_slice().as_ptr().as_ptr() as u64;
    assert!(host.translate(DEVICE, pointer, 1).is_none(), "a pointer is no device address");
    drop(region);
    assert!(host.translate(DEVICE, address, 1).is_none(), "nothing after the drop");
}

#[test]
fn an_address_of_another_device_is_refused() {
    let host = platform();
    let (ours, theirs) = (DmaWindows::new(host, DEVICE), DmaWindows::new(host, DeviceId(9)));
    let (region, other) = (ours.allocate(1).unwrap(), theirs.allocate(1).unwrap());
    assert_eq!(region.write_dma_addr(0, other.address(0).unwrap()), Err(DmaError::WrongDevice));
    assert_eq!(published(&region), 0);
    assert_eq!(region.address(4096), None);
}

#[test]
fn bad_lengths_are_typed_errors() {
    let windows = DmaWindows::new(platform(), DEVICE);
    assert_eq!(windows.allocate(0).unwrap_err(), DmaError::BadLength);
    assert_eq!(DmaPool::new(&windows, 0, 64).unwrap_err(), DmaError::BadLength);
    assert_eq!(DmaPool::new(&windows, usize::MAX, 2).unwrap_err(), DmaError::BadLength);
    assert_eq!(windows.usage(), (0, 0));
}

#[test]
fn memory_of_a_live_device_is_quarantined_until_its_status_reads_0() {
    let host = platform();
    let device = host.add_registers(REGISTERS, 4096);
    let common = MmioRegion::map(host, PhysAddr::new(REGISTERS).unwrap(), 4096).unwrap();
    let windows = DmaWindows::new(host, DEVICE);
    let region = windows.allocate(4096).unwrap();
    common.write_dma_addr(0x20, &windows, region.address(0).unwrap()).unwrap();
    let address = device.slice().read_obj::<u64>(0x20).unwrap();

    drop(region);
    assert_eq!(windows.usage(), (0, 4096));
    let late = host.translate(DEVICE, address, 8).expect("a late device write still hits DMA memory");
    late.slice().write_slice(b"too late", 0).unwrap();
    drop(late);

    // A device whose status sticks: no proof, no release.
    assert_eq!(windows.reset_device(&Stuck, Duration::from_millis(5)), Err(ResetTimeout));
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 4096), 4096));

    // Plain memory reads back the 0 just written, as a device that is done does.
    let status = common.register::<u8>(STATUS).unwrap();
    windows.reset_device(&status, Duration::from_millis(5)).unwrap();
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0));
}

#[test]
fn quarantine_that_nobody_can_release_is_leaked_not_reused() {
    let host = platform();
    host.add_registers(REGISTERS, 4096);
    let common = MmioRegion::map(host, PhysAddr::new(REGISTERS).unwrap(), 4096).unwrap();
    let windows = DmaWindows::new(host, DEVICE);
    let region = windows.allocate(4096).unwrap();
    common.write_dma_addr(0x20, &windows, region.address(0).unwrap()).unwrap();
    drop(windows);
    drop(region);
    assert_eq!(host.dma_in_use(), 4096);
}

/// The status of a device that hangs.
struct Stuck;

// SAFETY: never reads 0, so it never claims that anything stopped.
unsafe impl DeviceStatus for Stuck {
    fn read(&self) -> u8 {
        4
    }
    fn write(&self, _: u8) {}
}

#[test]
fn registers_are_checked_and_claimed_once() {
    let host = platform();
    let device = host.add_registers(REGISTERS, 4096);
    let start = PhysAddr::new(REGISTERS).unwrap();
    let region = MmioRegion::map(host, start, 4096).unwrap();
    assert_eq!(MmioRegion::map(host, start, 4096).unwrap_err(), PlatformError::Claimed);
    assert_eq!(region.read::<u32>(4094).unwrap_err(), MmioError::OutOfBounds);
    assert_eq!(region.read::<u32>(2).unwrap_err(), MmioError::Misaligned);
    assert_eq!(region.part(4090, 7).unwrap_err(), MmioError::OutOfBounds);
    assert_eq!(region.part(usize::MAX, 2).unwrap_err(), MmioError::OutOfBounds);
    let part = region.part(0x10, 4).unwrap();
    let register = part.register::<u32>(0).unwrap();
    drop((region, part));
    register.write(0xdead_beef);
    assert_eq!(device.slice().read_obj::<u32>(0x10).unwrap(), 0xdead_beef);
    assert_eq!(
        MmioRegion::map(host, start, 4096).unwrap_err(),
        PlatformError::Claimed,
        "a register keeps the claim"
    );
    drop(register);
    MmioRegion::map(host, start, 4096).unwrap();
}

proptest! {
    /// Buffers of a pool never overlap, none is lent twice, and dropping one makes it available again.
    #[test]
    fn pool_buffers_are_disjoint(count in 1usize..40, len in 1usize..3000, steps in prop::collection::vec(any::<(bool, usize)>(), 0..200)) {
        let windows = DmaWindows::new(platform(), DEVICE);
        let pool = DmaPool::new(&windows, count, len).unwrap();
        let mut lent: Vec<(DmaBuf, u8)> = Vec::new();
        for (tag, (take, pick)) in steps.into_iter().enumerate() {
            let tag = tag as u8;
            if take {
                match pool.take() {
                    Some(mut buf) => {
                        buf.write_slice(&vec![tag; len], 0).unwrap();
                        lent.push((buf, tag));
                    }
                    None => prop_assert_eq!(lent.len(), count),
                }
            } else if !lent.is_empty() {
                lent.swap_remove(pick % lent.len());
            }
            prop_assert_eq!(pool.available() + lent.len(), count);
        }
        for (buf, tag) in &lent {
            let mut bytes = vec![0; len];
            buf.read_slice(&mut bytes, 0).unwrap();
            prop_assert!(bytes.iter().all(|byte| byte == tag));
            prop_assert!(buf.read_slice(&mut bytes, 1).is_err());
        }
    }

    /// Volatile copies at every offset, length and alignment agree with a plain array.
    #[test]
    fn volatile_copies_agree_with_an_array(offset in 0usize..64, bytes in prop::collection::vec(any::<u8>(), 0..200), fill: u8, skew in 0usize..9) {
        let windows = DmaWindows::new(platform(), DEVICE);
        let region = windows.allocate(4096).unwrap();
        let mut model = vec![0; 4096];
        region.as_volatile_slice().subslice(offset, 100).unwrap().fill(fill).unwrap();
        model[offset..offset + 100].fill(fill);
        // `skew` moves the private side off its alignment too.
        let mut skewed = vec![0; skew];
        skewed.extend(&bytes);
        region.as_volatile_slice().write_slice(&skewed[skew..], offset + 10).unwrap();
        model[offset + 10..][..bytes.len()].copy_from_slice(&bytes);
        let mut all = vec![0; 4096 + skew];
        region.as_volatile_slice().read_slice(&mut all[skew..], 0).unwrap();
        prop_assert_eq!(&all[skew..], &model[..]);
        prop_assert!(region.as_volatile_slice().read_slice(&mut vec![0; bytes.len().max(1)], 4097 - bytes.len().max(1)).is_err());
    }
}
