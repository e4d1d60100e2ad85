//! Channel 2 of the programmable interval timer (8254): the clock that the time-stamp counter is measured
//! against.

use x86_64::instructions::port::{Port, PortWriteOnly};

/// Counts per second.
pub const HZ: u64 = 1_193_182;
/// Counts after which [`elapsed`] is `None`: 54.9 ms.
const PERIOD: u16 = u16::MAX;

const COMMAND: u16 = 0x43;
const CHANNEL_2: u16 = 0x42;
const CONTROL: u16 = 0x61;

const GATE: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const OUT: u8 = 1 << 5;

/// Starts counting.
pub fn start() {
    let (mut command, mut control, mut channel) =
        (PortWriteOnly::<u8>::new(COMMAND), Port::<u8>::new(CONTROL), Port::<u8>::new(CHANNEL_2));
    // SAFETY: these ports are the timer's on every PC. Channel 2 drives nothing but the speaker, which is
    // off.
    unsafe {
        let bits = control.read();
        control.write(bits & !SPEAKER | GATE);
        // Channel 2, low byte then high byte, mode 0 (output rises once, at the end), binary.
        command.write(0b1011_0000);
        let [low, high] = PERIOD.to_le_bytes();
        channel.write(low);
        channel.write(high);
    }
}

/// Counts since [`start`]; `None` once the period is over.
pub fn elapsed() -> Option<u64> {
    let (mut command, mut control, mut channel) =
        (PortWriteOnly::<u8>::new(COMMAND), Port::<u8>::new(CONTROL), Port::<u8>::new(CHANNEL_2));
    // SAFETY: as in `start`; latching and reading change nothing but the latch.
    let (count, over) = unsafe {
        command.write(0b1000_0000);
        let count = u16::from_le_bytes([channel.read(), channel.read()]);
        (count, control.read() & OUT != 0)
    };
    (!over).then_some(u64::from(PERIOD - count))
}
