//! The least that a driver of a split ring can do: descriptors are written once, nothing is checked, nothing
//! is owned. The device is trusted, so this is no driver, only what drivers are measured against.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::Error;
use ringfence_memory::virtqueue::{self, DESCRIPTOR_LEN, NEXT, WRITE, split};
use ringfence_memory::{DmaBuf, DmaRegion, DmaWindows, PAGE_SIZE};

use crate::support::raw::{Bell, Raw, number, start_of};
use crate::workload::{Costs, Guest, Places, Watch, Workload};

/// Descriptors of a request: header, data, status.
pub const PARTS: usize = 3;
/// What the device writes where the status goes if the request succeeded, and what is there before.
pub const OK: u8 = 0;
pub const UNWRITTEN: u8 = 0xff;

/// Header and status of each request, one after the other, [`Slots::LEN`] bytes for each; and its buffer.
pub struct Slots {
    region: DmaRegion,
    buffers: Vec<DmaBuf>,
}

impl Slots {
    /// 16 bytes of header, and the status. As long as a request's descriptors, so that both have the same
    /// offset.
    pub const LEN: usize = PARTS * DESCRIPTOR_LEN;
    const SECTOR: usize = 8;
    const STATUS: usize = 16;

    /// Writes headers and statuses for `depth` requests.
    pub fn new(raw: &Raw, workload: &Workload, depth: usize) -> Result<Self, Error> {
        let region = raw.windows().allocate(depth * Self::LEN)?;
        let buffers = (0..depth).filter_map(|_| workload.pool.take()).collect();
        let slots = Self { region, buffers };
        for slot in 0..depth {
            // SAFETY: the word is in the region, aligned, and nobody has a reference to it.
            unsafe {
                slots.start().add(slot * Self::LEN).cast::<u32>().write_volatile(u32::from(workload.write))
            };
            slots.status(slot).store(UNWRITTEN, Ordering::Relaxed);
        }
        Ok(slots)
    }

    pub fn start(&self) -> NonNull<u8> {
        start_of(&self.region)
    }

    /// Address, length and flags (without NEXT) of each part of a request.
    pub fn parts(&self, slot: usize, workload: &Workload) -> [(u64, u32, u16); PARTS] {
        // SAFETY: the slot is in the region.
        let at = |offset| number(unsafe { self.start().add(slot * Self::LEN + offset) });
        let to_driver = if workload.write { 0 } else { WRITE };
        let buffer = number(self.buffers[slot].as_volatile_slice().as_ptr());
        [(at(0), 16, 0), (buffer, workload.len as u32, to_driver), (at(Self::STATUS), 1, WRITE)]
    }

    fn status(&self, slot: usize) -> &AtomicU8 {
        // SAFETY: `slot` is one of those that the region was made for; both sides access the byte atomically.
        unsafe { AtomicU8::from_ptr(self.start().add(slot * Self::LEN + Self::STATUS).as_ptr()) }
    }

    /// Writes the first sector of the request at byte `offset`.
    ///
    /// # Safety
    /// `offset` is a multiple of [`Slots::LEN`] and below that of the depth; `start` is what
    /// [`start`](Self::start) says.
    #[inline(always)]
    pub unsafe fn aim(start: NonNull<u8>, offset: usize, sector: u64) {
        // SAFETY: in the region and aligned, as the caller promises.
        unsafe { AtomicU64::from_ptr(start.add(offset + Self::SECTOR).as_ptr().cast()) }
            .store(sector, Ordering::Relaxed);
    }

    /// Checks that every request so far succeeded.
    pub fn check(&self) {
        let ok = (0..self.buffers.len()).all(|slot| self.status(slot).load(Ordering::Relaxed) == OK);
        assert!(ok, "a request failed");
    }
}

/// The split ring.
pub struct Ceiling {
    // First, so that the device is reset before its memory goes.
    _raw: Raw,
    bell: Bell,
    _ring: DmaRegion,
    slots: Slots,
    headers: NonNull<u8>,
    avail: NonNull<u16>,
    used: NonNull<u16>,
    mask: u16,
    /// Positions of the next elements of the available and the used ring.
    next: u16,
    seen: u16,
    places: Places,
    kicks: u64,
}

impl Ceiling {
    /// Brings the disk up with VERSION_1 alone. `None` if the requests do not fit the queue.
    pub fn new(function: &Function, windows: &DmaWindows, workload: &Workload, depth: usize) -> Option<Self> {
        let raw = Raw::start(function, windows, 0).expect("the disk starts");
        Self::start(raw, workload, depth).expect("there is memory")
    }

