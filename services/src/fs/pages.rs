//! Pages in memory by number, and in the order of their last use. A page for which there is no memory is not
//! kept.

use super::checks::Checks;
use alloc::rc::Rc;
use alloc::vec::Vec;
use hashbrown::HashMap;

/// The node that stands between the oldest and the newest page.
const ENDS: usize = 0;

/// A ring of nodes, from each page to the one that was used before it and the one after, and an index of it.
#[derive(Default)]
pub struct Pages {
    index: HashMap<u64, usize>,
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    number: u64,
    /// All but the first have them.
    bytes: Option<Rc<Vec<u8>>>,
    checks: Checks,
    newer: usize,
    older: usize,
}

impl Pages {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether a page is there.
    pub fn contains(&self, number: u64) -> bool {
        self.index.contains_key(&number)
    }

    /// The bytes of a page, which is used by this.
    pub fn get(&mut self, number: u64) -> Option<&[u8]> {
        self.look(number).map(|(bytes, _)| bytes)
    }

    /// The same, and which of them were checked.
    pub fn look(&mut self, number: u64) -> Option<(&[u8], &mut Checks)> {
        let at = *self.index.get(&number)?;
        self.unlink(at);
        self.link_newest(at);
        self.nodes.get_mut(at).and_then(|node| Some((node.bytes.as_deref()?.as_slice(), &mut node.checks)))
    }

    /// The page itself, for one more who holds it; it is used by this.
    pub fn share(&mut self, number: u64) -> Option<Rc<Vec<u8>>> {
        let at = *self.index.get(&number)?;
        self.unlink(at);
        self.link_newest(at);
        self.nodes.get(at)?.bytes.clone()
    }

    /// Keeps a page, in the place of one with the same number, and returns that; or the page itself, if there
    /// is no memory for the books.
    pub fn put(&mut self, number: u64, bytes: Rc<Vec<u8>>) -> Option<Rc<Vec<u8>>> {
        if self.index.try_reserve(1).is_err() || self.nodes.try_reserve(2).is_err() {
            return Some(bytes);
        }
        let before = self.remove(number);
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let at = self.nodes.len();
        self.nodes.push(Node { number, bytes: Some(bytes), ..Node::default() });
        self.index.insert(number, at);
        self.link_newest(at);
        before
    }

    /// Drops the page that was not used for longest, and returns it.
    pub fn drop_oldest(&mut self) -> Option<Rc<Vec<u8>>> {
        let oldest = self.nodes.get(ENDS).and_then(|ends| self.nodes.get(ends.newer))?;
        self.remove(oldest.number)
    }

    fn remove(&mut self, number: u64) -> Option<Rc<Vec<u8>>> {
        let at = self.index.remove(&number)?;
        self.unlink(at);
        let page = self.nodes.swap_remove(at).bytes;
        // What was the last node is here now, unless that was the one that went.
        if let Some(&Node { number, newer, older, .. }) = self.nodes.get(at) {
            self.join(newer, at);
            self.join(at, older);
            if let Some(place) = self.index.get_mut(&number) {
                *place = at;
            }
        }
        page
    }

    fn unlink(&mut self, at: usize) {
        if let Some(&Node { newer, older, .. }) = self.nodes.get(at) {
            self.join(newer, older);
        }
    }

    fn link_newest(&mut self, at: usize) {
        let newest = self.nodes.get(ENDS).map_or(ENDS, |ends| ends.older);
        self.join(at, newest);
        self.join(ENDS, at);
    }

    /// Makes two nodes neighbours.
    fn join(&mut self, newer: usize, older: usize) {
        if let Some(node) = self.nodes.get_mut(newer) {
            node.older = older;
        }
        if let Some(node) = self.nodes.get_mut(older) {
            node.newer = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    proptest! {
        /// Like a list from the oldest to the newest.
        #[test]
        fn the_oldest_go_first(steps in proptest::collection::vec((0..3u8, 0..8u64), 0..200)) {
            let (mut pages, mut model) = (Pages::default(), Vec::<(u64, u8)>::new());
            for (step, (action, number)) in steps.into_iter().enumerate() {
                let place = model.iter().position(|(other, _)| *other == number);
                match action {
                    0 => {
                        place.map(|place| model.remove(place));
                        model.push((number, step as u8));
                        pages.put(number, Rc::new(vec![step as u8]));
                    }
                    1 => {
                        let found = place.map(|place| model.remove(place));
                        model.extend(found);
                        let expected = found.map(|(_, byte)| vec![byte]);
                        prop_assert_eq!(pages.get(number).map(<[u8]>::to_vec), expected);
                    }
                    _ => {
                        if !model.is_empty() {
                            model.remove(0);
                        }
                        pages.drop_oldest();
                    }
                }
                prop_assert_eq!(pages.len(), model.len());
                prop_assert!((0..8).all(|n| pages.contains(n) == model.iter().any(|(other, _)| *other == n)));
            }
        }
    }
}
