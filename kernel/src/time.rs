//! Monotonic time from the time-stamp counter (TSC), and alarms from the local APIC's timer for
//! `embassy-time`.

use core::arch::x86_64::_rdtsc;
use core::cell::RefCell;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Waker;
use core::time::Duration;

use critical_section::{CriticalSection, Mutex};
use embassy_time::Timer;
use embassy_time_driver::{Driver, TICK_HZ};
use embassy_time_queue_utils::Queue;

use crate::arch::cpu::cpuid;
use crate::arch::{apic, pit, rtc};
use crate::boot::pvh;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// TSC when the kernel was entered, or at [`start`] where that is not known.
static START: AtomicU64 = AtomicU64::new(0);
/// A moment of the clock: the TSC, and nanoseconds since [`START`].
static BASE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// Seconds from 1970 to [`START`]; 0 while that is not known.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// TSC increments per second; 0 until [`init`].
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per TSC increment, times 2^32.
static NS_PER_TSC: AtomicU64 = AtomicU64::new(0);
/// Counts of the APIC timer per second; 0 until [`start_alarms`], and where deadlines are used instead.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }
}

/// TSC increments since the kernel was entered.
pub fn since_entry() -> u64 {
    tsc().saturating_sub(START.load(Ordering::Relaxed))
}

/// TSC increments per second; 0 before it has been measured.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Nanoseconds since the kernel was entered; 0 until the TSC has been measured.
pub fn now_ns() -> u64 {
    at(tsc())
}

/// Nanoseconds since the kernel was entered, when the TSC stood or will stand at `tsc`.
fn at(tsc: u64) -> u64 {
    let [base_tsc, base_ns] = [0, 1].map(|index: usize| BASE[index].load(Ordering::Relaxed));
    let elapsed = u128::from(tsc.saturating_sub(base_tsc));
    base_ns + ((elapsed * u128::from(NS_PER_TSC.load(Ordering::Relaxed))) >> 32) as u64
}

/// Time since the kernel was entered; 0 until the TSC has been measured.
pub fn now() -> Duration {
    Duration::from_nanos(now_ns())
}

/// Seconds since 1970-01-01T00:00:00Z; `None` before [`init`], and on a machine that does not know. It is as
/// good as the real-time clock was at the start, to a second.
pub fn wall() -> Option<u64> {
    let epoch = EPOCH.load(Ordering::Relaxed);
    (epoch != 0).then(|| epoch + now_ns() / NS_PER_SECOND)
}

/// Calls `look` every millisecond until it finds something, or `limit` has passed. Of the time between two
/// looks half of that counts at most: a host that stopped this machine has stopped what is looked at, too.
pub async fn look_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let most = (limit / 2).max(Duration::from_nanos(1));
    let (mut last, mut passed) = (now(), Duration::ZERO);
    loop {
        let found = look();
        let before = mem::replace(&mut last, now());
        passed = passed.saturating_add(last.saturating_sub(before).min(most));
        if found.is_some() || passed >= limit {
            return found;
        }
        Timer::after_millis(1).await;
    }
}

/// A reading of some counter together with the TSC at that moment.
#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    count: u64,
}

impl Sample {
    /// The tightest of a few readings, so that an interruption by the host does not spoil it.
    fn take(read: impl Fn() -> Option<u64>) -> Option<Self> {
        let once = || {
            let before = tsc();
            let count = read()?;
            let width = tsc().saturating_sub(before);
            Some((width, Self { tsc: before.saturating_add(width / 2), count }))
        };
        (0..5).filter_map(|_| once()).min_by_key(|(width, _)| *width).map(|(_, sample)| sample)
    }

    /// Increments of `of` per second, given that the other counter makes `hz`.
    fn rate(self, later: Self, of: fn(&Self) -> u64, other: fn(&Self) -> u64, hz: u64) -> Option<u64> {
        let increments = u128::from(of(&later).checked_sub(of(&self))?);
        let ticks = u128::from(other(&later).checked_sub(other(&self))?);
        u64::try_from((increments * u128::from(hz)).checked_div(ticks)?).ok().filter(|rate| *rate != 0)
    }
}

