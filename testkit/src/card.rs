//! A network card that sends and receives what a test says.

use ringfence_drivers::net::{self, Net};
use ringfence_drivers::virtio::{DeviceType, features};

use crate::{DeviceRing, EVENT_IDX, Fake, FakeTransport, IN_ORDER, RING_PACKED, grant};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const HEADER: usize = 12;
/// A header (5.1.6) that asks for nothing: without NEEDS_CSUM and gso_type, whatever else it says.
pub const PLAIN: [u8; HEADER] = [0xfe, 0, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5];
pub const ALL: u64 = features::VERSION_1 | net::features::MAC | net::features::STATUS | net::features::MTU;

pub const FORMATS: [u64; 5] = [0, EVENT_IDX, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];

pub fn config(status: u16, mtu: u16) -> Vec<u8> {
    let mut config = MAC.to_vec();
    config.extend(status.to_le_bytes());
    config.extend([1, 0]);
    config.extend(mtu.to_le_bytes());
    config
}

pub struct Bench {
    pub fake: Fake,
    pub net: Net<FakeTransport>,
    pub rx: DeviceRing,
    pub tx: DeviceRing,
}

pub fn bench_with(offered: u64, config: Vec<u8>, size: u16) -> Bench {
    let fake = Fake::new(DeviceType::NET, offered, config, &[size, size]);
    let net = Net::new(fake.transport(), &grant(), fake.windows()).unwrap();
    let (rx, tx) = (fake.ring(0), fake.ring(1));
    Bench { fake, net, rx, tx }
}

pub fn bench(size: u16) -> Bench {
    bench_with(ALL, config(1, 1400), size)
}

impl Bench {
    /// The card receives a frame: it goes to the next buffer.
    pub fn deliver(&mut self, frame: &[u8]) -> bool {
        deliver(&mut self.rx, PLAIN, frame)
    }

    /// What the card sends.
    pub fn sent(&mut self) -> Option<Vec<u8>> {
        sent(&mut self.tx)
    }

    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.net.pair.send(1, |room| room.write(frame).unwrap()).unwrap() == 1
    }

    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut frames = self.receive_up_to(1);
        assert!(frames.len() < 2);
        frames.pop()
    }

    pub fn receive_up_to(&mut self, most: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let count = self.net.pair.receive(most, |frame| {
            let mut bytes = vec![0; frame.len()];
            assert_eq!(frame.read(&mut bytes), frame.len());
            frames.push(bytes);
        });
        assert_eq!(count, Ok(frames.len()));
        frames
    }
}

pub fn deliver(rx: &mut DeviceRing, header: [u8; HEADER], frame: &[u8]) -> bool {
    let Some(chain) = rx.take() else { return false };
    assert_eq!((chain.segments.len(), chain.segments[0].len), (1, 2044));
    rx.write(&chain.segments[0], &[&header, frame].concat());
    rx.complete(chain.head, (HEADER + frame.len()) as u32);
    true
}

/// What the card sends.
pub fn sent(tx: &mut DeviceRing) -> Option<Vec<u8>> {
    let chain = tx.take()?;
    let packet: Vec<u8> = chain.segments.iter().flat_map(|segment| tx.read(segment)).collect();
    assert_eq!(packet[..HEADER], [0; HEADER], "no offload, no flags, num_buffers 0");
    tx.complete(chain.head, 0);
    Some(packet[HEADER..].to_vec())
}

pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}
