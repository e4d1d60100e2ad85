//! What every driver is asked to do.

use alloc::vec::Vec;
use core::time::Duration;

use ringfence_drivers::pci::Function;
use ringfence_kernel::time;
use ringfence_memory::ConfigAccess;

use crate::support::lines::Subject;

/// A network card under one of the drivers.
pub trait Card {
    /// The features in use.
    fn features(&self) -> u64;

    /// Makes `frame` what is sent from now on. Nothing sent before is still on its way.
    fn load(&mut self, frame: &[u8]);

    /// Sends the frame `count` times, at most 128, as one batch. Waits while there is no room.
    fn send(&mut self, count: usize);

    /// Receives what is there and gives the buffers back as one batch; says how many. The simple drivers take
    /// no more than `most`.
    fn receive(&mut self, most: usize) -> usize;

    /// What it cost so far, if the driver can tell.
    fn costs(&self) -> Option<Costs>;
}

/// Where a card is.
pub struct Place {
    pub function: Function,
    pub access: &'static dyn ConfigAccess,
}

/// What a card cost beside instructions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    /// Notifications of the device: each is a write to a register.
    pub kicks: u64,
    /// Interrupts of the receive and the transmit queue, if the driver would notice.
    pub interrupts: Option<[u64; 2]>,
}

impl Costs {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        let interrupts = self.interrupts.zip(other.interrupts);
        Self {
            kicks: self.kicks + other.kicks,
            interrupts: interrupts.map(|([a, b], [c, d])| [a + c, b + d]),
        }
    }

    /// What was added to those of `before`.
    pub fn since(self, before: Self) -> Self {
        let interrupts = self.interrupts.zip(before.interrupts);
        Self {
            kicks: self.kicks - before.kicks,
            interrupts: interrupts.map(|([a, b], [c, d])| [a - c, b - d]),
        }
    }

    /// Reports them, given that they are those of so many frames.
    pub fn report(self, subject: &Subject<'_>, frames: u64) {
        let report = |metric, count: u64| {
            subject.report(metric, "per frame", format_args!("{:.5}", count as f64 / frames as f64));
        };
        report("kicks", self.kicks);
        if let Some([receive, transmit]) = self.interrupts {
            report("receive interrupts", receive);
            report("transmit interrupts", transmit);
        }
    }
}

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Tries until there is something.
#[inline]
pub fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let mut start = None;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        let now = time::tsc();
        let waited = now - *start.get_or_insert(now);
        assert!(waited < LIMIT.as_secs() * time::tsc_hz(), "the device does not go on");
    }
}

/// Waits for `count` frames, and gives back at most `batch` buffers at a time.
pub fn receive_all(card: &mut dyn Card, count: usize, batch: usize) {
    receive_until(card, count, 0, batch);
}

/// The same until no more than `rest` of the `count` frames are missing; says how many are.
pub fn receive_until(card: &mut dyn Card, count: usize, rest: usize, batch: usize) -> usize {
    let mut left = count;
    while left > rest {
        left -= until(|| Some(card.receive(left.min(batch))).filter(|&received| received > 0));
    }
    left
}

/// The Ethernet type for experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Destination of frames on the hub: everyone. Cards take these without looking further.
const BROADCAST: [u8; 6] = [0xff; 6];
/// A locally administered source address.
const SOURCE: [u8; 6] = [0x02, 0x52, 0x46, 0, 0, 1];

/// A frame of `len` bytes. It asks a peer on the host, when it has seen `after` of them, to answer with
/// `answers` frames of `answer_len` bytes.
pub fn frame(len: usize, after: u32, answers: u32, answer_len: u16) -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        &BROADCAST,
        &SOURCE,
        &EXPERIMENT,
        &after.to_le_bytes(),
        &answers.to_le_bytes(),
        &answer_len.to_le_bytes(),
    ];
    let mut frame = parts.concat();
    frame.resize(len, 0x5a);
    frame
}
