//! MSI-X: interrupts as messages, one table entry each (PCI 3.0, 6.8.2).

use ringfence_memory::{ConfigSpace, MmioError, MmioRegion, MsiMessage};

use super::{Capability, Function};

const ENTRY_LEN: usize = 16;
const VECTOR_CONTROL: usize = 12;
const VECTOR_MASKED: u32 = 1;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const CONTROL_SIZE: u16 = 0x7ff;

/// Where a function's MSI-X structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    control: u16,
    /// Number of table entries, 1..=2048.
    pub size: u16,
    /// BAR index of the table.
    pub table_bar: u8,
    /// Byte offset of the table in that BAR: a multiple of 8.
    pub table_offset: u32,
    /// BAR index of the pending bits.
    pub pending_bar: u8,
    /// Byte offset of the pending bits in that BAR.
    pub pending_offset: u32,
}

impl MsixCapability {
    /// The function's MSI-X capability, if it has one.
    pub fn find(function: &Function) -> Option<Self> {
        let capability = function.capabilities().find(|capability| capability.id == Capability::MSI_X)?;
        let config = function.config();
        let control = capability.field(2)?;
        let (table, pending) = (capability.field(4)?, capability.field(8)?);
        let (table, pending) = (config.read_u32(table), config.read_u32(pending));
        Some(Self {
            control,
            size: (config.read_u16(control) & CONTROL_SIZE).saturating_add(1),
            table_bar: (table & 0b111) as u8,
            table_offset: table & !0b111,
            pending_bar: (pending & 0b111) as u8,
            pending_offset: pending & !0b111,
        })
    }

    /// Length of the table in bytes.
    pub fn table_len(&self) -> usize {
        usize::from(self.size).saturating_mul(ENTRY_LEN)
    }
}

/// A function's MSI-X table, mapped.
#[derive(Debug)]
pub struct MsixTable {
    config: ConfigSpace,
    capability: MsixCapability,
    table: MmioRegion,
}

impl MsixTable {
    /// `bar` is the BAR that `capability` names.
    pub fn new(function: &Function, capability: MsixCapability, bar: &MmioRegion) -> Result<Self, MmioError> {
        let table = bar.part(capability.table_offset as usize, capability.table_len())?;
        Ok(Self { config: function.config(), capability, table })
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.capability.size
    }

    /// Sets the message of `vector` and unmasks it.
    pub fn set(&self, vector: u16, message: MsiMessage) -> Result<(), MmioError> {
        let entry = usize::from(vector).saturating_mul(ENTRY_LEN);
        self.set_masked(vector, true)?;
        self.table.write_msi_message(entry, message)?;
        self.set_masked(vector, false)
    }

    /// Masks or unmasks `vector`; a masked message stays pending.
    pub fn set_masked(&self, vector: u16, masked: bool) -> Result<(), MmioError> {
        let entry = usize::from(vector).saturating_mul(ENTRY_LEN);
        let control = self.table.register::<u32>(entry.saturating_add(VECTOR_CONTROL))?;
        let others = control.read() & !VECTOR_MASKED;
        control.write(others | if masked { VECTOR_MASKED } else { 0 });
        Ok(())
    }

    /// Turns MSI-X on or off; while it is on the function does not use its interrupt line. `false` if the function
    /// does not do as told.
    #[must_use]
    pub fn enable(&self, enable: bool) -> bool {
        let old = self.config.read_u16(self.capability.control) & !(CONTROL_ENABLE | CONTROL_MASK_ALL);
        let new = old | if enable { CONTROL_ENABLE } else { 0 };
        self.config.write_u16(self.capability.control, new).is_ok()
            && self.config.read_u16(self.capability.control) == new
    }
}
