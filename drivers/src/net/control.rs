//! What the pairs of a network device have in common: its configuration, and the control queue (5.1.6.5).

use core::sync::atomic::Ordering;
use core::time::Duration;

use ringfence_memory::{Direction, DmaArray, DmaWindows, Quiet, Segment, SegmentArray};

use super::{STATUS, STATUS_LINK_UP};
use crate::virtio::{Buffers, Device, DriverOk, Error, Queue, QueueOptions, Transport, features, sealed};

/// How long the device may take to answer a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);

/// A command's class and number (5.1.6.5.5), and the answers to one (5.1.6.5).
const MQ: u8 = 4;
const VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
const ERR: u8 = 1;
/// Bytes of a command: class, number, and how many pairs.
const COMMAND_LEN: usize = 4;

/// The command to use so many pairs.
#[derive(Default)]
pub(super) struct SetPairs(u16);

/// Where the one command in flight is.
pub(super) struct Memory {
    command: DmaArray<u8>,
    answer: DmaArray<u8>,
    /// The same as segments.
    fixed: [SegmentArray; 2],
}

impl Memory {
    fn new(windows: &DmaWindows) -> Result<Self, Error> {
        let command = windows.allocate_for(COMMAND_LEN, Direction::ToDevice)?.array(0, COMMAND_LEN)?;
        let answer = windows.allocate_for(1, Direction::FromDevice)?.array(0, 1)?;
        let fixed = command.segments(COMMAND_LEN, false).zip(answer.segments(1, true));
        let (first, last) = fixed.ok_or(Error::BadConfig)?;
        Ok(Self { command, answer, fixed: [first, last] })
    }
}

impl sealed::Sealed for SetPairs {}

impl Buffers for SetPairs {
    type Context = Memory;
    type Request = ();

    const LAST: Option<u32> = Some(1);

    fn fixed(memory: &Memory) -> Option<[&SegmentArray; 2]> {
        Some(memory.fixed.each_ref())
    }

    fn only<'a>(&'a self, (): (), _: &'a Memory) -> Option<Segment<'a>> {
        None
    }

    fn prepare(&self, (): (), memory: &Memory, _: u16) -> Option<()> {
        let [low, high] = self.0.to_le_bytes();
        for (index, byte) in [MQ, VQ_PAIRS_SET, low, high].into_iter().enumerate() {
            memory.command.store(index, byte, Ordering::Relaxed)?;
        }
        memory.answer.store(0, ERR, Ordering::Relaxed)
    }

    fn least_written(&self) -> u32 {
        1
    }

    fn abandon(self) {}
}

/// What the pairs of a network device have in common.
pub struct NetControl<T: Transport> {
    device: Device<T>,
    commands: Option<Queue<SetPairs, T::Notifier>>,
    mac: [u8; 6],
    mtu: u16,
    link_up: bool,
}

impl<T: Transport> NetControl<T> {
    /// `commands` is the number of the control queue, if one is needed.
    pub(super) fn new(
        mut device: Device<T>,
        commands: Option<u16>,
        mac: [u8; 6],
        mtu: u16,
    ) -> Result<Self, Error> {
        const WISH: QueueOptions = QueueOptions { size: 2, chains: 1, segments: 2, longest: 2 };
        let windows = device.windows().clone();
        let commands = commands.map(|index| device.queue(index, &WISH, 2, |_| Memory::new(&windows)));
        let mut control = Self { commands: commands.transpose()?, device, mac, mtu, link_up: true };
        control.read_link()?;
        Ok(control)
    }

    pub(super) fn start(&mut self) -> Result<DriverOk, Error> {
        let started = self.device.driver_ok()?;
        if let Some(commands) = &mut self.commands {
            commands.start(&started);
            commands.disable_interrupts();
        }
        Ok(started)
    }

    /// Resets the device; what the control queue held is free then.
    pub(super) fn shut_down(&mut self) -> Option<Quiet> {
        let quiet = self.device.shut_down_at_last().ok()?;
        if let Some(commands) = &mut self.commands {
            commands.reclaim(&quiet).for_each(drop);
        }
        Some(quiet)
    }

    /// Asks the device to use `pairs` pairs, and waits for the answer. `false` if it refused: then it goes on
    /// with one.
    ///
    /// # Errors
    /// [`Error::Timeout`] if there is no answer, [`Error::Queue`] if the control queue is broken, or what is
    /// wrong with the device: it must be reset, since nobody knows what it does with the other pairs.
    pub(super) fn set_pairs(&mut self, pairs: u16) -> Result<bool, Error> {
        let Self { device, commands: Some(commands), .. } = self else { return Ok(false) };
        commands.submit(SetPairs(pairs)).map_err(|(error, _)| error)?;
        commands.kick();
        let start = device.windows().now();
        loop {
            if let Some(completion) = commands.pop()? {
                let answer = commands.context().answer.load(0, Ordering::Relaxed);
                return Ok(completion.written.is_some() && answer == Some(OK));
            }
            if device.windows().now().saturating_sub(start) > COMMAND_LIMIT {
                device.check()?;
                return Err(Error::Timeout);
            }
            core::hint::spin_loop();
        }
    }

    /// The device's MAC address. If it has none, or that of a group or only zeros, a locally administered
    /// one, the same at each start.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The most bytes that the fixed to send may carry after their Ethernet header: 68..=1500.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the cable is plugged in, as of the last [`config_changed`](Self::config_changed).
    pub fn link_up(&self) -> bool {
        self.link_up
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// After a configuration interrupt: checks the device's health and reads the link's state. `true` if the
    /// link changed.
    ///
    /// # Errors
    /// Any: drop the driver.
    pub fn config_changed(&mut self) -> Result<bool, Error> {
        self.device.check()?;
        let before = self.link_up;
        self.read_link()?;
        Ok(self.link_up != before)
    }

    fn read_link(&mut self) -> Result<(), Error> {
        if self.features() & features::net::STATUS != 0 {
            self.link_up = self.device.config::<u16>(STATUS)? & STATUS_LINK_UP != 0;
        }
        Ok(())
    }
}
