//! Descriptors: the one place where the address of a buffer is written to memory that a device follows.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ops::BitOr;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use super::region::Region;
use super::segment::Segment;
use super::table::WindowTable;
use super::{DmaAddr, DmaArray, DmaError, DmaWindows, Life};
use crate::virtqueue::{DESCRIPTOR_LEN, INDIRECT, MAX_SIZE, WRITE, packed, split};
use crate::{AtomicAccess, Direction, VolatileError};

mod sealed {
    pub trait RingFormat {
        /// Whether it is the packed one.
        const PACKED: bool;
        /// Where in the second half of a descriptor its flags begin.
        const FLAGS: u32;
        /// Length and alignment in bytes of the driver area and of the device area of a queue with so many
        /// descriptors.
        fn areas(size: u16) -> [(usize, usize); 2];
    }
}

/// How the second half of a descriptor is laid out: [`Split`] or [`Packed`]. Closed, since the two flags that
/// decide what an address is must be where the device looks for them.
pub trait RingFormat: sealed::RingFormat {}
impl<F: sealed::RingFormat> RingFormat for F {}

/// Length, flags, next (virtio 1.4, 2.7.5).
#[derive(Debug)]
pub enum Split {}

/// Length, buffer id, flags (virtio 1.4, 2.8.13).
#[derive(Debug)]
pub enum Packed {}

impl sealed::RingFormat for Split {
    const PACKED: bool = false;
    const FLAGS: u32 = split::Descriptor::FLAGS;
    fn areas(size: u16) -> [(usize, usize); 2] {
        [split::AVAILABLE, split::USED].map(|ring| (ring.len(size), ring.align))
    }
}

impl sealed::RingFormat for Packed {
    const PACKED: bool = true;
    const FLAGS: u32 = packed::Descriptor::FLAGS;
    fn areas(_: u16) -> [(usize, usize); 2] {
        [(packed::Event::LEN, packed::Event::LEN); 2]
    }
}

/// The bits of a descriptor's second half that are its author's, where they are in it: not the length, nor
/// WRITE and INDIRECT, which say what the address is.
#[derive(Debug)]
pub struct DescriptorBits<F>(u64, PhantomData<F>);

impl<F: RingFormat> DescriptorBits<F> {
    const FREE: u64 = !(u32::MAX as u64 | ((WRITE | INDIRECT) as u64) << F::FLAGS);

    /// The bits.
    #[inline]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<F: RingFormat> From<u64> for DescriptorBits<F> {
    /// Those of them that are the author's.
    #[inline]
    fn from(bits: u64) -> Self {
        Self(bits & Self::FREE, PhantomData)
    }
}

impl<F> BitOr for DescriptorBits<F> {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0, PhantomData)
    }
}

impl<F> Clone for DescriptorBits<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for DescriptorBits<F> {}

/// A table of descriptors: of a queue, or one that descriptors of a queue refer to. It owns its memory, and
/// no other way leads to it but these methods, so that what a device follows was made of [`Segment`]s:
/// borrowed from their owner at that moment, in its length and direction.
///
/// A table belongs to the [`Life`](super::Life) in which it was made. From then on, and until that life has
/// ended, what is dropped of the device's memory is quarantined, since a descriptor may name it; later the
/// device is not told of the table any more.
pub struct DescriptorTable<F: RingFormat> {
    /// Two for each descriptor.
    words: NonNull<u64>,
    count: usize,
    /// `count - 1`.
    last: usize,
    life: u64,
    /// Keeps `words` valid.
    region: Arc<Region>,
    /// The region's, for speed: compared, never followed.
    table: *const WindowTable,
    /// A descriptor that is not written yet, neither half: its address must not stand beside what was there
    /// before.
    held: Option<Held>,
    format: PhantomData<F>,
}

#[derive(Clone, Copy)]
struct Held {
    index: usize,
    address: u64,
    rest: u64,
}

