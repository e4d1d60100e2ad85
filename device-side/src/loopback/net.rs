//! A network card whose cable leads back to it (section 5.1).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::chain::{ChainError, ReadableChain, WritableChain};
use crate::queue::{DescChain, DriverNotify};
use ringfence_drivers::net::features;
use ringfence_drivers::virtio::DeviceType;

use super::{Broken, Model, Queues, View};

/// Length of the header in front of each frame (5.1.6).
const HEADER_LEN: usize = 12;
/// The header of a received frame: no offloads, in one buffer.
const HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The longest frame that is taken.
const MAX_FRAME_LEN: usize = 1 << 16;
/// Frames on the cable at most; then sending has to wait.
const MAX_FRAMES: usize = 256;
/// `status`: the link is up (5.1.4).
const LINK_UP: u8 = 1;

/// Class and command VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (5.1.6.5.5), and the answers to commands.
const PAIRS_SET: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Frames that were sent and wait for a buffer.
type Cable = VecDeque<Vec<u8>>;

/// A network card that receives every frame that it sends, with the pair of queues that sent it.
pub struct Echo {
    /// `mac`, `status` and `max_virtqueue_pairs`.
    config: [u8; 10],
    /// One for each pair of queues.
    cables: Vec<Cable>,
    /// How many pairs are in use.
    pairs: u16,
}

impl Echo {
    /// A card with this MAC address, and one pair of queues.
    pub fn new(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        let config = [a, b, c, d, e, f, LINK_UP, 0, 1, 0];
        Self { config, cables: alloc::vec![Cable::new()], pairs: 1 }
    }

    /// With this many pairs of queues, at least one; if more, there is a control queue too.
    pub fn with_pairs(mut self, pairs: u16) -> Self {
        self.config[8..].copy_from_slice(&pairs.to_le_bytes());
        self.cables = alloc::vec![Cable::new(); pairs.into()];
        self
    }

    /// How many pairs of queues the driver uses.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    fn max_pairs(&self) -> u16 {
        self.cables.len() as u16
    }

    /// Carries out a command of the control queue (5.1.6.5).
    fn control<N: DriverNotify>(
        &mut self,
        chain: DescChain<'_, '_, N>,
        view: &View,
    ) -> Result<(), ChainError> {
        let mut input = ReadableChain::new(chain, &view.readable);
        let mut command = [0; 4];
        let len = input.read(&mut command)?;
        let [class, command, low, high] = command;
        let pairs = u16::from_le_bytes([low, high]);
        let known = len == 4 && [class, command] == PAIRS_SET && input.remaining()?.bytes == 0;
        let fine = known && (1..=self.max_pairs()).contains(&pairs);
        if fine {
            self.pairs = pairs;
        }
        let mut output = WritableChain::from_incomplete_readable(input, &view.writable)?;
        output.write(&[if fine { OK } else { ERROR }]).map(drop)
    }
}

/// Takes a frame to send. The chain goes back with nothing written.
fn send<N: DriverNotify>(
    cable: &mut Cable,
    chain: DescChain<'_, '_, N>,
    view: &View,
) -> Result<(), ChainError> {
    let mut input = ReadableChain::new(chain, &view.readable);
    let len = input.remaining()?.bytes;
    if !(HEADER_LEN..=HEADER_LEN + MAX_FRAME_LEN).contains(&len) {
        return Ok(());
    }
    input.read(&mut [0; HEADER_LEN])?;
    let mut frame = alloc::vec![0; len - HEADER_LEN];
    input.read(&mut frame)?;
    cable.push_back(frame);
    Ok(())
}

/// Fills a buffer with a frame that was received. One that is too short goes back empty.
fn receive<N: DriverNotify>(
    frame: &[u8],
    chain: DescChain<'_, '_, N>,
    view: &View,
) -> Result<(), ChainError> {
    let mut output = WritableChain::new(chain, &view.readable, &view.writable)?;
    if output.remaining()?.bytes >= HEADER_LEN + frame.len() {
        output.write(&HEADER)?;
        output.write(frame)?;
    }
    Ok(())
}

fn log(result: Result<(), ChainError>) {
    if let Err(error) = result {
        log::debug!("loopback network card: a buffer was returned: {error}");
    }
}

impl Model for Echo {
    const TYPE: DeviceType = DeviceType::NET;

    fn queues(&self) -> u16 {
        let control = u16::from(self.max_pairs() > 1);
        2 * self.max_pairs() + control
    }

    fn features(&self) -> u64 {
        let several = if self.max_pairs() > 1 { features::CTRL_VQ | features::MQ } else { 0 };
        features::MAC | features::STATUS | several
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn run(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        // The control queue comes after all pairs that there may be (5.1.2).
        let pairs = if queues.has(features::MQ) { self.max_pairs() } else { 1 };
        if index == 2 * pairs && queues.has(features::CTRL_VQ) {
            return queues.serve(index, |queue, view| {
                while let Ok(Some(chain)) = queue.next_chain() {
                    log(self.control(chain, view));
                }
            });
        }
        let pair = index / 2;
        if pair >= self.pairs {
            return Ok(());
        }
        let (receiveq, transmitq) = (2 * pair, 2 * pair + 1);
        let cable = &mut self.cables[usize::from(pair)];
        // What is received makes room for more to be sent.
        loop {
            let mut sent = 0;
            queues.serve(transmitq, |queue, view| {
                while cable.len() < MAX_FRAMES
                    && let Ok(Some(chain)) = queue.next_chain()
                {
                    log(send(cable, chain, view));
                    sent += 1;
                }
            })?;
            queues.serve(receiveq, |queue, view| {
                while let Some(frame) = cable.front()
                    && let Ok(Some(chain)) = queue.next_chain()
                {
                    log(receive(frame, chain, view));
                    cable.pop_front();
                }
            })?;
            if sent == 0 {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {
        self.cables.iter_mut().for_each(Cable::clear);
        self.pairs = 1;
    }
}
