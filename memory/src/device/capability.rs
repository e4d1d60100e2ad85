//! The capability list (PCI 3.0, 6.7): a linked list that the device controls, so each place is visited once.

use super::ConfigSpace;

const STATUS: u16 = 0x06;
const STATUS_HAS_LIST: u16 = 1 << 4;
const LIST_HEAD: u16 = 0x34;
const FIRST_OFFSET: u8 = 0x40;

/// One capability: its id and the offset of its header in configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Where it starts: a multiple of 4, 0x40..=0xfc.
    pub offset: u8,
}

impl Capability {
    /// Message-signalled interrupts with a table in memory.
    pub const MSI_X: u8 = 0x11;
    /// Defined by the vendor; virtio describes its structures so.
    pub const VENDOR: u8 = 0x09;

    /// Offset of the field `field` bytes after the header's start; `None` beyond the first 256 bytes, where
    /// capabilities live.
    pub fn field(&self, field: u8) -> Option<u16> {
        self.offset.checked_add(field).map(u16::from)
    }
}

impl ConfigSpace {
    /// Walks the function's capability list; ends at a place that it has been to before.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability> + use<> {
        let config = *self;
        let has_list = config.read_u16(STATUS) & STATUS_HAS_LIST != 0;
        let mut next = if has_list { config.read_u8(LIST_HEAD) } else { 0 };
        // One bit for each multiple of 4 in the first 256 bytes.
        let mut visited = 0_u64;
        core::iter::from_fn(move || {
            // The low two bits are reserved and must be masked.
            let offset = next & !0b11;
            let bit = 1 << (offset >> 2);
            if offset < FIRST_OFFSET || visited & bit != 0 {
                return None;
            }
            visited |= bit;
            let id;
            [id, next, ..] = config.read_u32(offset.into()).to_le_bytes();
            Some(Capability { id, offset })
        })
    }
}