/// The reading that measurement starts from.
static FIRST: spin::Mutex<Option<Sample>> = spin::Mutex::new(None);

/// Starts the clock. [`init`] comes later, so that boot does other work while the TSC is being measured.
pub fn start() {
    let entry = pvh::entry_tsc().unwrap_or_else(tsc);
    START.store(entry, Ordering::Relaxed);
    BASE[0].store(entry, Ordering::Relaxed);
    start_measuring();
}

/// Finds out how fast the TSC runs: from the processor or hypervisor if they tell, else by measuring for at
/// least 200 µs since [`start`]. That is good to about one percent; [`refine`] makes it better.
pub fn init() {
    let hz = reported_tsc_hz().or_else(measure_tsc).unwrap_or_else(|| {
        log::warn!("the speed of the time-stamp counter is unknown: 1 GHz is assumed");
        NS_PER_SECOND
    });
    set_tsc_hz(hz);
    match rtc::read() {
        Some(seconds) => EPOCH.store(seconds.saturating_sub(now_ns() / NS_PER_SECOND), Ordering::Relaxed),
        None => log::debug!("there is no real-time clock: the time of day is unknown"),
    }
}

fn set_tsc_hz(hz: u64) {
    NS_PER_TSC.store(((u128::from(NS_PER_SECOND) << 32) / u128::from(hz)) as u64, Ordering::Relaxed);
    TSC_HZ.store(hz, Ordering::Relaxed);
    log::debug!("time-stamp counter: {} kHz", hz / 1000);
}

/// Measures the TSC once more, over 20 ms in which other tasks run. What the clock showed until then stays:
/// only its speed changes.
pub async fn refine() {
    const WAIT: embassy_time::Duration = embassy_time::Duration::from_millis(20);

    if reported_tsc_hz().is_some() {
        return;
    }
    // The reference's period may be over before this task runs.
    for _ in 0..3 {
        Timer::after(WAIT).await;
        if let Some(hz) = measured_tsc_hz() {
            // Handlers of interrupts ask for the time, too.
            critical_section::with(|_| {
                let now = tsc();
                let [base_tsc, base_ns] = [now, at(now)];
                BASE[0].store(base_tsc, Ordering::Relaxed);
                BASE[1].store(base_ns, Ordering::Relaxed);
                set_tsc_hz(hz);
            });
            return;
        }
        start_measuring();
    }
}

/// CPUID leaf 0x15 (crystal and ratio), or the leaf 0x4000_0010 that VMware defined and KVM can provide.
fn reported_tsc_hz() -> Option<u64> {
    let ratio = cpuid(0x15, 0);
    let crystal = u64::from(ratio.ecx) * u64::from(ratio.ebx);
    let hypervisor = if cpuid(1, 0).ecx & 1 << 31 != 0 { cpuid(0x4000_0010, 0).eax } else { 0 };
    crystal.checked_div(u64::from(ratio.eax)).filter(|hz| *hz != 0).or(match hypervisor {
        0 => None,
        khz => Some(u64::from(khz) * 1000),
    })
}

fn start_measuring() {
    pit::start();
    *FIRST.lock() = Sample::take(pit::elapsed);
}

/// The TSC's speed, measured since [`start_measuring`]; `None` if that is too short or too long ago.
fn measured_tsc_hz() -> Option<u64> {
    const SHORTEST: u64 = pit::HZ / 5000;

    let first = (*FIRST.lock())?;
    let last = Sample::take(pit::elapsed)?;
    let enough = last.count.saturating_sub(first.count) >= SHORTEST;
    enough.then(|| first.rate(last, |sample| sample.tsc, |sample| sample.count, pit::HZ)).flatten()
}

