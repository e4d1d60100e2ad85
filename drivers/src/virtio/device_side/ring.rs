//! The memory of a split virtqueue (section 2.7) as the device sees it: [`Driver`] is what the driver
//! publishes, [`Device`] what the device publishes.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use ringfence_memory::{AtomicAccess, Bytes, VolatileError, fuchsia::DeviceRange};

/// Bytes of a descriptor, and its alignment.
pub(super) const DESC_LEN: usize = 16;
const AVAIL_LEN: usize = 2;
const USED_LEN: usize = 8;
/// Offsets of flags, index and entries in both rings. An event index of 2 bytes follows the entries.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const EVENT_LEN: usize = 2;
/// In the available ring's flags: no interrupts. In the used ring's: no notifications.
const SUPPRESS: u16 = 1;
/// The largest queue size (2.7, 2.8).
pub(super) const MAX_SIZE: u16 = 1 << 15;

/// What the device may do with the memory of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescAccess {
    /// The device reads it.
    DeviceRead,
    /// The device writes it.
    DeviceWrite,
}

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescType {
    /// A buffer.
    Direct(DescAccess),
    /// A table of descriptors, for the device to read (2.7.5.3).
    Indirect,
}

/// A copy of one descriptor (2.7.5, 2.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    /// From the halves of a split virtqueue's descriptor.
    pub(super) fn split([address, rest]: [u64; 2]) -> Self {
        Self { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// From the halves of a packed virtqueue's descriptor, where `next` follows from the position, and the
    /// buffer id.
    pub(super) fn packed([address, rest]: [u64; 2], next: u16) -> (Self, u16) {
        (Self { address, len: rest as u32, flags: (rest >> 48) as u16, next }, (rest >> 32) as u16)
    }

    /// A descriptor of a packed indirect table: only the flag WRITE counts (2.8.8); the others are taken only
    /// to refuse a table in a table.
    pub(super) fn in_packed_table(self) -> Self {
        Self { flags: self.flags & (Self::WRITE | Self::INDIRECT), ..self }
    }

    /// Whether another descriptor follows in the chain.
    pub fn has_next(&self) -> bool {
        self.flags & Self::NEXT != 0
    }

    /// Whether it describes a table of descriptors.
    pub fn is_indirect(&self) -> bool {
        self.flags & Self::INDIRECT != 0
    }

    /// Whether the device may write its memory, and not read it. Means nothing if it is indirect (2.7.5.3.2).
    pub fn write_only(&self) -> bool {
        self.flags & Self::WRITE != 0
    }

    /// What it stands for.
    pub fn access_type(&self) -> DescType {
        match (self.is_indirect(), self.write_only()) {
            (true, _) => DescType::Indirect,
            (false, false) => DescType::Direct(DescAccess::DeviceRead),
            (false, true) => DescType::Direct(DescAccess::DeviceWrite),
        }
    }

    /// Index of the next descriptor of the chain, not checked.
    pub fn next(&self) -> Option<u16> {
        self.has_next().then_some(self.next)
    }

    /// Address, as the driver published it, and length in bytes.
    pub fn data(&self) -> (u64, u32) {
        (self.address, self.len)
    }
}

/// Copies the descriptor at `at`: two halves, each in one access, as our driver writes them. Another driver's
/// table may be aligned to less.
pub(super) fn halves(range: &DeviceRange<'_>, at: usize) -> Result<[u64; 2], VolatileError> {
    let half = |at| range.load::<u64>(at, Ordering::Relaxed).map(u64::from_le);
    if let (Ok(address), Ok(rest)) = (half(at), half(at.saturating_add(8))) {
        return Ok([address, rest]);
    }
    let bytes = u128::from_le(range.read_obj(at)?);
    Ok([bytes as u64, (bytes >> 64) as u64])
}

/// Byte offset of element `index` in an array at `base`. Saturates: a wrong one is refused by the range.
pub(super) const fn element(base: usize, index: u16, len: usize) -> usize {
    base.saturating_add((index as usize).saturating_mul(len))
}

/// Whether the range starts at a multiple of `alignment` bytes (a power of two).
pub(super) fn is_aligned(range: &DeviceRange<'_>, alignment: usize) -> bool {
    range.get().start.is_multiple_of(alignment)
}

/// What the driver publishes: descriptor table and available ring. The device only reads it.
#[derive(Clone, Debug)]
pub struct Driver<'a> {
    desc: DeviceRange<'a>,
    avail: DeviceRange<'a>,
    queue_size: u16,
}

