//! Gets `virtio-drivers` out of its blocking call when it waits for ever.
//!
//! Its queue has no barrier between telling the device of a request and looking whether the device wants to
//! be notified (2.7.13.4.1 asks for one), so now and then neither side sees what the other wrote, and a call
//! never returns. A timer then notifies the device in its stead: the sample is spoilt, but not the run.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use core::task::Waker;

use embassy_time_driver::{TICK_HZ, now, schedule_wake};
use ringfence_drivers::pci::Function;
use spin::Once;
use x86_64::instructions::interrupts;

use crate::support::hal;
use crate::support::lines::info;
use crate::support::raw::{NOTIFY, structure};

/// How often the device is notified, and how many times at most: from the start of a sample on.
const TIMES: u64 = 8;
const INTERVAL: u64 = TICK_HZ / 4;

/// The notification register of queue 0 of the device that may need it, or null.
static REGISTER: AtomicPtr<u16> = AtomicPtr::new(null_mut());

/// Whether it was used, in this sample.
static NEEDED: AtomicBool = AtomicBool::new(false);

struct Alarm;

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(register) = NonNull::new(REGISTER.load(Ordering::Relaxed)) {
            // SAFETY: it is mapped as long as it is there: see `Rescue`.
            unsafe { register.write_volatile(0) };
            NEEDED.store(true, Ordering::Relaxed);
        }
    }
}

/// While this lives interrupts are on, and a timer notifies the device a few times. Drop it before the
/// device's registers are given back.
pub struct Rescue(());

impl Rescue {
    /// Starts the timer for a device that was taken through [`hal::take`].
    pub fn start(function: &Function) -> Self {
        static WAKERS: Once<Vec<Waker>> = Once::new();
        let wakers = WAKERS.call_once(|| (0..TIMES).map(|_| Waker::from(Arc::new(Alarm))).collect());
        let register = structure(function, NOTIFY).expect("the device has notification registers");
        // Queue 0 is notified at the start of the structure, in QEMU.
        REGISTER.store(hal::register(register.0).cast().as_ptr(), Ordering::Relaxed);
        for (time, waker) in (1..).zip(wakers) {
            schedule_wake(now() + time * INTERVAL, waker);
        }
        interrupts::enable();
        Self(())
    }
}

impl Drop for Rescue {
    fn drop(&mut self) {
        interrupts::disable();
        REGISTER.store(null_mut(), Ordering::Relaxed);
        if NEEDED.swap(false, Ordering::Relaxed) {
            info("virtio-drivers waited for a device that it had not notified, and was helped");
        }
    }
}