// SAFETY: like `VolatileSlice`, it gives atomic access only, to memory that holds no Rust object; racing
// accesses are the case it exists for. `table` is compared, never followed.
unsafe impl<F: RingFormat> Send for DescriptorTable<F> {}
// SAFETY: as for `Send`.
unsafe impl<F: RingFormat> Sync for DescriptorTable<F> {}

impl<F: RingFormat> DescriptorTable<F> {
    /// A table of `count` descriptors, all zero, followed by room for `more` bytes.
    ///
    /// # Errors
    /// As for [`DmaWindows::allocate_for`].
    pub fn new(
        windows: &DmaWindows,
        count: usize,
        more: usize,
        direction: Direction,
    ) -> Result<Self, DmaError> {
        let len = count.checked_mul(DESCRIPTOR_LEN).filter(|&len| len > 0).ok_or(DmaError::BadLength)?;
        let region = windows.open(len.checked_add(more).ok_or(DmaError::BadLength)?, direction, len)?;
        let words = region.as_volatile_slice().subslice(0, len)?.as_ptr().cast::<u64>();
        let (table, life) = (Arc::as_ptr(region.table()), region.table().open_descriptors());
        Ok(Self {
            words,
            count,
            last: count.wrapping_sub(1),
            life,
            region,
            table,
            held: None,
            format: PhantomData,
        })
    }

    /// The `count` values that follow the descriptors directly.
    ///
    /// # Errors
    /// As for [`DmaRegion::array`](super::DmaRegion::array).
    pub fn array_after<T: AtomicAccess>(&self, count: usize) -> Result<DmaArray<T>, DmaError> {
        DmaArray::new(&self.region, self.count.wrapping_mul(DESCRIPTOR_LEN), count)
    }

