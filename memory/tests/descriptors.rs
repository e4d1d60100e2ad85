//! A table of descriptors against a model in bytes, as virtio 1.4 lays descriptors out (2.7.5, 2.8.13).

use std::sync::atomic::Ordering::{Relaxed, Release};

use proptest::prelude::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;

const DEVICE: DeviceId = DeviceId(0x08);
const COUNT: usize = 4;
const INDIRECT_COUNT: usize = 8;
/// Flags of both formats.
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

type Descriptor = [u8; 16];

/// Bytes of a buffer, and the two fields of a descriptor that are not its address and length.
#[derive(Clone, Debug)]
struct Piece {
    foreign: bool,
    offset: usize,
    len: usize,
    writable: bool,
    fields: [u16; 2],
}

#[derive(Clone, Debug)]
enum Step {
    Store(usize, Piece),
    Hold(usize, Vec<Piece>),
    StoreHeld,
    Indirect { index: usize, first: usize, count: usize, fields: [u16; 2], hold: bool },
    Clear,
}

fn piece() -> impl Strategy<Value = Piece> {
    let foreign = prop::bool::weighted(0.05);
    (foreign, 0..100_usize, 1..400_usize, any::<bool>(), any::<[u16; 2]>())
        .prop_map(|(foreign, offset, len, writable, fields)| Piece { foreign, offset, len, writable, fields })
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0..COUNT + 2;
    let chain = prop::collection::vec(piece(), 1..=COUNT + 1);
    let indirect = (index(), 0..10_usize, 0..10_usize, any::<[u16; 2]>(), any::<bool>());
    prop_oneof![
        2 => (index(), piece()).prop_map(|(index, piece)| Step::Store(index, piece)),
        4 => (index(), chain).prop_map(|(index, chain)| Step::Hold(index, chain)),
        3 => Just(Step::StoreHeld),
        3 => indirect.prop_map(|(index, first, count, fields, hold)| {
            Step::Indirect { index, first, count, fields, hold }
        }),
        1 => Just(Step::Clear),
    ]
}

/// Fields of a descriptor where `store` takes them. The length is the segment's, whatever stands in its
/// place.
fn bits([one, two]: [u16; 2]) -> u64 {
    0x5a5a_5a5a | u64::from(one) << 32 | u64::from(two) << 48
}

/// What the device is to find, and what is held. Addresses are those of the buffer and of the indirect table.
struct Model {
    packed: bool,
    buffer: u64,
    indirect: u64,
    written: [Descriptor; COUNT],
    held: Option<(usize, Descriptor)>,
}

impl Model {
    /// The flags are the first of the fields or, in a packed ring, the second.
    fn descriptor(&self, address: u64, len: usize, mut fields: [u16; 2], flags: u16) -> Descriptor {
        let field = &mut fields[usize::from(self.packed)];
        *field = *field & !(WRITE | INDIRECT) | flags;
        let [one, two] = fields.map(u16::to_le_bytes);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&one);
        bytes[14..].copy_from_slice(&two);
        bytes
    }

    fn of_piece(&self, Piece { offset, len, writable, fields, .. }: &Piece) -> Descriptor {
        let flags = if *writable { WRITE } else { 0 };
        self.descriptor(self.buffer + *offset as u64, *len, *fields, flags)
    }

    fn put(&mut self, index: usize, descriptor: Descriptor, hold: bool) {
        if hold && self.held.is_none() {
            self.held = Some((index, descriptor));
        } else {
            self.written[index] = descriptor;
        }
    }

    fn step(&mut self, step: &Step) -> Result<bool, DmaError> {
        let beyond = Err(DmaError::Access(VolatileError::OutOfBounds));
        match step {
            Step::Store(_, piece) if piece.foreign => return Err(DmaError::WrongDevice),
            Step::Store(index, _) if *index >= COUNT => return beyond,
            Step::Store(index, piece) => self.put(*index, self.of_piece(piece), false),
            Step::Hold(_, chain) if chain.iter().any(|piece| piece.foreign) => {
                return Err(DmaError::WrongDevice);
            }
            Step::Hold(index, chain) if index + chain.len() > COUNT => return beyond,
            Step::Hold(index, chain) => {
                for (place, piece) in chain.iter().enumerate() {
                    self.put(index + place, self.of_piece(piece), place == 0);
                }
            }
            Step::StoreHeld => {
                let Some((index, descriptor)) = self.held.take() else { return Ok(false) };
                self.written[index] = descriptor;
            }
            Step::Indirect { index, first, count, .. }
                if *index >= COUNT || *count == 0 || first + count > INDIRECT_COUNT =>
            {
                return beyond;
            }
            // Never WRITE beside INDIRECT (2.7.5.3.1).
            Step::Indirect { index, first, count, fields, hold } => {
                let address = self.indirect + 16 * *first as u64;
                self.put(*index, self.descriptor(address, 16 * count, *fields, INDIRECT), *hold);
            }
            Step::Clear => (self.written, self.held) = ([[0; 16]; COUNT], None),
        }
        Ok(true)
    }
}

/// A table, and what its descriptors refer to.
struct Queue<F: RingFormat> {
    table: DescriptorTable<F>,
    indirect: DescriptorTable<F>,
    own: DmaBuf,
    foreign: DmaBuf,
}

