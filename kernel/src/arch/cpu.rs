//! What the processor offers: protections to switch on, features to choose by.

use core::arch::x86_64::__cpuid_count;
use core::fmt;

use bitflags::bitflags;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

/// What the kernel cannot do without: CPUID leaf, bit of its EDX, name, and what it is for.
const NEEDED: [(u32, u32, &str, &str); 5] = [
    (1, 4, "TSC", "to tell the time"),
    (1, 5, "MSR", "to control the others"),
    (1, 9, "APIC", "for interrupts"),
    (1, 16, "PAT", "to leave registers of devices out of the caches"),
    (0x8000_0001, NX, "NX", "so that no writable page can be executed"),
];
/// Bit of EDX of leaf 8000_0001h.
const NX: u32 = 20;

/// The memory types that page table entries choose from (Intel SDM volume 3, 11.12).
const IA32_PAT: u32 = 0x277;
/// As after a reset (11.12.4), twice: write-back, write-through, uncached but for MTRRs, uncached.
const MEMORY_TYPES: u64 = 0x0007_0406_0007_0406;

bitflags! {
    /// Memory protections of the processor (Intel SDM volume 3, chapters 2.5 and 4.6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Protections: u8 {
        /// Pages that cannot be executed.
        const NX = 1 << 0;
        /// Read-only pages are read-only for the kernel too.
        const WP = 1 << 1;
        /// The kernel cannot execute user pages.
        const SMEP = 1 << 2;
        /// The kernel cannot read or write user pages by accident.
        const SMAP = 1 << 3;
        /// User code cannot read the descriptor table addresses.
        const UMIP = 1 << 4;
    }
}

impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, _) in self.iter_names() {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The registers that CPUID returns for `leaf` and `subleaf`; zeros where the processor has no such leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    let highest = __cpuid_count(leaf & 0xffff_0000, 0).eax;
    if (leaf & 0xffff_0000..=highest).contains(&leaf) {
        __cpuid_count(leaf, subleaf)
    } else {
        core::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
    }
}

/// A feature that the kernel needs and this processor lacks: its name, and what it is needed for.
pub fn missing() -> Option<(&'static str, &'static str)> {
    let lacks = |&(leaf, bit, ..): &(u32, u32, _, _)| cpuid(leaf, 0).edx & 1 << bit == 0;
    NEEDED.into_iter().find(lacks).map(|(_, _, name, purpose)| (name, purpose))
}

/// The protections that this processor has.
pub fn available() -> Protections {
    let (extended, structured) = (cpuid(0x8000_0001, 0), cpuid(7, 0));
    let mut found = Protections::WP;
    found.set(Protections::NX, extended.edx & 1 << NX != 0);
    found.set(Protections::SMEP, structured.ebx & 1 << 7 != 0);
    found.set(Protections::SMAP, structured.ebx & 1 << 20 != 0);
    found.set(Protections::UMIP, structured.ecx & 1 << 2 != 0);
    found
}

/// Sets the memory types that page table entries choose from, whatever firmware left. The processor must have
/// a PAT.
pub fn set_memory_types() {
    let mut pat = Msr::new(IA32_PAT);
    // SAFETY: the register is there, and all types are valid. Both loaders map memory through entry 0 alone,
    // which is write-back for RAM before and after; caches are written back and translations flushed around
    // the change (11.12.4).
    unsafe {
        if pat.read() != MEMORY_TYPES {
            core::arch::asm!("wbinvd", options(nostack, preserves_flags));
            pat.write(MEMORY_TYPES);
            core::arch::asm!("wbinvd", options(nostack, preserves_flags));
            tlb::flush_all();
        }
    }
}

/// Switches on every protection that the processor has, of which NX must be one, and global pages off: what
/// firmware may have mapped so is forgotten now (Intel SDM volume 3, 4.10.4.1), and nothing outlives a change
/// of page tables again.
pub fn protect() {
    let available = available();
    let mut cr4 = Cr4Flags::empty();
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, available.contains(Protections::SMEP));
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, available.contains(Protections::SMAP));
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, available.contains(Protections::UMIP));
    // SAFETY: the kernel has no user pages and writes no page that is mapped read-only, and both loaders
    // leave NX either off or used as intended, so none of these bits takes away something that is in use.
    // Without global pages translations are only looked up anew.
    unsafe {
        Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
        Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT));
        Cr4::update(|current| {
            current.remove(Cr4Flags::PAGE_GLOBAL);
            current.insert(cr4);
        });
    }
}

/// The protections that are switched on now, read back from the control registers.
pub fn active() -> Protections {
    let cr4 = Cr4::read();
    let mut found = Protections::empty();
    found.set(Protections::NX, Efer::read().contains(EferFlags::NO_EXECUTE_ENABLE));
    found.set(Protections::WP, Cr0::read().contains(Cr0Flags::WRITE_PROTECT));
    found.set(Protections::SMEP, cr4.contains(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION));
    found.set(Protections::SMAP, cr4.contains(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION));
    found.set(Protections::UMIP, cr4.contains(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION));
    found
}
