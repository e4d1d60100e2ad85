//! The memory of a split virtqueue (section 2.7) as the device sees it: [`Driver`] is what the driver
//! publishes, [`Device`] what the device publishes.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use ringfence_memory::virtqueue::split::{AVAILABLE, Descriptor, NO_NOTIFICATION, Ring, USED, UsedElement};
use ringfence_memory::virtqueue::{
    self, DESCRIPTOR_LEN, INDIRECT, NEXT, WORD_LEN, WRITE, need_event, packed,
};
use ringfence_memory::{AtomicAccess, Bytes, VolatileError, fuchsia::DeviceRange};

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

/// A copy of one descriptor, of either format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc(Descriptor);

impl Desc {
    pub(super) fn split(words: [u64; 2]) -> Self {
        Self(Descriptor::from_words(words))
    }

    /// Of a packed virtqueue, where `next` follows from the position; and its buffer id.
    pub(super) fn packed(words: [u64; 2], next: u16) -> (Self, u16) {
        let packed::Descriptor { address, len, id, flags } = packed::Descriptor::from_words(words);
        (Self(Descriptor { address, len, flags, next }), id)
    }

    /// A descriptor of a packed indirect table: only the flag WRITE counts (2.8.8); the others are taken only
    /// to refuse a table in a table.
    pub(super) fn in_packed_table(self) -> Self {
        Self(Descriptor { flags: self.0.flags & (WRITE | INDIRECT), ..self.0 })
    }

    /// Whether another descriptor follows in the chain.
    pub fn has_next(&self) -> bool {
        self.0.flags & NEXT != 0
    }

    /// Whether it describes a table of descriptors.
    pub fn is_indirect(&self) -> bool {
        self.0.flags & INDIRECT != 0
    }

    /// Whether the device may write its memory, and not read it. Means nothing if it is indirect (2.7.5.3.2).
    pub fn write_only(&self) -> bool {
        self.0.flags & WRITE != 0
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
        self.has_next().then_some(self.0.next)
    }

    /// Address, as the driver published it, and length in bytes.
    pub fn data(&self) -> (u64, u32) {
        (self.0.address, self.0.len)
    }
}