impl<F: RingFormat> Queue<F> {
    fn step(&mut self, step: &Step) -> Result<bool, DmaError> {
        let Self { table, indirect, own, foreign } = self;
        let part = |piece: &Piece| {
            let owner = if piece.foreign { &*foreign } else { &*own };
            (owner.segment(piece.offset, piece.len, piece.writable).unwrap(), bits(piece.fields))
        };
        match step {
            Step::Store(index, piece) => {
                let (segment, bits) = part(piece);
                table.store(*index, &segment, bits, Release)?;
            }
            Step::Hold(index, chain) => {
                let parts: Vec<_> = chain.iter().map(part).collect();
                let parts: Vec<_> = parts.iter().map(|(segment, bits)| (segment, *bits)).collect();
                match parts[..] {
                    [a] => table.hold(*index, [a])?,
                    [a, b] => table.hold(*index, [a, b])?,
                    [a, b, c] => table.hold(*index, [a, b, c])?,
                    [a, b, c, d] => table.hold(*index, [a, b, c, d])?,
                    [a, b, c, d, e] => table.hold(*index, [a, b, c, d, e])?,
                    _ => unreachable!(),
                }
            }
            Step::StoreHeld => return Ok(table.store_held(Release)),
            Step::Indirect { index, first, count, fields, hold } => {
                table.store_indirect(*index, (indirect, *first, *count), bits(*fields), *hold)?;
            }
            Step::Clear => table.clear(),
        }
        Ok(true)
    }
}

fn agrees<F: RingFormat>(packed: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let [ours, theirs] = [DEVICE, DeviceId(9)].map(|device| DmaWindows::for_model(host, device).unwrap());
    let buffer = |windows| DmaPool::new(windows, 1, 500).unwrap().take().unwrap();
    let table = |count| DescriptorTable::<F>::new(&ours, count, 0, Direction::ToDevice).unwrap();
    let (table, indirect) = (table(COUNT), table(INDIRECT_COUNT));
    let mut queue = Queue { table, indirect, own: buffer(&ours), foreign: buffer(&theirs) };
    let at = |address| ours.publish(address).unwrap();
    let (start, buffer) = (at(queue.table.address()), at(queue.own.address()).0);
    let indirect = at(queue.indirect.address()).0;
    let mut model = Model { packed, buffer, indirect, written: [[0; 16]; COUNT], held: None };
    for step in steps {
        prop_assert_eq!(queue.step(step), model.step(step), "{:?}", step);
        prop_assert_eq!(ours.readable().unwrap().read_obj(start), Ok(model.written), "{:?}", step);
        for (index, descriptor) in model.written.iter().enumerate() {
            let rest = queue.table.load_rest(index, Relaxed).unwrap().to_le_bytes();
            prop_assert_eq!(&rest, &descriptor[8..]);
        }
    }
    Ok(())
}

proptest! {
    /// O10, O13: whatever is written, held and cleared in whatever order, the device finds what the model
    /// has.
    #[test]
    fn tables_agree_with_a_model(packed: bool, steps in prop::collection::vec(step(), 1..40)) {
        if packed { agrees::<Packed>(true, &steps)? } else { agrees::<Split>(false, &steps)? }
    }
}

/// A table has at least one descriptor, and then is not empty; the areas of a packed ring lie at multiples of
/// 4.
#[test]
fn the_smallest_tables_and_areas() {
    let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
    let one = DescriptorTable::<Packed>::new(&windows, 1, 0, Direction::ToDevice).unwrap();
    assert_eq!((one.len(), one.is_empty()), (1, false));
    for more in [0, 518] {
        let none = DescriptorTable::<Split>::new(&windows, 0, more, Direction::ToDevice);
        assert_eq!(none.unwrap_err(), DmaError::BadLength, "and {more} bytes");
    }
    let area = windows.allocate(4096).unwrap();
    for offset in 0..64 {
        let (at, start) = (area.address(offset).unwrap(), area.address(0).unwrap());
        let results =
            [one.queue(at, start), one.queue(start, at)].map(|queue| queue.map(|queue| queue.size()));
        let misaligned = Err(DmaError::Access(VolatileError::Misaligned));
        assert_eq!(results, [if offset % 4 == 0 { Ok(1) } else { misaligned }; 2], "{offset}");
    }
}

#[test]
fn a_queue_has_a_legal_size() {
    fn check<F: RingFormat>(packed: bool) {
        for size in [1, 2, 3, 6, 8, 1000, 32767, 32768, 32769, 65535, 65536, 65537_usize] {
            let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
            let table = DescriptorTable::<F>::new(&windows, size, 0, Direction::ToDevice).unwrap();
            // Room for the areas of any.
            let areas = [(); 2].map(|()| windows.allocate(1 << 20).unwrap());
            let [driver, device] = areas.each_ref().map(|area| area.address(0).unwrap());
            let queue = table.queue(driver, device).map(|queue| (queue.size(), queue.is_packed()));
            let is_legal = size <= 32768 && (packed || size.is_power_of_two());
            let expected = if is_legal { Ok((size as u16, packed)) } else { Err(DmaError::BadLength) };
            assert_eq!(queue, expected, "{size}, packed: {packed}");
        }
    }
    check::<Split>(false);
    check::<Packed>(true);
}

/// The author of a descriptor has all bits of its second half but the length and two flags, and joins them as
/// they are.
#[test]
fn bits_of_the_author() {
    fn of<F: RingFormat>(bits: u64) -> DescriptorBits<F> {
        bits.into()
    }
    assert_eq!(of::<Split>(u64::MAX).get(), 0xffff_fff9_0000_0000);
    assert_eq!(of::<Packed>(u64::MAX).get(), 0xfff9_ffff_0000_0000);
    assert_eq!((of::<Packed>(0).get(), of::<Split>(u32::MAX.into()).get()), (0, 0));
    let [one, two] = [0x8081_1234 << 32, 0x0080_4321 << 32].map(of::<Packed>);
    assert_eq!((one | two).get(), 0x8081_5335 << 32);
}
