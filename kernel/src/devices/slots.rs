//! Slots that devices can be taken out of while the machine runs (PCI Express base specification 4.0, 6.7):
//! of root ports, and of switches.
//!
//! Somebody presses a slot's attention button, as QEMU's `device_del` does. What is in the slot is given up
//! in good order, then the slot's power is turned off, and it can be taken. What is put into a slot is not
//! looked for, and that a second press is to undo the first is not waited for.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use embassy_time::Timer;
use ringfence_drivers::pci::{Function, Header};
use ringfence_memory::{ConfigAccess, ConfigSpace};

use crate::devices::Devices;

/// How often buttons are looked at, in milliseconds.
const INTERVAL: u64 = 250;

/// The capability that a port has, and where in it things are (7.5.3).
const EXPRESS: u8 = 0x10;
const FLAGS: u8 = 0x02;
const CAPABILITIES: u8 = 0x14;
const CONTROL: u8 = 0x18;
/// In [`FLAGS`]: there is a slot.
const HAS_SLOT: u16 = 1 << 8;
/// In [`CAPABILITIES`]: an attention button, and that something can be done about it.
const BUTTON_AND_HOT_PLUG: u32 = 1 << 0 | 1 << 6;
/// In the upper half of the register at [`CONTROL`], where ones clear: the button was pressed.
const PRESSED: u32 = 1 << 16;
/// In its lower half: indicator of power off, power off.
const OFF: u32 = 0b11 << 8 | 1 << 10;
const SECONDARY_BUS: u16 = 0x19;
const SUBORDINATE_BUS: u16 = 0x1a;

/// The slot of a port.
pub struct Slot {
    access: &'static dyn ConfigAccess,
    port: ConfigSpace,
    /// Where the register of control and status is.
    control: u16,
}

impl Slot {
    /// The slot of `function`, if it is a port that has one with an attention button.
    pub fn of(access: &'static dyn ConfigAccess, function: &Function) -> Option<Self> {
        let Header::Bridge(_) = function.header else { return None };
        let port = function.config();
        let express = function.capabilities().find(|capability| capability.id == EXPRESS)?;
        let has_slot = port.read_u16(express.field(FLAGS)?) & HAS_SLOT != 0
            && port.read_u32(express.field(CAPABILITIES)?) & BUTTON_AND_HOT_PLUG == BUTTON_AND_HOT_PLUG;
        let slot = Self { access, port, control: express.field(CONTROL)? };
        has_slot.then_some(slot)
    }

    /// The buses behind it.
    fn buses(&self) -> RangeInclusive<u8> {
        self.port.read_u8(SECONDARY_BUS)..=self.port.read_u8(SUBORDINATE_BUS)
    }

    /// Whether the button was pressed. Never for a port that is gone itself.
    fn was_pressed(&self) -> bool {
        let now = self.port.read_u32(self.control);
        now & PRESSED != 0 && now != u32::MAX
    }

    fn turn_off(self) {
        let value = self.port.read_u32(self.control) & 0xffff | OFF | PRESSED;
        // SAFETY: the control of a slot is about its lamps, its power and the events that it interrupts for,
        // which stay as they are. Nobody else writes it. A device without power accesses no memory.
        unsafe { self.access.write(self.port.address(), self.control, value) };
        log::info!("the slot of {} can be emptied", self.port.address());
    }
}

/// Looks after the buttons of `slots`, which some of `devices` are in, until all are turned off.
pub async fn watch(mut slots: Vec<Slot>, devices: Rc<Devices>) {
    while !slots.is_empty() {
        Timer::after_millis(INTERVAL).await;
        while let Some(pressed) = slots.iter().position(Slot::was_pressed) {
            let slot = slots.swap_remove(pressed);
            devices.leave(Some(slot.buses())).await;
            slot.turn_off();
        }
    }
}