    fn start(raw: Raw, workload: &Workload, depth: usize) -> Result<Option<Self>, Error> {
        let size = raw.queue_size(0);
        if depth * PARTS > size.into() {
            return Ok(None);
        }
        // Each part begins on a page of its own.
        let avail = virtqueue::descriptor(size).next_multiple_of(PAGE_SIZE);
        let used = avail + split::AVAILABLE.len(size).next_multiple_of(PAGE_SIZE);
        let ring = raw.windows().allocate(used + split::USED.len(size))?;
        let slots = Slots::new(&raw, workload, depth)?;
        let start = start_of(&ring);
        for slot in 0..depth {
            for (part, (address, len, flags)) in slots.parts(slot, workload).into_iter().enumerate() {
                let index = slot * PARTS + part;
                let flags = if part + 1 < PARTS { flags | NEXT } else { flags };
                let next = index as u16 + 1;
                let [address, rest] = split::Descriptor { address, len, flags, next }.to_words();
                // SAFETY: `index` is below `size`, and the table is at the start of the region, aligned.
                unsafe {
                    let descriptor = start.add(index * DESCRIPTOR_LEN).cast::<u64>();
                    descriptor.write_volatile(address);
                    descriptor.add(1).write_volatile(rest);
                }
            }
        }
        let bell = raw.queue(0, size, [0, avail, used].map(|offset| number(start) + offset as u64));
        raw.run();
        // SAFETY: both offsets are in the region, and aligned.
        let (avail, used) = unsafe { (start.add(avail).cast(), start.add(used).cast()) };
        let headers = slots.start();
        let mut guest = Self {
            _raw: raw,
            bell,
            _ring: ring,
            slots,
            headers,
            avail,
            used,
            mask: size - 1,
            next: 0,
            seen: 0,
            places: workload.places(),
            kicks: 0,
        };
        // No interrupts.
        guest.avail(0).store(split::NO_NOTIFICATION, Ordering::Relaxed);
        for slot in 0..depth {
            guest.stage((slot * PARTS) as u16);
        }
        Ok(Some(guest))
    }

    /// A field of the available ring: flags, index, elements.
    #[inline(always)]
    fn avail(&self, field: u16) -> &AtomicU16 {
        // SAFETY: there are two fields more than elements, which are masked.
        unsafe { AtomicU16::from_ptr(self.avail.add(field.into()).as_ptr()) }
    }

    /// Flags or index of the used ring.
    #[inline(always)]
    fn used(&self, field: u16) -> &AtomicU16 {
        // SAFETY: the ring begins with these two.
        unsafe { AtomicU16::from_ptr(self.used.add(field.into()).as_ptr()) }
    }

    #[inline(always)]
    fn used_id(&self, position: u16) -> u16 {
        let word = 1 + 2 * usize::from(position & self.mask);
        // SAFETY: the position is masked, and elements are two words each, after the first.
        unsafe { AtomicU32::from_ptr(self.used.cast::<u32>().add(word).as_ptr()) }.load(Ordering::Relaxed)
            as u16
    }

    /// Prepares the request whose chain begins at `head`.
    #[inline(always)]
    fn stage(&mut self, head: u16) {
        // SAFETY: heads are multiples of `PARTS` below that of the depth, since the device is trusted.
        unsafe { Slots::aim(self.headers, usize::from(head) * DESCRIPTOR_LEN, self.places.next()) };
        self.avail(2 + (self.next & self.mask)).store(head, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }
}

impl Guest for Ceiling {
    #[inline(always)]
    fn submit(&mut self, watch: &mut impl Watch) {
        watch.submitted(
            self.avail(2 + (self.next.wrapping_sub(1) & self.mask)).load(Ordering::Relaxed).into(),
        );
        self.avail(1).store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.used(0).load(Ordering::Relaxed) & split::NO_NOTIFICATION == 0 {
            self.kicks = self.kicks.wrapping_add(1);
            self.bell.ring();
        }
    }

    #[inline(always)]
    fn complete(&mut self, watch: &mut impl Watch) -> usize {
        let used = self.used(1).load(Ordering::Acquire);
        let count = used.wrapping_sub(self.seen);
        while self.seen != used {
            let head = self.used_id(self.seen);
            self.seen = self.seen.wrapping_add(1);
            watch.completed(head.into());
            self.stage(head);
        }
        count.into()
    }

    fn costs(&self) -> Option<Costs> {
        Some(Costs { kicks: self.kicks, accesses: self.kicks, ..Costs::default() })
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        self.slots.check();
    }
}
