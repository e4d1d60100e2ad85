//! Interrupt descriptor table: 256 small stubs that save the registers and call [`dispatch`].

use core::arch::global_asm;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::Entry;

use super::exceptions;
use super::frame::Frame;
use super::stack::Use;
use crate::interrupts;

// One stub per vector, 16 bytes apart. Vectors for which the processor pushes no error code get a zero, so
// that every frame looks the same. The processor aligns the stack before it pushes, and 22 words keep it
// aligned for the call.
global_asm!(
    ".altmacro",
    ".macro interrupt_stub vector",
    "    .balign 16",
    "    .if (\\vector < 8) || (\\vector == 9) || ((\\vector > 14) && (\\vector != 17) && (\\vector != 21) && (\\vector != 29) && (\\vector != 30))",
    "        push 0",
    "    .endif",
    "    push \\vector",
    "    jmp interrupt_common",
    ".endm",
    ".balign 16",
    ".global interrupt_stubs",
    "interrupt_stubs:",
    ".set vector_number, 0",
    ".rept 256",
    "    interrupt_stub %vector_number",
    "    .set vector_number, vector_number + 1",
    ".endr",
    ".noaltmacro",
    "interrupt_common:",
    "cld",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rdi, rsp",
    "call {dispatch}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    #[link_name = "interrupt_stubs"]
    static STUBS: [[u8; 16]; VECTORS];
}

const VECTORS: usize = 256;

/// Where every interrupt and exception ends up, with interrupts disabled.
extern "C" fn dispatch(frame: &mut Frame) {
    match frame.vector as u8 {
        0..32 => exceptions::handle(frame),
        vector => interrupts::dispatch(vector),
    }
}

/// The stack that a vector's handler runs on; `None` is the running one.
fn stack_of(vector: usize) -> Option<Use> {
    match vector {
        2 => Some(Use::Nmi),
        8 => Some(Use::DoubleFault),
        14 => Some(Use::PageFault),
        18 => Some(Use::MachineCheck),
        _ => None,
    }
}

static TABLE: Once<[Entry<()>; VECTORS]> = Once::new();

/// Fills and loads the table. The GDT must be loaded: its code segment and stacks are what handlers run with.
pub fn init() {
    let table = TABLE.call_once(|| {
        let mut table = [const { Entry::missing() }; VECTORS];
        for (vector, entry) in table.iter_mut().enumerate() {
            // SAFETY: the address is that of the stub for this vector, which leaves by `iretq`; the stack
            // index is one that the TSS has.
            unsafe {
                let options = entry.set_handler_addr(VirtAddr::from_ptr(&raw const STUBS[vector]));
                if let Some(usage) = stack_of(vector) {
                    options.set_stack_index(usage as u16);
                }
            }
        }
        table
    });
    let pointer =
        DescriptorTablePointer { limit: (size_of_val(table) - 1) as u16, base: VirtAddr::from_ptr(table) };
    // SAFETY: the table is complete, static, and never changed.
    unsafe { lidt(&pointer) };
}
