//! A virtio card that means harm: whatever it was told since it was last reset it follows, and writes there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::virtqueue::split::{AVAILABLE, Ring, USED, UsedElement};
use ringfence_memory::virtqueue::{self, DESCRIPTOR_LEN, INDIRECT, WORD_LEN, WRITE, packed, split};
use ringfence_memory::{Bytes, ConfigAccess, ConfigSpace, DmaGrant, PciAddress, common};

use crate::side::{Party, Side};

const BAR: u64 = 0xfe00_0000;
const BAR_LEN: usize = 0x8000;
const ISR: usize = 0x1000;
const DEVICE_CONFIG: usize = 0x2000;
const NOTIFY: usize = 0x3000;
const MSIX: usize = 0x4000;
const VECTORS: u16 = 4;
const COMMAND: u16 = 4;
const MEMORY: u32 = 2;
const IDS: u32 = 0x1042_1af4;
/// Bytes of registers that read as zeros while the card does not decode.
const COMMON_LEN: usize = 0x40;
/// The same for both halves: indirect descriptors, event indexes; VERSION_1, ACCESS_PLATFORM, RING_PACKED,
/// IN_ORDER, NOTIFICATION_DATA, RING_RESET.
const OFFER: u32 = 1 << 28 | 1 << 29 | 0b1111 | 1 << 6 | 1 << 8;
/// RING_PACKED in the upper half.
const PACKED: u32 = 1 << 2;
/// The largest queue, and how many.
pub const QUEUE_SIZE: u16 = 8;
const QUEUES: u16 = 4;
/// ACKNOWLEDGE, DRIVER and FEATURES_OK.
const AT_WORK: u8 = 0x0b;
const NOT_RUNG: u32 = 0xaaaa_5555;

/// Called after each read of a configuration register.
pub type Hook = Box<dyn FnMut(&Card) + Send>;

/// A queue as the card was told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Descriptors, driver area, device area.
    pub addresses: [u64; 3],
    size: u16,
    packed: bool,
    /// While a reset was waited for, by another CPU: the card may have heard of it after the reset.
    raced: bool,
}

/// What is written to the device areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Completions of all that is available in split rings.
    Honest,
    /// This byte, everywhere.
    Garbage(u8),
}

struct State {
    words: [u32; 1024],
    /// The registers while memory decoding is off.
    hidden: Option<[u8; COMMON_LEN]>,
    status: u8,
    told: Vec<Told>,
    raced: bool,
    manner: Manner,
}

/// The card.
pub struct Card {
    side: &'static Side,
    address: PciAddress,
    registers: HostMemory,
    state: Mutex<State>,
    /// Set by whoever plays with time.
    pub hook: Mutex<Option<Hook>>,
    lives: AtomicU64,
}

