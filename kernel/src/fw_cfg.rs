//! QEMU's firmware configuration device (`docs/specs/fw_cfg.rst` of QEMU): how options reach the guest,
//! as `-fw_cfg name=opt/org.ringfence/NAME,string=VALUE`.

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
const PREFIX: &[u8] = b"opt/org.ringfence/";

struct Device {
    selector: PortWriteOnly<u16>,
    data: PortReadOnly<u8>,
}

static DEVICE: Mutex<Device> =
    Mutex::new(Device { selector: PortWriteOnly::new(0x510), data: PortReadOnly::new(0x511) });

impl Device {
    fn select(&mut self, key: u16) {
        // SAFETY: selecting an item only rewinds the device's own read position; without the device it does nothing.
        unsafe { self.selector.write(key) };
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        // SAFETY: reading has no effect but to advance the read position. Past the end it yields zeros.
        [(); N].map(|()| unsafe { self.data.read() })
    }

    /// The options that there are.
    fn options(&mut self) -> Vec<Entry> {
        self.select(SIGNATURE);
        if self.read() != *b"QEMU" {
            return Vec::new();
        }
        self.select(FILE_DIRECTORY);
        let count = u32::from_be_bytes(self.read());
        let entries = (0..count.min(MAX_FILES)).map(|_| {
            let size = u32::from_be_bytes(self.read());
            let key = u16::from_be_bytes(self.read());
            let _reserved: [u8; 2] = self.read();
            Entry { key, size, name: self.read() }
        });
        entries.filter(|entry| entry.name.starts_with(PREFIX)).collect()
    }
}

/// One of the options.
struct Entry {
    key: u16,
    size: u32,
    name: [u8; NAME_LEN],
}

/// The value of the option `opt/org.ringfence/NAME`; `None` if it is not given, not text, or over 64 KiB.
pub fn option(name: &str) -> Option<String> {
    /// Read once: each byte is a port access, and the directory has some 1,500.
    static OPTIONS: Once<Vec<Entry>> = Once::new();

    let mut device = DEVICE.lock();
    let is_wanted =
        |entry: &&Entry| entry.name[PREFIX.len()..].split(|byte| *byte == 0).next() == Some(name.as_bytes());
    let entry = OPTIONS.call_once(|| device.options()).iter().find(is_wanted)?;
    if entry.size > MAX_LEN {
        log::warn!("option {name} is ignored: {} bytes are too many", entry.size);
        return None;
    }
    device.select(entry.key);
    String::from_utf8((0..entry.size).map(|_| device.read::<1>()[0]).collect()).ok()
}
