//! The stacks of the image, each with a guard page below it, and the list of stacks that a backtrace may
//! walk.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;

/// Bytes of a guard page.
pub const GUARD: u64 = 4096;
/// Bytes of each stack of the image, without its guard page.
const SIZE: u64 = 32 * 1024;

/// What each stack of the image is for. The numbers of the exception stacks are their IST indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Double fault (#DF).
    DoubleFault,
    /// Non-maskable interrupt.
    Nmi,
    /// Machine check (#MC).
    MachineCheck,
    /// Page fault (#PF), so that an overflow of the running stack can be reported.
    PageFault,
    /// From the loader until the kernel runs on its own page tables. The PVH entry expects it to be the last
    /// one.
    Boot,
}

/// How many stacks the image has.
pub const COUNT: u64 = Use::Boot as u64 + 1;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; ((GUARD + SIZE) * COUNT) as usize]>);

// SAFETY: no reference to the bytes is ever made: only the CPU uses them, as its stacks.
unsafe impl Sync for Memory {}

#[unsafe(link_section = ".bss.stacks")]
static MEMORY: Memory = Memory(UnsafeCell::new([0; ((GUARD + SIZE) * COUNT) as usize]));

/// The addresses of one stack. The guard page is the [`GUARD`] bytes below `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Lowest address.
    pub low: VirtAddr,
    /// One past the highest address: where the stack pointer starts.
    pub high: VirtAddr,
}

impl Stack {
    /// The stack of the image with this use.
    pub fn of(usage: Use) -> Self {
        let low = VirtAddr::from_ptr(&MEMORY) + (GUARD + SIZE) * usage as u64 + GUARD;
        Self { low, high: low + SIZE }
    }

    /// First address of the guard page.
    pub fn guard(&self) -> VirtAddr {
        self.low - GUARD
    }

    /// Whether the 8 bytes at `address` are on this stack.
    fn holds_word(&self, address: u64) -> bool {
        address >= self.low.as_u64() && address <= self.high.as_u64().saturating_sub(8)
    }
}

/// The stacks of the image.
pub fn of_image() -> [Stack; COUNT as usize] {
    [Use::DoubleFault, Use::Nmi, Use::MachineCheck, Use::PageFault, Use::Boot].map(Stack::of)
}

/// The stack in use once boot is over; 0 until then.
static MAIN_LOW: AtomicU64 = AtomicU64::new(0);
static MAIN_HIGH: AtomicU64 = AtomicU64::new(0);

fn all() -> impl Iterator<Item = Stack> {
    let main = Stack {
        low: VirtAddr::new_truncate(MAIN_LOW.load(Ordering::Relaxed)),
        high: VirtAddr::new_truncate(MAIN_HIGH.load(Ordering::Relaxed)),
    };
    of_image().into_iter().chain((main.low != main.high).then_some(main))
}

/// Whether the 8 bytes at `address` are on a known stack, so that reading them cannot fault.
pub fn holds_word(address: u64) -> bool {
    all().any(|stack| stack.holds_word(address))
}

/// Whether `address` is in the guard page of a known stack.
pub fn is_guard(address: VirtAddr) -> bool {
    all().any(|stack| (stack.guard()..stack.low).contains(&address))
}

/// Leaves the running stack for `stack` and calls `run(argument)` there.
///
/// # Safety
/// `stack` is mapped writable, used for nothing else from now on, and its guard page is unmapped. Nothing on
/// the stack left behind is used again.
pub unsafe fn switch_to(stack: Stack, run: extern "C" fn(usize) -> !, argument: usize) -> ! {
    if !of_image().contains(&stack) {
        MAIN_LOW.store(stack.low.as_u64(), Ordering::Relaxed);
        MAIN_HIGH.store(stack.high.as_u64(), Ordering::Relaxed);
    }
    // SAFETY: the caller vouches for the stack. The pushed zero is the return address at which a backtrace
    // ends.
    unsafe {
        core::arch::asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "push 0",
            "jmp {run}",
            top = in(reg) stack.high.as_u64(),
            run = in(reg) run,
            in("rdi") argument,
            options(noreturn)
        )
    }
}
