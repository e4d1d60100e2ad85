//! The serial port: `log` records for a person, and plain lines for the test protocol.

use core::fmt::{self, Write};

use log::{Level, LevelFilter, Metadata, Record};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86_64::instructions::interrupts::without_interrupts;

/// I/O port of the first serial port of a PC.
const COM1: u16 = 0x3f8;

struct Serial(Uart16550<PioBackend>);

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.send_bytes_exact(text.as_bytes());
        Ok(())
    }
}

/// `None` until [`init`], and on a machine without a serial port.
static SERIAL: Mutex<Option<Serial>> = Mutex::new(None);

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => print(format_args!("error: {}\n", record.args())),
            Level::Warn => print(format_args!("warning: {}\n", record.args())),
            Level::Info => print(format_args!("{}\n", record.args())),
            Level::Debug | Level::Trace => print(format_args!("[{}] {}\n", record.target(), record.args())),
        }
    }

    fn flush(&self) {}
}

/// Sets up the serial port and the `log` crate, at level `info`.
pub fn init() {
    // SAFETY: the port is the standard one of a PC, and this is its only user.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(COM1) }
        && uart.init(Config::default()).is_ok()
    {
        *SERIAL.lock() = Some(Serial(uart));
    }
    // A second start would be refused, and change nothing.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// Sets the level by name, as given in the option `opt/org.ringfence/log`; an unknown name is reported.
pub fn set_level(name: &str) {
    match name.parse() {
        Ok(level) => log::set_max_level(level),
        Err(_) => log::warn!("unknown log level {name:?}: use off, error, warn, info, debug or trace"),
    }
}

/// Prints without any decoration: for [`println!`](crate::println).
pub fn print(arguments: fmt::Arguments<'_>) {
    without_interrupts(|| {
        if let Some(serial) = SERIAL.lock().as_mut() {
            // Writing to the serial port cannot fail; what formats itself badly is cut short.
            let _ = serial.write_fmt(arguments);
        }
    });
}

/// Makes the serial port usable after a failure, even if the failing code was printing.
///
/// # Safety
/// Whoever held the port never runs again.
pub unsafe fn seize() {
    // SAFETY: the caller vouches that the holder is gone.
    unsafe { SERIAL.force_unlock() };
}

/// Prints a line on the serial port, as it is: for the test protocol. Everything else uses `log`.
#[macro_export]
macro_rules! println {
    () => { $crate::logging::print(format_args!("\n")) };
    ($($argument:tt)*) => {
        $crate::logging::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
