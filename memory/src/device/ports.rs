//! Configuration space through I/O ports.

use core::arch::asm;

use spin::Mutex;

use super::{ConfigAccess, PciAddress};

/// Selects a register, and is it: 32 bits each.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Configuration space through the I/O ports 0xcf8 and 0xcfc: 256 bytes for each function of segment 0 (PCI
/// Local Bus Specification 3.0, 3.2.2.3.2). What there is where the firmware names no memory-mapped
/// configuration space ([`Ecam`](super::Ecam)). On x86 only.
///
/// Each access takes a spin lock of its own: not in an interrupt handler.
#[derive(Debug)]
pub struct ConfigPorts(Mutex<()>);

impl ConfigPorts {
    /// The way through the ports. In a `static`, as `pci::enumerate` wants it.
    ///
    /// # Safety
    /// The caller may access the ports (privilege level 0), they belong to a PCI host bridge, and nobody else
    /// uses them as long as the value exists.
    pub const unsafe fn new() -> Self {
        Self(Mutex::new(()))
    }

    fn select(function: PciAddress, offset: u16) -> Option<u32> {
        (function.segment == 0 && offset < 256)
            .then(|| 1 << 31 | u32::from(function.requester_id()) << 8 | u32::from(offset & !3))
    }
}

// SAFETY: the two ports reach nothing but the selected function's configuration space, and the lock keeps
// selection and access together.
unsafe impl ConfigAccess for ConfigPorts {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let Some(address) = Self::select(function, offset) else { return u32::MAX };
        let _alone = self.0.lock();
        let value;
        // SAFETY: `new`'s caller promised the ports. They touch no memory of this program.
        unsafe {
            asm!("out dx, eax", in("dx") ADDRESS, in("eax") address, options(nostack, preserves_flags));
            asm!("in eax, dx", in("dx") DATA, out("eax") value, options(nostack, preserves_flags));
        }
        value
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        let Some(address) = Self::select(function, offset) else { return };
        let _alone = self.0.lock();
        // SAFETY: as in `read`; the caller answers for what the function then does.
        unsafe {
            asm!("out dx, eax", in("dx") ADDRESS, in("eax") address, options(nostack, preserves_flags));
            asm!("out dx, eax", in("dx") DATA, in("eax") value, options(nostack, preserves_flags));
        }
    }

    fn last_bus(&self) -> u8 {
        u8::MAX
    }
}
