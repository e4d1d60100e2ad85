//! Clock, alarms, and interrupts from message to task.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use embassy_time::{Duration, Instant, Timer, with_timeout};
use ringfence_drivers::virtio::LOOK_AGAIN;
use ringfence_kernel::alarm::Alarm;
use ringfence_kernel::devices::second_look::SecondLook;
use ringfence_kernel::{executor, interrupts, testing, time};
use x86_64::instructions::port::Port;

ringfence_kernel::test_image!();

/// Runs a future as the only task of the executor, and ends the test when it ends.
fn run(future: impl Future<Output = ()> + 'static) -> ! {
    #[embassy_executor::task]
    async fn task(future: Pin<Box<dyn Future<Output = ()>>>) {
        future.await;
        testing::pass();
    }
    executor::run(|spawner| spawner.spawn(task(Box::pin(future)).expect("there is no other task")))
}

/// A register of the real-time clock.
fn clock_register(index: u8) -> u8 {
    // SAFETY: selects and reads a register of the CMOS clock; only register C has a side effect, which is
    // wanted.
    unsafe {
        Port::<u8>::new(0x70).write(index);
        Port::<u8>::new(0x71).read()
    }
}

fn set_clock_register(index: u8, value: u8) {
    // SAFETY: the tests write registers A and B only: rate and interrupt enable bits.
    unsafe {
        Port::<u8>::new(0x70).write(index);
        Port::<u8>::new(0x71).write(value);
    }
}

/// A second of our clock is a second of the real-time clock.
#[test_case]
fn clock_keeps_time() {
    // When the old second was not read yet, and when the new one was: a busy host takes them apart, but the
    // tick is between them all the same.
    let tick = || {
        let (mut before, old) = (time::now_ns(), clock_register(0));
        loop {
            let (now, new) = (time::now_ns(), clock_register(0));
            if new != old {
                return (old, before..time::now_ns(), new);
            }
            before = now;
        }
    };
    let (mut last, mut least, mut most) = (tick(), 0, u64::MAX);
    for _ in 0..20 {
        let next = tick();
        if next.0 == last.2 {
            least = least.max(next.1.start - last.1.end);
            most = most.min(next.1.end - last.1.start);
        }
        if most.saturating_sub(least) < 10_000_000 {
            break;
        }
        last = next;
    }
    assert!(least < 1_050_000_000 && most > 950_000_000, "a second took {least} to {most} ns");
}

/// The time of day is that of the real-time clock, give or take the second in which each was read.
#[test_case]
fn the_time_of_day_is_known() {
    // Days before each month of a year that is no leap year.
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let shown = || {
        let [second, minute, hour, day, month, year] = [0, 2, 4, 7, 8, 9]
            .map(|index| u64::from(clock_register(index)))
            .map(|bcd| (bcd >> 4) * 10 + bcd % 16);
        let leap_days = year.div_ceil(4) + u64::from(year % 4 == 0 && month > 2);
        let days = 10_957 + 365 * year + leap_days + BEFORE[month as usize - 1] + day - 1;
        ((days * 24 + hour) * 60 + minute) * 60 + second
    };
    // QEMU's clock shows decimal digits and 24 hours.
    assert_eq!(clock_register(0x0b) & 6, 2);
    // It may be read while it is set forward, but not twice.
    let clock = core::iter::repeat_with(|| (shown(), shown())).find(|(a, b)| a == b).expect("it goes on").0;
    let wall = time::wall().expect("there is a clock");
    assert!(wall.abs_diff(clock) <= 2, "it is {clock}, not {wall}");
    assert!(wall > 1_700_000_000);
}

/// Measuring the clock's speed once more changes it by little, and neither sets the clock back nor ahead.
#[test_case]
fn the_clock_is_refined() {
    // Between two readings of the counter: on a busy host they may be far apart.
    let look = || (time::tsc(), time::now_ns(), time::tsc());
    run(async move {
        let (hz, before) = (time::tsc_hz(), look());
        time::refine().await;
        let (after, refined) = (look(), time::tsc_hz());
        assert!(refined.abs_diff(hz) < hz / 20, "{hz} Hz became {refined} Hz");
        let by_tsc = |counts: u64| (u128::from(counts) * 1_000_000_000 / u128::from(refined)) as u64;
        let (least, most) = (by_tsc(after.0 - before.2), by_tsc(after.2 - before.0));
        let elapsed = after.1 - before.1;
        assert!(elapsed >= 19_000_000, "{elapsed} ns");
        assert!(
            elapsed > least - least / 20 && elapsed < most + most / 20,
            "{elapsed} ns, not {least} to {most}"
        );
    })
}

