//! The end of a run that went wrong: the message, a backtrace for the host to symbolize, and an exit code.

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::interrupts;

use crate::arch::stack;
use crate::logging::{self, print};
use crate::memory::image;
use crate::{println, qemu, testing};

/// Frames printed at most.
const MAX_FRAMES: usize = 64;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    let message = info.message();
    match info.location() {
        Some(place) => fail(format_args!("panic at {}:{}: {message}", place.file(), place.line()), None, rbp),
        None => fail(format_args!("panic: {message}"), None, rbp),
    }
}

/// Prints `message` and the backtrace, one `  at ADDRESS` line per frame, and leaves QEMU: with
/// [`Failed`](qemu::ExitCode::Failed) inside a test, else with [`Panicked`](qemu::ExitCode::Panicked).
///
/// `rip` is the innermost address where it is known; `rbp` the frame pointer to start from.
pub fn fail(message: fmt::Arguments<'_>, rip: Option<u64>, rbp: u64) -> ! {
    static FAILING: AtomicBool = AtomicBool::new(false);
    interrupts::disable();
    // SAFETY: this never returns, so whoever was printing never goes on.
    unsafe { logging::seize() };
    if FAILING.swap(true, Ordering::Relaxed) {
        println!("and then, while that was being reported: {message}");
    } else {
        println!("{message}");
        for address in rip.into_iter().chain(Backtrace { rbp }).take(MAX_FRAMES) {
            println!("  at {address:#x}");
        }
    }
    let Some(test) = testing::current() else { qemu::exit(qemu::ExitCode::Panicked) };
    print(format_args!("test-failed: {test}: "));
    // The adapter stops at the end of the line by failing; that is all there is to print.
    let _ = FirstLine.write_fmt(message);
    println!();
    qemu::exit(qemu::ExitCode::Failed)
}

/// Prints up to the first line break.
struct FirstLine;

impl Write for FirstLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let line = text.split('\n').next().unwrap_or_default();
        print(format_args!("{line}"));
        if line.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Walks saved frame pointers. The addresses are those of the calls (return address less one), so that a
/// symbolizer finds the calling line. Reads known stacks only and yields code addresses only, whatever the
/// frame pointers say.
struct Backtrace {
    rbp: u64,
}

impl Iterator for Backtrace {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let return_slot = self.rbp.checked_add(8)?;
        if !self.rbp.is_multiple_of(8) || !stack::holds_word(self.rbp) || !stack::holds_word(return_slot) {
            return None;
        }
        // SAFETY: both words are aligned and on a mapped stack.
        let (next, return_address) = unsafe { (*(self.rbp as *const u64), *(return_slot as *const u64)) };
        self.rbp = next;
        let call = return_address.checked_sub(1)?;
        VirtAddr::try_new(call).is_ok_and(|call| image::text().contains(call)).then_some(call)
    }
}