    /// Number of descriptors.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Always false: a table has at least one descriptor.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where the device finds the table: an address of the life in which it was made.
    pub fn address(&self) -> DmaAddr<'_> {
        DmaAddr { value: self.region.device_address, region: &self.region, life: self.life }
    }

    /// The addresses of a queue whose descriptors are all of these.
    ///
    /// # Errors
    /// [`DmaError::BadLength`] unless there are 1 to 32,768 descriptors (a power of two, if split);
    /// [`DmaError::Access`] unless both areas are long enough for so many (what the device reads and writes
    /// there is within the regions of `driver` and `device`), aligned (virtio 1.4, 2.7, 2.8), and for it to
    /// read and to write; what it writes is not where descriptors are.
    pub fn queue<'a>(
        &'a self,
        driver: DmaAddr<'a>,
        device: DmaAddr<'a>,
    ) -> Result<QueueAddresses<'a>, DmaError> {
        let most = |size: &u16| *size <= MAX_SIZE && (F::PACKED || size.is_power_of_two());
        let size = u16::try_from(self.count).ok().filter(most).ok_or(DmaError::BadLength)?;
        let [(driver_len, driver_align), (device_len, device_align)] = F::areas(size);
        driver.check_room(driver_len, driver_align, Direction::ToDevice)?;
        device.check_room(device_len, device_align, Direction::FromDevice)?;
        if device.offset() < device.region.descriptors {
            return Err(VolatileError::NotPermitted.into());
        }
        Ok(QueueAddresses { addresses: [self.address(), driver, device], size, packed: F::PACKED })
    }

    /// Writes the descriptor at `index`: of `segment`, with the flags and other fields in `bits`. Its second
    /// half is written last, in one access. Panics if `order` is not one for stores.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if the segment is another device's memory, [`DmaError::Access`] beyond the
    /// end.
    #[inline]
    pub fn store(
        &mut self,
        index: usize,
        segment: &Segment<'_>,
        bits: impl Into<DescriptorBits<F>>,
        order: Ordering,
    ) -> Result<(), DmaError> {
        self.check(segment)?;
        Ok(self.put(index, segment.address, Self::rest(segment, bits.into()), order)?)
    }

    /// [`store`](Self::store), from the beginning again where the table ends, if its length is a power of
    /// two; in other tables to some descriptor. For rings: of the index there is nothing to check.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if the segment is another device's memory.
    #[inline(always)]
    pub fn store_wrapping(
        &mut self,
        index: usize,
        segment: &Segment<'_>,
        bits: impl Into<DescriptorBits<F>>,
        order: Ordering,
    ) -> Result<(), DmaError> {
        self.check(segment)?;
        let rest = Self::rest(segment, bits.into());
        // SAFETY: with no bits but those of `last` the index is not above it.
        let halves = unsafe { descriptor(self.words, index & self.last) };
        // SAFETY: both in the memory that `region` keeps, and aligned.
        unsafe { write(halves, segment.address, rest, order) };
        Ok(())
    }

    /// Writes the descriptors of a chain one after the other from `index` on, of segments and bits as for
    /// [`store`](Self::store); but keeps the first for [`store_held`](Self::store_held), unless another is
    /// kept already.
    ///
    /// # Errors
    /// As for [`store`](Self::store). Then nothing was written.
    #[inline(always)]
    pub fn hold<const N: usize>(
        &mut self,
        index: usize,
        chain: [(&Segment<'_>, impl Into<DescriptorBits<F>>); N],
    ) -> Result<(), DmaError> {
        if chain.iter().any(|(segment, _)| !ptr::eq(segment.table, self.table)) {
            return Err(DmaError::WrongDevice);
        }
        if index.checked_add(N).is_none_or(|end| end > self.count) {
            return Err(VolatileError::OutOfBounds.into());
        }
        let (words, is_held) = (self.words, self.held.is_some());
        for (place, (segment, bits)) in chain.into_iter().enumerate().rev() {
            let rest = Self::rest(segment, bits.into());
            // SAFETY: `index + N` is not beyond the end, as was just seen, so all are in the memory that
            // `region` keeps, and aligned.
            unsafe {
                if place > 0 || is_held {
                    let halves = descriptor(words, index.wrapping_add(place));
                    write(halves, segment.address, rest, Ordering::Relaxed);
                } else {
                    self.held = Some(Held { index, address: segment.address, rest });
                }
            }
        }
        Ok(())
    }

    /// Writes what is held, if something is; the second half of it last, in one access. Panics if `order` is
    /// not one for stores.
    #[inline]
    pub fn store_held(&mut self, order: Ordering) -> bool {
        let held = self.held.take();
        // It was found in bounds when it was kept.
        held.is_some_and(|Held { index, address, rest }| self.put(index, address, rest, order).is_ok())
    }

    /// Writes a descriptor at `index` that refers to the `count` descriptors of `table` from `first` on; or
    /// keeps it, if `hold` says so, as [`hold`](Self::hold) does.
    ///
    /// # Errors
    /// As for [`store`](Self::store); [`DmaError::WrongLife`] if this table or that one is of a life that has
    /// ended.
    pub fn store_indirect(
        &mut self,
        index: usize,
        (table, first, count): (&Self, usize, usize),
        bits: impl Into<DescriptorBits<F>>,
        hold: bool,
    ) -> Result<(), DmaError> {
        if !ptr::eq(self.table, table.table) {
            return Err(DmaError::WrongDevice);
        }
        if self.life != table.life {
            return Err(DmaError::WrongLife);
        }
        let end = first.checked_add(count).filter(|&end| end <= table.count && count > 0);
        end.filter(|_| index < self.count).ok_or(VolatileError::OutOfBounds)?;
        let offset = first.wrapping_mul(DESCRIPTOR_LEN) as u64;
        let address = table.region.device_address.wrapping_add(offset);
        // A table is shorter than 4 GiB: a queue has at most 32,768 descriptors, and so have its chains.
        let len = u32::try_from(count.wrapping_mul(DESCRIPTOR_LEN)).map_err(|_| DmaError::BadLength)?;
        let rest = u64::from(len) | bits.into().0 | u64::from(INDIRECT) << F::FLAGS;
        if hold && self.held.is_none() {
            self.held = Some(Held { index, address, rest });
        } else {
            self.put(index, address, rest, Ordering::Relaxed)?;
        }
        Ok(())
    }

    /// Writes zeros to all descriptors, and forgets what is held.
    pub fn clear(&mut self) {
        self.held = None;
        for index in 0..self.count {
            // In bounds.
            let _ = self.put(index, 0, 0, Ordering::Relaxed);
        }
    }

    /// Whether `segment` is memory of this table's device.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if not.
    #[inline]
    pub fn check(&self, segment: &Segment<'_>) -> Result<(), DmaError> {
        let same = ptr::eq(segment.table, self.table);
        if same { Ok(()) } else { Err(DmaError::WrongDevice) }
    }

    /// The second half of the descriptor at `index`, in one access; `None` beyond the end. Panics if `order`
    /// is not one for loads.
    #[inline]
    pub fn load_rest(&self, index: usize, order: Ordering) -> Option<u64> {
        let [_, at] = self.at(index).ok()?;
        // SAFETY: in the memory that `region` keeps, and aligned.
        Some(u64::from_le(unsafe { u64::load(at, order) }))
    }

    #[inline]
    fn rest(segment: &Segment<'_>, bits: DescriptorBits<F>) -> u64 {
        let write = if segment.writable { u64::from(WRITE) << F::FLAGS } else { 0 };
        u64::from(segment.len) | bits.0 | write
    }

    #[inline]
    fn put(&self, index: usize, address: u64, rest: u64, order: Ordering) -> Result<(), VolatileError> {
        let halves = self.at(index)?;
        // SAFETY: both in the memory that `region` keeps, and aligned.
        unsafe { write(halves, address, rest, order) };
        Ok(())
    }

    /// Both halves of the descriptor at `index`.
    #[inline]
    fn at(&self, index: usize) -> Result<[NonNull<u64>; 2], VolatileError> {
        if index >= self.count {
            return Err(VolatileError::OutOfBounds);
        }
        // SAFETY: as was just seen.
        Ok(unsafe { descriptor(self.words, index) })
    }
}

/// Both halves of the descriptor at `index` of those that begin at `words`.
///
/// # Safety
/// There is one.
#[inline]
unsafe fn descriptor(words: NonNull<u64>, index: usize) -> [NonNull<u64>; 2] {
    // SAFETY: there are two words for each descriptor.
    let first = unsafe { words.add(index.wrapping_mul(2)) };
    // SAFETY: as above.
    [first, unsafe { first.add(1) }]
}

/// Writes a descriptor, the second half last and in one access.
///
/// # Safety
/// Both halves are valid for atomic stores.
#[inline(always)]
unsafe fn write([first, second]: [NonNull<u64>; 2], address: u64, rest: u64, order: Ordering) {
    // SAFETY: the caller's.
    unsafe {
        u64::store(first, address.to_le(), Ordering::Relaxed);
        u64::store(second, rest.to_le(), order);
    }
}

/// Where the parts of a queue are (virtio 1.4, 2.6), and how large it is: its descriptors, which are a
/// [`DescriptorTable`], the driver area and the device area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses<'a> {
    pub(crate) addresses: [DmaAddr<'a>; 3],
    size: u16,
    packed: bool,
}

impl<'a> QueueAddresses<'a> {
    /// The life of the device in which it can be told of them: that in which the descriptors were made.
    pub fn life(&self) -> Life {
        let [DmaAddr { region, life: number, .. }, ..] = self.addresses;
        Life { table: region.table().clone(), number }
    }

    /// The three of them, in this order.
    pub fn addresses(&self) -> [DmaAddr<'a>; 3] {
        self.addresses
    }

    /// Number of descriptors: 1 to 32,768.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether it is a packed ring.
    pub fn is_packed(&self) -> bool {
        self.packed
    }
}

impl<F: RingFormat> fmt::Debug for DescriptorTable<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DescriptorTable({:?}, {} descriptors)", self.address(), self.count)
    }
}
