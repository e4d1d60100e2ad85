//! Configuration space, and what a device says there about itself.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::array;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;
use ringfence_testkit::host_does;
use ringfence_testkit::registers::*;
use spin::Mutex;

/// O20: whoever revokes has the last word.
#[test]
fn a_revoked_bus_master_bit_stays_away() {
    let card = Card::new();
    let (config, virtio) = (card.config(), card.virtio());
    config.enable_bus_master(&card.grant()).unwrap();
    let command = || config.read_u32(COMMAND);
    thread::scope(|scope| {
        let noise = scope.spawn(|| {
            for round in 0..2000 {
                config.enable_intx(round % 2 == 0);
                config.enable_memory();
                config.bars();
                assert!(virtio.msix.as_ref().unwrap().enable(round % 2 == 0));
            }
        });
        loop {
            config.enable_bus_master(&card.grant()).unwrap();
            config.disable_bus_master();
            assert_eq!(command() & BUS_MASTER, 0, "it came back");
            if noise.is_finished() {
                break;
            }
        }
    });
    let stranger = unsafe { DmaGrant::without_iommu(DeviceId(0x77)) };
    assert_eq!(config.enable_bus_master(&stranger), Err(DmaError::WrongDevice));
    let [model, bus] = [DmaWindows::for_model, DmaWindows::new]
        .map(|claim| claim(card.platform, card.address.id()).unwrap());
    let model = DmaGrant::for_model(&model).unwrap();
    assert_eq!(model.device(), card.address.id());
    assert_eq!(config.enable_bus_master(&model), Err(DmaError::WrongDevice), "a model's, of the same number");
    assert_eq!(DmaGrant::for_model(&bus).err(), Some(DmaError::WrongDevice));
    assert_eq!(command() & (BUS_MASTER | MEMORY), MEMORY);
}

/// Whoever sizes the BARs beside somebody else finds the same, and all is as it was before.
#[test]
fn sizing_by_two_threads_moves_nothing() {
    let card = Card::new();
    let (config, before) = (card.config(), card.config().read_u32(0x10));
    let expected = config.bars();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..2000).for_each(|_| assert_eq!(config.bars(), expected)));
        }
    });
    assert_eq!(config.read_u32(0x10), before);
}

/// Whoever sizes BARs keeps a function from hearing what is written to its registers: a lost half of an
/// address would be another address. So a device is told nothing meanwhile.
#[test]
fn a_device_is_told_nothing_while_its_bars_are_sized() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    let (common, msix) = (&virtio.common, virtio.msix.as_ref().unwrap());
    common.reset(&windows, LIMIT).unwrap();
    let ring = Ring::new(&windows, 16);
    let message = unsafe { MsiMessage::new(0xfee0_1000, 0x41) };
    let steps: [(&str, &(dyn Fn() + Sync)); 8] = [
        ("features are read", &|| assert_eq!(common.device_features(), 0)),
        ("features are set", &|| assert!(common.set_driver_features(0))),
        ("the status is set", &|| common.set_status(3)),
        ("the choice is final", &|| common.set_status(FEATURES_OK)),
        ("a queue is told", &|| common.set_queue(&windows, 0, &ring.addresses()).unwrap()),
        ("a vector is set", &|| assert_eq!(common.set_queue_vector(0, 1), Ok(1))),
        ("the other vector is set", &|| assert_eq!(common.set_config_vector(1), Ok(1))),
        ("a message is set", &|| msix.set(1, message).unwrap()),
    ];
    for (what, step) in steps {
        let [sizes, go_on, done]: [&AtomicBool; 3] = [(); 3].map(|()| &*Box::leak(Box::default()));
        *card.on_read.lock() = Some(Box::new(move |_, offset| {
            sizes.fetch_or(offset == 0x10, SeqCst);
            while offset == 0x10 && !go_on.load(SeqCst) {
                thread::yield_now();
            }
        }));
        let early = thread::scope(|scope| {
            scope.spawn(|| card.config().bars());
            while !sizes.load(SeqCst) {
                thread::yield_now();
            }
            scope.spawn(|| {
                step();
                done.store(true, SeqCst);
            });
            thread::sleep(Duration::from_millis(5));
            let early = done.load(SeqCst);
            go_on.store(true, SeqCst);
            early
        });
        assert!(!early && done.load(SeqCst), "{what}");
    }
}

