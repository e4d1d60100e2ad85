//! When to poll a queue, and when to sleep until its interrupt.

use core::time::Duration;

/// Who sleeps while something is in flight looks once more after this long: see [`Hybrid`].
pub const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The shortest silence that there is: who sleeps has not looked twice in less.
pub(crate) const LEAST_SILENCE: Duration = Duration::from_millis(2);

/// How much of the time between two looks at a device that is waited for counts as its silence, and when it
/// is looked at again, where it may be silent for `limit`. A host that stops the guest stops the device too,
/// or is busy after it; and then the device has the other half.
pub(crate) fn longest_gap(limit: Duration) -> Duration {
    limit.checked_div(2).unwrap_or(limit)
}

/// The rule by which whoever serves a queue waits for it:
///
/// 1. An interrupt wakes the server. It turns interrupts off.
/// 2. It looks at the queue, and looks again as long as there was something: under load there are no
///    interrupts at all. It gives way to other tasks between two looks.
/// 3. While something is in flight it also looks again after it found nothing, up to a budget of looks in a
///    row: going to sleep and being woken costs more than a short wait. Who spins for as long as that costs
///    is at most twice as slow as one who knows the future (Karlin et al., "Empirical studies of competitive
///    spinning for a shared-memory multiprocessor", SOSP 1991).
/// 4. Then it turns interrupts on and looks once more: what came before that raises no interrupt. If there is
///    nothing it sleeps.
/// 5. If something is in flight then, it looks for completions once more when [`LOOK_AGAIN`] has passed, and
///    calls [`kick_again`](super::Queue::kick_again), for machines on which fences do nothing.
///
/// No wake-up is lost if the server can be woken by the interrupt before step 4 begins: either the device
/// sees that interrupts are wanted, or the last look sees what the device did. A full fence in
/// [`enable_interrupts`](super::Queue::enable_interrupts) stands between the two, as one does in the device.
#[derive(Clone, Debug)]
pub struct Hybrid {
    budget: u32,
    /// Looks in a row that found nothing.
    empty: u32,
}

impl Hybrid {
    /// `budget` is the number of looks in a row that may find nothing before the server sleeps. With 0 it
    /// sleeps at once.
    pub const fn new(budget: u32) -> Self {
        Self { budget, empty: 0 }
    }

    /// After a look that found `found` completions and left `in_flight`: whether to look again soon (steps 2
    /// and 3), or to turn interrupts on (step 4). With nothing in flight there is nothing to wait for.
    #[must_use]
    pub fn look_again(&mut self, found: usize, in_flight: usize) -> bool {
        if found > 0 {
            self.empty = 0;
        } else {
            self.empty = self.empty.saturating_add(1);
        }
        let again = in_flight > 0 && self.empty <= self.budget;
        if !again {
            self.empty = 0;
        }
        again
    }
}