impl<'a> Driver<'a> {
    /// Bytes of an available ring with `queue_size` entries, with its event index (2.7.6).
    pub const fn avail_len_for_queue_size(queue_size: u16) -> usize {
        element(ENTRIES + EVENT_LEN, queue_size, AVAIL_LEN)
    }

    /// `None` unless `desc` has exactly a power of two of descriptors, at most 32768, `avail` exactly
    /// [`avail_len_for_queue_size`](Self::avail_len_for_queue_size) bytes, they are aligned to 16 and 2 bytes
    /// (2.7), and can be read.
    pub fn new(desc: DeviceRange<'a>, avail: DeviceRange<'a>) -> Option<Self> {
        let queue_size = u16::try_from(desc.len() / DESC_LEN).ok()?;
        let fits = desc.len() == element(0, queue_size, DESC_LEN)
            && avail.len() == Self::avail_len_for_queue_size(queue_size)
            && queue_size.is_power_of_two();
        let aligned = is_aligned(&desc, DESC_LEN) && is_aligned(&avail, AVAIL_LEN);
        let readable = desc.try_ptr::<u8>().is_some() && avail.try_ptr::<u8>().is_some();
        (fits && aligned && readable).then_some(Self { desc, avail, queue_size })
    }

    /// Number of descriptors.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// How many available entries lie from the free running index `next` on, not checked: an honest driver
    /// has at most [`queue_size`](Self::queue_size) chains in flight.
    pub fn available(&self, next: u16) -> u16 {
        self.index().map_or(0, |index| index.wrapping_sub(next))
    }

    /// Head of the chain in the available entry of the free running index `next`, if the driver has published
    /// that entry; not checked. An index that jumps further than the queue size is not believed: `None`.
    pub fn get_avail(&self, next: u16) -> Option<u16> {
        (1..=self.queue_size).contains(&self.available(next)).then(|| self.entry(next)).flatten()
    }

    /// A copy of descriptor `index`; `None` beyond the table.
    pub fn get_desc(&self, index: u16) -> Option<Desc> {
        halves(&self.desc, element(0, index, DESC_LEN)).ok().map(Desc::split)
    }

    /// Whether the driver wants to be notified, after the used index went from `old` to `new`. If `event_idx`
    /// (VIRTIO_F_EVENT_IDX) it says at which entry, otherwise it says yes or no (2.7.7). A full fence is
    /// needed between publishing `new` and this question.
    pub fn needs_notification(&self, event_idx: bool, old: u16, new: u16) -> bool {
        let at = if event_idx { element(ENTRIES, self.queue_size, AVAIL_LEN) } else { FLAGS };
        match self.avail.load(at, Ordering::Relaxed).map(u16::from_le) {
            // The entry after which to notify is among those from `old` on and before `new`.
            Ok(event) if event_idx => event.wrapping_sub(old) < new.wrapping_sub(old),
            Ok(flags) => flags & SUPPRESS == 0,
            Err(_) => true,
        }
    }

    pub(super) fn entry(&self, next: u16) -> Option<u16> {
        let slot = next & self.queue_size.wrapping_sub(1);
        self.avail.load(element(ENTRIES, slot, AVAIL_LEN), Ordering::Relaxed).ok().map(u16::from_le)
    }

    fn index(&self) -> Option<u16> {
        // Acquire: entries and descriptors are read after the index that covers them.
        self.avail.load(INDEX, Ordering::Acquire).ok().map(u16::from_le)
    }
}

/// An element of the used ring (2.7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    id: u32,
    len: u32,
}

