//! A configuration space: a few functions, each 256 bytes with a mask of the bits that stick.

use std::collections::BTreeMap;

use ringfence_memory::{ConfigAccess, PciAddress};
use spin::Mutex;

#[derive(Clone)]
pub struct FakeFunction {
    pub words: [u32; 64],
    pub writable: [u32; 64],
}

impl FakeFunction {
    pub fn new(vendor: u16, device: u16, class: [u8; 3], header_type: u8) -> Self {
        let mut function = Self { words: [0; 64], writable: [0; 64] };
        function.words[0] = u32::from(device) << 16 | u32::from(vendor);
        let [base, sub, interface] = class;
        function.words[2] = u32::from_le_bytes([0, interface, sub, base]);
        function.words[3] = u32::from(header_type) << 16;
        function.writable[1] = 0x0000_0407;
        function
    }

    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let shift = at % 4 * 8;
            self.words[at / 4] = self.words[at / 4] & !(0xff << shift) | u32::from(*byte) << shift;
        }
    }

    /// A 64-bit memory BAR at `index` and `index + 1`.
    pub fn bar64(&mut self, index: usize, address: u64, size: u64) {
        let mask = !(size - 1);
        self.words[4 + index] = address as u32 | 0b0100;
        self.words[5 + index] = (address >> 32) as u32;
        self.writable[4 + index] = mask as u32 & !0xf;
        self.writable[5 + index] = (mask >> 32) as u32;
    }

    pub fn bar32(&mut self, index: usize, address: u32, size: u32) {
        self.words[4 + index] = address;
        self.writable[4 + index] = !(size - 1) & !0xf;
    }

    pub fn io_bar(&mut self, index: usize, port: u32, size: u32) {
        self.words[4 + index] = port | 1;
        self.writable[4 + index] = !(size - 1) & !0b11 & 0xffff;
    }

    /// Puts `capabilities` (id, and what follows the next pointer) at 0x40 and on, and links them.
    pub fn capabilities(&mut self, capabilities: &[(u8, Vec<u8>)]) {
        let mut at = 0x40;
        self.words[1] |= 0x10 << 16;
        self.put(0x34, &[at as u8]);
        for (number, (id, body)) in capabilities.iter().enumerate() {
            let next = (at + 2 + body.len()).next_multiple_of(4);
            let last = number + 1 == capabilities.len();
            self.put(at, &[*id, if last { 0 } else { next as u8 }]);
            self.put(at + 2, body);
            at = next;
        }
    }
}

/// The body of a virtio capability after id and next.
pub fn virtio_capability(
    kind: u8,
    bar: u8,
    offset: u32,
    length: u32,
    multiplier: Option<u32>,
) -> (u8, Vec<u8>) {
    let mut body = vec![if multiplier.is_some() { 20 } else { 16 }, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(multiplier.iter().flat_map(|multiplier| multiplier.to_le_bytes()));
    (0x09, body)
}

#[derive(Default)]
pub struct FakeConfig {
    functions: Mutex<BTreeMap<PciAddress, FakeFunction>>,
    pub reads: Mutex<u64>,
}

impl FakeConfig {
    pub fn leak(functions: impl IntoIterator<Item = (PciAddress, FakeFunction)>) -> &'static Self {
        let functions = Mutex::new(functions.into_iter().collect());
        Box::leak(Box::new(Self { functions, reads: Mutex::new(0) }))
    }

    /// Which bits stick of the word at `offset`.
    pub fn set_writable(&self, address: PciAddress, offset: usize, mask: u32) {
        self.functions.lock().get_mut(&address).unwrap().writable[offset / 4] = mask;
    }

    pub fn word(&self, address: PciAddress, offset: usize) -> u32 {
        self.functions.lock()[&address].words[offset / 4]
    }
}

// SAFETY: touches nothing but a map.
unsafe impl ConfigAccess for FakeConfig {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        *self.reads.lock() += 1;
        let functions = self.functions.lock();
        let words = functions.get(&function).map(|function| function.words);
        words.and_then(|words| words.get(usize::from(offset / 4)).copied()).unwrap_or(u32::MAX)
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        let mut functions = self.functions.lock();
        let Some(function) = functions.get_mut(&function) else { return };
        let at = usize::from(offset / 4);
        let (Some(word), Some(mask)) = (function.words.get_mut(at), function.writable.get(at)) else {
            return;
        };
        *word = *word & !mask | value & mask;
    }

    fn last_bus(&self) -> u8 {
        255
    }
}

pub fn address(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function).unwrap()
}
