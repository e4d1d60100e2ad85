//! The rings of a queue in either format.

use super::error::QueueError;
use super::order::Returned;
use super::packed::Packed;
use super::position::Position;
use super::ring::{Device, Driver, Used};
use super::taken::{Taken, walk};

pub(super) enum Rings<'a> {
    Split(Driver<'a>, Device<'a>),
    Packed(Packed<'a>),
}

impl Rings<'_> {
    pub(super) fn size(&self) -> u16 {
        match self {
            Self::Split(driver, _) => driver.queue_size(),
            Self::Packed(ring) => ring.size(),
        }
    }

    pub(super) fn distance(&self, from: u16, to: u16) -> u16 {
        match self {
            Self::Split(..) => to.wrapping_sub(from),
            Self::Packed(ring) => ring.distance(from, to),
        }
    }

    pub(super) fn advance(&self, position: u16, count: u16) -> u16 {
        match self {
            Self::Split(..) => position.wrapping_add(count),
            Self::Packed(ring) => ring.advance(position, count),
        }
    }

    pub(super) fn is_position(&self, position: Position) -> bool {
        let Position { next, used, signalled } = position;
        let exists = |position| match self {
            Self::Split(..) => true,
            Self::Packed(ring) => ring.is_position(position),
        };
        [next, used, signalled].into_iter().all(exists)
            && self.distance(used, next) <= self.size()
            && self.distance(signalled, used) <= self.size()
    }

    pub(super) fn take(&self, next: u16, used: u16) -> Result<Option<Taken>, QueueError> {
        let driver = match self {
            Self::Split(driver, _) => driver,
            Self::Packed(ring) => return ring.take(next, used),
        };
        let (size, in_flight) = (driver.queue_size(), next.wrapping_sub(used));
        let available = driver.available(next);
        if available > size.saturating_sub(in_flight) {
            return Err(QueueError::Overrun);
        }
        if available == 0 {
            return Ok(None);
        }
        let id = driver.element(next).ok_or(QueueError::Overrun)?;
        if id >= size {
            return Err(QueueError::InvalidHead(id));
        }
        let (descs, error) = walk(id, size.into(), |index| driver.get_desc(index));
        Ok(Some(Taken { id, count: 1, descs, error }))
    }

    /// Whether the driver may have made everything before `position` available.
    pub(super) fn is_available(&self, position: u16, next: u16, used: u16) -> bool {
        match self {
            // It may have gone on since, by no more than its ring holds.
            Self::Split(driver, _) => driver.available(position) <= driver.queue_size(),
            Self::Packed(ring) => ring.is_available(position, next, used),
        }
    }

    /// Shows the driver one used element, which stands for all from `used` on.
    pub(super) fn put(&mut self, used: u16, Returned { id, count, written, .. }: &Returned) {
        match self {
            Self::Split(_, device) => {
                device.insert_used(Used::new(*id, *written), used);
                device.publish_used(used.wrapping_add(*count));
            }
            Self::Packed(ring) => ring.put(used, *id, *written),
        }
    }

    pub(super) fn needs_notification(&self, event_idx: bool, old: u16, new: u16) -> bool {
        match self {
            Self::Split(driver, _) => driver.needs_notification(event_idx, old, new),
            Self::Packed(ring) => ring.needs_notification(event_idx, old, new),
        }
    }

    pub(super) fn suppress_notifications(&mut self, suppress: bool) {
        match self {
            Self::Split(_, device) => device.suppress_notifications(suppress),
            Self::Packed(ring) => ring.suppress_notifications(suppress),
        }
    }

    pub(super) fn set_avail_event(&mut self, position: u16) {
        match self {
            Self::Split(_, device) => device.set_avail_event(position),
            Self::Packed(ring) => ring.set_avail_event(position),
        }
    }
}
