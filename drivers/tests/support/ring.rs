//! The device side of a split ring, written from section 2.7 of the specification.

use ringfence_memory::host::{HostBytes, HostPlatform};
use ringfence_memory::{Bytes, DeviceId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

#[derive(Clone, Debug)]
pub struct Chain {
    pub head: u16,
    pub segments: Vec<Segment>,
}

impl Chain {
    pub fn writable_len(&self) -> u32 {
        self.segments.iter().filter(|segment| segment.writable).map(|segment| segment.len).sum()
    }
}

pub struct DeviceRing {
    platform: &'static HostPlatform,
    id: DeviceId,
    pub size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    pub next_available: u16,
    pub used_index: u16,
}

impl DeviceRing {
    pub fn new(
        platform: &'static HostPlatform,
        id: DeviceId,
        size: u16,
        [descriptors, driver, device]: [u64; 3],
    ) -> Self {
        assert!(size.is_power_of_two());
        assert!(descriptors.is_multiple_of(16) && driver.is_multiple_of(2) && device.is_multiple_of(4));
        Self { platform, id, size, descriptors, driver, device, next_available: 0, used_index: 0 }
    }

    /// Memory at a device address: everything that the driver mentions must be shared with the device.
    pub fn memory(&self, address: u64, len: usize) -> HostBytes {
        self.platform
            .translate(self.id, address, len)
            .unwrap_or_else(|| panic!("{len} bytes at {address:#x} are not shared with the device"))
    }

    pub fn is_shared(&self, address: u64, len: usize) -> bool {
        self.platform.translate(self.id, address, len).is_some()
    }

    fn u16_at(&self, address: u64) -> u16 {
        u16::from_le(self.memory(address, 2).slice().read_obj(0).unwrap())
    }

    fn put_u16(&self, address: u64, value: u16) {
        self.memory(address, 2).slice().write_obj(value.to_le(), 0).unwrap();
    }

    /// Chains made available and not taken yet.
    pub fn pending(&self) -> u16 {
        let pending = self.u16_at(self.driver + 2).wrapping_sub(self.next_available);
        assert!(pending <= self.size, "the driver made {pending} chains available in {} entries", self.size);
        pending
    }

    pub fn interrupts_wanted(&self) -> bool {
        let flags = self.u16_at(self.driver);
        assert!(flags <= 1, "reserved bits in the available ring's flags");
        flags == 0
    }

    /// Takes the next available chain, checking the driver's side of the contract.
    pub fn take(&mut self) -> Option<Chain> {
        if self.pending() == 0 {
            return None;
        }
        let slot = u64::from(self.next_available % self.size);
        self.next_available = self.next_available.wrapping_add(1);
        let head = self.u16_at(self.driver + 4 + 2 * slot);
        let (mut segments, mut at) = (Vec::<Segment>::new(), head);
        loop {
            assert!(at < self.size, "descriptor {at} of {}", self.size);
            assert!(segments.len() < self.size.into(), "a loop of descriptors");
            let memory = self.memory(self.descriptors + 16 * u64::from(at), 16);
            let address = u64::from_le(memory.slice().read_obj(0).unwrap());
            let len = u32::from_le(memory.slice().read_obj(8).unwrap());
            let flags = u16::from_le(memory.slice().read_obj(12).unwrap());
            assert!(flags < 4, "flags {flags:#x}");
            let writable = flags & 2 != 0;
            assert!(writable || segments.last().is_none_or(|last| !last.writable), "readable after writable");
            assert!(self.is_shared(address, len as usize) && len > 0, "{len} bytes at {address:#x}");
            segments.push(Segment { address, len, writable });
            if flags & 1 == 0 {
                return Some(Chain { head, segments });
            }
            at = u16::from_le(memory.slice().read_obj(14).unwrap());
        }
    }

    pub fn read(&self, segment: &Segment) -> Vec<u8> {
        assert!(!segment.writable);
        let mut bytes = vec![0; segment.len as usize];
        self.memory(segment.address, bytes.len()).slice().read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    /// Writes to the start of a segment.
    pub fn write(&self, segment: &Segment, bytes: &[u8]) {
        assert!(segment.writable && bytes.len() <= segment.len as usize);
        self.memory(segment.address, bytes.len()).slice().write_slice(bytes, 0).unwrap();
    }

    /// Writes a used element without publishing it.
    pub fn put_used(&mut self, id: u32, len: u32) {
        let at = self.device + 4 + 8 * u64::from(self.used_index % self.size);
        let element = self.memory(at, 8);
        element.slice().write_obj(id.to_le(), 0).unwrap();
        element.slice().write_obj(len.to_le(), 4).unwrap();
        self.used_index = self.used_index.wrapping_add(1);
    }

    /// Tells the driver about the used elements, or about any index that the test likes.
    pub fn publish_used(&self, index: u16) {
        self.put_u16(self.device + 2, index);
    }

    pub fn complete(&mut self, head: u16, len: u32) {
        self.put_used(head.into(), len);
        self.publish_used(self.used_index);
    }

    /// Asks for no notifications, or for them.
    pub fn suppress_kicks(&self, suppress: bool) {
        self.put_u16(self.device, suppress.into());
    }

    /// Overwrites the descriptor table and the available ring's entries, which are no business of the device.
    pub fn scribble(&self, with: u8) {
        self.memory(self.descriptors, 16 * usize::from(self.size)).slice().fill(with).unwrap();
        self.memory(self.driver + 4, 2 * usize::from(self.size)).slice().fill(with).unwrap();
    }
}
