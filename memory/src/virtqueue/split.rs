//! Split virtqueues (2.7): descriptor table, available ring, used ring.

/// A descriptor (2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Of its buffer.
    pub address: u64,
    /// In bytes.
    pub len: u32,
    /// [`NEXT`](super::NEXT), [`WRITE`](super::WRITE), [`INDIRECT`](super::INDIRECT).
    pub flags: u16,
    /// Index of the next one of its chain, where NEXT is set.
    pub next: u16,
}

impl Descriptor {
    /// Where its flags are in its second word.
    pub const FLAGS: u32 = 32;
    /// Where `next` is in its second word.
    pub const NEXT: u32 = 48;

    /// As two words.
    #[inline]
    pub const fn to_words(self) -> [u64; 2] {
        let Self { address, len, flags, next } = self;
        [address, len as u64 | (flags as u64) << Self::FLAGS | (next as u64) << Self::NEXT]
    }

    /// From two words.
    #[inline]
    pub const fn from_words([address, rest]: [u64; 2]) -> Self {
        let (flags, next) = (rest >> Self::FLAGS, rest >> Self::NEXT);
        Self { address, len: rest as u32, flags: flags as u16, next: next as u16 }
    }
}

/// Where things are in one of the two rings: flags, index, as many elements as the queue has descriptors, and
/// the event index, each of 16 bits but the elements.
#[derive(Debug)]
pub struct Ring {
    element_len: usize,
    /// Its alignment (2.7).
    pub align: usize,
}

/// The available ring (2.7.6). Its elements are heads of chains, its event index is `used_event`.
pub const AVAILABLE: Ring = Ring { element_len: 2, align: 2 };

/// The used ring (2.7.8). Its elements are [`UsedElement`]s, its event index is `avail_event`.
pub const USED: Ring = Ring { element_len: 8, align: 4 };

/// In the flags of either ring: whoever writes it wants no notifications (2.7.7, 2.7.10).
pub const NO_NOTIFICATION: u16 = 1;

impl Ring {
    /// Offset of its flags.
    pub const FLAGS: usize = 0;
    /// Offset of its index.
    pub const INDEX: usize = 2;
    /// Offset of its elements.
    pub const ELEMENTS: usize = 4;

    /// Offset of element `index`, below the queue's size.
    #[inline]
    pub const fn element(&self, index: u16) -> usize {
        index as usize * self.element_len + Self::ELEMENTS
    }

    /// Offset of its event index, of a queue of `size`.
    #[inline]
    pub const fn event(&self, size: u16) -> usize {
        self.element(size)
    }

    /// Its length, of a queue of `size`.
    #[inline]
    pub const fn len(&self, size: u16) -> usize {
        self.event(size) + 2
    }
}

/// An element of the used ring (2.7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedElement {
    /// Head of the chain.
    pub id: u32,
    /// Bytes written.
    pub len: u32,
}

impl UsedElement {
    /// As a word.
    #[inline]
    pub const fn to_word(self) -> u64 {
        self.id as u64 | (self.len as u64) << 32
    }

    /// From a word.
    #[inline]
    pub const fn from_word(word: u64) -> Self {
        Self { id: word as u32, len: (word >> 32) as u32 }
    }
}
