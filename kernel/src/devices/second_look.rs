//! A second look at a device, some time after those who wait for it went to sleep.

use core::future::Future;
use core::mem;
use core::pin::Pin;
use core::task::Context;

use embassy_time::{Duration, Timer};
use ringfence_drivers::virtio::LOOK_AGAIN;

/// Tells a task when to look once more at a device, of which an interrupt or a notification may be lost: see
/// [`kick_again`](ringfence_drivers::virtio::Queue::kick_again).
///
/// After each sleep there is a look within [`LOOK_AGAIN`], and one when at least that much has passed. There
/// is never more than one timer, and none when nobody sleeps any more, or sleeps on.
#[derive(Default)]
pub struct SecondLook {
    timer: Option<Timer>,
    wanted: bool,
}

impl SecondLook {
    /// Somebody who has turned interrupts on, or told the device of something, goes to sleep. `true` if
    /// [`poll`](Self::poll) is to be called now: no timer runs that will see to it.
    pub fn want(&mut self) -> bool {
        !mem::replace(&mut self.wanted, true) && self.timer.is_none()
    }

    /// Whether it is time to look. Until then the task of `context` is woken in time, if it calls this each
    /// time it is polled.
    pub fn poll(&mut self, context: &mut Context<'_>) -> bool {
        let mut is_over = |timer: &mut Timer| Pin::new(timer).poll(context).is_ready();
        let due = self.timer.as_mut().is_some_and(&mut is_over);
        if due {
            self.timer = None;
        }
        if self.timer.is_none() && mem::take(&mut self.wanted) {
            let mut timer = Timer::after(Duration::from_micros(LOOK_AGAIN.as_micros() as u64));
            is_over(&mut timer);
            self.timer = Some(timer);
        }
        due
    }
}