fn measure_tsc() -> Option<u64> {
    const MAX_READINGS: usize = 100_000;

    (0..MAX_READINGS).find_map(|_| {
        if pit::elapsed().is_none() {
            start_measuring();
        }
        measured_tsc_hz()
    })
}

/// The reading that the measurement of the APIC's timer starts from.
static TIMER_FIRST: spin::Mutex<Option<Sample>> = spin::Mutex::new(None);

fn timer_sample() -> Option<Sample> {
    Sample::take(|| Some(apic::measured()))
}

/// Starts to measure the timer of the local APIC, which must be on.
pub(crate) fn init_timer() {
    if !apic::has_tsc_deadline() {
        apic::start_measuring();
        *TIMER_FIRST.lock() = timer_sample();
    }
}

/// Lets alarms interrupt, once the timer of the local APIC has been measured for at least 100 µs since
/// [`init_timer`]. What was scheduled before is due now, or gets its alarm.
pub fn start_alarms() {
    const MEASURE_NS: u64 = 100_000;

    if let Some(first) = *TIMER_FIRST.lock() {
        while now_ns().saturating_sub(at(first.tsc)) < MEASURE_NS {
            core::hint::spin_loop();
        }
        let hz = timer_sample()
            .and_then(|last| first.rate(last, |sample| sample.count, |sample| sample.tsc, tsc_hz()));
        apic::set_timer(0);
        if hz.is_none() {
            log::warn!("the timer of the local APIC does not run");
        }
        TIMER_HZ.store(hz.unwrap_or(0), Ordering::Relaxed);
        log::debug!("local APIC timer: {} kHz", hz.unwrap_or(0) / 1000);
    }
    ALARM.ready.store(true, Ordering::Release);
    on_timer();
}

/// The `embassy-time` driver: its queue, and one alarm for the next entry.
struct Alarm {
    ready: core::sync::atomic::AtomicBool,
    queue: Mutex<RefCell<Queue>>,
}

embassy_time_driver::time_driver_impl!(static ALARM: Alarm = Alarm {
    ready: core::sync::atomic::AtomicBool::new(false),
    queue: Mutex::new(RefCell::new(Queue::new())),
});

impl Driver for Alarm {
    fn now(&self) -> u64 {
        now_ns() / (NS_PER_SECOND / TICK_HZ)
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        critical_section::with(|section| {
            if self.queue.borrow_ref_mut(section).schedule_wake(at, waker) {
                self.set(section);
            }
        });
    }
}

impl Alarm {
    /// Wakes what is due and sets the alarm for what comes next.
    fn set(&self, section: CriticalSection<'_>) {
        if !self.ready.load(Ordering::Acquire) {
            return;
        }
        let now = self.now();
        let next = self.queue.borrow_ref_mut(section).next_expiration(now);
        let wait_ns = next.saturating_sub(now).saturating_mul(NS_PER_SECOND / TICK_HZ);
        let in_units = |hz: u64| u128::from(wait_ns) * u128::from(hz) / u128::from(NS_PER_SECOND);
        if next == u64::MAX {
            stop_timer();
        } else if apic::has_tsc_deadline() {
            let counts = u64::try_from(in_units(tsc_hz())).unwrap_or(u64::MAX);
            apic::set_deadline(tsc().saturating_add(counts).max(1));
        } else {
            // A wait beyond the counter's range is taken in steps; a wait of no time still has to interrupt.
            let counts = u32::try_from(in_units(TIMER_HZ.load(Ordering::Relaxed))).unwrap_or(u32::MAX);
            apic::set_timer(counts.max(1));
        }
    }
}

fn stop_timer() {
    if apic::has_tsc_deadline() {
        apic::set_deadline(0);
    } else {
        apic::set_timer(0);
    }
}

/// Called for each timer interrupt.
pub(crate) fn on_timer() {
    critical_section::with(|section| ALARM.set(section));
}
