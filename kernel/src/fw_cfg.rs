//! QEMU's firmware configuration device (`docs/specs/fw_cfg.rst` of QEMU): how options reach the guest,
//! as `-fw_cfg name=opt/org.ringfence/NAME,string=VALUE`.

use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;
use x86_64::instructions::port::{PortReadOnly, PortWriteOnly};

/// Longest file that is read.
const MAX_LEN: u32 = 64 * 1024;
/// Directory entries that are looked at.
const MAX_FILES: u32 = 1024;

const SIGNATURE: u16 = 0x0000;
const FILE_DIRECTORY: u16 = 0x0019;
const NAME_LEN: usize = 56;

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

    /// Selector and size of the file called `name`.
    fn find(&mut self, name: &str) -> Option<(u16, u32)> {
        self.select(SIGNATURE);
        if self.read() != *b"QEMU" {
            return None;
        }
        self.select(FILE_DIRECTORY);
        let count = u32::from_be_bytes(self.read());
        for _ in 0..count.min(MAX_FILES) {
            let size = u32::from_be_bytes(self.read());
            let key = u16::from_be_bytes(self.read());
            let _reserved: [u8; 2] = self.read();
            let entry: [u8; NAME_LEN] = self.read();
            if entry.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
                return Some((key, size));
            }
        }
        None
    }
}

/// The contents of the file called `name`; `None` if there is no such file, no such device, or it is over 64 KiB.
pub fn file(name: &str) -> Option<Vec<u8>> {
    let mut device = DEVICE.lock();
    let (key, size) = device.find(name)?;
    if size > MAX_LEN {
        log::warn!("fw_cfg file {name} is ignored: {size} bytes are too many");
        return None;
    }
    device.select(key);
    Some((0..size).map(|_| device.read::<1>()[0]).collect())
}

/// The value of the option `opt/org.ringfence/NAME`; `None` if it is not given, or not text.
pub fn option(name: &str) -> Option<String> {
    let mut path = String::from("opt/org.ringfence/");
    path.push_str(name);
    String::from_utf8(file(&path)?).ok()
}
