//! Books that no caller can break, broken from inside: the audit finds it.

use super::*;
use crate::audit::Finding;
use crate::host::HostPlatform;
use crate::mapping::{AddressSpace, Mapper, TablePool};
use crate::range::{FrameRange, PageRange};
use crate::{Cpu, FrameAllocator, MmioMemory, PageAllocator, PhysAddr, PlatformError, Stale, VirtAddr};

use std::boxed::Box;
use std::vec;

/// A processor with one page table.
struct Root(PhysAddr);

// SAFETY: nothing is mapped by these tables.
unsafe impl Cpu for Root {
    fn shoot_down(&self, _: &Stale) {}
    unsafe fn load_root(&self, _: PhysAddr) {}
    fn root(&self) -> PhysAddr {
        self.0
    }
}

/// Memory of the host, windows of an address space. (So none of it is mapped there.)
struct Mixed(HostPlatform, AddressSpace);

// SAFETY: as the two say.
unsafe impl Platform for Mixed {
    fn dma_allocate(&self, device: DeviceId, pages: NonZeroUsize) -> Result<DmaMemory, PlatformError> {
        self.0.dma_allocate(device, pages)
    }
    fn mmio_map(&self, start: PhysAddr, len: usize) -> Result<MmioMemory, PlatformError> {
        self.0.mmio_map(start, len)
    }
    fn now(&self) -> Duration {
        self.0.now()
    }
    fn registry(&self) -> &DmaRegistry {
        self.1.registry()
    }
}

fn mixed() -> &'static Mixed {
    let memory = vec![[0_u64; 512]; 9].leak().as_mut_ptr().cast::<u8>();
    let base = memory.wrapping_add(memory.align_offset(PAGE_SIZE));
    let frames = FrameRange::from_numbers(0x100, 8).unwrap();
    // SAFETY: eight aligned pages, which nothing else touches.
    let pool = unsafe { TablePool::new(base, frames) }.unwrap();
    let mapper = Mapper::new(pool, true).unwrap();
    let storage = |words| vec![0; words].leak();
    let span = FrameRange::from_numbers(0, 64).unwrap();
    let window = PageRange::new(VirtAddr::new(1 << 30).unwrap(), 64).unwrap();
    let frames = FrameAllocator::new(span, storage(FrameAllocator::storage_words(64))).unwrap();
    let pages = PageAllocator::new(window, storage(PageAllocator::storage_words(64))).unwrap();
    let cpu = Box::leak(Box::new(Root(mapper.root())));
    let space = AddressSpace::new(mapper, Box::leak(Box::new(frames)), Box::leak(Box::new(pages)), cpu);
    Box::leak(Box::new(Mixed(HostPlatform::new(), space)))
}

/// What is found but that the memory is not mapped; the same in steps of any size.
fn findings(space: &AddressSpace) -> vec::Vec<Finding> {
    let found = |limit| {
        let mut audit = space.start_audit();
        let report = core::iter::repeat_with(|| audit.step_of(limit)).flatten().next().unwrap();
        let other = |finding: &&Finding| !matches!(finding, Finding::WindowNotDma(_));
        report.findings().filter(other).copied().collect()
    };
    let all: vec::Vec<_> = found(usize::MAX >> 8);
    for limit in [1, 20, 100] {
        assert_eq!(found(limit), all);
    }
    all
}

#[test]
fn broken_books_are_found() {
    let mixed = mixed();
    let devices = [3, 1, 2].map(|id| DmaWindows::new(mixed, DeviceId(id)).unwrap());
    let _regions = devices.each_ref().map(|device| [1, 2, 3].map(|_| device.allocate(1).unwrap()));
    assert_eq!(findings(&mixed.1), []);
    for device in &devices {
        let state = &device.table().state;
        state.lock().regions += 1;
        assert_eq!(findings(&mixed.1), [Finding::Windows { regions: 4, windows: 3 }]);
        state.lock().regions -= 1;
        for index in 0..3 {
            let shared = core::mem::take(&mut state.lock().windows[index].shared);
            assert_eq!(findings(&mixed.1), [Finding::WindowWithoutRegion(device.device())]);
            state.lock().windows[index].shared = shared;
        }
        let lost = state.lock().windows.remove(1);
        assert_eq!(findings(&mixed.1), [Finding::Windows { regions: 3, windows: 2 }]);
        state.lock().windows.insert(1, lost);
    }
    assert_eq!(findings(&mixed.1), []);
}
