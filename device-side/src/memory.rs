//! Where the device finds a virtqueue.

use ringfence_memory::fuchsia::{DeviceRange, DriverMem, DriverRange};
use ringfence_memory::virtqueue::{self, packed::Event, split};

/// The memory of a split virtqueue (2.7), translated.
#[derive(Clone, Debug)]
pub struct QueueMemory<'a> {
    /// Descriptor table, for the device to read: 16 bytes for each descriptor.
    pub desc: DeviceRange<'a>,
    /// Available ring, for the device to read: 6 bytes, and 2 for each descriptor.
    pub avail: DeviceRange<'a>,
    /// Used ring, for the device to write: 6 bytes, and 8 for each descriptor.
    pub used: DeviceRange<'a>,
}

/// The memory of a packed virtqueue (2.8), translated.
#[derive(Clone, Debug)]
pub struct PackedMemory<'a> {
    /// Descriptor ring, for the device to read: 16 bytes for each descriptor, at most 32768 of them.
    pub desc: DeviceRange<'a>,
    /// The same bytes for the device to write.
    pub desc_used: DeviceRange<'a>,
    /// Driver event suppression, for the device to read: 4 bytes.
    pub driver_event: DeviceRange<'a>,
    /// Device event suppression, for the device to write: 4 bytes.
    pub device_event: DeviceRange<'a>,
}

/// The memory of a virtqueue of either format, translated.
#[derive(Clone, Debug)]
pub enum RingMemory<'a> {
    /// Of a split one.
    Split(QueueMemory<'a>),
    /// Of a packed one.
    Packed(PackedMemory<'a>),
}

impl<'a> RingMemory<'a> {
    /// The memory of a queue of `size` descriptors, whose descriptors, driver area and device area are at
    /// these addresses. `None` unless all of it is in what the device may read and write.
    pub fn find<M: DriverMem + ?Sized>(
        [readable, writable]: [&'a M; 2],
        packed: bool,
        size: u16,
        [descriptors, driver, device]: [u64; 3],
    ) -> Option<Self> {
        let find = |memory: &'a M, address: u64, len: usize| {
            memory.translate(DriverRange::try_from((address, u32::try_from(len).ok()?)).ok()?)
        };
        let len = virtqueue::descriptor(size);
        let desc = find(readable, descriptors, len)?;
        Some(if packed {
            Self::Packed(PackedMemory {
                desc,
                desc_used: find(writable, descriptors, len)?,
                driver_event: find(readable, driver, Event::LEN)?,
                device_event: find(writable, device, Event::LEN)?,
            })
        } else {
            Self::Split(QueueMemory {
                desc,
                avail: find(readable, driver, split::AVAILABLE.len(size))?,
                used: find(writable, device, split::USED.len(size))?,
            })
        })
    }
}