impl Card {
    /// Puts the card with this number on the bus.
    pub fn new(side: &'static Side, host: &HostPlatform, device: u8) -> &'static Self {
        let bar = BAR + u64::from(device) * 0x10_0000;
        let mut words = [0; 1024];
        (words[0], words[1], words[4], words[13]) = (IDS, MEMORY | 1 << 20, bar as u32, 0x40);
        let structures = [(1, 0), (3, ISR), (4, DEVICE_CONFIG), (2, NOTIFY)];
        for (index, (kind, offset)) in structures.into_iter().enumerate() {
            let at = 0x40 + 0x14 * index;
            let next = at as u32 + 0x14;
            let capability = [0x09 | next << 8 | 0x14 << 16 | kind << 24, 0, offset as u32, 0x1000, 4];
            words[at / 4..at / 4 + 5].copy_from_slice(&capability);
        }
        words[0x90 / 4..0x90 / 4 + 3].copy_from_slice(&[
            0x11 | u32::from(VECTORS - 1) << 16,
            MSIX as u32,
            0x5000,
        ]);
        let state = State {
            words,
            hidden: None,
            status: 0,
            told: Vec::new(),
            raced: false,
            manner: Manner::Garbage(0),
        };
        let card = Box::leak(Box::new(Self {
            side,
            address: PciAddress::new(0, 0, device, 0).expect("a small number"),
            registers: host.add_registers(bar, BAR_LEN),
            state: Mutex::new(state),
            hook: Mutex::default(),
            lives: 0.into(),
        }));
        card.set_registers();
        card
    }

    /// What the registers say after a reset.
    fn set_registers(&self) {
        for (offset, value) in [
            (common::DEVICE_FEATURE_SELECT, 0_u32),
            (common::DEVICE_FEATURE, OFFER),
            (common::DRIVER_FEATURE_SELECT, 0),
            (common::DRIVER_FEATURE, 0),
            (common::CONFIG_MSIX_VECTOR, 0xffff | u32::from(QUEUES) << 16),
            (common::QUEUE_RESET - 2, 0),
        ] {
            self.put(offset, value);
        }
        self.set_queue_registers();
        self.put(NOTIFY, NOT_RUNG);
    }

    /// What they say of a queue that is not set up, as another one always is.
    fn set_queue_registers(&self) {
        self.put(common::QUEUE_SIZE, u32::from(QUEUE_SIZE) | 0xffff << 16);
        self.put(common::QUEUE_ENABLE, 0_u32);
        self.put(common::QUEUE_DESC, [0_u64; 3]);
    }

    fn put<T: zerocopy::IntoBytes + zerocopy::Immutable>(&self, offset: usize, value: T) {
        self.registers.slice().write_obj(value, offset).expect("a register");
    }

    fn get<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, offset: usize) -> T {
        self.registers.slice().read_obj(offset).expect("a register")
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its configuration space.
    pub fn config(&'static self) -> ConfigSpace {
        ConfigSpace::new(self, self.address)
    }

    /// Lets it master the bus.
    pub fn grant(&self) -> DmaGrant {
        // SAFETY: it is not a device: what it reaches is checked before it does.
        unsafe { DmaGrant::without_iommu(self.address.id()) }
    }

    /// How often it was reset.
    pub fn lives(&self) -> u64 {
        self.lives.load(Ordering::Relaxed)
    }

    /// The queues that it knows.
    pub fn told(&self) -> Vec<Told> {
        self.state().told.clone()
    }

    /// How it behaves from here on.
    pub fn behave(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// From here on until `false` it may hear later of what it is told.
    pub fn race(&self, on: bool) {
        self.look();
        self.state().raced = on;
    }

    /// What it was told it has heard of, and is at work.
    pub fn settle(&self) {
        self.look();
        self.state().told.iter_mut().for_each(|told| told.raced = false);
        if !self.told().is_empty() && self.get::<u8>(common::DEVICE_STATUS) == 0 {
            self.show(AT_WORK);
        }
    }

    /// Shows this status, whatever it is at.
    pub fn show(&self, status: u8) {
        self.look();
        self.put(common::DEVICE_STATUS, status);
    }

    /// Whether it was notified since the last time.
    pub fn take_rung(&self) -> bool {
        let rung = self.get::<u32>(NOTIFY) != NOT_RUNG;
        self.put(NOTIFY, NOT_RUNG);
        rung
    }

    /// A hypervisor's whim: memory decoding on or off, unplugged or there, NEEDS_RESET.
    pub fn happen(&self, what: usize) {
        self.look();
        match what % 5 {
            0 => self.decode(false),
            1 => self.decode(true),
            2 => self.state().words[0] = u32::MAX,
            3 => self.state().words[0] = IDS,
            _ => {
                let status: u8 = self.get(common::DEVICE_STATUS);
                if status != 0 {
                    self.put(common::DEVICE_STATUS, status | 0x40);
                }
            }
        }
        self.look();
    }

    /// As it should be.
    pub fn recover(&self) {
        self.happen(1);
        self.happen(3);
    }

    fn decode(&self, on: bool) {
        let state = &mut *self.state();
        state.words[1] = state.words[1] & !MEMORY | if on { MEMORY } else { 0 };
        self.hide(state);
    }

    /// Hides the registers, or brings them back, as the command register says.
    fn hide(&self, state: &mut State) {
        match (state.words[1] & MEMORY != 0, state.hidden.take()) {
            (false, None) => {
                state.hidden = Some(self.get(0));
                self.put(0, [0_u8; COMMON_LEN]);
            }
            (true, Some(registers)) => self.put(0, registers),
            (_, other) => state.hidden = other,
        }
    }

    /// Time passes for a queue that is to be reset.
    pub fn tick(&self) {
        if self.get::<u16>(common::QUEUE_RESET) == 1 {
            self.put(common::QUEUE_RESET, 0_u16);
            self.put(common::QUEUE_ENABLE, 0_u16);
        }
    }

    /// Sees what was written to the registers since the last time.
    pub fn look(&self) {
        let state = &mut *self.state();
        if state.hidden.is_some() {
            return;
        }
        let addresses: [u64; 3] = self.get(common::QUEUE_DESC);
        if addresses != [0; 3] {
            let size = self.get::<u16>(common::QUEUE_SIZE);
            let upper = self.get::<u32>(common::DRIVER_FEATURE_SELECT) == 1;
            let packed = upper && self.get::<u32>(common::DRIVER_FEATURE) & PACKED != 0;
            let told = Told { addresses, size, packed, raced: state.raced };
            if !state.told.contains(&told) {
                state.told.push(told);
            }
            self.put(common::QUEUE_DESC, [0_u64; 3]);
        }
        let status: u8 = self.get(common::DEVICE_STATUS);
        if status == 0 && state.status != 0 {
            self.lives.fetch_add(1, Ordering::Relaxed);
            state.told.retain(|told| told.raced);
            state.told.iter_mut().for_each(|told| told.raced = false);
            self.set_registers();
        }
        state.status = status;
    }

    /// Uses everything it was told, and writes wherever it may.
    pub fn act(&self, party: Party) {
        self.look();
        let (told, manner) = (self.told(), self.state().manner);
        for queue in &told {
            let size = queue.size;
            let [table, driver, device] = queue.addresses;
            let table = self.side.reach(party, table, virtqueue::descriptor(size) as u64, "descriptors");
            let event = [packed::Event::LEN; 2];
            let areas = if queue.packed { event } else { [AVAILABLE.len(size), USED.len(size)] };
            let [driver_len, device_len] = areas.map(|len| len as u64);
            let driver = self.side.reach(party, driver, driver_len, "the driver area");
            let device = self.side.reach(party, device, device_len, "the device area");
            for index in 0..size {
                self.follow(party, (table, index), queue.packed, manner, true);
            }
            match manner {
                Manner::Garbage(byte) => self.fill(device, device_len, byte),
                Manner::Honest if !queue.packed => self.complete(driver, device, size),
                Manner::Honest => {}
            }
        }
        if self.state().hidden.is_none() {
            self.set_queue_registers();
        }
    }

    fn follow(&self, party: Party, (table, index): (u64, u16), packed: bool, manner: Manner, indirect: bool) {
        let (machine, at) = (self.side.system.machine, table + virtqueue::descriptor(index) as u64);
        let words = [at, at + WORD_LEN as u64].map(|at| machine.word(at));
        let split::Descriptor { address, len, flags, .. } = split::Descriptor::from_words(words);
        let flags = if packed { packed::Descriptor::from_words(words).flags } else { flags };
        if len == 0 && address == 0 {
            return;
        }
        let physical = self.side.reach(party, address, len.into(), "a segment");
        if flags & INDIRECT != 0 && indirect {
            for index in 0..len / DESCRIPTOR_LEN as u32 {
                self.follow(party, (physical, index as u16), packed, manner, false);
            }
        } else if flags & WRITE != 0 {
            self.fill(physical, len.into(), if let Manner::Garbage(byte) = manner { byte } else { 0xee });
        }
    }

    /// Completes all that is available, with the length that the first descriptor has.
    fn complete(&self, driver: u64, device: u64, size: u16) {
        let available = self.half(driver + Ring::INDEX as u64);
        for slot in 0..size {
            let id = self.half(driver + AVAILABLE.element(slot) as u64).into();
            let word = UsedElement { id, len: 1 }.to_word();
            self.write(device + USED.element(slot) as u64, &word.to_le_bytes());
        }
        self.write(device + Ring::INDEX as u64, &available.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        (at..).zip(bytes).for_each(|(at, &byte)| self.fill(at, 1, byte));
    }

    fn half(&self, at: u64) -> u16 {
        let machine = self.side.system.machine;
        // SAFETY: `reach` found that it is RAM of the machine, all of which is mapped at `ram`.
        unsafe { machine.ram.add(at as usize).cast::<u16>().read_volatile() }
    }

    fn fill(&self, at: u64, len: u64, byte: u8) {
        let machine = self.side.system.machine;
        for at in at..at + len {
            // SAFETY: as in `half`.
            unsafe { machine.ram.add(at as usize).write_volatile(byte) };
        }
    }
}

// SAFETY: it touches nothing but the words that stand for the configuration space, and its own registers.
unsafe impl ConfigAccess for Card {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let hook = self.hook.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        self.look();
        let words = self.state().words;
        if let Some(mut hook) = hook {
            hook(self);
            self.hook.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(hook);
            self.look();
        }
        let there = function == self.address && words[0] != u32::MAX;
        if there { words[usize::from(offset) / 4] } else { u32::MAX }
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        self.look();
        let state = &mut *self.state();
        if function != self.address || state.words[0] == u32::MAX {
            return;
        }
        let word = &mut state.words[usize::from(offset) / 4];
        *word = match offset {
            COMMAND => value & 0xffff | *word & 0xffff_0000,
            0x10 if value == u32::MAX => !(BAR_LEN as u32 - 1),
            0x14..0x28 if value == u32::MAX => 0,
            _ => value,
        };
        if offset == COMMAND {
            self.hide(state);
        }
    }

    fn last_bus(&self) -> u8 {
        0
    }
}
