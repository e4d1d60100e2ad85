//! The power button, and the way off, as fixed hardware has them (ACPI 6.5, 4.8.2 and 4.8.3).

use core::time::Duration;

use embassy_time::Timer;
use x86_64::instructions::port::Port;

use crate::acpi::Power;
use crate::arch::pic;
use crate::interrupts::{self, Interrupt};
use crate::qemu::{self, ExitCode};
use crate::time;

/// The button, in the registers of events.
const BUTTON: u16 = 1 << 8;
/// In the control register: ACPI is on.
const ON: u16 = 1 << 0;
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP: u16 = 1 << 13;

/// How long turning ACPI on may take.
const TURN_ON_LIMIT: Duration = Duration::from_secs(1);
/// How often the button is looked at without an interrupt.
const INTERVAL: u64 = 250;

/// Waits until the button is pressed. Without one that is never.
pub async fn pressed(power: Option<&Power>) {
    let Some(power) = power else { return core::future::pending().await };
    if let Some((port, value)) = power.turn_on.filter(|_| read(power.control) & ON == 0) {
        // SAFETY: firmware says that this hands its events to us, none of which touches memory.
        unsafe { Port::new(port).write(value) };
        time::look_for(TURN_ON_LIMIT, || (read(power.control) & ON != 0).then_some(())).await;
    }
    let mut line = interrupts::allocate_line(power.line).filter(|_| pic::set_level(power.line));
    write(power.status, BUTTON);
    write(power.enable, BUTTON);
    while read(power.status) & BUTTON == 0 {
        wait(&mut line).await;
    }
    write(power.status, BUTTON);
}

async fn wait(line: &mut Option<Interrupt>) {
    match line {
        Some(line) => line.wait().await,
        None => Timer::after_millis(INTERVAL).await,
    }
}

/// Ends QEMU as after a success, else switches the machine off, else stops.
///
/// In this order, because QEMU's status is the same for a machine that was switched off as for one that was
/// reset by a fault.
pub fn off(power: Option<&Power>) -> ! {
    qemu::try_exit(ExitCode::Passed);
    if let Some((power, off)) = power.and_then(|power| Some((power, power.off?))) {
        write(power.control, read(power.control) & !SLEEP_TYPE | u16::from(off) << 10 | SLEEP);
    }
    qemu::halt()
}

/// Reads one of the registers.
fn read(port: u16) -> u16 {
    // SAFETY: firmware says that the register is there; reading it changes nothing.
    unsafe { Port::new(port).read() }
}

/// Writes one of the registers.
fn write(port: u16, value: u16) {
    // SAFETY: firmware says that the register is there. Events, and power, are all that it is about: the
    // processor stops before anything in memory is lost.
    unsafe { Port::new(port).write(value) }
}
