//! An alarm that is set to other times again and again.

use core::future::Future;
use core::pin::pin;
use core::task::Context;
use core::time::Duration;

use embassy_time::Timer;

use crate::time;

/// The furthest that it is set to, since embassy's time ends before that of [`Duration`]: who is woken then
/// sets it again.
const LONGEST: Duration = Duration::from_secs(3600);

/// Wakes a task by the earliest of the times that it was set to.
#[derive(Default)]
pub struct Alarm(Option<Duration>);

impl Alarm {
    /// Has the task of `context` woken at `next`, a time of [`time::now`], or in an hour, if that comes
    /// before the times that it was set to and that have not come yet.
    pub fn set(&mut self, next: Option<Duration>, context: &mut Context<'_>) {
        let now = time::now();
        self.0 = self.0.filter(|&at| at > now);
        let next = next.map(|next| next.min(now.saturating_add(LONGEST)));
        let Some(next) = next.filter(|&next| self.0.is_none_or(|at| next < at)) else { return };
        self.0 = Some(next);
        // A timer wakes whoever polled it last, also after it was dropped.
        let left = embassy_time::Duration::from_micros(next.saturating_sub(now).as_micros() as u64 + 1);
        if pin!(Timer::after(left)).poll(context).is_ready() {
            context.waker().wake_by_ref();
        }
    }
}
