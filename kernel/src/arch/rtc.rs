//! The real-time clock of a PC (MC146818 and its heirs): the time of day, in whole seconds. Read once at the
//! start, it is believed to show UTC, as QEMU's does unless told otherwise.

use ringfence_services::http::Civil;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::{Port, PortWriteOnly};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

/// Register B: hours run to 23, and numbers are binary; else they run to 12, and are decimal digits.
const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
/// Of the hours where they run to 12.
const AFTERNOON: u8 = 1 << 7;

/// Seconds, minutes, hours, day of the month, month, year within the century, register B.
type Registers = [u8; 7];

/// Seconds since 1970-01-01T00:00:00Z; `None` where there is no such clock, or it shows no time.
pub fn read() -> Option<u64> {
    // A clock that is being set forward shows anything, for less than 2 ms: what it shows twice is the time.
    // One that is not there shows ones.
    (0..100)
        .map(|_| [registers(), registers()])
        .find(|[first, second]| first == second)
        .and_then(|[registers, _]| decode(registers))
}

fn registers() -> Registers {
    let (mut index, mut data) = (PortWriteOnly::<u8>::new(INDEX), Port::<u8>::new(DATA));
    without_interrupts(|| {
        [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x0b].map(|register| {
            // SAFETY: the ports are the clock's on every PC; none of these registers changes by being read.
            // The top bit of the index, which masks NMIs, stays clear as it was.
            unsafe {
                index.write(register);
                data.read()
            }
        })
    })
}

fn decode([second, minute, hour, day, month, year, mode]: Registers) -> Option<u64> {
    let number = |value: u8| {
        let value = u64::from(value);
        if mode & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    };
    let hour = match mode & HOURS_24 {
        0 => number(hour & !AFTERNOON) % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 },
        _ => number(hour),
    };
    let (second, minute, day, month) = (number(second), number(minute), number(day), number(month));
    // Nobody has run this before 2000, and where the century is kept differs.
    Civil { year: 2000 + number(year), month, day, hour, minute, second }.seconds()
}