/// What is written to configuration space is the command register, the BARs' own values and MSI-X's control:
/// no other word, whatever is called.
#[test]
fn nothing_else_is_written_to_configuration_space() {
    let card = Card::new();
    let (config, virtio) = (card.config(), card.virtio());
    let bar = config.read_u32(0x10);
    config.bars();
    config.enable_memory();
    config.enable_intx(true);
    config.enable_bus_master(&card.grant()).unwrap();
    config.disable_bus_master();
    config.capabilities().for_each(drop);
    let msix = virtio.msix.unwrap();
    assert!(msix.enable(true) && msix.enable(false));
    let written = card.written.lock().clone();
    let control = 0x90;
    for (offset, value) in &written {
        match *offset {
            COMMAND => assert_eq!(value & 0xffff_0000, 0, "status bits are cleared by ones"),
            0x10..0x28 => {}
            offset => assert_eq!(offset, control, "{value:#x}"),
        }
    }
    assert_eq!(config.read_u32(0x10), bar);
    assert!(written.iter().any(|(offset, _)| *offset == control));
}

/// Structures that lie across each other: what is notified must not be where addresses are.
#[test]
fn structures_that_overlap_are_refused() {
    for (at, offset) in
        [(0x7c + 8, 0_u32), (0x7c + 8, 0x34), (0x7c + 8, MSIX as u32), (0x7c + 8, MSIX as u32 + 0x30)]
    {
        let card = Card::new();
        card.poke(at, offset);
        let found = VirtioPci::new(card.platform, card.config()).unwrap_err();
        assert_eq!(found, VirtioPciError::MissingCapability(2), "the notify structure at {offset:#x}");
    }
    // A table of messages across the common structure is not used at all.
    let card = Card::new();
    card.poke(0x94, COMMON as u32);
    assert!(card.virtio().msix.is_none());
}

/// O29: a window of configuration space ends where its buses do.
#[test]
fn ecam_stays_in_its_window() {
    let host: &'static HostPlatform = platform();
    let window = host.add_registers(BAR, 2 << 20);
    let start = PhysAddr::new(BAR).unwrap();
    let ecam = unsafe { Ecam::new(host, start, 0, 4, 5) }.unwrap();
    ecam.open_bus(0, 5);
    assert_eq!(ecam.last_bus(), 5);
    for (bus, device, function, offset) in [(4, 0, 0, 0), (4, 31, 7, 4092), (5, 3, 1, 0x40), (5, 31, 7, 4092)]
    {
        let address = PciAddress::new(0, bus, device, function).unwrap();
        let at =
            usize::from(bus - 4) << 20 | usize::from(device) << 15 | usize::from(function) << 12 | offset;
        unsafe { ecam.write(address, offset as u16, 0xc0de_0000 | at as u32 & 0xffff) };
        assert_eq!(window.slice().read_obj::<u32>(at), Ok(0xc0de_0000 | at as u32 & 0xffff));
        assert_eq!(ecam.read(address, offset as u16), 0xc0de_0000 | at as u32 & 0xffff);
    }
    for (segment, bus, offset) in [(0, 3, 0), (0, 6, 0), (1, 4, 0), (0, 4, 4096), (0, 5, u16::MAX)] {
        let address = PciAddress::new(segment, bus, 0, 0).unwrap();
        unsafe { ecam.write(address, offset, 7) };
        assert_eq!(ecam.read(address, offset), u32::MAX);
    }
}