impl Used {
    /// The chain with head `id` is done, and `len` bytes of it were written, from the start of its writable
    /// part.
    pub fn new(id: u16, len: u32) -> Self {
        Self { id: id.into(), len }
    }
}

/// What the device publishes: the used ring. The device only writes it.
///
/// There is one writer: it is not `Clone`, and stays on its thread.
///
/// ```compile_fail,E0277
/// # use ringfence_drivers::virtio::device_side::ring::Device;
/// fn on_another_thread(device: Device<'static>) {
///     std::thread::spawn(move || device.queue_size());
/// }
/// ```
/// ```compile_fail,E0599
/// # use ringfence_drivers::virtio::device_side::ring::Device;
/// fn twice<'a>(device: &Device<'a>) -> Device<'a> {
///     Device::clone(device)
/// }
/// ```
#[derive(Debug)]
pub struct Device<'a> {
    used: DeviceRange<'a>,
    queue_size: u16,
    one_thread: PhantomData<*mut ()>,
}

impl<'a> Device<'a> {
    /// Bytes of a used ring with `queue_size` elements, with its event index (2.7.8).
    pub const fn used_len_for_queue_size(queue_size: u16) -> usize {
        element(ENTRIES + EVENT_LEN, queue_size, USED_LEN)
    }

    /// `None` unless `used` has exactly [`used_len_for_queue_size`](Self::used_len_for_queue_size) bytes for
    /// a power of two of at most 32768, is aligned to 4 bytes (2.7), and can be written.
    pub fn new(used: DeviceRange<'a>) -> Option<Self> {
        let queue_size = used.len().checked_sub(ENTRIES + EVENT_LEN)? / USED_LEN;
        let queue_size = u16::try_from(queue_size).ok().filter(|size| size.is_power_of_two())?;
        let writable = used.try_mut_ptr::<u32>().is_some();
        (used.len() == Self::used_len_for_queue_size(queue_size) && writable).then_some(Self {
            used,
            queue_size,
            one_thread: PhantomData,
        })
    }

    /// Number of elements.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// Writes `used` to the element of the free running `index`. The driver sees it with the next
    /// [`publish_used`](Self::publish_used).
    pub fn insert_used(&mut self, used: Used, index: u16) {
        let slot = index & self.queue_size.wrapping_sub(1);
        let at = element(ENTRIES, slot, USED_LEN);
        // In one access, as our driver reads it; in another's ring it may be aligned to 4 bytes only.
        let both = u64::from(used.id) | u64::from(used.len) << 32;
        if self.used.store(both.to_le(), at, Ordering::Relaxed).is_err() {
            self.store(used.id.to_le(), at, Ordering::Relaxed);
            self.store(used.len.to_le(), at.saturating_add(4), Ordering::Relaxed);
        }
    }

    /// Shows the driver the elements before the free running `index`. It is not notified.
    pub fn publish_used(&mut self, index: u16) {
        // Release: elements and buffers are written before the index that covers them.
        self.store(index.to_le(), INDEX, Ordering::Release);
    }

    /// Tells the driver that it need not notify the device of chains, or that it must (2.7.10). Without
    /// VIRTIO_F_EVENT_IDX only.
    pub fn suppress_notifications(&mut self, suppress: bool) {
        let flags = if suppress { SUPPRESS } else { 0 };
        self.store(flags.to_le(), FLAGS, Ordering::Relaxed);
    }

    /// Asks the driver to notify the device when it fills the available entry of the free running `index`.
    /// With VIRTIO_F_EVENT_IDX only (2.7.10).
    pub fn set_avail_event(&mut self, index: u16) {
        self.store(index.to_le(), element(ENTRIES, self.queue_size, USED_LEN), Ordering::Relaxed);
    }

    fn store<T: AtomicAccess>(&mut self, value: T, at: usize, order: Ordering) {
        // `new` has checked size, alignment and direction: there is no error to report.
        let stored = self.used.store(value, at, order);
        debug_assert!(stored.is_ok());
    }
}
