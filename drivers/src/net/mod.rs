//! Virtio network devices (section 5.1): whole frames, no offloads, one pair of queues or several.

mod control;
#[cfg(feature = "embassy-net-driver")]
mod embassy;
pub mod features;
mod pair;
#[cfg(any(feature = "smoltcp", feature = "embassy-net-driver"))]
mod phy;

use alloc::vec::Vec;
use core::iter;

use ringfence_memory::{DeviceId, DmaGrant, DmaWindows};

use crate::virtio::features::{EVENT_IDX, QUEUES, RING_PACKED};
use crate::virtio::{Device, DeviceType, DriverOk, Error, Offer, Transport};

use control::COMMAND_LIMIT;
pub use control::NetControl;
#[cfg(feature = "embassy-net-driver")]
pub use embassy::EmbassyNet;
pub use pair::{NetPair, RxFrame, TxFrame};
#[cfg(any(feature = "smoltcp", feature = "embassy-net-driver"))]
pub use phy::Phy;

/// What several pairs need.
const SEVERAL: u64 = features::MQ | features::CTRL_VQ;

/// Offsets in the device configuration (5.1.4).
const MAC: usize = 0;
const STATUS: usize = 6;
const MAX_PAIRS: usize = 8;
const MTU: usize = 10;
const STATUS_LINK_UP: u16 = 1;

const ETHERNET_HEADER_LEN: usize = 14;
/// The payload of an Ethernet frame, unless the device says less.
const DEFAULT_MTU: u16 = 1500;
/// The smallest MTU that a device may report.
const LEAST_MTU: u16 = 68;
/// The longest frame that goes through here, without its checksum.
pub const MAX_FRAME_LEN: usize = DEFAULT_MTU as usize + ETHERNET_HEADER_LEN;

/// How a network device is to be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most pairs of queues, 1 or more; as many are used as the device has. It spreads what it receives
    /// over them.
    pub pairs: u16,
    /// The most descriptors of each queue, and so buffers in each direction: 1 or more.
    pub queue_size: u16,
    /// Which of the [`QUEUES`] features may be accepted.
    pub features: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { pairs: 1, queue_size: 256, features: QUEUES }
    }
}

/// A virtio network device.
///
/// Dropping it resets the device, as with [`Block`](crate::block::Block).
///
/// Its parts are used apart: frames go through a pair of queues while somebody else has the control. A
/// [`NetPair`] takes no lock. What is about the device does: bringing it up, its configuration, dropping it,
/// and so they are not for interrupt handlers.
pub struct Net<T: Transport> {
    // First, so that it is dropped first.
    /// What its pairs have in common: the address, the link, features, resets.
    pub control: NetControl<T>,
    /// The pair of queues that every card has. If there are more, [`split`](Self::split) gives each of them.
    pub pair: NetPair<T::Notifier>,
    others: Vec<NetPair<T::Notifier>>,
    /// While the device has not said whether it uses the others.
    asked: Option<DriverOk>,
}

impl<T: Transport> Net<T> {
    /// Brings the device up with the default [`Options`].
    ///
    /// # Errors
    /// Any; the device is left asked to reset and marked as failed; see [`Device`] for how long that may
    /// take.
    pub fn new(transport: T, grant: &DmaGrant, windows: DmaWindows) -> Result<Self, Error> {
        Self::with_options(transport, grant, windows, &Options::default())
    }

    /// Brings the device up and fills the receive queues. A device that refuses to use several pairs is used
    /// with one.
    ///
    /// # Errors
    /// As for [`new`](Self::new). Also if the device does not answer how many pairs it will use.
    pub fn with_options(
        transport: T,
        grant: &DmaGrant,
        windows: DmaWindows,
        options: &Options,
    ) -> Result<Self, Error> {
        let mut net = Self::begin(transport, grant, windows, options)?;
        let windows = net.control.windows().clone();
        let known = windows.wait(COMMAND_LIMIT, || match net.poll_pairs() {
            Ok(false) => None,
            known => Some(known),
        });
        known.unwrap_or_else(|| Err(net.control.why_silent())).map(|_| net)
    }

