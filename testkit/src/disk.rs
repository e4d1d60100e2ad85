//! A disk in memory that carries out what comes through a ring (section 5.2.6).

use ringfence_drivers::block::{self, BlockQueue, Request};
use ringfence_drivers::virtio::{DeviceType, Notify, features};
use ringfence_memory::DmaBuf;
use ringfence_memory::host::HostPlatform;

use crate::{Chain, DeviceRing, Fake, platform};

pub const SECTOR: usize = 512;
pub const SECTORS: u64 = 64;
pub const ID_TEXT: &[u8; 20] = b"ringfence-test-disk\0";

pub fn config(sectors: u64, size_max: u32, seg_max: u32, block_size: u32) -> Vec<u8> {
    let mut config = vec![0; 60];
    config[0..8].copy_from_slice(&sectors.to_le_bytes());
    config[8..12].copy_from_slice(&size_max.to_le_bytes());
    config[12..16].copy_from_slice(&seg_max.to_le_bytes());
    config[20..24].copy_from_slice(&block_size.to_le_bytes());
    config
}

pub fn disk(features: u64) -> Fake {
    disk_on(platform(), features)
}

pub fn disk_on(platform: &'static HostPlatform, features: u64) -> Fake {
    Fake::on(platform, DeviceType::BLOCK, ALL | features, config(SECTORS, 1 << 20, 4, 512), &[16])
}

pub fn read(buffer: DmaBuf) -> Request {
    Request::Read { sector: 0, buffer, len: SECTOR }
}

/// Answers the one request of `queue`, a read of a sector, with sevens, and sees that the driver has them.
pub fn answer_read(queue: &mut BlockQueue<impl Notify>, mut ring: DeviceRing) {
    let chain = ring.take().unwrap();
    ring.write(&chain.segments[1], &[7; SECTOR]);
    ring.write(&chain.segments[2], &[0]);
    ring.complete(chain.head, 513);
    let mut count = 0;
    let reaped = queue.reap(|done| {
        let mut data = [0; SECTOR];
        done.buffer.unwrap().read_slice(&mut data, 0).unwrap();
        assert_eq!((done.result, data), (Ok(()), [7; SECTOR]));
        count += 1;
    });
    reaped.unwrap();
    assert_eq!(count, 1);
}

pub struct Disk {
    pub ring: DeviceRing,
    pub data: Vec<u8>,
}

impl Disk {
    pub fn new(ring: DeviceRing) -> Self {
        let data = (0..SECTORS as usize * SECTOR).map(|at| (at / SECTOR * 7 + at % 251) as u8).collect();
        Self { ring, data }
    }

    /// Carries out a request: how many bytes were written, and the status (5.2.6).
    pub fn carry_out(&mut self, chain: &Chain) -> u32 {
        let header: Vec<u8> = {
            let header = self.ring.read(&chain.segments[0]);
            assert_eq!(header.len(), 16);
            header
        };
        let kind = u32::from_le_bytes(header[0..4].try_into().unwrap());
        assert_eq!(header[4..8], [0; 4], "reserved");
        let sector = u64::from_le_bytes(header[8..16].try_into().unwrap());
        let (status, data) = chain.segments[1..].split_last().unwrap();
        assert!(status.writable && status.len == 1);
        let mut at = sector as usize * SECTOR;
        let mut written = 1;
        match kind {
            0 => {
                for segment in data {
                    let end = at + segment.len as usize;
                    self.ring.write(segment, &self.data[at..end]);
                    (at, written) = (end, written + segment.len);
                }
            }
            1 => {
                for segment in data {
                    let bytes = self.ring.read(segment);
                    self.data[at..at + bytes.len()].copy_from_slice(&bytes);
                    at += bytes.len();
                }
            }
            4 => assert!(data.is_empty() && sector == 0),
            8 => {
                assert_eq!((data.len(), data[0].len, sector), (1, 20, 0));
                self.ring.write(&data[0], ID_TEXT);
                written += 20;
            }
            _ => panic!("request type {kind}"),
        }
        self.ring.write(status, &[0]);
        written
    }

    pub fn serve_all(&mut self) -> usize {
        let mut count = 0;
        while let Some(chain) = self.ring.take() {
            let written = self.carry_out(&chain);
            self.ring.complete(chain.head, written);
            count += 1;
        }
        count
    }

    pub fn expected(&self, sector: u64, len: usize) -> &[u8] {
        &self.data[sector as usize * SECTOR..][..len]
    }
}

pub const ALL: u64 = features::VERSION_1
    | block::features::SIZE_MAX
    | block::features::SEG_MAX
    | block::features::BLK_SIZE
    | block::features::FLUSH;

pub fn bytes(buffer: &DmaBuf, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    buffer.read_slice(&mut bytes, 0).unwrap();
    bytes
}
