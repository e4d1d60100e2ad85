//! Books that no caller can break, broken from inside: the audit finds it.

use core::num::NonZero;
use core::ptr::NonNull;

use core::num::NonZeroUsize;

use super::*;
use crate::audit::Finding;
use crate::host::HostPlatform;
use crate::paging::tlb::Flush;
use crate::paging::{AddressSpace, Mapper, Protection, TablePool, Tag};
use crate::range::{FrameRange, PageRange};
use crate::{
    Cpu, DmaMemory, FrameAllocator, MmioMemory, PageAllocator, PhysAddr, PlatformError, Stale, VirtAddr,
};
use crate::{DmaRegion, PAGE_SIZE};

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
    fn dma_allocate(
        &self,
        device: DeviceId,
        pages: NonZeroUsize,
        direction: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        self.0.dma_allocate(device, pages, direction)
    }
    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        self.0.mmio_map(device, start, len)
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
            let swap = |memory| core::mem::replace(&mut state.lock().windows[index].memory, memory);
            let memory = state.lock().windows[index].memory.clone();
            // SAFETY: the same bytes, which `memory` keeps for longer.
            let no_regions =
                unsafe { DmaMemory::new(memory.start, memory.len, memory.device_address, Box::new(())) };
            drop(swap(Arc::new(no_regions)));
            assert_eq!(findings(&mixed.1), [Finding::WindowWithoutRegion(device.device())]);
            drop(swap(memory));
        }
        let lost = state.lock().windows.remove(1);
        assert_eq!(findings(&mixed.1), [Finding::Windows { regions: 3, windows: 2 }]);
        state.lock().windows.insert(1, lost);
    }
    assert_eq!(findings(&mixed.1), []);
}

/// Maps pages to frames of the same numbers for the time of an audit, and says what that saw of windows, and
/// which pages it found that are no DMA memory.
fn mapped(space: &AddressSpace, leaves: &[(u64, u64, Tag)]) -> ((usize, usize), vec::Vec<u64>) {
    for (page, count, tag) in leaves {
        let pages = PageRange::from_numbers(*page, *count).unwrap();
        let frames = FrameRange::from_numbers(*page, *count).unwrap();
        space.mapper().lock().map(&pages, &frames, Protection::ReadWrite, *tag).unwrap();
    }
    let report = space.audit();
    for (page, count, _) in leaves {
        let (mut pages, mut flush) = (PageRange::from_numbers(*page, *count).unwrap(), Flush::new());
        space.mapper().lock().unmap(&mut pages, &mut flush, |_, _, _| ());
        let tables = flush.flush(&Root(PhysAddr::new(0).unwrap()), |_| ());
        tables.into_iter().for_each(|tables| space.mapper().lock().pool_mut().give(tables));
    }
    let not_dma = |finding: &Finding| match finding {
        Finding::WindowNotDma(at) => Some(at.value() / PAGE_SIZE as u64),
        _ => None,
    };
    (report.windows, report.findings().filter_map(not_dma).collect())
}

/// Windows begin and end within large leaves.
#[test]
fn leaves_reach_out_of_windows() {
    let mixed = mixed();
    let device = DmaWindows::new(mixed, DeviceId(3)).unwrap();
    let _region = device.allocate(2 * PAGE_SIZE).unwrap();
    let state = &device.table().state;
    // The last page of one large leaf, and the first one after it.
    let (low, high) = (1 << 18, (1 << 18) + 512);
    let start = NonNull::without_provenance(NonZero::new((high as usize - 1) * PAGE_SIZE).unwrap());
    let swap = |memory| core::mem::replace(&mut state.lock().windows[0].memory, memory);
    let (len, address) = (2 * PAGE_SIZE, state.lock().windows[0].device_address);
    // SAFETY: nobody accesses it: the audit looks at where it is, and the region has other memory.
    let there = Arc::new(unsafe { DmaMemory::new(start, len, address, Box::new(())) });
    let here = swap(there.clone());
    for (leaves, not_dma) in [
        (&[(low, 512, Tag::Dma), (high, 512, Tag::Dma)][..], &[][..]),
        (&[(low, 512, Tag::Dma), (high, 1, Tag::Private)], &[high]),
        (&[(low, 512, Tag::Private), (high, 512, Tag::Dma)], &[high - 1]),
        (&[], &[high - 1, high]),
    ] {
        assert_eq!(mapped(&mixed.1, leaves), ((1, 2), not_dma.to_vec()));
    }
    drop(swap(here));
}

/// A window that is closed while it is looked at leaves no trace in how the next one is; and of two devices
/// whose tables are neighbours both are looked at.
#[test]
fn windows_close_while_they_are_looked_at() {
    let mixed = mixed();
    let devices = [DmaWindows::new(mixed, DeviceId(7)), DmaWindows::for_model(mixed, DeviceId(7))];
    let [bus, model] = devices.map(|device| device.unwrap());
    let mut regions = [&bus, &bus, &model].map(|device| Some(device.allocate(3 * PAGE_SIZE).unwrap()));
    let mut audit = mixed.1.start_audit();
    // Two pages of the first window: as much as the device, the window and a leaf are in each step.
    let mut looked = 0;
    while looked < 2 {
        assert!(audit.step_of(1).is_none());
        looked += usize::from(audit.work() == 24);
    }
    let address = |region: &Option<DmaRegion>| region.as_ref().unwrap().0.device_address;
    let first = usize::from(address(&regions[1]) < address(&regions[0]));
    regions[first] = None;
    let report = core::iter::repeat_with(|| audit.step_of(1)).flatten().next().unwrap();
    assert_eq!(report.windows, (3, 2 + 3 + 3));
}
