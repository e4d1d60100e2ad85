//! Channel 0 of the programmable interval timer (8254): the clock that the time-stamp counter is measured
//! against. (Channel 2 counts only as port 0x61 says, which not every machine has.)

use x86_64::instructions::port::{Port, PortWriteOnly};

/// Counts per second.
pub const HZ: u64 = 1_193_182;
/// Counts after which [`elapsed`] is `None`: 54.9 ms.
const PERIOD: u16 = u16::MAX;

const COMMAND: u16 = 0x43;
const CHANNEL_0: u16 = 0x40;

/// In the status: the output has risen.
const OUT: u8 = 1 << 7;

/// Starts counting.
pub fn start() {
    let (mut command, mut channel) = (PortWriteOnly::<u8>::new(COMMAND), Port::<u8>::new(CHANNEL_0));
    // SAFETY: these ports are the timer's on every PC. The channel drives line 0, which is masked for good.
    unsafe {
        // Channel 0, low byte then high byte, mode 0 (output rises once, at the end), binary.
        command.write(0b0011_0000);
        let [low, high] = PERIOD.to_le_bytes();
        channel.write(low);
        channel.write(high);
    }
}

/// Counts since [`start`]; `None` once the period is over, and without a timer.
pub fn elapsed() -> Option<u64> {
    let (mut command, mut channel) = (PortWriteOnly::<u8>::new(COMMAND), Port::<u8>::new(CHANNEL_0));
    // SAFETY: as in `start`; latching and reading change nothing but the latch.
    let (status, count) = unsafe {
        // Latches status and count of channel 0.
        command.write(0b1100_0010);
        (channel.read(), u16::from_le_bytes([channel.read(), channel.read()]))
    };
    (status & OUT == 0).then_some(u64::from(PERIOD - count))
}
