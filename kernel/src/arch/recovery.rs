//! A recovery point for tests: run a closure that is expected to fault, and carry on after the fault.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::frame::Frame;

/// The fault that ended a closure given to [`expect_fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultInfo {
    /// Exception vector, 14 for a page fault.
    pub vector: u8,
    /// Error code; 0 for exceptions without one.
    pub error_code: u64,
    /// Faulting address (CR2) of a page fault; meaningless otherwise.
    pub address: u64,
    /// The instruction that faulted.
    pub rip: u64,
}

// `recovery_call(function, argument, &saved_rsp)` calls the function and returns 0; [`recover`] makes it
// return 1.
global_asm!(
    ".global recovery_call, recovery_return",
    "recovery_call:",
    "push rbp",
    "mov rbp, rsp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "push 0",
    "mov [rdx], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "xor eax, eax",
    "recovery_return:",
    "add rsp, 8",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
);

unsafe extern "C" {
    fn recovery_call(function: extern "C" fn(*mut u8), argument: *mut u8, saved_rsp: &AtomicU64) -> u64;
    fn recovery_return();
}

/// Stack pointer of the innermost recovery point; 0 when there is none.
static RECOVERY_POINT: AtomicU64 = AtomicU64::new(0);
static LAST_FAULT: Mutex<Option<FaultInfo>> = Mutex::new(None);

/// Runs `faulty`. If it raises an exception, abandons it there and returns what happened; `None` if it
/// finished.
///
/// What `faulty` owned when it faulted is leaked, and locks it held stay locked. May be nested.
pub fn expect_fault<F: FnOnce()>(faulty: F) -> Option<FaultInfo> {
    extern "C" fn run<F: FnOnce()>(slot: *mut u8) {
        // SAFETY: `slot` is the option below, which nothing else uses meanwhile.
        let faulty = unsafe { (*slot.cast::<Option<F>>()).take() };
        if let Some(faulty) = faulty {
            faulty();
        }
    }
    let outer = RECOVERY_POINT.load(Ordering::Relaxed);
    let mut slot = Some(faulty);
    // SAFETY: `run::<F>` matches the slot. When it is abandoned its frames are gone for good: nothing runs
    // their destructors, and nothing outside them borrows from them.
    let faulted = unsafe { recovery_call(run::<F>, (&raw mut slot).cast(), &RECOVERY_POINT) } != 0;
    RECOVERY_POINT.store(outer, Ordering::Relaxed);
    if faulted { LAST_FAULT.lock().take() } else { None }
}

/// Called for every exception: continues at the recovery point, if there is one and the exception allows it.
pub(super) fn recover(frame: &mut Frame, fault: FaultInfo) -> bool {
    let point = RECOVERY_POINT.swap(0, Ordering::Relaxed);
    if point == 0 {
        return false;
    }
    *LAST_FAULT.lock() = Some(fault);
    frame.rip = recovery_return as *const () as u64;
    frame.rsp = point;
    frame.rax = 1;
    true
}
