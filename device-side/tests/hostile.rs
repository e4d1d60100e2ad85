//! The device's side of virtqueues against drivers that break every rule: typed errors, once; nothing
//! endless; no byte touched that the driver may not lend.

use std::slice;

use proptest::prelude::*;
use ringfence_device_side::chain::{ChainCompleteError, ChainError, ReadableChain, WritableChain};
use ringfence_device_side::queue::{DescError, Position, QueueError};
use ringfence_drivers::virtio::features::{EVENT_IDX, IN_ORDER, INDIRECT_DESC};
use ringfence_memory::virtqueue::packed::{self, AVAIL, USED};
use ringfence_memory::virtqueue::split::{self, AVAILABLE, Ring};
use ringfence_memory::{Bytes, Direction, virtqueue};
use ringfence_testkit::fake_queue::{
    Arena, ChainBuilder, FakeQueue, INDIRECT, NEXT, NotificationCounter, Segment, TestQueue, WRITE,
};

const SIZE: u16 = 4;
const WRAP: u16 = packed::Position::WRAP;

/// Publishes one chain, and checks that the device refuses it with `expected`, once, and goes on with the
/// next.
fn refused(
    packed: bool,
    features: u64,
    expected: ChainError,
    publish: impl Fn(&Arena, &mut FakeQueue<'_>, u64),
) {
    let arena = Arena::new(1 << 17);
    let fake = FakeQueue::new(&arena, packed, SIZE, if packed { WRAP } else { 65535 });
    let views = arena.views();
    let mut test = TestQueue::new(fake, &views, features);
    // What buffers may be in: 256 bytes to read, then 256 to write, and nothing else.
    let lent = arena.allocate(512, 256);
    let readable = arena.view(Direction::ToDevice, &[lent..lent + 256, lent + 512..arena.all().end]);
    let writable = arena.view(Direction::FromDevice, slice::from_ref(&(lent + 256..lent + 512)));
    for round in 0..6 {
        publish(&arena, &mut test.fake, lent);
        let chain = test.queue.next_chain().unwrap().expect("published");
        if round < 3 {
            let mut input = ReadableChain::new(chain, &readable);
            // A buffer that the device may not write is found when it is reached.
            let reads = std::iter::from_fn(|| input.next()).take(10).collect::<Vec<_>>();
            let errors = reads.iter().filter_map(|item| item.as_ref().err()).collect::<Vec<_>>();
            if errors.is_empty() {
                let mut output = WritableChain::from_incomplete_readable(input, &writable).unwrap();
                assert_eq!(output.next(), Some(Err(expected)));
                assert_eq!((output.next(), output.next_with_limit(1)), (None, None), "fused");
                assert_eq!(output.remaining(), Err(expected));
                assert_eq!(output.write(b"x"), Err(expected));
                assert_eq!(output.return_complete(), Err(ChainCompleteError::Chain(expected)));
            } else {
                assert_eq!(errors, [&expected], "once");
                assert!(reads.last().unwrap().is_err(), "fused");
                assert_eq!(input.remaining(), Err(expected));
                assert_eq!(input.read(&mut [0]), Err(expected));
                assert_eq!(input.return_complete(), Err(ChainCompleteError::Chain(expected)));
            }
        } else {
            match WritableChain::new_ignore_readable(chain, &readable, &writable) {
                Ok(mut output) => {
                    let errors = std::iter::from_fn(|| output.next()).take(10).filter_map(Result::err);
                    let errors = errors.collect::<Vec<_>>();
                    // Without reading, a buffer that may not be read does not matter.
                    assert!(errors.is_empty() || errors == [expected]);
                }
                Err(error) => assert_eq!(error, expected),
            }
        }
        let used = test.fake.next_used().expect("given back");
        assert_eq!(used.written, 0);
        assert!(test.queue.next_chain().unwrap().is_none());
        assert_eq!(test.queue.error(), None);
    }
}

/// A chain of these descriptors: offset in the lent memory, length, flags.
fn refused_chain(expected: ChainError, features: u64, descs: &[(u64, u32, u16)]) {
    for packed in [false, true] {
        refused(packed, features, expected, |arena, fake, lent| {
            let chain = descs.iter().fold(ChainBuilder::new(arena), |builder, &(offset, len, flags)| {
                builder.reference(lent.wrapping_add(offset), len, flags)
            });
            fake.publish(chain.build()).unwrap();
        });
    }
}

#[test]
fn chains_that_break_a_rule() {
    use ChainError::*;
    refused_chain(Empty, 0, &[(0, 0, 0)]);
    refused_chain(Empty, 0, &[(0, 8, 0), (256, 0, WRITE)]);
    refused_chain(ReadableAfterWritable, 0, &[(0, 8, 0), (256, 8, WRITE), (8, 8, 0)]);
    refused_chain(TranslateFailed, 0, &[(249, 8, 0)]);
    refused_chain(TranslateFailed, 0, &[(u64::MAX, 8, 0)]);
    refused_chain(TranslateFailed, 0, &[(256, 8, 0)]);
    refused_chain(TranslateFailed, 0, &[(0, 8, WRITE)]);
    refused_chain(TranslateFailed, 0, &[(505, 8, WRITE)]);
    refused_chain(TranslateFailed, 0, &[(0, 8, 0), (255, 8, WRITE)]);
    refused_chain(TooLong, 0, &[(0, u32::MAX, 0), (256, 2, WRITE)]);
    refused_chain(TooLong, 0, &[(256, u32::MAX, WRITE), (256, u32::MAX, WRITE)]);
    refused_chain(InvalidIndirect, 0, &[(0, 16, INDIRECT)]);
    refused_chain(InvalidIndirect, INDIRECT_DESC, &[(0, 16, INDIRECT), (0, 8, 0)]);
    for len in [0, 1, 15, 17, 31, (1 << 19) + 16, u32::MAX - 15, u32::MAX] {
        refused_chain(InvalidTableLength(len), INDIRECT_DESC, &[(0, len, INDIRECT)]);
    }
    refused_chain(TranslateFailed, INDIRECT_DESC, &[(256, 16, INDIRECT)]);
    refused_chain(TranslateFailed, INDIRECT_DESC, &[(256, 16, INDIRECT | WRITE)]);
    refused_chain(TranslateFailed, INDIRECT_DESC, &[(0, 1 << 19, INDIRECT)]);
    for packed in [false, true] {
        let (address, len) = (u64::MAX - 6, 8);
        refused(packed, 0, Desc(DescError::BadRange(address, len)), |arena, fake, _| {
            fake.publish(ChainBuilder::new(arena).reference(address, len, 0).build()).unwrap();
        });
        refused(packed, INDIRECT_DESC, InvalidNestedIndirectChain, |arena, fake, lent| {
            let chain = ChainBuilder::new(arena).readable(b"a").reference(lent, 16, INDIRECT);
            fake.publish_indirect(chain.build()).unwrap();
        });
        // The same rules hold in a table.
        refused(packed, INDIRECT_DESC, ReadableAfterWritable, |arena, fake, lent| {
            let chain = ChainBuilder::new(arena).reference(lent + 256, 1, WRITE).readable(b"a");
            fake.publish_indirect(chain.build()).unwrap();
        });
        refused(packed, INDIRECT_DESC, Empty, |arena, fake, lent| {
            let chain = ChainBuilder::new(arena).readable(b"a").reference(lent, 0, 0);
            fake.publish_indirect(chain.build()).unwrap();
        });
    }
}

#[test]
fn split_chains_without_end() {
    for (next, expected) in [
        (0, DescError::Endless),
        (1, DescError::Endless),
        (4, DescError::InvalidIndex(4)),
        (0xffff, DescError::InvalidIndex(0xffff)),
    ] {
        // A chain of two: the second goes on at `next`.
        refused(false, 0, ChainError::Desc(expected), |arena, fake, lent| {
            let id = fake.publish(ChainBuilder::new(arena).readable(b"a").readable(b"b").build()).unwrap();
            let second = split::Descriptor::from_words(fake.desc(id)).next;
            let next = [id, second].get(usize::from(next)).copied().unwrap_or(next);
            fake.put_desc(fake.desc, second, Segment { address: lent, len: 1, flags: NEXT }, next);
        });
    }
    for (next, expected) in [
        (0, DescError::Endless),
        (1, DescError::Endless),
        (2, DescError::InvalidIndex(2)),
        (0xffff, DescError::InvalidIndex(0xffff)),
    ] {
        // The same in a table.
        refused(false, INDIRECT_DESC, ChainError::Desc(expected), |arena, fake, lent| {
            let id = fake.publish_indirect(ChainBuilder::new(arena).readable(b"a").readable(b"b").build());
            let [table, _] = fake.desc(id.unwrap());
            fake.put_desc(table, 1, Segment { address: lent, len: 1, flags: NEXT }, next);
        });
    }
}

/// The queue fails with `expected`, once, and there is nothing more to be had; what is in flight can be
/// returned.
fn broken(packed: bool, expected: QueueError, hurt: impl Fn(&Arena, &mut FakeQueue<'_>)) {
    for hold in [false, true] {
        let arena = Arena::new(1 << 14);
        let views = arena.views();
        let fake = FakeQueue::new(&arena, packed, SIZE, if packed { WRAP } else { 65535 });
        let mut test = TestQueue::new(fake, &views, EVENT_IDX);
        test.fake.publish(ChainBuilder::new(&arena).writable(1).build()).unwrap();
        let chain = test.queue.next_chain().unwrap().unwrap();
        let held = Some(chain).filter(|_| hold);
        hurt(&arena, &mut test.fake);
        let error = test.queue.next_chain().map(|chain| chain.map(|chain| chain.id()));
        assert_eq!(error, Err(expected));
        for _ in 0..3 {
            assert!(matches!(test.queue.next_chain(), Ok(None)), "fused");
        }
        assert_eq!(test.queue.error(), Some(expected));
        if let Some(chain) = held {
            chain.return_written(1);
            assert_eq!(test.fake.next_used().unwrap().written, 1);
        }
    }
}

#[test]
fn available_indexes_that_jump() {
    for jump in [5, 6, 100, 0x7fff, 0x8000, 0xffff] {
        broken(false, QueueError::Overrun, |arena, fake| {
            arena.put16(fake.driver + 2, fake.next.wrapping_add(jump));
        });
    }
    for head in [4, 5, 0x8000, 0xffff] {
        broken(false, QueueError::InvalidHead(head), |_, fake| fake.publish_head(head));
    }
    // As many as there is room for are believed, one more is not, while one is in flight.
    let arena = Arena::new(1 << 14);
    let views = arena.views();
    let mut test = TestQueue::new(FakeQueue::new(&arena, false, SIZE, 0), &views, 0);
    test.fake.publish_head(0);
    let held = test.queue.next_chain().unwrap().unwrap();
    (0..4).for_each(|head| test.fake.publish_head(head));
    assert!(matches!(test.queue.next_chain(), Err(QueueError::Overrun)));
    drop(held);
}

/// A notification may tell of less than there is, never of more.
#[test]
fn notifications_that_lie() {
    for packed in [false, true] {
        let start = if packed { WRAP | 2 } else { 65534 };
        // How far the position lies from what was made available; chains taken of the two published; whether
        // it is true.
        let cases = [
            (0, 0, true),
            (0, 2, true),
            (-1, 0, true),
            (-2, 2, true),
            (-4, 2, true),
            (1, 0, false),
            (1, 2, false),
            (2, 2, false),
        ];
        for (offset, taken, fine) in cases {
            let arena = Arena::new(1 << 14);
            let views = arena.views();
            let mut test = TestQueue::new(FakeQueue::new(&arena, packed, SIZE, start), &views, 0);
            for _ in 0..2 {
                test.fake.publish(ChainBuilder::new(&arena).writable(1).build()).unwrap();
            }
            let held = (0..taken).map(|_| test.queue.next_chain().unwrap().unwrap()).collect::<Vec<_>>();
            // In a packed ring positions come again after two rounds.
            let rounds = if packed { 2 * i32::from(SIZE) } else { 1 << 16 };
            let steps = i32::rem_euclid(offset, rounds) as u16;
            let position = test.fake.after(test.fake.next, steps);
            let error = QueueError::InvalidNotification(position);
            assert_eq!(test.queue.notified(position), if fine { Ok(()) } else { Err(error) }, "{offset}");
            assert_eq!(test.queue.error(), Some(error).filter(|_| !fine));
            drop(held);
            assert_eq!(test.queue.next_chain().unwrap().is_some(), fine && taken == 0);
        }
        let arena = Arena::new(1 << 14);
        let views = arena.views();
        let queue = || TestQueue::new(FakeQueue::new(&arena, packed, SIZE, start), &views, 0).queue;
        let beyond = if packed { [SIZE, WRAP | SIZE, u16::MAX] } else { [start + 1, 5, start - SIZE - 1] };
        for position in beyond {
            assert_eq!(queue().notified(position), Err(QueueError::InvalidNotification(position)));
        }
    }
}

#[test]
fn packed_chains_without_end() {
    broken(true, QueueError::Overrun, |_, fake| {
        for slot in 0..SIZE {
            let wrap = if slot == 0 { USED } else { AVAIL };
            fake.put_desc(fake.desc, slot, Segment { address: Arena::BASE, len: 1, flags: NEXT | wrap }, 0);
        }
    });
}

#[test]
fn what_was_taken_stays_as_it_was() {
    for packed in [false, true] {
        let arena = Arena::new(1 << 14);
        let views = arena.views();
        let fake = FakeQueue::new(&arena, packed, SIZE, if packed { WRAP } else { 0 });
        let mut test = TestQueue::new(fake, &views, INDIRECT_DESC);
        for indirect in [false, true] {
            let chain = ChainBuilder::new(&arena).readable(b"before").writable(3).build();
            let id = if indirect { test.fake.publish_indirect(chain) } else { test.fake.publish(chain) };
            let chain = test.queue.next_chain().unwrap().unwrap();
            let mut input = ReadableChain::new(chain, &views.0);
            let everything = arena.all().end - arena.all().start;
            let (before, rings) = (arena.read(arena.all().start, everything as usize), arena.mark());
            // All rings, tables and buffers become ones, but for the data.
            for (at, &byte) in before.iter().enumerate().take((rings - Arena::BASE) as usize) {
                if !b"before".contains(&byte) {
                    arena.write(Arena::BASE + at as u64, &[0xff]);
                }
            }
            let mut data = [0; 9];
            assert_eq!((input.read(&mut data), &data[..6]), (Ok(6), &b"before"[..]));
            let mut output = WritableChain::from_readable(input, &views.1).unwrap();
            assert_eq!(output.remaining().unwrap().bytes, 3);
            assert_eq!(output.write(b"xyz"), Ok(3));
            arena.write(Arena::BASE, &before);
            drop(output);
            let used = test.fake.next_used().unwrap();
            assert_eq!((Some(used.id), used.written), (id, 3));
        }
    }
}

#[derive(Clone, Debug)]
struct Wild {
    /// Which memory, and how far from its edge.
    place: usize,
    shift: i64,
    len: u32,
    flags: u16,
    next: u16,
}

fn wild() -> impl Strategy<Value = Wild> {
    let len = prop_oneof![8 => 1_u32..40, 2 => (0_u32..6).prop_map(|n| n * 16), 1 => any::<u32>()];
    let next = prop_oneof![8 => 0_u16..10, 1 => any::<u16>()];
    // More often than not a buffer that is in order, so that chains get far.
    let shift = prop_oneof![3 => Just(0), 1 => -40_i64..40];
    let flags = prop_oneof![3 => prop::sample::select(vec![0, WRITE, NEXT]), 1 => 0_u16..8];
    (0_usize..8, shift, len, flags, next).prop_map(|(place, shift, len, flags, next)| Wild {
        place,
        shift,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any bytes in the rings: no panic, a bounded number of chains and bytes, and no byte outside of the
    /// rings and of what is lent for writing changes.
    #[test]
    fn any_ring_is_harmless(
        packed in any::<bool>(),
        start in prop_oneof![0_u16..3, 65530_u16..=65535],
        features in prop::sample::subsequence(vec![INDIRECT_DESC, EVENT_IDX, IN_ORDER], 0..=3),
        rounds in prop::collection::vec(
            (prop::collection::vec(wild(), 16), prop::collection::vec(0_u16..9, 8), 0_u16..10, any::<u16>()),
            1..4,
        ),
    ) {
        let (size, arena) = (8, Arena::new(1 << 13));
        let start = if packed { start & 0x8007 } else { start };
        let fake = FakeQueue::new(&arena, packed, size, start);
        let rings = arena.mark();
        let table = arena.allocate(virtqueue::descriptor(8), 256);
        let [read_only, hole, write_only, both] = [(); 4].map(|()| arena.allocate(256, 256));
        arena.write(table, &vec![0xa5; (arena.all().end - table) as usize]);
        let lent = [table..hole, both..both + 256];
        let readable = arena.view(Direction::ToDevice, &lent);
        let writable = arena.view(Direction::FromDevice, slice::from_ref(&(write_only..both + 256)));
        let all = arena.views();
        let notify = NotificationCounter::default();
        let queue = fake.queue(&all.0, &all.1, features.iter().sum(), Position::at(start), notify);
        let (mut chains, mut bytes, mut failed) = (0, 0_usize, false);
        for (descs, heads, ahead, wrap) in &rounds {
            let places = [read_only, read_only + 256, hole, write_only, both, both + 256, table, u64::MAX];
            let put = |table: u64, index: u16, desc: &Wild| {
                let address = places[desc.place].wrapping_add_signed(desc.shift);
                let available = if wrap >> (index % 16) & 1 == 1 { AVAIL } else { USED };
                let flags = desc.flags | if packed { available } else { 0 };
                fake.put_desc(table, index, Segment { address, len: desc.len, flags }, desc.next);
            };
            for (index, desc) in (0..).zip(&descs[..8]) {
                put(fake.desc, index, desc);
            }
            for (index, desc) in (0..).zip(&descs[8..]) {
                put(table, index, desc);
            }
            if !packed {
                for (slot, &head) in (0..).zip(heads) {
                    arena.put16(fake.driver + AVAILABLE.element(slot) as u64, head);
                }
                arena.put16(fake.driver + Ring::INDEX as u64, queue.position().used.wrapping_add(*ahead));
            }
            let before = arena.read(rings, (arena.all().end - rings) as usize);
            for _ in 0..40 {
                let chain = match queue.next_chain() {
                    Ok(Some(chain)) => chain,
                    Ok(None) => break,
                    Err(_) => {
                        prop_assert!(!failed, "an error comes once");
                        failed = true;
                        continue;
                    }
                };
                prop_assert!(!failed, "no chain after an error");
                chains += 1;
                prop_assert!(chain.iter().count() <= usize::from(size) + 1);
                let mut input = ReadableChain::new(chain, &readable);
                let mut errors = 0;
                while let Some(range) = input.next_with_limit(32) {
                    let Ok(range) = range else { errors += 1; continue };
                    bytes += range.len();
                    prop_assert!(range.write_slice(&[0], 0).is_err(), "read-only");
                    prop_assert!(range.read_slice(&mut vec![0; range.len()], 0).is_ok());
                }
                prop_assert!(errors <= 1);
                let Ok(mut output) = WritableChain::from_incomplete_readable(input, &writable) else {
                    continue;
                };
                let room = output.remaining().unwrap();
                let written = output.write(&[0x5a; 4096]);
                prop_assert!(written.is_err() || written == Ok(room.bytes.min(4096)));
                bytes += output.written() as usize;
            }
            let after = arena.read(rings, before.len());
            for (at, (before, after)) in (rings..).zip(before.iter().zip(&after)) {
                prop_assert!(before == after || (write_only..both + 256).contains(&at), "{at:#x} changed");
            }
        }
        prop_assert!(chains <= rounds.len() * usize::from(size) * 2, "{chains} chains");
        prop_assert!(bytes <= chains * 16 * 256, "{bytes} bytes");
    }
}
