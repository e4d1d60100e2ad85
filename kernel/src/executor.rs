//! Runs tasks until none is ready, then halts the processor until an interrupt.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use embassy_executor::{Spawner, raw};
use x86_64::instructions::interrupts;

use crate::time;

/// A task to be spawned.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Set when a task becomes ready.
static WOKEN: AtomicBool = AtomicBool::new(false);
static HALTS: AtomicU64 = AtomicU64::new(0);
/// TSC increments while the processor was halted, up to the end of the interrupt that woke it.
static HALTED: AtomicU64 = AtomicU64::new(0);

/// Called by embassy, also from interrupt handlers, when there is something to poll.
#[unsafe(export_name = "__pender")]
fn pender(_: *mut ()) {
    WOKEN.store(true, Ordering::Release);
}

/// Calls `start`, which spawns the first tasks, and runs them for good.
pub fn run(start: impl FnOnce(Spawner)) -> ! {
    let executor: &'static raw::Executor = Box::leak(Box::new(raw::Executor::new(ptr::null_mut())));
    start(executor.spawner());
    time::start_alarms();
    loop {
        WOKEN.store(false, Ordering::Release);
        // SAFETY: this is the only call, and not from the pender.
        unsafe { executor.poll() };
        // No wake-up is lost: with interrupts disabled nothing can wake a task between the check and the
        // halt, and enabling takes effect only after the halt has begun.
        interrupts::disable();
        if WOKEN.load(Ordering::Acquire) {
            interrupts::enable();
        } else {
            HALTS.fetch_add(1, Ordering::Relaxed);
            let before = time::tsc();
            interrupts::enable_and_hlt();
            HALTED.fetch_add(time::tsc().saturating_sub(before), Ordering::Relaxed);
        }
    }
}

/// Starts a task. Its memory is on the heap, for good.
pub fn spawn(spawner: &Spawner, task: impl Future<Output = ()> + 'static) {
    start(spawner, Box::leak(Box::new(raw::TaskStorage::new())), task);
}

/// Starts a task, if there is memory for it.
///
/// # Errors
/// If there is none.
pub fn try_spawn(spawner: &Spawner, task: impl Future<Output = ()> + 'static) -> Result<(), TryReserveError> {
    let mut storage = Vec::new();
    storage.try_reserve_exact(1)?;
    storage.push(raw::TaskStorage::new());
    if let [storage] = storage.leak() {
        start(spawner, storage, task);
    }
    Ok(())
}

fn start<F: Future<Output = ()> + 'static>(
    spawner: &Spawner,
    storage: &'static raw::TaskStorage<F>,
    task: F,
) {
    match storage.spawn(|| task) {
        Ok(token) => spawner.spawn(token),
        Err(_) => unreachable!("the storage is new"),
    }
}

/// How often the processor had nothing to do.
pub fn halts() -> u64 {
    HALTS.load(Ordering::Relaxed)
}

/// Increments of the time-stamp counter while the processor had nothing to do.
pub fn halted() -> u64 {
    HALTED.load(Ordering::Relaxed)
}