/// A function as PCI 3.0 has it: of each register the bits that can be written, and a status that ones clear.
struct Function {
    firmware: [u32; 64],
    writable: [u32; 64],
    words: Mutex<[u32; 64]>,
    written: Mutex<BTreeSet<u16>>,
}

impl Function {
    fn new(firmware: [u32; 64], writable: [u32; 64]) -> &'static Self {
        let (words, written) = (Mutex::new(firmware), Mutex::default());
        Box::leak(Box::new(Self { firmware, writable, words, written }))
    }

    fn config(&'static self) -> ConfigSpace {
        ConfigSpace::new(self, PciAddress::new(0, 0, 1, 0).unwrap())
    }

    fn words(&self) -> [u32; 64] {
        *self.words.lock()
    }
}

unsafe impl ConfigAccess for Function {
    fn read(&self, _: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4));
        self.words()[usize::from(offset / 4)]
    }

    unsafe fn write(&self, _: PciAddress, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(4));
        self.written.lock().insert(offset);
        let (words, index) = (&mut *self.words.lock(), usize::from(offset / 4));
        if offset == COMMAND {
            words[1] = value & 0xffff | words[1] & !value & 0xffff_0000;
            assert!(words[1] & DECODES == 0 || words[4..10] == self.firmware[4..10], "it answers elsewhere");
        } else {
            assert!(words[1] & DECODES == 0, "moved while it answers");
            words[index] = words[index] & !self.writable[index] | value & self.writable[index];
        }
    }

    fn last_bus(&self) -> u8 {
        0
    }
}

/// Whether it answers in memory, or at ports.
const DECODES: u32 = 0b11;

/// Addresses and encodings meet where registers are small.
fn any_or_least() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0), any::<u8>()]
}

proptest! {
    /// Base address registers as 6.2.5.1 draws them: how they are encoded, which bits an address has, and
    /// which of those can be set. A header of type 0 has six, of type 1 (a bridge) two, others none that we
    /// know.
    #[test]
    fn bars_are_what_they_say(
        header in 0..3u32, multifunction: bool, command in 0..0x800u32,
        drawn in prop::array::uniform6(
            (select(&[0_u32, 1, 2, 4, 6, 8, 12, 14][..]), any_or_least(), any::<u64>(), 0..64u32)
        ),
        narrow: bool, echo: bool,
    ) {
        let mut firmware = [0x1234_5678; 64];
        let mut writable = [u32::MAX; 64];
        firmware[1] = 0xf9b0_0000 | command;
        firmware[3] = header << 16 | u32::from(multifunction) << 23;
        let count = [6, 2, 0][header as usize];
        let mut expected = [None; 6];
        let mut at = 0;
        while at < count {
            let (encoding, bits, address, shift) = drawn[at];
            let (ports, wide) = (encoding & 1 != 0, encoding & 0b111 == 0b100);
            let top = if wide { 64 } else if ports && narrow { 16 } else { 32 };
            let least = if ports { 2 } else { 4 };
            let bits = least + u32::from(bits) % (top - least + 1);
            // With no bit to be set there is no address: the register is not there, or says nonsense.
            let mask = (least..top).filter(|bit| *bit >= bits).fold(0, |mask, bit| mask | 1_u64 << bit);
            let address = address >> shift & mask;
            let whole = !wide || at + 1 < count;
            expected[at] = match encoding & 0b111 {
                _ if mask == 0 || !whole => None,
                0 | 0b100 => Some(Bar::Memory {
                    address: if (1..1 << 52).contains(&address) { PhysAddr::new(address) } else { None },
                    size: 1 << bits,
                    prefetchable: encoding & 8 != 0,
                }),
                // The two kinds that are reserved.
                0b010 | 0b110 => None,
                _ => Some(Bar::Io { port: address as u32, size: 1 << bits }),
            };
            firmware[4 + at] = address as u32 | encoding;
            // What the encoding reads as then is not part of the size.
            writable[4 + at] = mask as u32 | if echo { (1 << least) - 1 } else { 0 };
            at += 1;
            if wide && whole {
                (firmware[4 + at], writable[4 + at]) = ((address >> 32) as u32, (mask >> 32) as u32);
                at += 1;
            }
        }
        let function = Function::new(firmware, writable);
        prop_assert_eq!(function.config().bars(), expected);
        prop_assert_eq!(function.words(), firmware);
        let written = function.written.lock().clone();
        let end = 0x10 + 4 * count as u16;
        prop_assert!(written.iter().all(|at| *at == COMMAND || (0x10..end).contains(at)), "{written:x?}");
    }

    /// The list of 6.7: low bits masked, nothing below 0x40, no place twice, and none without the status bit.
    #[test]
    fn a_list_of_capabilities_ends(
        mut bytes in prop::collection::vec(any::<u8>(), 256), long: bool, listed in prop::bool::weighted(0.9),
    ) {
        bytes[6] = u8::from(listed) << 4;
        if long {
            bytes.iter_mut().skip(0x31).for_each(|byte| *byte |= 0x40);
        }
        let (mut expected, mut next, mut seen) = (Vec::new(), bytes[0x34] & 0xfc, BTreeSet::new());
        while listed && next >= 0x40 && seen.insert(next) {
            expected.push((bytes[usize::from(next)], next));
            next = bytes[usize::from(next) + 1] & 0xfc;
        }
        prop_assert_eq!(list(&bytes), expected);
    }
}