/// Copies descriptor `index` of a table: two words, each in one access, as our driver writes them. Another
/// driver's table may be aligned to less.
pub(super) fn descriptor(table: &DeviceRange<'_>, index: u16) -> Result<[u64; 2], VolatileError> {
    let at = virtqueue::descriptor(index);
    let word = |at| table.load::<u64>(at, Ordering::Relaxed).map(u64::from_le);
    if let (Ok(address), Ok(rest)) = (word(at), word(at.saturating_add(WORD_LEN))) {
        return Ok([address, rest]);
    }
    let bytes = u128::from_le(table.read_obj(at)?);
    Ok([bytes as u64, (bytes >> 64) as u64])
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
    /// Bytes of an available ring with `queue_size` elements, with its event index (2.7.6).
    pub const fn avail_len_for_queue_size(queue_size: u16) -> usize {
        AVAILABLE.len(queue_size)
    }

    /// `None` unless `desc` has exactly a power of two of descriptors, at most 32768, `avail` exactly
    /// [`avail_len_for_queue_size`](Self::avail_len_for_queue_size) bytes, they are aligned to 16 and 2 bytes
    /// (2.7), and can be read.
    pub fn new(desc: DeviceRange<'a>, avail: DeviceRange<'a>) -> Option<Self> {
        let queue_size = u16::try_from(desc.len() / DESCRIPTOR_LEN).ok()?;
        let fits = desc.len() == virtqueue::descriptor(queue_size)
            && avail.len() == Self::avail_len_for_queue_size(queue_size)
            && queue_size.is_power_of_two();
        let aligned = is_aligned(&desc, DESCRIPTOR_LEN) && is_aligned(&avail, AVAILABLE.align);
        let readable = desc.try_ptr::<u8>().is_some() && avail.try_ptr::<u8>().is_some();
        (fits && aligned && readable).then_some(Self { desc, avail, queue_size })
    }

    /// Number of descriptors.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// How many chains are available from the free running index `next` on, not checked: an honest driver has
    /// at most [`queue_size`](Self::queue_size) chains in flight.
    pub fn available(&self, next: u16) -> u16 {
        self.index().map_or(0, |index| index.wrapping_sub(next))
    }

    /// Head of the chain in the available ring's element of the free running index `next`, if the driver has
    /// published that element; not checked. An index that jumps further than the queue size is not believed:
    /// `None`.
    pub fn get_avail(&self, next: u16) -> Option<u16> {
        (1..=self.queue_size).contains(&self.available(next)).then(|| self.element(next)).flatten()
    }

    /// A copy of descriptor `index`; `None` beyond the table.
    pub fn get_desc(&self, index: u16) -> Option<Desc> {
        descriptor(&self.desc, index).ok().map(Desc::split)
    }

    /// Whether the driver wants to be notified, after the used index went from `old` to `new`. If `event_idx`
    /// (VIRTIO_F_EVENT_IDX) it says at which element, otherwise it says yes or no (2.7.7). A full fence is
    /// needed between publishing `new` and this question.
    pub fn needs_notification(&self, event_idx: bool, old: u16, new: u16) -> bool {
        let at = if event_idx { AVAILABLE.event(self.queue_size) } else { Ring::FLAGS };
        match self.avail.load(at, Ordering::Relaxed).map(u16::from_le) {
            Ok(event) if event_idx => need_event(event, new, old),
            Ok(flags) => flags & NO_NOTIFICATION == 0,
            Err(_) => true,
        }
    }

    pub(super) fn element(&self, next: u16) -> Option<u16> {
        let index = next & self.queue_size.wrapping_sub(1);
        self.avail.load(AVAILABLE.element(index), Ordering::Relaxed).ok().map(u16::from_le)
    }

    fn index(&self) -> Option<u16> {
        // Acquire: elements and descriptors are read after the index that covers them.
        self.avail.load(Ring::INDEX, Ordering::Acquire).ok().map(u16::from_le)
    }
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used(UsedElement);

impl Used {
    /// The chain with head `id` is done, and `len` bytes of it were written, from the start of its writable
    /// part.
    pub fn new(id: u16, len: u32) -> Self {
        Self(UsedElement { id: id.into(), len })
    }
}

/// What the device publishes: the used ring. The device only writes it.
///
/// There is one writer: it is not `Clone`, and stays on its thread.
///
/// ```compile_fail,E0277
/// # use ringfence_device_side::ring::Device;
/// fn on_another_thread(device: Device<'static>) {
///     std::thread::spawn(move || device.queue_size());
/// }
/// ```
/// ```compile_fail,E0599
/// # use ringfence_device_side::ring::Device;
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
        USED.len(queue_size)
    }

    /// `None` unless `used` has exactly [`used_len_for_queue_size`](Self::used_len_for_queue_size) bytes for
    /// a power of two of at most 32768, is aligned to 4 bytes (2.7), and can be written.
    pub fn new(used: DeviceRange<'a>) -> Option<Self> {
        let mut sizes = (0..16).map(|bits| 1_u16 << bits);
        let queue_size = sizes.find(|&size| Self::used_len_for_queue_size(size) == used.len())?;
        let writable = used.try_mut_ptr::<u32>().is_some();
        writable.then_some(Self { used, queue_size, one_thread: PhantomData })
    }

    /// Number of elements.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// Writes `used` to the element of the free running `index`. The driver sees it with the next
    /// [`publish_used`](Self::publish_used).
    pub fn insert_used(&mut self, used: Used, index: u16) {
        let at = USED.element(index & self.queue_size.wrapping_sub(1));
        let word = used.0.to_word();
        // In one access, as our driver reads it; in another's ring it may be aligned to 4 bytes only.
        if self.used.store(word.to_le(), at, Ordering::Relaxed).is_err() {
            self.store((word as u32).to_le(), at, Ordering::Relaxed);
            self.store(((word >> 32) as u32).to_le(), at.saturating_add(4), Ordering::Relaxed);
        }
    }

    /// Shows the driver the elements before the free running `index`. It is not notified.
    pub fn publish_used(&mut self, index: u16) {
        // Release: elements and buffers are written before the index that covers them.
        self.store(index.to_le(), Ring::INDEX, Ordering::Release);
    }

    /// Tells the driver that it need not notify the device of chains, or that it must (2.7.10). Without
    /// VIRTIO_F_EVENT_IDX only.
    pub fn suppress_notifications(&mut self, suppress: bool) {
        let flags = if suppress { NO_NOTIFICATION } else { 0 };
        self.store(flags.to_le(), Ring::FLAGS, Ordering::Relaxed);
    }

    /// Asks the driver to notify the device when it fills the available ring's element of the free running
    /// `index`. With VIRTIO_F_EVENT_IDX only (2.7.10).
    pub fn set_avail_event(&mut self, index: u16) {
        self.store(index.to_le(), USED.event(self.queue_size), Ordering::Relaxed);
    }

    fn store<T: AtomicAccess>(&mut self, value: T, at: usize, order: Ordering) {
        // `new` has checked size, alignment and direction: there is no error to report.
        let stored = self.used.store(value, at, order);
        debug_assert!(stored.is_ok());
    }
}
