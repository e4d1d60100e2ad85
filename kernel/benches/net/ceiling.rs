//! The least that a driver can do: descriptors are written once, buffers go round in the order of the ring,
//! nothing is checked. The device is trusted, so this is no driver, only what drivers are measured against.
//! It uses no feature but its ring format.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{Error, features};
use ringfence_kernel::platform::KERNEL;
use ringfence_memory::virtqueue::{WRITE, packed, split};
use ringfence_memory::{Bytes, DmaRegion, DmaWindows};

use crate::card::{Card, Costs, until};
use crate::support::raw::{Bell, Raw, number, start_of};

/// Descriptors of each queue, and as many buffers.
const SIZE: usize = 256;
const BUFFER_LEN: usize = 2048;
/// The header before each frame (5.1.6).
const HEADER_LEN: usize = 12;

/// In the split ring's flags, and those of the packed ring's event suppression structures: never.
const SUPPRESS: u16 = split::NO_NOTIFICATION;
const _: () = assert!(SUPPRESS == packed::Event::DISABLE);

/// What both sides share.
#[repr(C)]
struct Shared {
    /// Address; then length, and flags with what else the format has there.
    descriptors: [[AtomicU64; 2]; SIZE],
    /// Split: flags, index, ring. Packed: event suppression structure.
    driver: [AtomicU16; 2048],
    device: [AtomicU16; 2048],
}

/// A ring whose buffers go round: descriptor n always has buffer n.
struct Ring {
    _region: DmaRegion,
    shared: NonNull<Shared>,
    buffers: DmaRegion,
    bell: Bell,
    kicks: u64,
    packed: bool,
    /// Of every descriptor.
    flags: u16,
    /// What makes a packed ring's descriptor available, by its position in two rounds.
    words: [u64; 2 * SIZE],
    /// How many buffers were made available, and how many came back. The device has the difference.
    available: u32,
    used: u32,
}

impl Ring {
    fn new(device: &Raw, index: u16) -> Result<Self, Error> {
        let region = device.windows().allocate(size_of::<Shared>())?;
        let parts = [0, core::mem::offset_of!(Shared, driver), core::mem::offset_of!(Shared, device)];
        let start = start_of(&region);
        let mut ring = Self {
            bell: device.queue(index, SIZE as u16, parts.map(|offset| number(start) + offset as u64)),
            shared: start.cast(),
            _region: region,
            buffers: device.windows().allocate(SIZE * BUFFER_LEN)?,
            kicks: 0,
            packed: device.features() & features::RING_PACKED != 0,
            flags: if index == 0 { WRITE } else { 0 },
            words: [0; 2 * SIZE],
            available: 0,
            used: 0,
        };
        for slot in 0..SIZE {
            let buffer = number(start_of(&ring.buffers)) + (slot * BUFFER_LEN) as u64;
            ring.shared().descriptors[slot][0].store(buffer, Ordering::Relaxed);
            if !ring.packed {
                ring.shared().driver[2 + slot].store(slot as u16, Ordering::Relaxed);
            }
        }
        ring.shared().driver[usize::from(ring.packed)].store(SUPPRESS, Ordering::Relaxed);
        ring.describe(BUFFER_LEN);
        Ok(ring)
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the region is as large and aligned and lives as long as `self`; every bit pattern is valid,
        // and both sides access it atomically. No other reference to its bytes is made after the set-up.
        unsafe { self.shared.as_ref() }
    }

    /// Makes all buffers `len` bytes long, none of which the device has.
    fn describe(&mut self, len: usize) {
        let len = len as u32;
        let [_, word] = split::Descriptor { address: 0, len, flags: self.flags, next: 0 }.to_words();
        for [_, rest] in self.shared().descriptors.iter().filter(|_| !self.packed) {
            rest.store(word, Ordering::Relaxed);
        }
        for (position, word) in self.words.iter_mut().enumerate() {
            let mark = if first_round(position as u32) { packed::AVAIL } else { packed::USED };
            let (id, flags) = ((position % SIZE) as u16, self.flags | mark);
            [_, *word] = packed::Descriptor { address: 0, len, id, flags }.to_words();
        }
    }

    /// How many buffers the device has.
    fn in_flight(&self) -> u32 {
        self.available.wrapping_sub(self.used)
    }

