//! Names for a person: the boot log and the list of devices.

use crate::pci::Function;
use crate::virtio::DeviceType;

/// Functions that QEMU's machines bring along, by vendor and device.
const KNOWN: &[(u16, u16, &str)] = &[
    (0x1234, 0x1111, "standard VGA"),
    (0x1b36, 0x0008, "PCIe host bridge"),
    (0x1b36, 0x000c, "PCIe root port"),
    (0x1b36, 0x000d, "xHCI USB controller"),
    (0x8086, 0x100e, "e1000 network"),
    (0x8086, 0x10d3, "e1000e network"),
    (0x8086, 0x1237, "440FX host bridge"),
    (0x8086, 0x2918, "ICH9 ISA bridge"),
    (0x8086, 0x2922, "ICH9 SATA controller"),
    (0x8086, 0x2930, "ICH9 SMBus"),
    (0x8086, 0x29c0, "Q35 host bridge"),
    (0x8086, 0x7000, "PIIX3 ISA bridge"),
    (0x8086, 0x7010, "PIIX3 IDE controller"),
    (0x8086, 0x7113, "PIIX4 power management"),
];

/// Base class and subclass (PCI code and ID assignment specification 1.11).
const CLASSES: &[(u8, u8, &str)] = &[
    (0x01, 0x01, "IDE controller"),
    (0x01, 0x06, "SATA controller"),
    (0x01, 0x08, "NVMe controller"),
    (0x02, 0x00, "Ethernet controller"),
    (0x03, 0x00, "VGA controller"),
    (0x04, 0x03, "audio controller"),
    (0x06, 0x00, "host bridge"),
    (0x06, 0x01, "ISA bridge"),
    (0x06, 0x04, "PCI bridge"),
    (0x08, 0x06, "IOMMU"),
    (0x0c, 0x03, "USB controller"),
    (0x0c, 0x05, "SMBus controller"),
];

impl Function {
    /// A short name for a person: by ids where known, else by class.
    pub fn name(&self) -> &'static str {
        if let Some(kind) = DeviceType::of(self) {
            return kind.name();
        }
        let id = |&&(vendor, device, _): &&(u16, u16, _)| (vendor, device) == (self.vendor, self.device);
        let class = |&&(base, sub, _): &&(u8, u8, _)| self.class.starts_with(&[base, sub]);
        let known = KNOWN.iter().find(id).map(|&(.., name)| name);
        known.or_else(|| CLASSES.iter().find(class).map(|&(.., name)| name)).unwrap_or("unknown device")
    }
}
