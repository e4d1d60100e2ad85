//! A chain as it is taken from a ring of either format.

use alloc::vec::Vec;

use super::error::DescError;
use super::ring::Desc;

/// A chain as it was found in a ring.
pub(super) struct Taken {
    pub(super) id: u16,
    /// How far it moves the positions on.
    pub(super) count: u16,
    pub(super) descs: Vec<Desc>,
    /// What is wrong after the last of them.
    pub(super) error: Option<DescError>,
}

impl Taken {
    /// How many bytes can be written; `None` if that takes a look into a table, or the chain is malformed.
    pub(super) fn writable(&self) -> Option<u64> {
        let sound = self.error.is_none() && !self.descs.iter().any(Desc::is_indirect);
        sound.then(|| writable(&self.descs))
    }
}

/// How many bytes of these buffers can be written.
pub(super) fn writable(descs: &[Desc]) -> u64 {
    let writable = descs.iter().filter(|desc| desc.write_only());
    writable.fold(0, |sum, desc| sum.saturating_add(desc.data().1.into()))
}

/// The descriptors from `first` on, at most `limit`.
pub(super) fn walk(
    first: u16,
    limit: usize,
    desc: impl Fn(u16) -> Option<Desc>,
) -> (Vec<Desc>, Option<DescError>) {
    let (mut descs, mut index) = (Vec::new(), first);
    loop {
        let Some(desc) = desc(index) else { return (descs, Some(DescError::InvalidIndex(index))) };
        if descs.len() >= limit {
            return (descs, Some(DescError::Endless));
        }
        descs.push(desc);
        match desc.next() {
            Some(next) => index = next,
            None => return (descs, None),
        }
    }
}