/// Each sleep is followed by a look, and by one when enough time has passed; who sleeps on is left alone.
#[test_case]
fn a_second_look_follows_each_sleep() {
    run(async {
        let (mut look, mut looks) = (SecondLook::default(), Vec::new());
        let (start, mut rest) = (Instant::now(), None);
        assert!(look.want(), "no timer runs");
        poll_fn(|context| {
            if look.poll(context) {
                looks.push(start.elapsed());
            } else if looks.is_empty() {
                assert!(!look.want(), "a timer runs");
            }
            // On a busy host the second may be late: only what follows it is measured from it.
            if looks.len() < 2 {
                return Poll::Pending;
            }
            let rest = rest.get_or_insert_with(|| Timer::after(Duration::from_millis(20)));
            Pin::new(rest).poll(context)
        })
        .await;
        let least = Duration::from_micros(LOOK_AGAIN.as_micros() as u64);
        assert_eq!(looks.len(), 2, "one for each sleep: {looks:?}");
        // What is noted is a little later than the time that the next sleep begins with.
        assert!(looks[0] >= least && looks[1] >= 2 * least, "{looks:?}");
        // It begins anew.
        assert!(look.want());
        poll_fn(|context| if look.poll(context) { Poll::Ready(()) } else { Poll::Pending }).await;
    })
}

/// While a device is looked for, a stop of the machine for longer than the limit is half of it; two are all.
#[test_case]
fn what_is_looked_for_outlives_a_stop() {
    run(async {
        let limit = core::time::Duration::from_millis(100);
        for (stops, found) in [(1, Some(())), (3, None)] {
            let mut looks = 0;
            let look = || {
                looks += 1;
                let start = time::now();
                while looks <= stops && time::now() < start + 2 * limit {}
                (looks > stops).then_some(())
            };
            assert_eq!(time::look_for(limit, look).await, found, "{stops} stops");
        }
        let none = || None::<()>;
        assert_eq!(time::look_for(core::time::Duration::ZERO, none).await, None);
        assert_eq!(time::look_for(core::time::Duration::from_nanos(1), none).await, None);
    })
}

