//! Ranges of frames and of pages: a start and a count of 4 KiB units.
//!
//! Empty is natural (count 0) and the end never overflows: a constructed range lies inside its address space.
//! Larger pages do not exist as a type: alignment is part of a request and the mapper picks the leaf.
//!
//! ```
//! use ringfence_memory::{Page, PageRange, VirtAddr};
//!
//! let address = |value| VirtAddr::new(value).ok_or("not canonical");
//! let range = PageRange::new(address(0x2000)?, 3).map_err(|_| "misaligned, or out of space")?;
//! assert_eq!((range.size_in_pages(), range.size_in_bytes()), (3, 0x3000));
//! assert_eq!(range.offset_of_address(address(0x3500)?), Some(0x1500));
//! assert_eq!(range.address_at_offset(0x3000), None);
//! let last = Page::containing_address(address(0x4fff)?);
//! assert!(range.contains(last) && range.end() == Some(last));
//! // As many pages as these bytes touch.
//! assert_eq!(PageRange::from_virt_addr(address(0x2fff)?, 2).map(|range| range.size_in_pages()), Ok(2));
//! # Ok::<(), &str>(())
//! ```

use crate::address::{PAGE_SHIFT, PAGE_SIZE, PHYS_END, PhysAddr, VirtAddr};
use core::fmt;

/// Why a range cannot exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// The start is not a multiple of 4 KiB.
    Misaligned,
    /// The range would leave the address space, or cross the non-canonical hole.
    OutOfSpace,
}

crate::error::messages! { RangeError {
    Misaligned => "not at a multiple of 4 KiB",
    OutOfSpace => "outside the address space",
} }

/// One past the highest unit number of physical space.
const FRAMES_END: u64 = PHYS_END >> PAGE_SHIFT;
/// One past the highest unit number of virtual space (numbers keep the sign-extension bits).
const PAGES_END: u64 = 1 << (64 - PAGE_SHIFT);
/// Units in each canonical half.
const HALF: u64 = 1 << (47 - PAGE_SHIFT);

const fn frames_fit(start: u64, end: u64) -> bool {
    start <= end && end <= FRAMES_END
}

const fn pages_fit(start: u64, end: u64) -> bool {
    start <= end && (end <= HALF || (start >= PAGES_END - HALF && end <= PAGES_END))
}

