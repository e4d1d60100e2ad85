//! A disk in memory (section 5.2).

use alloc::vec::Vec;
use core::ops::Range;

use crate::chain::{ChainError, ReadableChain, WritableChain};
use crate::queue::{DescChain, DriverNotify};
use ringfence_drivers::block::{ID_LEN, SECTOR_SIZE, features};
use ringfence_drivers::virtio::DeviceType;

use super::{Broken, Model, Queues, View};

/// Types of requests (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// How a request ends (5.2.6).
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Type (32 bits), reserved (32 bits), sector (64 bits).
const HEADER_LEN: usize = 16;

/// Length of the configuration up to `num_queues`, which comes last (5.2.4).
const CONFIG_LEN: usize = 36;

/// A disk in memory, zeroed at first, that reads, writes, flushes and tells its name.
pub struct RamDisk {
    bytes: Vec<u8>,
    name: [u8; ID_LEN],
    queues: u16,
    /// `capacity` in sectors, and `num_queues`, little-endian.
    config: [u8; CONFIG_LEN],
    /// In which order the requests of a batch are served, if not in theirs: the state of a generator.
    disorder: Option<u64>,
}

impl RamDisk {
    /// A disk of so many sectors of [`SECTOR_SIZE`] bytes, which calls itself `name`, with one queue.
    pub fn new(sectors: usize, name: [u8; ID_LEN]) -> Self {
        let mut config = [0; CONFIG_LEN];
        config[..8].copy_from_slice(&(sectors as u64).to_le_bytes());
        let disk =
            Self { bytes: alloc::vec![0; sectors * SECTOR_SIZE], name, queues: 1, config, disorder: None };
        disk.with_queues(1)
    }

    /// With this many queues, at least one.
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self.config[CONFIG_LEN - 2..].copy_from_slice(&queues.to_le_bytes());
        self
    }

    /// Serves the requests of each batch in some other order than they were made from now on. The rings allow
    /// that.
    pub fn disorder(&mut self, seed: u64) {
        self.disorder = Some(seed | 1);
    }

    /// Where a request's data is on the disk, if it is whole sectors of it.
    fn range(&self, sector: u64, len: usize) -> Option<Range<usize>> {
        let start = usize::try_from(sector).ok()?.checked_mul(SECTOR_SIZE)?;
        let end = start.checked_add(len).filter(|end| *end <= self.bytes.len())?;
        len.is_multiple_of(SECTOR_SIZE).then_some(start..end)
    }

    /// Carries out one request. On an error, or without room for an answer, the chain goes back with nothing
    /// written.
    fn request<N: DriverNotify>(
        &mut self,
        chain: DescChain<'_, '_, N>,
        view: &View,
    ) -> Result<(), ChainError> {
        let mut input = ReadableChain::new(chain, &view.readable);
        let mut header = [0; HEADER_LEN];
        if input.read(&mut header)? < HEADER_LEN {
            return Ok(());
        }
        let header = u128::from_le_bytes(header);
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        let mut status = OK;
        if kind == OUT {
            match self.range(sector, input.remaining()?.bytes) {
                Some(range) => drop(input.read(&mut self.bytes[range])?),
                None => status = IO_ERROR,
            }
        }

        let mut output = WritableChain::from_incomplete_readable(input, &view.writable)?;
        // The last byte is the status; the data before it is written whatever came of the request.
        let Some(room) = output.remaining()?.bytes.checked_sub(1) else { return Ok(()) };
        let data = match kind {
            IN => self.range(sector, room).map(|range| &self.bytes[range]),
            GET_ID => Some(&self.name[..room.min(ID_LEN)]),
            OUT | FLUSH => Some(&[][..]),
            _ => None,
        };
        if data.is_none() {
            status = if kind == IN { IO_ERROR } else { UNSUPPORTED };
        }
        let data = data.unwrap_or_default();
        output.write(data)?;
        let mut padding = room - data.len();
        while padding > 0 {
            padding -= output.write(&[0; SECTOR_SIZE][..padding.min(SECTOR_SIZE)])?;
        }
        output.write(&[status]).map(drop)
    }
}

impl Model for RamDisk {
    const TYPE: DeviceType = DeviceType::BLOCK;

    fn queues(&self) -> u16 {
        self.queues
    }

    fn features(&self) -> u64 {
        features::FLUSH | if self.queues > 1 { features::MQ } else { 0 }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn run(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        queues.serve(index, |queue, view| {
            let mut chains = Vec::new();
            while let Ok(Some(chain)) = queue.next_chain() {
                chains.push(chain);
            }
            if let Some(state) = &mut self.disorder {
                shuffle(&mut chains, state);
            }
            for chain in chains {
                if let Err(error) = self.request(chain, view) {
                    log::debug!("loopback disk: a request was returned: {error}");
                }
            }
        })
    }
}

/// Puts `items` in another order (Fisher and Yates, with an xorshift generator).
fn shuffle<T>(items: &mut [T], state: &mut u64) {
    for last in (1..items.len()).rev() {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        items.swap(last, (*state % (last as u64 + 1)) as usize);
    }
}