/// The capabilities of a function with these bytes, or the first hundred.
fn list(bytes: &[u8]) -> Vec<(u8, u8)> {
    let words = array::from_fn(|index| u32::from_le_bytes(array::from_fn(|byte| bytes[4 * index + byte])));
    let found = Function::new(words, [0; 64]).config().capabilities().take(100);
    found.map(|capability| (capability.id, capability.offset)).collect()
}

#[test]
fn a_capability_that_names_itself() {
    for place in (0x40..=0xfc_u8).step_by(4) {
        let mut bytes = [0; 256];
        (bytes[6], bytes[0x34]) = (0x10, place);
        bytes[usize::from(place)..][..2].copy_from_slice(&[7, place]);
        assert_eq!(list(&bytes), [(7, place)]);
    }
    let last = Capability { id: 7, offset: 0xfc };
    assert_eq!([0, 3, 4].map(|field| last.field(field)), [Some(0xfc), Some(0xff), None]);
}

/// Each operation on the command register (6.2.2) changes its bit, and the status is left as it was.
#[test]
fn commands_change_one_bit() {
    let grant = unsafe { DmaGrant::without_iommu(DeviceId(8)) };
    type Operation<'a> = (&'a dyn Fn(ConfigSpace), u32, u32);
    let operations: [Operation<'_>; 5] = [
        (&|config| config.enable_memory(), 0, 1 << 1),
        (&|config| config.enable_intx(true), 1 << 10, 0),
        (&|config| config.enable_intx(false), 0, 1 << 10),
        (&|config| config.enable_bus_master(&grant).unwrap(), 0, 1 << 2),
        (&|config| config.disable_bus_master(), 1 << 2, 0),
    ];
    for command in 0..0x800 {
        for (operate, clear, set) in operations {
            let mut words = [0x1234_5678; 64];
            words[1] = 0xf9b0_0000 | command;
            let function = Function::new(words, [u32::MAX; 64]);
            operate(function.config());
            words[1] = words[1] & !clear | set;
            assert_eq!(function.words(), words);
        }
    }
}