/// An alarm rings by the earliest of its times, and one for the end of time keeps no other from it.
#[test_case]
fn an_alarm_is_set_again() {
    run(async {
        let at = |milliseconds| Some(time::now() + core::time::Duration::from_millis(milliseconds));
        let most = core::time::Duration::from_secs(u64::MAX);
        for far in [None, at(60_000), Some(most), Some(core::time::Duration::MAX)] {
            let (mut alarm, near) = (Alarm::default(), at(20));
            let mut times = [far, at(40), near, far, at(30), None].into_iter();
            let mut wakes = 0;
            poll_fn(|context| {
                wakes += 1;
                times.by_ref().for_each(|next| alarm.set(next, context));
                if time::now() < near.expect("a time") { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            assert!(wakes > 1 && time::now() < near.expect("a time") + core::time::Duration::from_secs(1));
        }
    })
}

/// Alarms are not early, not much late, and the processor halts meanwhile.
#[test_case]
fn alarms_fire_on_time() {
    run(async {
        for milliseconds in [0u64, 1, 5, 20, 50] {
            let mut least = u64::MAX;
            // On a busy host this processor stands still now and then, but not each time.
            for _ in 0..20 {
                let start = Instant::now();
                Timer::after(Duration::from_millis(milliseconds)).await;
                let late = start.elapsed().as_micros().checked_sub(milliseconds * 1000).expect("not early");
                least = least.min(late);
                if least < 20_000 {
                    break;
                }
            }
            assert!(least < 20_000, "{milliseconds} ms are {least} µs late, or more, each of 20 times");
        }
        // On a busy host the shortest may be over before it comes to a halt.
        assert!(executor::halts() >= 3, "{} halts", executor::halts());
    })
}

/// Many alarms at once fire in their order.
#[test_case]
fn alarms_keep_their_order() {
    run(async {
        let mut timers = [30u64, 10, 20].map(|milliseconds| Box::pin(Timer::after_millis(milliseconds)));
        let mut order = alloc::vec::Vec::new();
        while order.len() < timers.len() {
            core::future::poll_fn(|context: &mut Context<'_>| {
                for (index, timer) in timers.iter_mut().enumerate() {
                    if !order.contains(&index) && timer.as_mut().poll(context).is_ready() {
                        order.push(index);
                        return Poll::Ready(());
                    }
                }
                Poll::Pending
            })
            .await;
        }
        assert_eq!(order, [1, 2, 0]);
    })
}

/// A vector wakes the task that waits for it, whether it fires before, or while it waits.
#[test_case]
fn vectors_wake_their_task() {
    run(async {
        let mut interrupt = interrupts::allocate().expect("vectors are free");
        let message = interrupt.message().expect("it is not a line");
        assert_eq!((message.address & 0xfff0_0000, message.data), (0xfee0_0000, 0x30));
        assert!(with_timeout(Duration::from_millis(5), interrupt.wait()).await.is_err(), "nothing fired yet");
        // SAFETY: raises the first vector for devices, as a device would by its message.
        let fire = || unsafe { asm!("int 0x30") };
        fire();
        fire();
        interrupt.wait().await;
        assert_eq!(interrupt.count(), 2);
        for _ in 0..1000 {
            let mut wait = pin!(interrupt.wait());
            core::future::poll_fn(|context| {
                assert!(wait.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            fire();
            wait.await;
        }
        assert_eq!(interrupt.count(), 1002);
        assert_eq!(interrupts::unexpected(), 0);
    })
}

/// While a task is ready the processor does not halt.
#[test_case]
fn ready_tasks_do_not_wait() {
    run(async {
        let halts = executor::halts();
        for _ in 0..1000 {
            let mut yielded = false;
            core::future::poll_fn(|context| {
                if yielded {
                    return Poll::Ready(());
                }
                yielded = true;
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
        assert_eq!(executor::halts(), halts);
    })
}

/// Vectors are handed out once, and come back when dropped.
#[test_case]
fn vectors_are_owned() {
    let all: alloc::vec::Vec<_> = core::iter::from_fn(interrupts::allocate).collect();
    assert_eq!(all.len(), 0xf0 - 0x30);
    let mut data: alloc::vec::Vec<_> =
        all.iter().filter_map(|one| one.message()).map(|one| one.data).collect();
    data.dedup();
    assert_eq!(data.len(), all.len());
    assert!(interrupts::allocate_line(1).is_none());
    drop(all);
    assert!(interrupts::allocate().is_some());
    assert!(interrupts::allocate_line(16).is_none());
}

/// A line of the second 8259, the real-time clock's, interrupts again each time it is waited for, and all who
/// share it are woken.
#[test_case]
fn lines_are_shared() {
    run(async {
        let mut first = interrupts::allocate_line(8).expect("lines are free");
        let mut second = interrupts::allocate_line(8).expect("a line can be shared");
        assert_eq!(first.message(), None);
        // 1,024 interrupts per second, each acknowledged by reading register C.
        set_clock_register(0x0a, clock_register(0x0a) & 0xf0 | 6);
        set_clock_register(0x0b, clock_register(0x0b) | 0x40);
        let start = Instant::now();
        for _ in 0..50 {
            clock_register(0x0c);
            with_timeout(Duration::from_secs(1), first.wait()).await.expect("the clock interrupts");
            with_timeout(Duration::from_secs(1), second.wait()).await.expect("it wakes both");
        }
        set_clock_register(0x0b, clock_register(0x0b) & !0x40);
        let milliseconds = start.elapsed().as_millis();
        assert!((40..500).contains(&milliseconds), "50 interrupts took {milliseconds} ms");
        assert_eq!(interrupts::unexpected(), 0);
    })
}
