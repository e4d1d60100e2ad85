//! Base address registers (PCI 3.0, 6.2.5.1).

use ringfence_memory::PhysAddr;

use super::{Function, Header};

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

impl Function {
    /// Its base address registers by index; a 64-bit one sits at the lower of its two indices.
    ///
    /// Finding the sizes turns the function's decoding off for a moment: no driver may be using it.
    pub fn bars(&self) -> [Option<Bar>; BAR_COUNT] {
        let mut bars = [None; BAR_COUNT];
        let count = match self.header {
            Header::Device => 6,
            Header::Bridge(_) => 2,
            Header::Other => 0,
        };
        let mut registers = 0..count;
        while let Some(index) = registers.next() {
            let wide = self.is_wide(index) && registers.next().is_some();
            if let Some(slot) = bars.get_mut(usize::from(index)) {
                *slot = self.bar(index, wide);
            }
        }
        bars
    }

    fn bar_register(&self, index: u8) -> u32 {
        self.config.read_u32(u16::from(index).saturating_mul(4).saturating_add(0x10))
    }

    /// Whether the register is the lower half of a 64-bit memory address.
    fn is_wide(&self, index: u8) -> bool {
        self.bar_register(index) & 0b111 == 0b100
    }

    fn bar(&self, index: u8, wide: bool) -> Option<Bar> {
        let low = self.bar_register(index);
        let mask = self.config.bar_size_mask(index)?;
        if mask == 0 {
            return None;
        }
        if low & 1 != 0 {
            let size = lowest_bit(u64::from(mask & !0b11)) as u32;
            return (size != 0).then_some(Bar::Io { port: low & !0b11, size });
        }
        let kind = low >> 1 & 0b11;
        if kind != 0 && !wide {
            // 1 MiB of the 8086 or reserved, or half a 64-bit register.
            return None;
        }
        let flags = 0b1111;
        let (high, high_mask) = if wide {
            let next = index.saturating_add(1);
            (self.bar_register(next), self.config.bar_size_mask(next)?)
        } else {
            (0, u32::MAX)
        };
        let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low & !flags);
        let address = PhysAddr::new(join(high, low)).filter(|address| address.value() != 0);
        let size = lowest_bit(join(high_mask, mask));
        (size != 0).then_some(Bar::Memory { address, size, prefetchable: low & 0b1000 != 0 })
    }
}

/// The bits below the size cannot be set, so the lowest one that can is the size.
fn lowest_bit(mask: u64) -> u64 {
    mask & mask.wrapping_neg()
}
