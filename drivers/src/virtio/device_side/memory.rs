//! Where the device finds a virtqueue.

use ringfence_memory::fuchsia::DeviceRange;

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
