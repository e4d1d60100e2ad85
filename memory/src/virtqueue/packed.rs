//! Packed virtqueues (2.8): a ring of descriptors, and an event suppression structure of each side.

/// A descriptor (2.8.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Of its buffer.
    pub address: u64,
    /// In bytes; if it is used, of what was written.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// [`NEXT`](super::NEXT), [`WRITE`](super::WRITE), [`INDIRECT`](super::INDIRECT), [`AVAIL`], [`USED`].
    pub flags: u16,
}

/// In the flags of a descriptor: what the wrap counter was when the driver made it available (2.8.1).
pub const AVAIL: u16 = 1 << 7;
/// In the flags of a descriptor: as [`AVAIL`] if it is used, the opposite if it is available (2.8.1).
pub const USED: u16 = 1 << 15;

impl Descriptor {
    /// Where its buffer id is in its second word.
    pub const ID: u32 = 32;
    /// Where its flags are in its second word.
    pub const FLAGS: u32 = 48;

    /// As two words.
    #[inline]
    pub const fn to_words(self) -> [u64; 2] {
        let Self { address, len, id, flags } = self;
        [address, len as u64 | (id as u64) << Self::ID | (flags as u64) << Self::FLAGS]
    }

    /// From two words.
    #[inline]
    pub const fn from_words([address, rest]: [u64; 2]) -> Self {
        let (id, flags) = (rest >> Self::ID, rest >> Self::FLAGS);
        Self { address, len: rest as u32, id: id as u16, flags: flags as u16 }
    }
}

/// A position in the ring (2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Index of the descriptor: below 32,768.
    pub index: u16,
    /// The wrap counter there: it changes with each round.
    pub wrap: bool,
}

impl Position {
    /// Where both sides begin.
    pub const START: Self = Self { index: 0, wrap: true };
    /// Where the wrap counter is in its word.
    pub const WRAP: u16 = 1 << 15;

    /// As event suppression structures and notifications have it.
    #[inline]
    pub const fn to_word(self) -> u16 {
        self.index | if self.wrap { Self::WRAP } else { 0 }
    }

    /// From such a word.
    #[inline]
    pub const fn from_word(word: u16) -> Self {
        Self { index: word & !Self::WRAP, wrap: word & Self::WRAP != 0 }
    }

    /// The position `count` descriptors further on, at most one round of `size`.
    #[inline]
    pub const fn after(self, count: u16, size: u16) -> Self {
        let Self { index, wrap } = self;
        let index = index.wrapping_add(count);
        if index < size {
            Self { index, wrap }
        } else {
            Self { index: index.wrapping_sub(size), wrap: !wrap }
        }
    }

    /// How many descriptors lie from here to `end`, which is less than two rounds of `size` ahead.
    #[inline]
    pub const fn until(self, end: Self, size: u16) -> u16 {
        let ahead = end.index.wrapping_sub(self.index);
        if self.wrap != end.wrap {
            ahead.wrapping_add(size)
        } else if end.index < self.index {
            ahead.wrapping_add(size).wrapping_add(size)
        } else {
            ahead
        }
    }

    /// The flags that make a descriptor here available.
    #[inline]
    pub const fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// The flags that make a descriptor here used.
    #[inline]
    pub const fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }

    /// Whether flags here say that the descriptor is available.
    #[inline]
    pub const fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available()
    }

    /// Whether flags here say that the descriptor is used.
    #[inline]
    pub const fn is_used(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.used()
    }
}

/// An event suppression structure (2.8.14): of which descriptors whoever writes it wants to be notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of that one, with [`Event::DESC`].
    pub position: Position,
    /// [`Event::ENABLE`], [`Event::DISABLE`], [`Event::DESC`]; all else is reserved.
    pub flags: u16,
}

impl Event {
    /// Its length and alignment.
    pub const LEN: usize = 4;
    /// Where its flags are in its word.
    pub const FLAGS: u32 = 16;

    /// Of any.
    pub const ENABLE: u16 = 0;
    /// Of none.
    pub const DISABLE: u16 = 1;
    /// Of one. Only with VIRTIO_F_EVENT_IDX.
    pub const DESC: u16 = 2;

    /// As a word.
    #[inline]
    pub const fn to_word(self) -> u32 {
        self.position.to_word() as u32 | (self.flags as u32) << Self::FLAGS
    }

    /// From a word.
    #[inline]
    pub const fn from_word(word: u32) -> Self {
        Self { position: Position::from_word(word as u16), flags: (word >> Self::FLAGS) as u16 }
    }
}

/// Whether the last `count` descriptors before `new` include the one at `event` (2.8.10). They are less than
/// two rounds of `size`. An event that is not in the ring may be among them or not.
#[inline]
pub const fn need_event(event: Position, new: Position, count: u16, size: u16) -> bool {
    event.until(new, size).wrapping_sub(1) < count
}