#[test]
fn registers_of_every_width() {
    let bytes: [u8; 256] = array::from_fn(|index| (index as u8).wrapping_mul(0x9d) ^ 0x5a);
    let word = |at: usize| u32::from_le_bytes(array::from_fn(|byte| bytes[at + byte]));
    let config = Function::new(array::from_fn(|index| word(4 * index)), [0; 64]).config();
    for at in 0..256 {
        let offset = at as u16;
        assert_eq!(config.read_u32(offset), word(at & !3));
        assert_eq!(config.read_u16(offset), u16::from_le_bytes([bytes[at & !1], bytes[at | 1]]));
        assert_eq!(config.read_u8(offset), bytes[at]);
    }
}

/// Five bits of device and three of function, in a byte behind the bus (3.2.2.3.2); the segment is above.
#[test]
fn an_address_has_four_parts() {
    for (segment, bus, device, function) in
        (0..=u16::MAX).map(|all| (all ^ 0xa5c3, (all >> 3) as u8 ^ 0x5b, all as u8, (all >> 8) as u8))
    {
        let Some(address) = PciAddress::new(segment, bus, device, function) else {
            assert!(device > 31 || function > 7);
            continue;
        };
        let parts = (address.segment, address.bus, address.device(), address.function());
        assert_eq!(parts, (segment, bus, device, function));
        assert!(device <= 31 && function <= 7);
        let requester = u16::from(bus) * 256 + u16::from(device) * 8 + u16::from(function);
        assert_eq!(address.requester_id(), requester);
        assert_eq!(address.id(), DeviceId(u64::from(segment) * 0x1_0000 + u64::from(requester)));
        let text = format!("{segment:04x}:{bus:02x}:{device:02x}.{function}");
        assert_eq!([address.to_string(), format!("{address:?}")], [&*text, &*text]);
    }
}

/// A platform that maps something else than it was asked for.
struct Careless {
    host: HostPlatform,
    /// How far from an aligned place, and how many bytes too few (or, below 0, too many).
    off: (usize, isize),
    asked: Mutex<Vec<usize>>,
}

unsafe impl Platform for Careless {
    host_does!(host: dma_allocate, now, registry);

    fn mmio_map(&self, _: Option<DeviceId>, _: PhysAddr, len: usize) -> Result<MmioMemory, PlatformError> {
        self.asked.lock().push(len);
        let words = vec![0_u64; 0x20_0000 / 8].leak().as_mut_ptr().cast::<u8>();
        let start = NonNull::new(words.wrapping_add(self.off.0)).unwrap();
        Ok(unsafe { MmioMemory::new(start, len.wrapping_add_signed(-self.off.1), Box::new(())) })
    }
}

#[test]
fn a_mapping_is_as_long_and_aligned_as_it_must_be() {
    let start = PhysAddr::new(BAR).unwrap();
    for off in [(0, 0), (0, -1), (4, 0), (0, 1), (0, 0x1000), (1, 0), (2, 0), (3, -8), (2, 1)] {
        let platform = Careless { host: HostPlatform::new(), off, asked: Mutex::default() };
        let platform: &'static Careless = Box::leak(Box::new(platform));
        let ecam = unsafe { Ecam::new(platform, start, 7, 4, 4) };
        let expected = off.0 % 4 == 0 && off.1 <= 0;
        assert_eq!(ecam.as_ref().err(), (!expected).then_some(&PlatformError::BadRange), "{off:?}");
        if let Ok(ecam) = ecam {
            let last = PciAddress::new(7, 4, 31, 7).unwrap();
            unsafe { ecam.write(last, 4094, 0x1234_5678) };
            assert_eq!([4092, 4093, 4095].map(|offset| ecam.read(last, offset)), [0x1234_5678; 3]);
            assert_eq!(format!("{ecam:?}"), "Ecam(0007:04..=04)");
        }
        let region = MmioRegion::map(platform, None, start, 0x1001).map(|region| region.len());
        assert_eq!(region, if off.1 <= 0 { Ok(0x1001) } else { Err(PlatformError::BadRange) });
        assert_eq!(*platform.asked.lock(), [1 << 20, 0x1001]);
    }
}
