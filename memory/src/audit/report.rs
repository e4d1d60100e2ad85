//! What an audit finds.

use crate::DeviceId;
use crate::address::{PhysAddr, VirtAddr};
use crate::allocator::owner::Owner;
use core::fmt;

/// How many findings are kept.
const FINDINGS: usize = 16;

/// Something that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The processor uses another top-level table than the mapper.
    WrongRoot(PhysAddr),
    /// A page table lies outside the pool.
    ForeignTable(PhysAddr),
    /// A page table is linked more than once.
    TableTwice(PhysAddr),
    /// The use count of a page table is wrong.
    TableCount(PhysAddr),
    /// A frame is mapped more than once; the page is the later one.
    MappedTwice(VirtAddr, PhysAddr),
    /// A frame is mapped and free at the same time.
    MappedButFree(VirtAddr, PhysAddr),
    /// Two free blocks overlap, or a free block is not RAM.
    FreeTwice(PhysAddr),
    /// A page is writable and executable.
    WritableExecutable(VirtAddr),
    /// A page may be used from user mode, is global, or has another attribute that is never set.
    UnexpectedFlags(VirtAddr),
    /// A page outside the kernel's own ranges and the page allocator's window, or inside but nobody's.
    OutsideKnownRanges(VirtAddr),
    /// A page is mapped although the page allocator has it as free.
    PageFree(VirtAddr),
    /// A page of device registers that nobody claimed, or that leads elsewhere than the claim says.
    UnclaimedMmio(VirtAddr),
    /// Memory that is not RAM is mapped as if it were.
    NotRam(VirtAddr, PhysAddr),
    /// An owner's count of frames and what was found differ.
    Count {
        /// Whose.
        owner: Owner,
        /// Frames according to the books.
        booked: usize,
        /// Frames according to tables and bitmaps.
        found: usize,
    },
    /// A window of a device whose region is gone.
    WindowWithoutRegion(DeviceId),
    /// A page of a window that is not mapped to DMA memory.
    WindowNotDma(VirtAddr),
    /// Live regions and open windows differ.
    Windows {
        /// Regions alive.
        regions: usize,
        /// Windows found.
        windows: usize,
    },
    /// Tables taken from the pool and tables found differ.
    Tables {
        /// According to the pool.
        booked: usize,
        /// Reached from the root.
        found: usize,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongRoot(at) => write!(f, "the processor uses a foreign top-level table at {at}"),
            Self::ForeignTable(at) => write!(f, "page table at {at} lies outside the pool"),
            Self::TableTwice(at) => write!(f, "page table at {at} is linked twice"),
            Self::TableCount(at) => write!(f, "page table at {at} has a wrong use count"),
            Self::MappedTwice(page, frame) => {
                write!(f, "frame {frame} is mapped twice, the second time at {page}")
            }
            Self::MappedButFree(page, frame) => write!(f, "frame {frame} is free, yet mapped at {page}"),
            Self::FreeTwice(frame) => write!(f, "free frame {frame} is listed twice or is not RAM"),
            Self::WritableExecutable(page) => write!(f, "page {page} is writable and executable"),
            Self::UnexpectedFlags(page) => write!(f, "page {page} has flags that are never set"),
            Self::OutsideKnownRanges(page) => write!(f, "page {page} lies outside the known ranges"),
            Self::PageFree(page) => write!(f, "page {page} is free, yet mapped"),
            Self::UnclaimedMmio(page) => write!(f, "page {page} maps registers that nobody claimed"),
            Self::NotRam(page, frame) => write!(f, "page {page} maps {frame}, which is not RAM"),
            Self::Count { owner, booked, found } => {
                write!(f, "{booked} frames booked as {owner}, {found} found")
            }
            Self::WindowWithoutRegion(device) => {
                write!(f, "device {:#x} has a window without a region", device.0)
            }
            Self::WindowNotDma(page) => write!(f, "page {page} is in a window, but not DMA memory"),
            Self::Windows { regions, windows } => write!(f, "{regions} DMA regions, {windows} windows"),
            Self::Tables { booked, found } => write!(f, "{booked} page tables in use, {found} found"),
        }
    }
}

/// What the audit saw.
#[derive(Clone, Debug)]
pub struct Report {
    findings: [Option<Finding>; FINDINGS],
    /// How many things must not be; the first 16 are in [`findings`](Self::findings).
    pub violations: usize,
    /// Page tables reached from the root.
    pub tables: usize,
    /// Leaves of any size.
    pub leaves: usize,
    /// Windows that devices have, and pages in them.
    pub windows: (usize, usize),
    /// Frames of each owner, by the books (which the audit has compared with what it found).
    pub frames: [(Owner, usize); Owner::ALL.len()],
    /// Frames of RAM: the sum.
    pub total: usize,
}

impl Report {
    /// Nothing found so far.
    pub(super) fn new() -> Self {
        Self {
            findings: [None; FINDINGS],
            violations: 0,
            tables: 0,
            leaves: 0,
            windows: (0, 0),
            frames: Owner::ALL.map(|owner| (owner, 0)),
            total: 0,
        }
    }

    /// Whether everything is as it must be.
    pub const fn ok(&self) -> bool {
        self.violations == 0
    }

    /// What is not as it must be.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().flatten()
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if let Some(place) = self.findings.get_mut(self.violations) {
            *place = Some(finding);
        }
        self.violations += 1;
    }

    pub(super) fn compare(&mut self, owner: Owner, booked: usize, found: usize) {
        if booked != found {
            self.add(Finding::Count { owner, booked, found });
        }
    }
}
