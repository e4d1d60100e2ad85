//! Processor exceptions (Intel SDM volume 3, chapter 6.15): a breakpoint and a non-maskable interrupt are
//! noted, a fault inside [`expect_fault`](super::recovery::expect_fault) returns there, anything else is
//! reported and ends the run.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::PageFaultErrorCode;

use super::frame::Frame;
use super::recovery::{self, FaultInfo};
use super::stack;
use crate::{logging, panic};

const BREAKPOINT: u8 = 3;
const NMI: u8 = 2;
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;

const NAMES: [&str; 32] = [
    "divide error (#DE)",
    "debug (#DB)",
    "non-maskable interrupt",
    "breakpoint (#BP)",
    "overflow (#OF)",
    "bound range exceeded (#BR)",
    "invalid opcode (#UD)",
    "device not available (#NM)",
    "double fault (#DF)",
    "coprocessor segment overrun",
    "invalid TSS (#TS)",
    "segment not present (#NP)",
    "stack-segment fault (#SS)",
    "general protection (#GP)",
    "page fault (#PF)",
    "reserved (vector 15)",
    "x87 floating-point (#MF)",
    "alignment check (#AC)",
    "machine check (#MC)",
    "SIMD floating-point (#XM)",
    "virtualization (#VE)",
    "control protection (#CP)",
    "reserved (vector 22)",
    "reserved (vector 23)",
    "reserved (vector 24)",
    "reserved (vector 25)",
    "reserved (vector 26)",
    "reserved (vector 27)",
    "hypervisor injection (#HV)",
    "VMM communication (#VC)",
    "security (#SX)",
    "reserved (vector 31)",
];

/// Handles one exception; returns only if the interrupted code is to continue at `frame.rip`.
pub(super) fn handle(frame: &mut Frame) {
    let vector = frame.vector as u8;
    let fault = FaultInfo { vector, error_code: frame.error_code, address: Cr2::read_raw(), rip: frame.rip };
    if vector == BREAKPOINT {
        log::info!("breakpoint at {:#x}", frame.rip);
        return;
    }
    if vector == NMI {
        return report_nmi(frame.rip);
    }
    // After an abort the interrupted code cannot be trusted any more.
    let abort = matches!(vector, DOUBLE_FAULT | MACHINE_CHECK);
    if !abort && recovery::recover(frame, fault) {
        return;
    }
    panic::fail(format_args!("{}", Report { fault, frame }), Some(frame.rip), frame.rbp)
}

/// Says that there was a non-maskable interrupt. A chipset raises one for what is wrong with it, and what has
/// come to harm is not said; a hypervisor, because somebody asked for it. The interrupted code goes on.
fn report_nmi(rip: u64) {
    /// Those that interrupted somebody who was printing.
    static UNSAID: AtomicU64 = AtomicU64::new(0);
    let unsaid = UNSAID.load(Ordering::Relaxed);
    let said = logging::try_print(format_args!(
        "warning: non-maskable interrupt at {rip:#x}, and {unsaid} while the log was busy: \
         on a real machine its hardware has failed\n"
    ));
    // Nothing comes between: the next one is held off until this has returned.
    UNSAID.store(if said { 0 } else { unsaid + 1 }, Ordering::Relaxed);
}

/// An exception for the log: what happened, where, and the registers.
struct Report<'a> {
    fault: FaultInfo,
    frame: &'a Frame,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fault, frame) = (&self.fault, self.frame);
        let name = NAMES.get(usize::from(fault.vector)).copied().unwrap_or("unknown exception");
        write!(f, "{name} at {:#x}", fault.rip)?;
        match fault.vector {
            PAGE_FAULT => {
                let code = PageFaultErrorCode::from_bits_truncate(fault.error_code);
                write!(f, ": {}", PageFault { address: fault.address, code })?;
            }
            // Selector errors: Intel SDM volume 3, figure 6-7.
            10..=13 if fault.error_code != 0 => {
                let table = ["GDT", "IDT", "LDT", "IDT"][(fault.error_code >> 1 & 3) as usize];
                write!(f, ": {table} entry {}", fault.error_code >> 3 & 0x1fff)?;
            }
            DOUBLE_FAULT => {
                if let Ok(address) = VirtAddr::try_new(fault.address)
                    && stack::is_guard(address)
                {
                    write!(f, ": stack overflow")?;
                }
            }
            _ => {}
        }
        writeln!(f)?;
        writeln!(f, "  error {:#x}  rflags {:#x}  cr2 {:#x}", fault.error_code, frame.rflags, fault.address)?;
        writeln!(
            f,
            "  cs {:#x}  ss {:#x}  rip {:016x}  rsp {:016x}",
            frame.cs, frame.ss, frame.rip, frame.rsp
        )?;
        for row in [
            [("rax", frame.rax), ("rbx", frame.rbx), ("rcx", frame.rcx), ("rdx", frame.rdx)],
            [("rsi", frame.rsi), ("rdi", frame.rdi), ("rbp", frame.rbp), ("r8 ", frame.r8)],
            [("r9 ", frame.r9), ("r10", frame.r10), ("r11", frame.r11), ("r12", frame.r12)],
        ] {
            for (name, value) in row {
                write!(f, "  {name} {value:016x}")?;
            }
            writeln!(f)?;
        }
        write!(f, "  r13 {:016x}  r14 {:016x}  r15 {:016x}", frame.r13, frame.r14, frame.r15)
    }
}

struct PageFault {
    address: u64,
    code: PageFaultErrorCode,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = if self.code.contains(PageFaultErrorCode::INSTRUCTION_FETCH) {
            "execute"
        } else if self.code.contains(PageFaultErrorCode::CAUSED_BY_WRITE) {
            "write"
        } else {
            "read"
        };
        let why = if self.code.contains(PageFaultErrorCode::MALFORMED_TABLE) {
            "reserved bit in a page table"
        } else if self.code.contains(PageFaultErrorCode::PROTECTION_VIOLATION) {
            "not permitted"
        } else {
            "not mapped"
        };
        write!(f, "{does} of {:#x}, {why}", self.address)?;
        if VirtAddr::try_new(self.address).is_ok_and(stack::is_guard) {
            write!(f, ": stack overflow")?;
        }
        Ok(())
    }
}
