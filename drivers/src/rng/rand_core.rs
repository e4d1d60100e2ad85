//! The device as a source of random numbers of `rand_core`.

use core::time::Duration;

use rand_core::TryRng;

use super::Rng;
use crate::virtio::{Error, Transport};

/// How long the device may take for each number.
const LIMIT: Duration = Duration::from_secs(2);

impl<T: Transport> TryRng for Rng<T> {
    type Error = Error;

    fn try_next_u32(&mut self) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, LIMIT)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes, LIMIT)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Error> {
        self.fill(to, LIMIT)
    }
}
