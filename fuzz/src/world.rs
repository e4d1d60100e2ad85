//! What the program has in hand, and what must be true after each of its steps.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use ringfence_drivers::virtio::{BufferList, DriverOk, Offer, PciNotifier, PciTransport, Queue};
use ringfence_memory::*;

use crate::card::Manner;
use crate::input::Input;
use crate::private::Private as PrivateMemory;
use crate::side::{CARDS, Party, Side};
use crate::transport::Liar;

/// How many values of a kind are kept; the oldest is dropped for a new one.
const SLOTS: usize = 8;

/// Whose something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Which platform.
    pub side: usize,
    /// Which device of it.
    pub party: Party,
}

impl Who {
    /// Anybody.
    pub fn any(input: &mut Input<'_>) -> Self {
        let byte = input.byte();
        let party = Party { card: usize::from(byte >> 1) % CARDS, model: byte & 0x30 == 0x30 };
        Self { side: usize::from(byte & 1), party }
    }
}

/// Values of one kind.
pub struct Slots<T>(pub Vec<T>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slots<T> {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Keeps one more.
    pub fn put(&mut self, value: T) {
        if self.0.len() == SLOTS {
            self.0.remove(0);
        }
        self.0.push(value);
    }

    /// Any of them.
    pub fn pick(&self, input: &mut Input<'_>) -> Option<&T> {
        let at = usize::from(input.byte()).checked_rem(self.0.len())?;
        self.0.get(at)
    }

    /// Any of them, to be changed.
    pub fn pick_mut(&mut self, input: &mut Input<'_>) -> Option<&mut T> {
        let at = usize::from(input.byte()).checked_rem(self.0.len())?;
        self.0.get_mut(at)
    }

    /// Any of them, out of its slot.
    pub fn take(&mut self, input: &mut Input<'_>) -> Option<T> {
        let at = usize::from(input.byte()).checked_rem(self.0.len())?;
        Some(self.0.remove(at))
    }
}

impl<T> Slots<(Who, T)> {
    /// Mostly one of this owner's.
    fn place(&self, who: Who, input: &mut Input<'_>) -> Option<usize> {
        let byte = usize::from(input.byte());
        let any = byte & 7 == 7;
        let of: Vec<usize> = (0..self.0.len()).filter(|at| any || self.0[*at].0 == who).collect();
        of.get((byte >> 3).checked_rem(of.len())?).copied()
    }

    /// Mostly one of this owner's.
    pub fn pick_of(&self, who: Who, input: &mut Input<'_>) -> Option<&(Who, T)> {
        self.0.get(self.place(who, input)?)
    }

    /// Mostly one of this owner's, out of its slot.
    pub fn take_of(&mut self, who: Who, input: &mut Input<'_>) -> Option<(Who, T)> {
        let at = self.place(who, input)?;
        Some(self.0.remove(at))
    }
}

/// A descriptor table of either format.
pub enum Table {
    /// For split rings.
    Split(DescriptorTable<Split>),
    /// For packed rings.
    Packed(DescriptorTable<Packed>),
}

/// Does the same with a table of either format.
#[macro_export]
macro_rules! with_table {
    ($table:expr, $it:ident => $do:expr) => {
        match $table {
            $crate::world::Table::Split($it) => $do,
            $crate::world::Table::Packed($it) => $do,
        }
    };
}

/// A region, and what its owner wrote to it if the device may not.
pub struct Region {
    pub region: DmaRegion,
    pub fill: u8,
}

/// A proof, and what it is about: the device's lives up to this one.
pub struct Proof {
    pub who: Who,
    pub quiet: Quiet,
    pub ended: u64,
}

/// A device of a driver.
pub struct Driven {
    pub who: Who,
    pub device: ringfence_drivers::virtio::Device<Liar>,
    /// The card's life in which it was begun.
    pub life: u64,
}

/// A queue of a driver.
pub struct Driver {
    pub who: Who,
    pub queue: Queue<BufferList, PciNotifier>,
    pub life: u64,
    /// Where its descriptors are, as the card knows it.
    pub table: u64,
    /// DRIVER_OK was set in its life, and it knows.
    pub started: bool,
}

/// The program's values. Each belongs to a device, which is written beside it.
pub struct World {
    pub sides: [&'static Side; 2],
    pub windows: Slots<(Who, DmaWindows)>,
    pub lives: Slots<(Who, Life)>,
    pub regions: Slots<(Who, Region)>,
    pub arrays: Slots<(Who, DmaArray<u64>)>,
    pub halves: Slots<(Who, DmaArray<u16>)>,
    pub blocks: Slots<(Who, DmaBlocks<3>)>,
    pub pools: Slots<(Who, DmaPool)>,
    pub buffers: Slots<(Who, DmaBuf)>,
    pub tables: Slots<(Who, Table)>,
    pub snapshots: Slots<(Who, DmaSnapshot)>,
    pub registers: Slots<(Who, Arc<VirtioPci>)>,
    /// A reset that some device was asked for, and how many lives that had had.
    pub begun: Option<(BegunReset, u64)>,
    pub notifiers: Slots<Notifier>,
    pub proofs: Arc<Mutex<Slots<Proof>>>,
    pub transports: Slots<(Who, Rc<RefCell<PciTransport>>)>,
    pub offers: Slots<(Who, Offer<Liar>, u64)>,
    pub devices: Slots<Driven>,
    pub queues: Slots<Driver>,
    pub driver_oks: Slots<(Who, DriverOk, u64)>,
    pub private: [PrivateMemory; 2],
    /// What the program forgot, for the end of the run.
    pub forgotten: Vec<Box<dyn Any>>,
}

impl World {
    /// Nothing in hand.
    pub fn new(sides: [&'static Side; 2]) -> Self {
        Self {
            sides,
            windows: Slots::new(),
            lives: Slots::new(),
            regions: Slots::new(),
            arrays: Slots::new(),
            halves: Slots::new(),
            blocks: Slots::new(),
            pools: Slots::new(),
            buffers: Slots::new(),
            tables: Slots::new(),
            snapshots: Slots::new(),
            registers: Slots::new(),
            notifiers: Slots::new(),
            proofs: Arc::new(Mutex::new(Slots::new())),
            transports: Slots::new(),
            offers: Slots::new(),
            devices: Slots::new(),
            queues: Slots::new(),
            driver_oks: Slots::new(),
            private: sides.map(PrivateMemory::new),
            begun: None,
            forgotten: Vec::new(),
        }
    }

    /// The card of a party.
    pub fn card(&self, who: Who) -> &'static crate::card::Card {
        self.sides[who.side].cards()[who.party.card]
    }

    /// Memory that is allocated from here on is this one's.
    pub fn serve(&self, who: Who) {
        self.sides[who.side].serve(who.party);
    }

    /// Keeps a proof that a call gave. `before` is how often the device had been reset before it: a card that
    /// did not see one more was not.
    #[track_caller]
    pub fn proved(&mut self, who: Who, quiet: Quiet, before: u64) {
        let card = self.card(who);
        card.look();
        crate::reached(if who.party.model { "model reset" } else { "reset proved" });
        assert!(who.party.model || card.lives() > before, "{who:?} was never reset, yet it is proved");
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).put(Proof { who, quiet, ended: before });
    }

    /// Lets every device do its worst, then looks at everything.
    pub fn check(&mut self) {
        assert!(!host::locks_held(), "a lock is held");
        for side in self.sides {
            for (number, card) in side.cards().iter().enumerate() {
                card.act(Party { card: number, model: false });
            }
        }
        self.private.iter().for_each(PrivateMemory::check);
        for (who, Region { region, fill }) in &self.regions.0 {
            if region.direction() == Direction::ToDevice {
                let mut bytes = vec![0; region.len()];
                region.as_volatile_slice().read_slice(&mut bytes, 0).expect("all of it");
                assert!(bytes.iter().all(|byte| byte == fill), "{who:?} reads only, yet wrote");
            }
        }
        for (who, windows) in &self.windows.0 {
            let (open, quarantined) = windows.usage();
            let held = self.sides[who.side].held(who.party);
            let viewed = self.snapshots.0.iter().any(|(of, _)| of == who);
            let booked = open + quarantined;
            assert!(booked == held || viewed && booked < held, "{who:?}: {booked} bytes booked, {held} held");
        }
        self.sides.iter().for_each(|side| side.system.check());
    }

    /// Drops everything, resets every device, and fails unless all memory is back.
    pub fn end(self) {
        let sides = self.sides;
        drop(self);
        for (number, side) in sides.into_iter().enumerate() {
            for card in 0..CARDS {
                let at = side.cards()[card];
                *at.hook.lock().unwrap_or_else(PoisonError::into_inner) = None;
                at.race(false);
                at.recover();
                at.behave(Manner::Garbage(0));
                let who = Who { side: number, party: Party { card, model: false } };
                let windows = DmaWindows::new(side, at.config().address().id());
                let windows = windows.unwrap_or_else(|error| panic!("{who:?} stays claimed: {error}"));
                let virtio = VirtioPci::new(side, at.config()).expect("nobody has its registers");
                // All ones would mean that nobody is there.
                virtio.common.set_status(1);
                for _ in 0..2 {
                    // Once more for what the card heard of late.
                    virtio.common.reset(&windows, crate::LIMIT).expect("nothing keeps it from that");
                    at.look();
                }
                assert!(at.told().is_empty());
                let model = DmaWindows::for_model(side, at.config().address().id()).expect("not claimed");
                model.reset_model().expect("nobody looks");
                assert_eq!((windows.usage(), model.usage()), ((0, 0), (0, 0)));
            }
            side.system.check();
        }
    }
}
