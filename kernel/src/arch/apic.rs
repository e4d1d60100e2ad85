//! The local APIC (Intel SDM volume 3, chapter 11): receives message-signalled interrupts, passes the 8259's
//! on, and has the timer.

use core::ptr;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{ApicBase, ApicBaseFlags, Msr};

use super::cpu::cpuid;

/// Vector of the timer.
pub const TIMER_VECTOR: u8 = 0xf0;
/// Vector of interrupts that vanished before they were delivered; not acknowledged.
pub const SPURIOUS_VECTOR: u8 = 0xff;

const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC: u32 = 0x800;

const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 1 << 18;
const LVT_NMI: u32 = 0x400;
const LVT_EXTINT: u32 = 0x700;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 0b0011;

/// Register offsets of the memory-mapped interface.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Register {
    Id = 0x20,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    SpuriousVector = 0xf0,
    LvtTimer = 0x320,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    LvtError = 0x370,
    TimerInitialCount = 0x380,
    TimerCurrentCount = 0x390,
    TimerDivide = 0x3e0,
}

/// How the registers are reached.
#[derive(Clone, Copy, Debug)]
enum Access {
    X2Apic,
    Mmio(VirtAddr),
}

static ACCESS: Once<Access> = Once::new();

/// Whether the registers are reached through model-specific registers, and [`init`] needs no mapping.
pub fn has_x2apic() -> bool {
    cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether the timer can be given a value of the time-stamp counter to fire at.
pub fn has_tsc_deadline() -> bool {
    cpuid(1, 0).ecx & 1 << 24 != 0
}

fn read(register: Register) -> u32 {
    match ACCESS.get() {
        // SAFETY: the register exists, and reading it has no side effect.
        Some(Access::X2Apic) => unsafe { Msr::new(MSR_X2APIC + (register as u32 >> 4)).read() as u32 },
        // SAFETY: `init` was given a mapping of the register page.
        Some(Access::Mmio(base)) => unsafe { ptr::read_volatile((*base + register as u64).as_ptr()) },
        None => 0,
    }
}

fn write(register: Register, value: u32) {
    match ACCESS.get() {
        // SAFETY: the register exists; every vector that can be programmed has a handler.
        Some(Access::X2Apic) => unsafe {
            Msr::new(MSR_X2APIC + (register as u32 >> 4)).write(u64::from(value))
        },
        // SAFETY: `init` was given a mapping of the register page; as above.
        Some(Access::Mmio(base)) => unsafe {
            ptr::write_volatile((*base + register as u64).as_mut_ptr(), value)
        },
        None => {}
    }
}

/// Switches the local APIC on, with its timer stopped and the 8259's interrupts passed through.
///
/// # Safety
/// Unless [`has_x2apic`], `mmio` is where the 4 KiB of its registers are mapped, uncached, for good.
pub unsafe fn init(mmio: VirtAddr) {
    let (frame, mut flags) = ApicBase::read();
    flags |= ApicBaseFlags::LAPIC_ENABLE;
    flags.set(ApicBaseFlags::X2APIC_ENABLE, has_x2apic());
    // SAFETY: the address stays what firmware set, and the processor has the mode that is asked for.
    unsafe { ApicBase::write(frame, flags) };
    ACCESS.call_once(|| if has_x2apic() { Access::X2Apic } else { Access::Mmio(mmio) });

    write(Register::TaskPriority, 0);
    write(Register::LvtTimer, LVT_MASKED);
    write(Register::LvtError, LVT_MASKED);
    write(Register::LvtLint0, LVT_EXTINT);
    write(Register::LvtLint1, LVT_NMI);
    write(Register::TimerInitialCount, 0);
    write(Register::SpuriousVector, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// The identifier that messages to this processor are addressed to.
pub fn id() -> u32 {
    match ACCESS.get() {
        Some(Access::X2Apic) => read(Register::Id),
        _ => read(Register::Id) >> 24,
    }
}

/// Acknowledges the interrupt being handled.
pub(crate) fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Lets the timer run from its highest value without interrupting, to measure it.
pub(crate) fn start_measuring() {
    write(Register::TimerDivide, DIVIDE_BY_16);
    write(Register::LvtTimer, LVT_MASKED);
    write(Register::TimerInitialCount, u32::MAX);
}

/// Counts since [`start_measuring`].
pub(crate) fn measured() -> u64 {
    u64::from(u32::MAX - read(Register::TimerCurrentCount))
}

/// Makes the timer interrupt once, `counts` from now; 0 stops it.
pub(crate) fn set_timer(counts: u32) {
    write(Register::TimerDivide, DIVIDE_BY_16);
    write(Register::LvtTimer, u32::from(TIMER_VECTOR));
    write(Register::TimerInitialCount, counts);
}

/// Makes the timer interrupt once the time-stamp counter reaches `deadline`; 0 stops it.
pub(crate) fn set_deadline(deadline: u64) {
    write(Register::LvtTimer, LVT_TSC_DEADLINE | u32::from(TIMER_VECTOR));
    // SAFETY: called only where `has_tsc_deadline`.
    unsafe { Msr::new(MSR_TSC_DEADLINE).write(deadline) };
}
