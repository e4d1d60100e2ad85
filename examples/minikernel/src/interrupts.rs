//! One interrupt for all devices: by MSI-X, or by a line of the IO-APIC. Interrupts are off but while the
//! processor sleeps, so that none is lost between a last look at a device and the sleep.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use ringfence_memory::MsiMessage;
use spin::Once;
use x86_64::instructions::interrupts::{disable, enable_and_hlt};
use x86_64::instructions::port::Port;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

/// What devices interrupt with, and what the local APIC does when an interrupt has vanished.
const DEVICE: u8 = 0x40;
const SPURIOUS: u8 = 0xff;

/// Where this kernel has the registers of its interrupt controllers.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Register {
    IoSelect = 0xfec0_0000,
    IoWindow = 0xfec0_0010,
    Id = 0xfee0_0020,
    EndOfInterrupt = 0xfee0_00b0,
    SpuriousVector = 0xfee0_00f0,
}

impl Register {
    fn at(self) -> *mut u32 {
        ptr::with_exposed_provenance_mut(self as u32 as usize)
    }

    fn write(self, value: u32) {
        // SAFETY: it is mapped, uncached, and only this module uses it, which gives every vector a handler.
        unsafe { self.at().write_volatile(value) };
    }
}

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Sets the controllers up: the old ones off, the local APIC on.
pub fn init() {
    static TABLE: Once<InterruptDescriptorTable> = Once::new();
    let fill = || {
        let mut table = InterruptDescriptorTable::new();
        // All exceptions end there, since no other has a handler.
        table.double_fault.set_handler_fn(on_exception);
        table[DEVICE].set_handler_fn(on_device);
        table[SPURIOUS].set_handler_fn(on_device);
        table
    };
    TABLE.call_once(fill).load();
    for port in [0x21, 0xa1] {
        // SAFETY: the masks of the old controllers.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
    Register::SpuriousVector.write(1 << 8 | u32::from(SPURIOUS));
}

extern "x86-interrupt" fn on_device(_: InterruptStackFrame) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    Register::EndOfInterrupt.write(0);
}

extern "x86-interrupt" fn on_exception(frame: InterruptStackFrame, _: u64) -> ! {
    panic!("an exception: {frame:?}")
}

/// Sleeps until there was an interrupt.
pub fn wait() {
    enable_and_hlt();
    disable();
}

/// How many there were since this was last asked.
pub fn count() -> u64 {
    COUNT.swap(0, Ordering::Relaxed)
}

/// This processor, as the controllers know it.
fn destination() -> u32 {
    // SAFETY: it is mapped, and reading it changes nothing.
    unsafe { Register::Id.at().read_volatile() >> 24 }
}

/// What a device writes to interrupt.
pub fn message() -> MsiMessage {
    let address = u64::from(0xfee0_0000 | destination() << 12);
    // SAFETY: the local APIC takes that for an interrupt, which has a handler.
    unsafe { MsiMessage::new(address, DEVICE.into()) }
}

/// Lets a line of the IO-APIC interrupt, each time that it rises.
pub fn enable_line(line: u8) {
    let entry = 0x10 + 2 * u32::from(line);
    for (register, value) in [(entry + 1, destination() << 24), (entry, DEVICE.into())] {
        Register::IoSelect.write(register);
        Register::IoWindow.write(value);
    }
}
