//! A platform: a machine of its own, and what it says about who has which of its memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    DeviceId, Direction, Dma, DmaMemory, DmaRegistry, FrameRange, FrameRequest, MappedPages, MmioMemory,
    PhysAddr, Platform, PlatformError, VirtAddr,
};

use crate::card::Card;
use crate::mmio::Mmio;
use ringfence_testkit::machine::{Config, System, frames};

/// Cards of each platform.
pub const CARDS: usize = 2;
/// What devices add to a physical address, so that the two are never taken for each other.
pub const DEVICE_BASE: u64 = 1 << 40;
/// Frames of RAM, and of registers behind it.
const RAM: u64 = 2048;
const REGISTERS: u64 = 4;
/// Frames of the DMA arena: more than a program can use at once, so that no run depends on those before.
const ARENA: usize = 512;

/// One owner of a window table: a card, or a model that goes by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Which card.
    pub card: usize,
    /// Whether it is the model with that number.
    pub model: bool,
}

/// DMA memory as it was given out.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    virt: VirtAddr,
    len: u64,
    /// Who it is for.
    pub party: Party,
}

/// A platform of its own.
pub struct Side {
    /// The machine.
    pub system: System,
    host: HostPlatform,
    clock: AtomicU64,
    /// By physical address.
    blocks: Mutex<BTreeMap<u64, Block>>,
    /// Whom the next memory is for.
    party: Mutex<Party>,
    /// What another CPU does when the clock is looked at next, which is done with no lock held.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    cards: OnceLock<[&'static Card; CARDS]>,
    mmio: OnceLock<Mmio>,
}

impl Side {
    /// A machine with two cards, whose numbers are the same on every side.
    pub fn new() -> &'static Self {
        let config = Config {
            ram_frames: RAM,
            mmio_frames: REGISTERS,
            window_pages: 2048,
            pool_frames: 64,
            ..Config::default()
        };
        let side: &'static Self = Box::leak(Box::new(Self {
            system: System::new(config),
            host: HostPlatform::new(),
            clock: AtomicU64::new(0),
            meanwhile: Mutex::default(),
            blocks: Mutex::default(),
            party: Mutex::new(Party { card: 0, model: false }),
            cards: OnceLock::new(),
            mmio: OnceLock::new(),
        }));
        // SAFETY: nobody uses these registers, and nothing is behind them.
        unsafe { side.system.space.offer_mmio(Self::registers()) }.expect("it is not RAM");
        let card = |number| Card::new(side, &side.host, number);
        assert!(side.cards.set([card(1), card(2)]).is_ok());
        assert!(side.mmio.set(Mmio::new(side, &side.host)).is_ok());
        drop(side.system.space.allocate_dma(FrameRequest::new(ARENA)).expect("the machine is large enough"));
        side
    }

    /// Registers of no device, to be claimed.
    pub fn registers() -> FrameRange {
        frames(RAM, REGISTERS)
    }

    /// Memory for devices that no window table knows.
    pub fn dma_by_hand(&self, count: usize) -> Option<MappedPages<Dma>> {
        let memory = self.system.space.allocate_dma(FrameRequest::new(count)).ok()?;
        let (start, len) = (memory.physical_address().value(), memory.size_in_bytes());
        self.forget(start, len);
        Some(memory)
    }

    /// What is given out now was given back before.
    fn forget(&self, start: u64, len: u64) {
        let mut blocks = self.blocks.lock().expect("nothing panics under it");
        blocks.retain(|at, old| *at >= start + len || *at + old.len <= start);
    }

    /// Its cards.
    pub fn cards(&self) -> &[&'static Card; CARDS] {
        self.cards.get().expect("set in `new`")
    }

    /// Its device over MMIO.
    pub fn mmio(&self) -> &Mmio {
        self.mmio.get().expect("set in `new`")
    }

    /// Says whom memory is for that is allocated from here on.
    pub fn serve(&self, party: Party) {
        *self.party.lock().expect("nothing panics under it") = party;
    }

    /// The block at a physical address, if it has not been given back.
    pub fn block(&self, physical: u64) -> Option<(u64, Block)> {
        let blocks = self.blocks.lock().expect("nothing panics under it");
        let (start, block) = blocks.range(..=physical).next_back()?;
        let inside = physical - start < block.len && self.is_live(*start, block);
        inside.then_some((*start, *block))
    }

    fn is_live(&self, start: u64, block: &Block) -> bool {
        self.system.space.translate(block.virt) == PhysAddr::new(start)
    }

    /// Bytes that were given out for `party` and not given back.
    pub fn held(&self, party: Party) -> usize {
        let blocks = self.blocks.lock().expect("nothing panics under it");
        let of_party =
            blocks.iter().filter(|(start, block)| block.party == party && self.is_live(**start, block));
        of_party.map(|(_, block)| block.len as usize).sum()
    }

    /// Fails unless the bytes that the device of `party` calls `address..address + len` are its own, all in
    /// one block. Says where they are in physical memory.
    #[track_caller]
    pub fn reach(&self, party: Party, address: u64, len: u64, what: &str) -> u64 {
        let physical = address.wrapping_sub(DEVICE_BASE);
        let Some((start, block)) = self.block(physical) else {
            panic!("{party:?} reaches {address:#x} ({what}), which is nobody's");
        };
        assert_eq!(block.party, party, "{party:?} reaches {address:#x} ({what})");
        assert!(
            physical + len <= start + block.len,
            "{party:?} reaches {len:#x} bytes from {address:#x} on ({what}), beyond the end of what it has"
        );
        physical
    }
}

// SAFETY: DMA memory is zeroed memory of the machine's DMA arena, which is never lent for anything else,
// given out once until it is dropped; devices address it by adding `DEVICE_BASE`. Registers are
// `HostPlatform`'s. The clock counts calls. The registry is the machine's own, and so is all memory.
unsafe impl Platform for Side {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let memory = self.system.space.allocate_dma(FrameRequest::new(pages.get()));
        let memory = memory.map_err(|_| PlatformError::OutOfMemory)?;
        let start = memory.physical_address().value();
        let block = Block {
            virt: memory.start_address(),
            len: memory.size_in_bytes(),
            party: *self.party.lock().expect("nothing panics under it"),
        };
        self.forget(start, block.len);
        self.blocks.lock().expect("nothing panics under it").insert(start, block);
        // SAFETY: as above.
        Ok(unsafe { DmaMemory::from_pages(memory, start + DEVICE_BASE) })
    }

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        self.host.mmio_map(device, start, len)
    }

    fn now(&self) -> Duration {
        self.cards.get().into_iter().flatten().for_each(|card| card.tick());
        let now = self.clock.fetch_add(100, Ordering::Relaxed);
        let meanwhile = self.meanwhile.lock().expect("nothing panics under it").take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        Duration::from_millis(now)
    }

    fn registry(&self) -> &DmaRegistry {
        self.system.space.registry()
    }
}