macro_rules! units {
    (
        $unit:ident, $range:ident, $address:ident, $fits:ident, $from_bytes:ident, $size:ident, $what:literal
    ) => {
        #[doc = concat!("One 4 KiB ", $what, ", by number.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $unit(u64);

        impl $unit {
            #[doc = concat!("The ", $what, " that contains `address`.")]
            pub const fn containing_address(address: $address) -> Self {
                Self(address.value() >> PAGE_SHIFT)
            }

            /// Its first address.
            pub const fn start_address(self) -> $address {
                match $address::new(self.0 << PAGE_SHIFT) {
                    Some(address) => address,
                    None => unreachable!(),
                }
            }

            /// Its address divided by 4096.
            pub const fn number(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $unit {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, " {:#x}"), self.0)
            }
        }

        #[doc = concat!("Adjacent ", $what, "s. Owns nothing: a description that may be copied.")]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $range {
            start: u64,
            count: u64,
        }

        impl $range {
            #[doc = concat!("No ", $what, " at all.")]
            pub const fn empty() -> Self {
                Self { start: 0, count: 0 }
            }

            #[doc = concat!("`count` ", $what, "s from `start`, which must be a multiple of 4 KiB.")]
            pub const fn new(start: $address, count: usize) -> Result<Self, RangeError> {
                if !start.is_page_aligned() {
                    return Err(RangeError::Misaligned);
                }
                Self::from_numbers(start.value() >> PAGE_SHIFT, count as u64)
            }

            #[doc = concat!("Every ", $what, " that holds one of the `bytes` bytes from `start`: rounds outward.")]
            pub const fn $from_bytes(start: $address, bytes: u64) -> Result<Self, RangeError> {
                let first = start.value() >> PAGE_SHIFT;
                if bytes == 0 {
                    return Self::from_numbers(first, 0);
                }
                let offset = start.value() % PAGE_SIZE as u64;
                match offset.checked_add(bytes) {
                    Some(end) => Self::from_numbers(first, end.div_ceil(PAGE_SIZE as u64)),
                    None => Err(RangeError::OutOfSpace),
                }
            }

            pub(crate) const fn from_numbers(start: u64, count: u64) -> Result<Self, RangeError> {
                match start.checked_add(count) {
                    Some(end) if $fits(start, end) => Ok(Self { start, count }),
                    _ => Err(RangeError::OutOfSpace),
                }
            }

            pub(crate) const fn first(&self) -> u64 {
                self.start
            }

            pub(crate) const fn past(&self) -> u64 {
                self.start + self.count
            }

            /// The address of the first byte; meaningless for an empty range.
            pub const fn start_address(&self) -> $address {
                // An empty range may begin at the very end of the space, which has no address.
                match $address::new(self.start << PAGE_SHIFT) {
                    Some(address) if self.count > 0 => address,
                    _ => match $address::new(0) {
                        Some(zero) => zero,
                        None => unreachable!(),
                    },
                }
            }

            #[doc = concat!("How many ", $what, "s of 4 KiB.")]
            pub const fn $size(&self) -> usize {
                self.count as usize
            }

            /// The size in bytes.
            pub const fn size_in_bytes(&self) -> u64 {
                self.count << PAGE_SHIFT
            }

            /// Whether there is nothing in the range.
            pub const fn is_empty(&self) -> bool {
                self.count == 0
            }

            #[doc = concat!("The first ", $what, ", or `None` if the range is empty.")]
            pub const fn start(&self) -> Option<$unit> {
                if self.count == 0 { None } else { Some($unit(self.start)) }
            }

            #[doc = concat!("The last ", $what, " (inclusive), or `None` if the range is empty.")]
            pub const fn end(&self) -> Option<$unit> {
                if self.count == 0 { None } else { Some($unit(self.start + self.count - 1)) }
            }

            #[doc = concat!("Whether `unit` is one of these ", $what, "s.")]
            pub const fn contains(&self, unit: $unit) -> bool {
                unit.0 >= self.start && unit.0 < self.past()
            }

            /// Whether the byte at `address` lies in the range, its last byte included.
            pub const fn contains_address(&self, address: $address) -> bool {
                self.contains($unit::containing_address(address))
            }

            /// Whether all of `other` lies in the range. An empty range lies in every range.
            pub const fn contains_range(&self, other: &Self) -> bool {
                other.count == 0 || (other.start >= self.start && other.past() <= self.past())
            }

            /// Bytes from the start to `address`, or `None` if it lies outside.
            pub const fn offset_of_address(&self, address: $address) -> Option<u64> {
                if self.contains_address(address) {
                    Some(address.value() - (self.start << PAGE_SHIFT))
                } else {
                    None
                }
            }

            /// The address `offset` bytes after the start, or `None` if it lies outside.
            pub const fn address_at_offset(&self, offset: u64) -> Option<$address> {
                if offset < self.size_in_bytes() { self.start_address().checked_add(offset) } else { None }
            }

            #[doc = concat!("The smallest range that holds this one and `unit`; an empty one becomes that ", $what, ".")]
            pub const fn to_extended(&self, unit: $unit) -> Result<Self, RangeError> {
                if self.count == 0 {
                    return Self::from_numbers(unit.0, 1);
                }
                let start = if unit.0 < self.start { unit.0 } else { self.start };
                let past = if unit.0 >= self.past() { unit.0 + 1 } else { self.past() };
                Self::from_numbers(start, past - start)
            }

            /// What both ranges have in common, or `None` if that is nothing.
            pub const fn overlap(&self, other: &Self) -> Option<Self> {
                let start = if self.start > other.start { self.start } else { other.start };
                let past = if self.past() < other.past() { self.past() } else { other.past() };
                if start < past { Some(Self { start, count: past - start }) } else { None }
            }

            /// Both together, if `next` begins where this one ends (an empty one joins with any).
            pub(crate) const fn join(&self, next: &Self) -> Option<Self> {
                if self.count == 0 {
                    Some(*next)
                } else if next.count == 0 {
                    Some(*self)
                } else if self.past() == next.start {
                    Some(Self { start: self.start, count: self.count + next.count })
                } else {
                    None
                }
            }

            #[doc = concat!("The first `count` ", $what, "s and the rest, or `None` if there are fewer.")]
            pub const fn split_at(&self, count: usize) -> Option<(Self, Self)> {
                let count = count as u64;
                if count > self.count {
                    return None;
                }
                let head = Self { start: self.start, count };
                Some((head, Self { start: self.start + count, count: self.count - count }))
            }

            #[doc = concat!("Each ", $what, " in order.")]
            pub fn iter(&self) -> impl DoubleEndedIterator<Item = $unit> + use<> {
                (self.start..self.past()).map($unit)
            }
        }

        impl fmt::Debug for $range {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, "s {:#x}+{:#x}"), self.start, self.count)
            }
        }
    };
}

impl PageRange {
    /// One past the highest page number there is.
    pub(crate) const END: u64 = PAGES_END;
}

units!(Frame, FrameRange, PhysAddr, frames_fit, from_phys_addr, size_in_frames, "frame");
units!(Page, PageRange, VirtAddr, pages_fit, from_virt_addr, size_in_pages, "page");
