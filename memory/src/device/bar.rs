//! Base address registers (PCI 3.0, 6.2.5.1).

use super::ConfigSpace;
use crate::PhysAddr;

/// How many base address registers a device has.
pub const BAR_COUNT: usize = 6;

/// One base address register, or the pair that makes a 64-bit one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Registers in memory.
    Memory {
        /// Where firmware put them; `None` if it did not.
        address: Option<PhysAddr>,
        /// Length in bytes: a power of two.
        size: u64,
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
    /// Registers behind I/O ports.
    Io {
        /// First port.
        port: u32,
        /// Number of ports.
        size: u32,
    },
}

/// Where the first one is, and where a header's type is.
const BAR0: u16 = 0x10;
const HEADER_TYPE: u16 = 0x0e;
const MULTIFUNCTION: u8 = 1 << 7;

impl ConfigSpace {
    /// The function's base address registers by index; a 64-bit one sits at the lower of its two indices.
    ///
    /// Their sizes are what sticks when all ones are written (PCI 3.0, 6.2.5.1), which is done while the
    /// function answers nowhere, and undone before it answers again: no driver may be using it.
    pub fn bars(&self) -> [Option<Bar>; BAR_COUNT] {
        let count = match self.read_u8(HEADER_TYPE) & !MULTIFUNCTION {
            0 => BAR_COUNT,
            1 => 2,
            _ => 0,
        };
        let registers: [(u32, u32); BAR_COUNT] = self.without_decoding(|alone| {
            // Not before: another caller may be writing ones meanwhile.
            core::array::from_fn(|index| {
                let register = self.read_u32(bar(index));
                if index >= count {
                    return (register, 0);
                }
                self.write(alone, bar(index), u32::MAX);
                let mask = self.read_u32(bar(index));
                self.write(alone, bar(index), register);
                (register, mask)
            })
        });
        let mut bars = [None; BAR_COUNT];
        let mut rest = bars.iter_mut().zip(registers).take(count);
        while let Some((place, (low, mask))) = rest.next() {
            let upper = is_wide(low).then(|| rest.next()).flatten().map(|(_, upper)| upper);
            *place = Bar::new(low, mask, upper);
        }
        bars
    }
}

/// Where the register with this index is.
const fn bar(index: usize) -> u16 {
    BAR0 + 4 * index as u16
}

/// Whether a register is the lower half of a 64-bit memory address.
const fn is_wide(low: u32) -> bool {
    low & 0b111 == 0b100
}

impl Bar {
    /// What the register `low` describes, of which the bits in `mask` can be set; `upper` is the same of the
    /// upper half.
    fn new(low: u32, mask: u32, upper: Option<(u32, u32)>) -> Option<Self> {
        if low & 1 != 0 {
            let size = lowest_bit(u64::from(mask & !0b11)) as u32;
            return (size != 0).then_some(Self::Io { port: low & !0b11, size });
        }
        if low >> 1 & 0b11 != 0 && upper.is_none() {
            // 1 MiB of the 8086 or reserved, or half a 64-bit register.
            return None;
        }
        let (high, high_mask) = upper.unwrap_or_default();
        let flags = 0b1111;
        let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low & !flags);
        let address = PhysAddr::new(join(high, low)).filter(|address| address.value() != 0);
        let size = lowest_bit(join(high_mask, mask));
        (size != 0).then_some(Self::Memory { address, size, prefetchable: low & 0b1000 != 0 })
    }
}

/// The bits below the size cannot be set, so the lowest one that can is the size.
fn lowest_bit(mask: u64) -> u64 {
    mask & mask.wrapping_neg()
}
