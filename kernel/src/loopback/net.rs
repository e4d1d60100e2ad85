//! A network card whose cable leads back to it (section 5.1).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ringfence_drivers::virtio::device_side::chain::{ChainError, ReadableChain, WritableChain};
use ringfence_drivers::virtio::device_side::queue::{DescChain, DriverNotify};
use ringfence_drivers::virtio::{DeviceType, features};

use super::{Broken, Model, Queues, View};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

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

/// A network card that receives every frame that it sends.
pub struct Echo {
    /// `mac` and `status`.
    config: [u8; 8],
    /// Frames that were sent and wait for a buffer.
    cable: VecDeque<Vec<u8>>,
}

impl Echo {
    /// A card with this MAC address.
    pub fn new(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self { config: [a, b, c, d, e, f, LINK_UP, 0], cable: VecDeque::new() }
    }

    /// Takes a frame to send. The chain goes back with nothing written.
    fn send<N: DriverNotify>(&mut self, chain: DescChain<'_, '_, N>, view: &View) -> Result<(), ChainError> {
        let mut input = ReadableChain::new(chain, &view.readable);
        let len = input.remaining()?.bytes;
        if !(HEADER_LEN..=HEADER_LEN + MAX_FRAME_LEN).contains(&len) {
            return Ok(());
        }
        input.read(&mut [0; HEADER_LEN])?;
        let mut frame = alloc::vec![0; len - HEADER_LEN];
        input.read(&mut frame)?;
        self.cable.push_back(frame);
        Ok(())
    }
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

impl Model for Echo {
    const TYPE: DeviceType = DeviceType::NET;
    const QUEUES: u16 = 2;
    const FEATURES: u64 = features::net::MAC | features::net::STATUS;

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn run(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let log = |result| {
            if let Err(error) = result {
                log::debug!("loopback network card: a buffer was returned: {error:?}");
            }
        };
        // What is received makes room for more to be sent.
        loop {
            let mut sent = 0;
            queues.serve(TRANSMIT, |queue, view| {
                while self.cable.len() < MAX_FRAMES
                    && let Ok(Some(chain)) = queue.next_chain()
                {
                    log(self.send(chain, view));
                    sent += 1;
                }
            })?;
            queues.serve(RECEIVE, |queue, view| {
                while let Some(frame) = self.cable.front()
                    && let Ok(Some(chain)) = queue.next_chain()
                {
                    log(receive(frame, chain, view));
                    self.cable.pop_front();
                }
            })?;
            if sent == 0 {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {
        self.cable.clear();
    }
}