    /// Gives `count` buffers to the device, which has at most `SIZE - count`, and notifies it if it asks for
    /// that.
    fn give(&mut self, count: u32) {
        let before = self.available;
        self.available = before.wrapping_add(count);
        if self.packed {
            self.give_packed(before, count)
        } else {
            self.give_split()
        }
        fence(Ordering::SeqCst);
        if self.shared().device[usize::from(self.packed)].load(Ordering::Relaxed) & SUPPRESS == 0 {
            self.kicks += 1;
            self.bell.ring();
        }
    }

    fn give_split(&self) {
        self.shared().driver[1].store(self.available as u16, Ordering::Release);
    }

    fn give_packed(&self, before: u32, count: u32) {
        let descriptors = &self.shared().descriptors;
        // Backwards: the first descriptor makes all of them available.
        for place in (0..count).rev() {
            let position = before.wrapping_add(place) as usize;
            descriptors[position % SIZE][1].store(self.words[position % (2 * SIZE)], Ordering::Release);
        }
    }

    /// Takes buffers back, at most `most`; says how many.
    fn take(&mut self, most: u32) -> u32 {
        let count = if self.packed {
            let most = most.min(self.in_flight());
            (0..most).find(|place| !self.is_used(self.used.wrapping_add(*place))).unwrap_or(most)
        } else {
            let index = self.shared().device[1].load(Ordering::Acquire);
            u32::from(index.wrapping_sub(self.used as u16)).min(most)
        };
        self.used = self.used.wrapping_add(count);
        count
    }

    /// Waits until there is room for `count` buffers more.
    fn reclaim(&mut self, count: u32) {
        while self.in_flight() + count > SIZE as u32 {
            until(|| Some(self.take(SIZE as u32)).filter(|&taken| taken > 0));
        }
    }

    /// Whether the packed ring's descriptor at `position` came back.
    fn is_used(&self, position: u32) -> bool {
        let word = self.shared().descriptors[position as usize % SIZE][1].load(Ordering::Acquire);
        let expected = if first_round(position) { packed::AVAIL | packed::USED } else { 0 };
        packed::Descriptor::from_words([0, word]).flags & (packed::AVAIL | packed::USED) == expected
    }
}

/// Whether the wrap counter at `position` is 1: it is so first, and changes after each round.
fn first_round(position: u32) -> bool {
    (position as usize / SIZE).is_multiple_of(2)
}

/// A network card whose rings are handled in the simplest way.
pub struct Ceiling {
    // First, so that the device is reset before the rings are given back.
    device: Raw,
    receive: Ring,
    transmit: Ring,
}

impl Ceiling {
    /// Brings the card up.
    pub fn open(function: &Function) -> Result<Self, Error> {
        let windows = DmaWindows::new(&KERNEL, function.address().id())?;
        let device = Raw::start(function, &windows, features::RING_PACKED)?;
        let mut receive = Ring::new(&device, 0)?;
        let transmit = Ring::new(&device, 1)?;
        device.run();
        receive.give(SIZE as u32);
        Ok(Self { device, receive, transmit })
    }
}

impl Card for Ceiling {
    fn features(&self) -> u64 {
        self.device.features()
    }

    fn load(&mut self, frame: &[u8]) {
        let ring = &mut self.transmit;
        ring.reclaim(SIZE as u32);
        ring.describe(HEADER_LEN + frame.len());
        for slot in 0..SIZE {
            let at = slot * BUFFER_LEN + HEADER_LEN;
            ring.buffers.as_volatile_slice().write_slice(frame, at).expect("the frame is short enough");
        }
    }

    #[inline(never)]
    fn send(&mut self, count: usize) {
        let ring = &mut self.transmit;
        ring.reclaim(count as u32);
        ring.give(count as u32);
    }

    #[inline(never)]
    fn receive(&mut self, most: usize) -> usize {
        let ring = &mut self.receive;
        let count = ring.take(most as u32);
        if count > 0 {
            ring.give(count);
        }
        count as usize
    }

    fn costs(&self) -> Option<Costs> {
        Some(Costs { kicks: self.receive.kicks + self.transmit.kicks, interrupts: None })
    }
}
