//! The loader's mapping of physical memory: how boot reads firmware tables and page tables before the kernel
//! has its own.

use alloc::vec::Vec;
use core::ptr;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::PageTableFlags;
use x86_64::{PhysAddr, VirtAddr};

use crate::acpi::Memory;

/// Both loaders map at least this much.
const MIN_SIZE: u64 = 4 << 30;

/// Physical memory as the loader mapped it. Valid until the kernel leaves the loader's page tables.
#[derive(Debug)]
pub struct PhysWindow {
    start: VirtAddr,
    size: u64,
}

/// A few bytes as the window showed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where they were in the window.
    pub address: VirtAddr,
    /// The bytes.
    pub bytes: [u8; 16],
}

impl PhysWindow {
    /// The window that the loader reports, covering 4 GiB and all RAM.
    pub(crate) fn new(start: Option<u64>, memory_map: &[MemoryRegion]) -> Self {
        // Both loaders are told to make one, so an image without it was not started by either.
        let Some(start) = start else { panic!("the loader did not map physical memory") };
        let is_ram = |region: &&MemoryRegion| {
            matches!(region.kind, MemoryRegionKind::Usable | MemoryRegionKind::Bootloader)
        };
        let highest = memory_map.iter().filter(is_ram).map(|region| region.end).max().unwrap_or(0);
        Self { start: VirtAddr::new_truncate(start), size: highest.max(MIN_SIZE) }
    }

    /// Where physical address 0 is mapped.
    pub fn start(&self) -> VirtAddr {
        self.start
    }

    /// Bytes of physical memory that the window covers, from address 0.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A copy of `N` bytes at physical address `address`; `None` if they are not all in the window.
    fn read_array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let source = self.pointer(address, N)?;
        // SAFETY: the bytes are inside the loader's mapping, and any are valid.
        Some(unsafe { ptr::read_unaligned(source.cast()) })
    }

    /// Where `len` bytes at physical address `address` are mapped; `None` if they are not all in the window.
    fn pointer(&self, address: u64, len: usize) -> Option<*const u8> {
        let end = address.checked_add(len as u64)?;
        (end <= self.size).then(|| (self.start + address).as_ptr())
    }

    /// Reads what is mapped at `address` through the window; `None` if it is not mapped or not in the window.
    pub(crate) fn sample(&self, address: VirtAddr) -> Option<Sample> {
        let physical = self.translate(address)?.as_u64();
        Some(Sample { address: self.start + physical, bytes: self.read_array(physical)? })
    }

    /// Where `address` is mapped to by the page tables in use, as long as those are the loader's.
    pub fn translate(&self, address: VirtAddr) -> Option<PhysAddr> {
        let mut table = Cr3::read().0.start_address().as_u64();
        for level in [39, 30, 21, 12] {
            let index = address.as_u64() >> level & 0x1ff;
            let entry = u64::from_le_bytes(self.read_array(table + index * 8)?);
            let flags = PageTableFlags::from_bits_truncate(entry);
            if !flags.contains(PageTableFlags::PRESENT) {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if level == 12 || flags.contains(PageTableFlags::HUGE_PAGE) && level != 39 {
                let offset = (1 << level) - 1;
                return Some(PhysAddr::new_truncate(table & !offset | address.as_u64() & offset));
            }
        }
        None
    }
}

impl Memory for PhysWindow {
    fn read(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let source = self.pointer(address, len)?;
        let mut bytes = Vec::with_capacity(len);
        // SAFETY: the source is inside the loader's mapping, and the vector has room for `len` bytes.
        unsafe {
            ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), len);
            bytes.set_len(len);
        }
        Some(bytes)
    }
}
