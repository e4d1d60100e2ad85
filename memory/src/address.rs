//! Addresses and page ranges: three address spaces that the type system keeps apart.
//!
//! There are no operators: every computation is checked and says so. [`PhysAddr`] and [`VirtAddr`] may be
//! built from integers, because holding one gives no access to anything; a [`DmaAddr`](crate::DmaAddr) may
//! not, because a device believes it.

use core::fmt;

/// Size of a page and of a frame in bytes; the unit in which all ranges count.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// One more than the largest physical address that x86-64 page tables can hold (52 bits).
pub const PHYS_END: u64 = 1 << 52;

/// A physical address as the CPU's page tables use it: at most 52 bits.
///
/// ```
/// use ringfence_memory::PhysAddr;
///
/// let address = PhysAddr::new(0x12_3456).ok_or("more than 52 bits")?;
/// assert_eq!((address.frame_offset(), address.is_page_aligned()), (0x456, false));
/// assert_eq!(address.checked_add(0xaa).map(PhysAddr::value), Some(0x12_3500));
/// assert_eq!((address.checked_add(u64::MAX), PhysAddr::new(1 << 52)), (None, None));
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(u64);

/// A canonical virtual address (48 bits, sign-extended).
///
/// ```
/// use ringfence_memory::VirtAddr;
///
/// let highest_of_the_low_half = VirtAddr::new((1 << 47) - 1).ok_or("not canonical")?;
/// assert_eq!(highest_of_the_low_half.checked_add(1), None, "that would be in the hole");
/// assert!(VirtAddr::new(0xffff_8000_0000_0000).is_some() && VirtAddr::new(1 << 47).is_none());
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(u64);

macro_rules! address {
    ($address:ident, $letter:literal, $unit:literal, $offset:ident) => {
        impl $address {
            /// The address as a number.
            pub const fn value(self) -> u64 {
                self.0
            }

            /// `None` if the sum is not such an address.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Self::new(value),
                    None => None,
                }
            }

            /// Whether the address is a multiple of [`PAGE_SIZE`].
            pub const fn is_page_aligned(self) -> bool {
                self.0.is_multiple_of(PAGE_SIZE as u64)
            }

            #[doc = concat!("Bytes between the start of the containing ", $unit, " and this address.")]
            pub const fn $offset(self) -> usize {
                (self.0 % PAGE_SIZE as u64) as usize
            }
        }

        impl fmt::Display for $address {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, ":{:#x}"), self.0)
            }
        }

        impl fmt::Debug for $address {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

address!(PhysAddr, "p", "frame", frame_offset);
address!(VirtAddr, "v", "page", page_offset);

impl PhysAddr {
    /// `None` if `value` needs more than 52 bits.
    pub const fn new(value: u64) -> Option<Self> {
        if value < PHYS_END { Some(Self(value)) } else { None }
    }
}

impl VirtAddr {
    /// `None` if `value` is not canonical.
    pub const fn new(value: u64) -> Option<Self> {
        // Bits 47..=63 must be equal: shift them out and in again with the sign.
        if ((value << 16) as i64 >> 16) as u64 == value { Some(Self(value)) } else { None }
    }

    /// The address of `pointer`.
    pub fn from_ptr<T: ?Sized>(pointer: *const T) -> Option<Self> {
        Self::new(pointer.addr() as u64)
    }
}
