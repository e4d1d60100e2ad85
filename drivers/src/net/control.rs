//! What the pairs of a network device have in common: its configuration, and the control queue (5.1.6.5).

use core::time::Duration;

use ringfence_memory::{DmaWindows, Quiet, ResetError, Segment};

use super::{STATUS, STATUS_LINK_UP, features};
use crate::virtio::{
    Buffers, Controls, Device, DriverOk, Ends, Error, Queue, QueueOptions, Transport, sealed,
};

/// How long the device may take to answer a command.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(2);

/// A command's class and number (5.1.6.5.5), and the good answer to one (5.1.6.5).
const MQ: u8 = 4;
const VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
/// Bytes of a command: class, number, and how many pairs.
const COMMAND_LEN: u32 = 4;

/// The command to use so many pairs.
#[derive(Default)]
pub(super) struct SetPairs(u16);

impl sealed::Sealed for SetPairs {}

impl Buffers for SetPairs {
    type Context = Controls<COMMAND_LEN>;
    type Request = ();

    fn ends(controls: &Self::Context, slot: u16) -> Option<[Segment<'_>; 2]> {
        controls.ends(slot)
    }

    fn only<'a>(&'a self, (): (), _: &'a Self::Context) -> Option<Segment<'a>> {
        None
    }

    fn prepare<'a>(&self, (): (), controls: &'a Self::Context, slot: u16) -> Ends<'a> {
        let [low, high] = self.0.to_le_bytes();
        controls.prepare(slot, [u32::from_le_bytes([MQ, VQ_PAIRS_SET, low, high]).into(), 0])
    }

    fn least_written(&self) -> u32 {
        1
    }

    fn abandon(self) {}
}

/// What the pairs of a network device have in common. It takes locks: not for interrupt handlers.
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
        let commands =
            commands.map(|index| device.queue(index, &WISH, 2, |shape| Controls::new(&windows, shape.slots)));
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

    /// Resets the device for good. Nobody needs the proof: what is in the queues is from pools of their own,
    /// which are dropped with them.
    pub(super) fn shut_down(&mut self) {
        let _ = self.device.shut_down_at_last();
    }

    /// Asks the device to use `pairs` pairs; `false` if it cannot be asked.
    pub(super) fn ask_for_pairs(&mut self, pairs: u16) -> Result<bool, Error> {
        let Some(commands) = &mut self.commands else { return Ok(false) };
        commands.submit(SetPairs(pairs))?;
        commands.kick();
        Ok(true)
    }

    /// Whether it does, if it was asked and has answered. If not it goes on with one.
    pub(super) fn answer(&mut self) -> Result<Option<bool>, Error> {
        let Some(commands) = &mut self.commands else { return Ok(None) };
        let Some(completion) = commands.pop()? else { return Ok(None) };
        let answer = commands.context().status(completion.ticket);
        Ok(Some(completion.written.is_some() && answer == OK))
    }

    /// Why it has not answered.
    pub(super) fn why_silent(&self) -> Error {
        self.device.check().err().unwrap_or(Error::Timeout)
    }

    pub(super) fn windows(&self) -> &DmaWindows {
        self.device.windows()
    }

    /// Asks the device to reset for good, and does not wait; dropping the driver when it has does not either.
    ///
    /// # Errors
    /// As for [`Device::begin_shut_down`].
    pub fn begin_shut_down(&mut self) -> Result<(), ResetError> {
        self.device.begin_shut_down()
    }

    /// Whether the device has reset since it was asked.
    pub fn poll_shut_down(&mut self) -> Option<Quiet> {
        self.device.poll_shut_down()
    }

    /// The device's MAC address. If it has none, or that of a group or only zeros, a locally administered
    /// one, the same at each start.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The most bytes that the frames to send may carry after their Ethernet header: 68..=1500.
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
        if self.features() & features::STATUS != 0 {
            self.link_up = self.device.config::<u16>(STATUS)? & STATUS_LINK_UP != 0;
        }
        Ok(())
    }
}