    /// The same, but does not wait for the device to say whether it uses several pairs:
    /// [`poll_pairs`](Self::poll_pairs) before they are.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn begin(
        transport: T,
        grant: &DmaGrant,
        windows: DmaWindows,
        options: &Options,
    ) -> Result<Self, Error> {
        Self::take(Device::begin(transport, DeviceType::NET, grant, windows)?, options)
    }

    /// The same with a device that has been reset, as [`Device::begin_reset`] does without waiting.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn take(offer: Offer<T>, options: &Options) -> Result<Self, Error> {
        if offer.device_type() != DeviceType::NET {
            return Err(Error::WrongType);
        }
        let id = offer.device();
        let Config { mac, mtu, pairs: most } = read_config(&offer, options.pairs > 1)?;
        let several = most.map_or(0, |_| SEVERAL);
        let with_mac = mac.map_or(0, |_| features::MAC);
        let with_mtu = mtu.map_or(0, |_| features::MTU);
        let wanted = features::STATUS | several | with_mac | with_mtu;
        let wanted = wanted | queue_features(&offer, options.features);
        let mac = mac.unwrap_or_else(|| own_mac(id));
        let mut device = offer.negotiate(wanted)?;
        let most_bytes = mtu.unwrap_or(DEFAULT_MTU);
        let mut set_up = |number| NetPair::new(&mut device, number, options.queue_size, most_bytes);
        let pair = set_up(0)?;
        let pairs = options.pairs.min(most.unwrap_or_default());
        let others = (1..pairs).map(set_up).collect::<Result<_, _>>()?;
        // After all pairs that there are, in use or not (5.1.2).
        let commands = most.map(|most| most.wrapping_mul(2));
        let mut control = NetControl::new(device, commands, mac, most_bytes)?;
        // Before it is a `Net`, which would only reset the device when it is dropped.
        let started = control.start()?;
        let mut net = Self { control, pair, others, asked: None };
        net.pair.start(&started);
        net.asked = net.control.ask_for_pairs(pairs)?.then_some(started);
        Ok(net)
    }

    /// Whether it is known how many pairs are used.
    ///
    /// # Errors
    /// [`Error::Queue`] if the control queue is broken: drop the driver, since nobody knows what the device
    /// does with the other pairs. So it is if it does not answer at all.
    pub fn poll_pairs(&mut self) -> Result<bool, Error> {
        let Some(started) = &self.asked else { return Ok(true) };
        match self.control.answer()? {
            None => return Ok(false),
            Some(true) => self.others.iter_mut().for_each(|pair| pair.start(started)),
            // The device has not touched the others.
            Some(false) => self.others.clear(),
        }
        self.asked = None;
        Ok(true)
    }

    /// What the pairs have in common, and each pair, so that each can be given to a CPU of its own.
    pub fn split(&mut self) -> (&mut NetControl<T>, impl Iterator<Item = &mut NetPair<T::Notifier>>) {
        (&mut self.control, iter::once(&mut self.pair).chain(&mut self.others))
    }

    /// How many pairs are in use.
    pub fn pairs(&self) -> usize {
        self.others.len().saturating_add(1)
    }
}

impl<T: Transport> Drop for Net<T> {
    fn drop(&mut self) {
        self.control.shut_down();
    }
}

/// Which of the `wanted` features of queues to accept.
fn queue_features<T: Transport>(offer: &Offer<T>, wanted: u64) -> u64 {
    let wanted = wanted & QUEUES;
    // With both, QEMU (seen in 7.2) can stop sending for good: after a packet had to wait for the host it
    // goes on with the next ones without moving the position from which on it wants to be notified, so the
    // driver stays silent.
    if offer.offered() & wanted & RING_PACKED != 0 { wanted & !EVENT_IDX } else { wanted }
}

/// What the device says, as far as it makes sense.
struct Config {
    /// If it is one that a station can have: accepted, it would have to be used (5.1.4.2).
    mac: Option<[u8; 6]>,
    /// An MTU that our buffers cannot carry must not be accepted (5.1.4.2).
    mtu: Option<u16>,
    /// How many pairs of queues there are, if several.
    pairs: Option<u16>,
}

/// Reads what depends on features before they are chosen, and all of it at one moment; how many pairs there
/// are only if `several` are wanted.
fn read_config<T: Transport>(offer: &Offer<T>, several: bool) -> Result<Config, Error> {
    /// 5.1.4.1 allows one more, but then the control queue's number (5.1.2) would not be one of 16 bits.
    const MOST: u16 = 0x7fff;
    let offers = |features| offer.offered() & features == features;
    offer.consistent_config(|offer| {
        let mut mac = offers(features::MAC).then_some([0; 6]);
        for (offset, byte) in mac.iter_mut().flatten().enumerate() {
            *byte = offer.config(MAC.saturating_add(offset))?;
        }
        let mtu = offers(features::MTU).then(|| offer.config(MTU)).transpose()?;
        let pairs = (several && offers(SEVERAL)).then(|| offer.config(MAX_PAIRS)).transpose()?;
        Ok(Config {
            // Not the address of a group, as that of all is.
            mac: mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]),
            mtu: mtu.filter(|mtu| (LEAST_MTU..=DEFAULT_MTU).contains(mtu)),
            pairs: pairs.filter(|pairs| (2..=MOST).contains(pairs)),
        })
    })
}

/// A locally administered address, different for each device.
fn own_mac(device: DeviceId) -> [u8; 6] {
    let [.., off_bus, a, b, c, d] = device.0.to_be_bytes();
    [0x02, 0x52 ^ off_bus, a, b, c, d]
}
