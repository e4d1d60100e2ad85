//! What paths have led to: the disk does not change, so they lead there again. (Linux has its dentries for
//! it.)

use super::FsError;
use super::inode::Node;
use crate::text;
use alloc::vec::Vec;
use core::hash::BuildHasher;
use hashbrown::DefaultHashBuilder;

/// Paths of the same set, the one that was used last first.
const WAYS: usize = 4;
/// Longer paths, and longer contents within an inode, are not kept.
const LONGEST: usize = 256;

/// A table of sets: a path has its place in one of them, and the others there give way.
#[derive(Default)]
pub struct PathCache {
    sets: Vec<[Option<Entry>; WAYS]>,
    hasher: DefaultHashBuilder,
}

struct Entry {
    path: Vec<u8>,
    /// `None` if there is nothing with this name.
    node: Option<Node>,
}

impl PathCache {
    /// For about `count` paths; for none if there is no memory.
    pub fn new(count: usize) -> Self {
        let count = count.div_ceil(WAYS);
        let mut sets = Vec::new();
        if sets.try_reserve_exact(count).is_ok() {
            sets.resize_with(count, Default::default);
        }
        Self { sets, ..Self::default() }
    }

    fn set(&mut self, path: &[u8]) -> Option<&mut [Option<Entry>; WAYS]> {
        let hash = self.hasher.hash_one(path);
        let index = hash.checked_rem(self.sets.len() as u64)?;
        self.sets.get_mut(index as usize)
    }

    /// What a look-up of `path` gave, as for a new reader.
    pub fn get(&mut self, path: &[u8]) -> Option<Result<Node, FsError>> {
        let set = self.set(path)?;
        let place = place_of(set, path)?;
        if place > 0 {
            set.get_mut(..=place)?.rotate_right(1);
        }
        match set.first()?.as_ref()?.node.as_ref() {
            Some(node) => node.reopen().ok().map(Ok),
            None => Some(Err(FsError::NotFound)),
        }
    }

    /// Keeps what a look-up of `path` gave, if that is for good and there is memory for it.
    pub fn put(&mut self, path: &[u8], found: &Result<Node, FsError>) {
        let node = match found {
            Ok(node) if node.inline_len() <= LONGEST => node.reopen().ok(),
            Err(FsError::NotFound) => None,
            _ => return,
        };
        let is_whole = node.is_some() || found.is_err();
        let Some(set) = self.set(path).filter(|_| is_whole && path.len() <= LONGEST) else { return };
        let Ok(path) = text::bytes(path) else { return };
        // In the place of what another task has found meanwhile, or of the oldest.
        let place = place_of(set, &path).unwrap_or(WAYS - 1);
        if let Some(part) = set.get_mut(..=place) {
            part.rotate_right(1);
        }
        if let Some(first) = set.first_mut() {
            *first = Some(Entry { path, node });
        }
    }
}

fn place_of(set: &[Option<Entry>; WAYS], path: &[u8]) -> Option<usize> {
    set.iter().position(|entry| entry.as_ref().is_some_and(|entry| entry.path == path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// It never answers for another path, and has the last path of each set.
        #[test]
        fn the_latest_are_there(steps in proptest::collection::vec((any::<bool>(), 0..40u8), 1..200)) {
            let mut cache = PathCache::new(16);
            let mut known = std::collections::HashSet::new();
            for (puts, name) in steps {
                let path = [b'/', name];
                if puts {
                    cache.put(&path, &Err(FsError::NotFound));
                    known.insert(name);
                    prop_assert!(cache.get(&path).is_some());
                } else if cache.get(&path).is_some() {
                    prop_assert!(known.contains(&name));
                }
            }
            let kept = (0..40u8).filter(|&name| cache.get(&[b'/', name]).is_some()).count();
            prop_assert!(kept >= known.len().min(WAYS) && kept <= 16);
        }
    }

    /// Those that are used stay, those that are not give way.
    #[test]
    fn the_oldest_gives_way() {
        let mut cache = PathCache::new(WAYS);
        let path = |number: u8| [b'/', number];
        for number in 0..4 {
            cache.put(&path(number), &Err(FsError::NotFound));
        }
        assert!(cache.get(&path(0)).is_some());
        cache.put(&path(4), &Err(FsError::NotFound));
        let kept = (0..5).filter(|&number| cache.get(&path(number)).is_some());
        assert!(kept.eq([0, 2, 3, 4]));
    }

    #[test]
    fn what_may_change_is_not_kept() {
        let mut cache = PathCache::new(100);
        let failures =
            [FsError::NoMemory, FsError::TooMuch, FsError::Corrupt("a block"), FsError::NotADirectory];
        for error in failures {
            cache.put(b"/a", &Err(error));
            assert!(cache.get(b"/a").is_none(), "{error}");
        }
        cache.put(&[b'a'; LONGEST + 1], &Err(FsError::NotFound));
        assert!(cache.get(&[b'a'; LONGEST + 1]).is_none());
        let mut none = PathCache::new(0);
        none.put(b"/a", &Err(FsError::NotFound));
        assert!(none.get(b"/a").is_none());
    }
}
