//! From QEMU's `-kernel` to Rust (by PVH, Xen's `docs/misc/pvh.pandoc`), and what a kernel has anyway: a
//! serial port, a clock, an end. All memory is mapped where it is, and nothing is protected.

use core::arch::global_asm;
use core::arch::x86_64::_rdtsc;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::panic::PanicInfo;
use core::ptr;
use core::time::Duration;

use spin::Once;
use x86_64::instructions::hlt;
use x86_64::instructions::port::Port;

global_asm!(
    r#"
.section .note.Xen, "a", @note      # lengths of name and value, and what it is: where to begin
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad _start

.section .data.boot, "aw"
    .balign 4096
level4:
    .quad level3 + 0x23             # 0x23: present, writable, accessed
    .fill 511, 8, 0
level3:
    .quad level2 + 0x23, level2 + 0x1023, level2 + 0x2023, level2 + 0x3023
    .fill 508, 8, 0
level2:                             # 4 GiB in leaves of 2 MiB (0xe3), registers uncached (0xfb)
    .set address, 0
    .rept 1792
    .quad address + 0xe3
    .set address, address + 0x200000
    .endr
    .rept 256
    .quad address + 0xfb
    .set address, address + 0x200000
    .endr
gdt:
    .quad 0, 0x00af9b000000ffff     # code of 64 bits
gdt_pointer:
    .word 15
    .long gdt

.section .bss.boot, "aw", @nobits
    .balign 16
    .skip 0x10000
stack_end:

.section .text.boot, "ax"
.global _start
.code32                             # protected mode, no paging, no interrupts
_start:
    cld
    movl $level4, %eax
    movl %eax, %cr3
    movl $0x20, %eax                # physical address extension
    movl %eax, %cr4
    movl $0xc0000080, %ecx          # EFER: long mode
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000001, %eax          # paging, protected mode
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode
.code64
long_mode:
    xorl %eax, %eax
    movl %eax, %ss
    movl $stack_end, %esp
    movl %ebx, %edi                 # the start information
    call {main}
"#,
    main = sym crate::main,
    options(att_syntax)
);

/// What QEMU says on entry, as far as it is read here; all of it is below 4 GiB.
#[repr(C)]
pub struct StartInfo {
    before: [u32; 6],
    command_line: u32,
}

/// The kernel's command line; nothing if it is not text.
pub fn command_line(info: &StartInfo) -> &str {
    let text = ptr::with_exposed_provenance::<c_char>(info.command_line as usize);
    if text.is_null() {
        return "";
    }
    // SAFETY: PVH promises a text there that ends with a 0, and all memory below 4 GiB is mapped.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("")
}

/// The serial port, COM1.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port's registers: bit 5 says that there is room for a byte.
            unsafe {
                while Port::<u8>::new(0x3fd).read() & 1 << 5 == 0 {}
                Port::new(0x3f8).write(byte);
            }
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::boot::Serial, $($text)*);
    }};
}

/// Time since the processor started.
pub fn uptime() -> Duration {
    static PER_SECOND: Once<u64> = Once::new();
    let per_second = *PER_SECOND.call_once(measure_counter);
    let count = counter();
    Duration::new(count / per_second, (count % per_second * 1_000_000_000 / per_second) as u32)
}

fn counter() -> u64 {
    // SAFETY: every processor of 64 bits has it.
    unsafe { _rdtsc() }
}

/// How far the processor's counter comes in a second, by that timer of a PC which makes its speaker sound.
fn measure_counter() -> u64 {
    const HUNDREDTH: u16 = 11_932;
    let (mut control, mut output) = (Port::<u8>::new(0x61), Port::<u8>::new(0x42));
    // SAFETY: nobody else uses timer 2: it counts once from there to 0, without a sound, and bit 5 says when.
    unsafe {
        control.write(1);
        Port::<u8>::new(0x43).write(0xb0);
        HUNDREDTH.to_le_bytes().into_iter().for_each(|byte| output.write(byte));
        let start = counter();
        while control.read() & 1 << 5 == 0 {}
        ((counter() - start) * 100).max(1)
    }
}

/// Ends QEMU, with exit code `2 * code + 1`.
pub fn exit(code: u32) -> ! {
    // SAFETY: the port of QEMU's `isa-debug-exit`, or nobody's.
    unsafe { Port::new(0xf4).write(code) };
    loop {
        hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    exit(0x12)
}
