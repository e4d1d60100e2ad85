//! MSI-X: interrupts as messages, one table entry each (PCI 3.0, 6.8.2).

use core::ops::Range;

use super::{Capability, ConfigSpace, MmioError, MmioRegion, MsiMessage};

const ENTRY_LEN: usize = 16;
const VECTOR_CONTROL: usize = 12;
const VECTOR_MASKED: u32 = 1;
/// In the upper half of the capability's first word.
const CONTROL_ENABLE: u32 = 1 << 31;
const CONTROL_MASK_ALL: u32 = 1 << 30;
const CONTROL_SIZE: u32 = 0x7ff << 16;

/// Where a function's MSI-X table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixCapability {
    control: u16,
    /// Number of table entries, 1..=2048.
    size: u16,
    /// BAR index of the table, 0..=7.
    pub(super) bar: u8,
    /// Byte offset of the table in that BAR: a multiple of 8.
    offset: u32,
}

impl MsixCapability {
    /// The function's MSI-X capability, if it has one.
    pub(super) fn find(config: &ConfigSpace) -> Option<Self> {
        let capability = config.capabilities().find(|capability| capability.id == Capability::MSI_X)?;
        let control = capability.field(0)?;
        let table = config.read_u32(capability.field(4)?);
        let bar = (table & 0b111) as u8;
        let size = (config.read_u32(control) & CONTROL_SIZE) >> 16;
        Some(Self { control, size: size as u16 + 1, bar, offset: table & !0b111 })
    }

    /// Turns MSI-X off: the table is not used.
    pub(super) fn turn_off(&self, config: &ConfigSpace) {
        config.change(self.control, |control| control & !CONTROL_ENABLE);
    }

    /// The bytes of the BAR that the table takes.
    pub(super) fn table(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.size) * ENTRY_LEN as u64
    }
}

/// A function's MSI-X table, mapped.
#[derive(Debug)]
pub struct MsixTable {
    config: ConfigSpace,
    control: u16,
    size: u16,
    table: MmioRegion,
}

impl MsixTable {
    /// `table` is where `capability` says.
    pub(super) fn new(
        config: ConfigSpace,
        capability: MsixCapability,
        table: MmioRegion,
    ) -> Result<Self, MmioError> {
        let MsixCapability { control, size, .. } = capability;
        let table = Self { config, control, size, table };
        let _alone = config.alone();
        // Whatever was left in an entry is sent nowhere.
        (0..size).try_for_each(|vector| table.set_masked(vector, true))?;
        Ok(table)
    }

    /// Number of entries, 1..=2048.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Sets the message of `vector`, which until then is masked, and unmasks it. Nobody else sets one
    /// meanwhile, or keeps the function from hearing it.
    ///
    /// # Errors
    /// [`MmioError::OutOfBounds`] if there is no such vector.
    pub fn set(&self, vector: u16, message: MsiMessage) -> Result<(), MmioError> {
        let _alone = self.config.alone();
        self.set_masked(vector, true)?;
        let entry = usize::from(vector) * ENTRY_LEN;
        for (offset, value) in (entry..).step_by(4).zip(message.parts()) {
            // SAFETY: an address that is written with a message which, as whoever made it promised,
            // interrupts and no more.
            unsafe { self.table.write(offset, value) }?;
        }
        self.set_masked(vector, false)
    }

    /// Only what `set` has written is ever unmasked.
    fn set_masked(&self, vector: u16, masked: bool) -> Result<(), MmioError> {
        let at = usize::from(vector) * ENTRY_LEN + VECTOR_CONTROL;
        let others = self.table.read::<u32>(at)? & !VECTOR_MASKED;
        // SAFETY: no address is in this word.
        unsafe { self.table.write(at, others | if masked { VECTOR_MASKED } else { 0 }) }
    }

    /// Turns MSI-X on or off; while it is on the function does not use its interrupt line. `false` if the
    /// function does not do as told.
    #[must_use]
    pub fn enable(&self, enable: bool) -> bool {
        let bits = if enable { CONTROL_ENABLE } else { 0 };
        self.config.change(self.control, |control| control & !(CONTROL_ENABLE | CONTROL_MASK_ALL) | bits);
        self.config.read_u32(self.control) & (CONTROL_ENABLE | CONTROL_MASK_ALL) == bits
    }
}
