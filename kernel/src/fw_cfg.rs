//! QEMU's firmware configuration device (`docs/specs/fw_cfg.rst` of QEMU): how options reach the guest,
//! as `-fw_cfg name=opt/org.ringfence/NAME,string=VALUE`, and what QEMU tells firmware about the machine.

use alloc::string::String;
use alloc::vec::Vec;

use spin::{Mutex, Once};
use x86_64::instructions::port::{PortReadOnly, PortWriteOnly};

/// Longest option that is read.
const MAX_LEN: u32 = 64 * 1024;
/// Directory entries that are looked at.
const MAX_FILES: u32 = 1024;

const SIGNATURE: u16 = 0x0000;
const FILE_DIRECTORY: u16 = 0x0019;
const NAME_LEN: usize = 56;
const PREFIX: &str = "opt/org.ringfence/";
/// How many PCI root buses there are besides bus 0, as a little-endian number of 64 bits; there is no such
/// file for 0.
const EXTRA_ROOTS: &str = "etc/extra-pci-roots";

struct Device {
    selector: PortWriteOnly<u16>,
    data: PortReadOnly<u8>,
}

static DEVICE: Mutex<Device> =
    Mutex::new(Device { selector: PortWriteOnly::new(0x510), data: PortReadOnly::new(0x511) });

impl Device {
    fn select(&mut self, key: u16) {
        // SAFETY: selecting an item only rewinds the device's own read position; without the device it does
        // nothing.
        unsafe { self.selector.write(key) };
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        // SAFETY: reading has no effect but to advance the read position. Past the end it yields zeros.
        [(); N].map(|()| unsafe { self.data.read() })
    }

    /// The files that somebody here wants; `None` without the device.
    fn files(&mut self) -> Option<Vec<Entry>> {
        self.select(SIGNATURE);
        if self.read() != *b"QEMU" {
            return None;
        }
        self.select(FILE_DIRECTORY);
        let count = u32::from_be_bytes(self.read());
        let entries = (0..count.min(MAX_FILES)).map(|_| {
            let size = u32::from_be_bytes(self.read());
            let key = u16::from_be_bytes(self.read());
            let _reserved: [u8; 2] = self.read();
            Entry { key, size, name: self.read() }
        });
        let is_wanted = |entry: &Entry| {
            entry.name.starts_with(PREFIX.as_bytes()) || entry.name() == EXTRA_ROOTS.as_bytes()
        };
        Some(entries.filter(is_wanted).collect())
    }
}

/// A file of the device.
struct Entry {
    key: u16,
    size: u32,
    name: [u8; NAME_LEN],
}

impl Entry {
    fn name(&self) -> &[u8] {
        self.name.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Has the device and the first of its files that `is_wanted`, or what the device lacks.
fn with_file<T>(
    is_wanted: impl Fn(&[u8]) -> bool,
    read: impl FnOnce(&mut Device, &Entry) -> T,
) -> Result<T, Missing> {
    /// Read once: each byte is a port access, and the directory has some 1,500.
    static FILES: Once<Option<Vec<Entry>>> = Once::new();

    let mut device = DEVICE.lock();
    let files = FILES.call_once(|| device.files()).as_ref().ok_or(Missing::Device)?;
    let file = files.iter().find(|file| is_wanted(file.name())).ok_or(Missing::File)?;
    device.select(file.key);
    Ok(read(&mut device, file))
}

/// Why there is no file.
enum Missing {
    Device,
    File,
}

/// The value of the option `opt/org.ringfence/NAME`; `None` if it is not given, not text, or over 64 KiB.
pub fn option(name: &str) -> Option<String> {
    let is_wanted = |file: &[u8]| file.strip_prefix(PREFIX.as_bytes()) == Some(name.as_bytes());
    let value = with_file(is_wanted, |device, file| {
        if file.size > MAX_LEN {
            log::warn!("option {name} is ignored: {} bytes are too many", file.size);
            return None;
        }
        String::from_utf8((0..file.size).map(|_| device.read::<1>()[0]).collect()).ok()
    });
    value.ok().flatten()
}

/// How many PCI root buses there are besides bus 0; `None` if that cannot be told, as there is no such
/// device.
pub fn other_pci_roots() -> Option<usize> {
    let is_wanted = |file: &[u8]| file == EXTRA_ROOTS.as_bytes();
    match with_file(is_wanted, |device, _| u64::from_le_bytes(device.read())) {
        Ok(count) => usize::try_from(count).ok(),
        Err(Missing::File) => Some(0),
        Err(Missing::Device) => None,
    }
}
