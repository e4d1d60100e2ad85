//! The serial port: `log` records for a person, and plain lines for the test protocol.

use core::fmt::{self, Write};

use heapless::Vec;
use log::{Level, LevelFilter, Metadata, Record};
use spin::{Mutex, Once};
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

/// What is logged; `None` while that is all that the level of the `log` crate lets through.
static FILTER: Once<Filter> = Once::new();

/// A level for everything, and others for modules.
struct Filter {
    level: LevelFilter,
    modules: Vec<(&'static str, LevelFilter), MAX_MODULES>,
}

/// Modules that can have levels of their own.
const MAX_MODULES: usize = 16;

impl Filter {
    /// Reads levels and `MODULE=LEVEL`s with commas between. What it does not know is reported.
    fn parse(text: &'static str) -> Self {
        let mut filter = Self { level: LevelFilter::Info, modules: Vec::new() };
        for part in text.split(',').map(str::trim) {
            let (module, level) = part.rsplit_once('=').unwrap_or(("", part));
            match level.parse() {
                Ok(level) if module.is_empty() => filter.level = level,
                Ok(level) if filter.modules.push((module, level)).is_ok() => {}
                Ok(_) => log::warn!("log: {module} is left out, {MAX_MODULES} modules at most"),
                Err(_) => {
                    let level = level.escape_debug();
                    log::warn!("log: unknown level {level}: use off, error, warn, info, debug or trace");
                }
            }
        }
        filter
    }

    /// The level of a module: that of the longest name given for it or for a module around it. Those of our
    /// own crates may be without `ringfence_`.
    fn level(&self, module: &str) -> LevelFilter {
        let short = module.strip_prefix("ringfence_").unwrap_or(module);
        let is_in = |name: &str, path: &str| {
            path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let fits = self.modules.iter().filter(|(name, _)| is_in(name, module) || is_in(name, short));
        fits.max_by_key(|(name, _)| name.len()).map_or(self.level, |(_, level)| *level)
    }

    /// The most that any module logs.
    fn most(&self) -> LevelFilter {
        self.modules.iter().fold(self.level, |most, (_, level)| most.max(*level))
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        FILTER.get().is_none_or(|filter| metadata.level() <= filter.level(metadata.target()))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
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

/// Sets what is logged, as given in the option `opt/org.ringfence/log`: a level, levels for modules, or both,
/// as in `warn,smoltcp=trace`. The first call counts.
pub fn set_filter(text: &'static str) {
    let filter = FILTER.call_once(|| Filter::parse(text));
    log::set_max_level(filter.most());
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

/// Prints unless somebody is just printing: for what may have interrupted that. Whether it did.
pub fn try_print(arguments: fmt::Arguments<'_>) -> bool {
    let Some(mut serial) = SERIAL.try_lock() else { return false };
    if let Some(serial) = serial.as_mut() {
        // As in `print`.
        let _ = serial.write_fmt(arguments);
    }
    true
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
