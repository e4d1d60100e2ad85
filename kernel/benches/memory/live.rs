//! The mappings among which memory operations are measured.

use alloc::vec::Vec;

use ringfence_kernel::memory::space;
use ringfence_memory::{MappedPages, Private, Protection};

use crate::support::Random;

/// How often each operation is measured.
pub const ROUNDS: usize = 201;

/// The live mappings: 4 KiB each, all owned here.
pub struct Live {
    pub mappings: Vec<MappedPages<Private>>,
    pub random: Random,
}

impl Live {
    /// Makes them, frees a third of them in random order, and makes new ones: what is free is scattered as in
    /// use.
    pub fn new(depth: usize) -> Self {
        let mut live = Self { mappings: Vec::with_capacity(depth), random: Random::new(0x5eed) };
        live.mappings.extend((0..depth).map(|_| page()));
        for _ in 0..depth / 3 {
            let victim = live.random.below(live.mappings.len());
            live.mappings.swap_remove(victim);
        }
        live.mappings.extend((live.mappings.len()..depth).map(|_| page()));
        live
    }

    /// Replaces one: rounds do not begin where the last one ended.
    pub fn churn(&mut self) {
        let victim = self.random.below(self.mappings.len());
        self.mappings[victim] = page();
    }
}

fn page() -> MappedPages<Private> {
    space().allocate(1, Protection::ReadWrite).expect("the guest has room for the live mappings")
}
