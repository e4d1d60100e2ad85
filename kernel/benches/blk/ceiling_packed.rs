//! The least that a driver of a packed ring can do, as in [`ceiling`](crate::ceiling): descriptors are copied
//! from templates.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{Error, features};
use ringfence_memory::virtqueue::packed::{AVAIL, Descriptor, Event, USED};
use ringfence_memory::virtqueue::{DESCRIPTOR_LEN, NEXT};
use ringfence_memory::{DmaRegion, DmaWindows, PAGE_SIZE};

use crate::ceiling::{PARTS, Slots};
use crate::support::raw::{Bell, Raw, number, start_of};
use crate::workload::{Costs, Guest, Places, Watch, Workload};

/// Descriptor flags: both change with each round of the ring.
const BOTH: u64 = ((AVAIL | USED) as u64) << Descriptor::FLAGS;
/// Bytes of a chain of descriptors.
const CHAIN: usize = PARTS * DESCRIPTOR_LEN;
/// Where the flags of an event suppression structure are.
const EVENT_FLAGS: usize = Event::LEN / 2;

/// A position in a ring of chains.
#[derive(Clone, Copy)]
struct Position {
    chain: usize,
    /// [`BOTH`] in every second round, else 0.
    flip: u64,
}

impl Position {
    const START: Self = Self { chain: 0, flip: 0 };

    #[inline(always)]
    fn advance(&mut self, chains: usize) {
        self.chain = self.chain.wrapping_add(1);
        if self.chain == chains {
            (self.chain, self.flip) = (0, self.flip ^ BOTH);
        }
    }
}

/// The packed ring.
pub struct CeilingPacked {
    // First, so that the device is reset before its memory goes.
    _raw: Raw,
    bell: Bell,
    _ring: DmaRegion,
    slots: Slots,
    headers: NonNull<u8>,
    descriptors: NonNull<u64>,
    device_event: NonNull<u16>,
    /// The three descriptors of each request.
    templates: Vec<[u64; 2 * PARTS]>,
    chains: usize,
    next: Position,
    seen: Position,
    /// What makes all that was staged available: where, and the word to write there.
    first: Option<(usize, u64)>,
    /// The slot that was staged last.
    last: usize,
    places: Places,
    kicks: u64,
}

impl CeilingPacked {
    /// Brings the disk up with RING_PACKED and VERSION_1 alone. `None` if it has no packed ring, or too small
    /// a one.
    pub fn new(function: &Function, windows: &DmaWindows, workload: &Workload, depth: usize) -> Option<Self> {
        let raw = Raw::start(function, windows, features::RING_PACKED).expect("the disk starts");
        Self::start(raw, workload, depth).expect("there is memory")
    }

    fn start(raw: Raw, workload: &Workload, depth: usize) -> Result<Option<Self>, Error> {
        // A packed ring can have any size: here chains never wrap.
        let chains = usize::from(raw.queue_size(0)) / PARTS;
        if raw.features() & features::RING_PACKED == 0 || depth > chains {
            return Ok(None);
        }
        let driver = (chains * CHAIN).next_multiple_of(PAGE_SIZE);
        let device = driver + PAGE_SIZE;
        let ring = raw.windows().allocate(device + PAGE_SIZE)?;
        let slots = Slots::new(&raw, workload, depth)?;
        let templates = (0..depth).map(|slot| template(slot, slots.parts(slot, workload))).collect();
        let start = start_of(&ring);
        // SAFETY: in the region and aligned; the device does not know it yet.
        unsafe { start.add(driver + EVENT_FLAGS).cast::<u16>().write_volatile(Event::DISABLE) };
        let parts = [0, driver, device].map(|offset| number(start) + offset as u64);
        let bell = raw.queue(0, (chains * PARTS) as u16, parts);
        raw.run();
        // SAFETY: in the region.
        let device_event = unsafe { start.add(device + EVENT_FLAGS) }.cast();
        let headers = slots.start();
        let mut guest = Self {
            _raw: raw,
            bell,
            _ring: ring,
            slots,
            headers,
            descriptors: start.cast(),
            device_event,
            templates,
            chains,
            next: Position::START,
            seen: Position::START,
            first: None,
            last: 0,
            places: workload.places(),
            kicks: 0,
        };
        for slot in 0..depth {
            guest.stage(slot);
        }
        Ok(Some(guest))
    }

    /// Half a descriptor: `word` counts from the start of `chain`.
    #[inline(always)]
    fn word(&self, chain: usize, word: usize) -> &AtomicU64 {
        // SAFETY: `chain` is below the number of chains, `word` below that of a chain.
        unsafe { AtomicU64::from_ptr(self.descriptors.add(chain * 2 * PARTS + word).as_ptr()) }
    }

    /// Prepares the request in `slot`.
    #[inline(always)]
    fn stage(&mut self, slot: usize) {
        // SAFETY: `slot` is below the depth, since the device is trusted.
        unsafe { Slots::aim(self.headers, slot * Slots::LEN, self.places.next()) };
        let (chain, flip) = (self.next.chain, self.next.flip);
        let template = &self.templates[slot];
        for (index, word) in template.iter().enumerate() {
            if index != 1 {
                let word = if index % 2 == 1 { word ^ flip } else { *word };
                self.word(chain, index).store(word, Ordering::Relaxed);
            }
        }
        let head = template[1] ^ flip;
        if self.first.is_none() {
            self.first = Some((chain, head));
        } else {
            self.word(chain, 1).store(head, Ordering::Release);
        }
        self.next.advance(self.chains);
        self.last = slot;
    }
}

/// The words of a chain for the ring's first round: the buffer's id, in each descriptor, is the slot.
fn template(slot: usize, parts: [(u64, u32, u16); PARTS]) -> [u64; 2 * PARTS] {
    let mut words = [0; 2 * PARTS];
    for (part, (address, len, flags)) in parts.into_iter().enumerate() {
        let flags = flags | AVAIL | if part + 1 < PARTS { NEXT } else { 0 };
        let descriptor = Descriptor { address, len, id: slot as u16, flags };
        words[2 * part..2 * part + 2].copy_from_slice(&descriptor.to_words());
    }
    words
}

impl Guest for CeilingPacked {
    #[inline(always)]
    fn submit(&mut self, watch: &mut impl Watch) {
        watch.submitted(self.last);
        if let Some((chain, head)) = self.first.take() {
            self.word(chain, 1).store(head, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        // SAFETY: in the region and aligned; both sides access it atomically.
        let event = unsafe { AtomicU16::from_ptr(self.device_event.as_ptr()) };
        if event.load(Ordering::Relaxed) != Event::DISABLE {
            self.kicks = self.kicks.wrapping_add(1);
            self.bell.ring();
        }
    }

    #[inline(always)]
    fn complete(&mut self, watch: &mut impl Watch) -> usize {
        let mut completed = 0;
        loop {
            let word = self.word(self.seen.chain, 1).load(Ordering::Acquire);
            // Used descriptors have both bits as the round has them: set in the first, clear in the second.
            if word & BOTH != self.seen.flip ^ BOTH {
                return completed;
            }
            self.seen.advance(self.chains);
            let slot = usize::from(Descriptor::from_words([0, word]).id);
            watch.completed(slot);
            self.stage(slot);
            completed = completed.wrapping_add(1);
        }
    }

    fn costs(&self) -> Option<Costs> {
        Some(Costs { kicks: self.kicks, accesses: self.kicks, ..Costs::default() })
    }
}

impl Drop for CeilingPacked {
    fn drop(&mut self) {
        self.slots.check();
    }
}
