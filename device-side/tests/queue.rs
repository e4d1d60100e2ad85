//! The device's side of virtqueues against a fake driver that plays by the rules: split and packed, over any
//! start and size.

use proptest::prelude::*;
use proptest::sample::Index;
use ringfence_device_side::chain::{ChainCompleteError, ChainError, ReadableChain, Remaining, WritableChain};
use ringfence_device_side::queue::{
    DescChain, DriverNotify, PackedMemory, Position, Queue, QueueMemory, RingMemory,
};
use ringfence_device_side::ring::{DescAccess, DescType, Device, Driver, Used};
use ringfence_drivers::virtio::features::{EVENT_IDX, IN_ORDER, INDIRECT_DESC};
use ringfence_memory::{
    Bytes, Direction,
    fuchsia::{DeviceRange, DriverMem, DriverRange},
    virtqueue::packed,
};
use ringfence_testkit::fake_queue::{Arena, ChainBuilder, FakeQueue, NotificationCounter, TestQueue};

const WRAP: u16 = packed::Position::WRAP;

/// Format, size and start position.
fn rings() -> impl Strategy<Value = (bool, u16, u16)> {
    let near = prop_oneof![any::<u16>(), 0_u16..20, 65516..=65535_u16];
    let split = (prop_oneof![0_u32..8, Just(15)], near).prop_map(|(order, start)| (false, 1 << order, start));
    let sizes = prop_oneof![1_u16..90, 32760..=32768_u16];
    let packed = (sizes, any::<Index>(), any::<bool>())
        .prop_map(|(size, slot, wrap)| (true, size, slot.index(size.into()) as u16 | u16::from(wrap) << 15));
    prop_oneof![split, packed]
}

#[derive(Clone, Debug)]
struct Plan {
    readable: Vec<Vec<u8>>,
    writable: Vec<usize>,
    indirect: bool,
    reply: Vec<u8>,
    /// Where in the order of return.
    turn: u32,
    limit: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..4),
        prop::collection::vec(1_usize..20, 0..4),
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..60),
        any::<u32>(),
        1_usize..30,
    )
        .prop_filter("at least one buffer", |plan| !plan.0.is_empty() || !plan.1.is_empty())
        .prop_map(|(readable, writable, indirect, reply, turn, limit)| Plan {
            readable,
            writable,
            indirect,
            reply,
            turn,
            limit,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Chains come out in order and byte for byte, and go back in any order as they were returned, or with
    /// VIRTIO_F_IN_ORDER in that order; the queue is built anew for each round.
    #[test]
    fn chains_arrive_and_return(
        (packed, size, start) in rings(),
        (event_idx, in_order, batching) in any::<(bool, bool, bool)>(),
        rounds in prop::collection::vec((prop::collection::vec(plan(), 0..12), 0_usize..12), 1..12),
    ) {
        let arena = Arena::new(1 << 20);
        let views = arena.views();
        let mut fake = FakeQueue::new(&arena, packed, size, start).in_order(in_order);
        let bits = [(event_idx, EVENT_IDX), (in_order, IN_ORDER), (true, INDIRECT_DESC)];
        let features = bits.iter().filter(|bit| bit.0).map(|bit| bit.1).sum();
        let mut position = Position::at(start);
        let (mut waiting, mut elements) = (std::collections::VecDeque::new(), 0);
        for (plans, take) in rounds {
            for plan in plans {
                let mut builder = ChainBuilder::new(&arena);
                for data in &plan.readable {
                    builder = builder.readable(data);
                }
                for &len in &plan.writable {
                    builder = builder.writable(len);
                }
                let chain = builder.build();
                let id = if plan.indirect { fake.publish_indirect(chain) } else { fake.publish(chain) };
                if let Some(id) = id {
                    waiting.push_back((id, plan));
                }
            }
            let notify = NotificationCounter::default();
            let queue = fake.queue(&views.0, &views.1, features, position, notify);
            prop_assert_eq!(queue.size(), size);
            prop_assert_eq!(queue.notified(fake.next), Ok(()));
            queue.set_batching(batching);
            let (mut taken, mut expected) = (Vec::new(), Vec::new());
            for _ in 0..take {
                let Some(chain) = queue.next_chain().unwrap() else {
                    prop_assert!(waiting.is_empty(), "a published chain was not found");
                    if event_idx {
                        prop_assert_eq!(fake.avail_event(), fake.next, "asks for the very next chain");
                    }
                    break;
                };
                let (id, plan) = waiting.pop_front().expect("a chain that was not published");
                prop_assert_eq!(chain.id(), id);
                let mut input = ReadableChain::new(chain, &views.0);
                let data = plan.readable.concat();
                let remaining = Remaining { bytes: data.len(), descriptors: plan.readable.len() };
                prop_assert_eq!(input.remaining(), Ok(remaining));
                let mut seen = Vec::new();
                while let Some(range) = input.next_with_limit(plan.limit) {
                    let range = range.unwrap();
                    prop_assert!((1..=plan.limit).contains(&range.len()));
                    let mut part = vec![0; range.len()];
                    range.read_slice(&mut part, 0).unwrap();
                    seen.extend(part);
                }
                prop_assert_eq!(seen, data);
                let mut output = WritableChain::from_readable(input, &views.1).unwrap();
                let room: usize = plan.writable.iter().sum();
                prop_assert_eq!(
                    output.remaining(),
                    Ok(Remaining { bytes: room, descriptors: plan.writable.len() })
                );
                let written = output.write(&plan.reply).unwrap();
                prop_assert_eq!(written, room.min(plan.reply.len()));
                prop_assert_eq!(output.remaining().unwrap().bytes, room - written);
                taken.push((plan.turn, output));
                expected.push((plan.turn, id, plan.reply[..written].to_vec(), written == room));
            }
            taken.sort_by_key(|(turn, _)| *turn);
            if !in_order {
                expected.sort_by_key(|(turn, ..)| *turn);
            }
            taken.into_iter().for_each(drop);
            if batching {
                let partial = expected.iter().rev().skip(1).filter(|chain| !in_order || !chain.3).count();
                elements += partial + usize::from(!expected.is_empty());
            }
            queue.flush();
            position = queue.position();
            prop_assert_eq!(queue.notified(fake.next), Ok(()));
            drop(queue);
            for (_, id, reply, _) in expected {
                let used = fake.next_used().expect("returned");
                prop_assert_eq!((used.id, used.written as usize), (id, reply.len()));
                prop_assert_eq!(&used.chain.writable(&arena)[..reply.len()], &reply[..]);
            }
            prop_assert!(fake.next_used().is_none());
            prop_assert_eq!(fake.in_flight(), waiting.len());
        }
        prop_assert!(!batching || fake.elements == elements, "one used element for each batch");
    }

    /// The driver is notified if and only if the element that it asked for was used since the last decision,
    /// also around the wrap and in batches.
    #[test]
    fn notified_of_the_event_asked_for(
        (packed, size, start) in rings(),
        batches in prop::collection::vec((0_u16..6, 0_u16..8), 1..30),
    ) {
        let arena = Arena::new(1 << 20);
        let views = arena.views();
        let mut test = TestQueue::new(FakeQueue::new(&arena, packed, size, start), &views, EVENT_IDX);
        test.queue.set_batching(true);
        let mark = arena.mark();
        for (count, ahead) in batches {
            let event = test.fake.after(test.fake.used, ahead % size);
            test.fake.set_used_event(event);
            let (before, mut hit) = (test.notify.get(), false);
            for _ in 0..count.min(size) {
                arena.release(mark);
                test.fake.publish(ChainBuilder::new(&arena).writable(4).build()).unwrap();
                hit |= test.queue.position().used == event;
                take(&test.queue).return_written(4);
                test.fake.next_used().unwrap();
            }
            test.queue.flush();
            prop_assert_eq!(test.notify.get() - before, usize::from(hit));
            test.queue.flush();
            prop_assert_eq!(test.notify.get() - before, usize::from(hit), "once");
        }
    }
}

fn take<'q, 'a, N: DriverNotify>(queue: &'q Queue<'a, N>) -> DescChain<'q, 'a, N> {
    queue.next_chain().unwrap().expect("a chain")
}

/// Both formats, a little ring each.
fn each(features: u64, run: impl Fn(&Arena, TestQueue<'_, '_>)) {
    for (packed, start) in [(false, 65535), (true, WRAP | 3)] {
        let arena = Arena::new(1 << 16);
        let views = arena.views();
        run(&arena, TestQueue::new(FakeQueue::new(&arena, packed, 4, start), &views, features));
    }
}

#[test]
fn without_event_idx_flags_decide() {
    each(0, |arena, mut test| {
        for (suppress, notified) in [(false, 1), (true, 1), (false, 2)] {
            test.fake.suppress_interrupts(suppress);
            test.fake.publish(ChainBuilder::new(arena).writable(1).build()).unwrap();
            drop(take(&test.queue));
            assert_eq!(test.notify.get(), notified);
            assert_eq!(test.fake.next_used().unwrap().written, 0);
        }
        assert_eq!(test.fake.device_flags(), 0);
        test.queue.set_notifications(false);
        assert_eq!(test.fake.device_flags(), 1);
        test.queue.set_notifications(true);
        assert_eq!(test.fake.device_flags(), 0);
    });
}

#[test]
fn a_dropped_queue_flushes_its_batch() {
    each(0, |arena, mut test| {
        test.queue.set_batching(true);
        for _ in 0..3 {
            test.fake.publish(ChainBuilder::new(arena).writable(1).build()).unwrap();
            take(&test.queue).return_written(1);
            assert_eq!(test.fake.next_used().unwrap().written, 1, "seen at once");
        }
        assert_eq!(test.notify.get(), 0);
        drop(test.queue);
        assert_eq!(test.notify.get(), 1);
    });
}

/// With VIRTIO_F_IN_ORDER a chain waits for those before it; written in part it ends a batch.
#[test]
fn returned_in_order() {
    for batching in [false, true] {
        each(IN_ORDER | INDIRECT_DESC, |arena, test| {
            let TestQueue { queue, notify, fake } = test;
            let mut fake = fake.in_order(true);
            queue.set_batching(batching);
            fake.publish_indirect(ChainBuilder::new(arena).writable(1).writable(2).build()).unwrap();
            let ids = [(); 3].map(|()| fake.publish(ChainBuilder::new(arena).writable(3).build()).unwrap());
            let views = arena.views();
            let [first, second, third, fourth] = [(); 4].map(|()| take(&queue));
            second.return_written(3);
            fourth.return_written(3);
            assert!(fake.next_used().is_none(), "one before them was not returned");
            assert_eq!(notify.get(), 0);
            let mut first = WritableChain::new(first, &views.0, &views.1).unwrap();
            assert_eq!(first.write(b"abc"), Ok(3));
            drop(first);
            assert_eq!(fake.next_used().is_some(), !batching, "a batch is seen as a whole");
            third.return_written(2);
            queue.flush();
            let written = std::iter::from_fn(|| fake.next_used()).map(|used| (used.id, used.written));
            let written = written.collect::<Vec<_>>();
            let expected = [(ids[0], 3), (ids[1], 2), (ids[2], 3)];
            assert_eq!(written[usize::from(batching)..], expected);
            // Up to the one that was written in part, and the rest.
            assert_eq!(fake.elements, if batching { 2 } else { 3 });
            assert_eq!(notify.get(), if batching { 1 } else { 2 });
        });
    }
}

/// A chain that can never be returned blocks all after it.
#[test]
fn a_forgotten_chain_is_not_overtaken() {
    each(IN_ORDER, |arena, test| {
        let mut fake = test.fake.in_order(true);
        let publish = |fake: &mut FakeQueue<'_>| {
            fake.publish(ChainBuilder::new(arena).writable(1).build()).unwrap();
        };
        publish(&mut fake);
        publish(&mut fake);
        std::mem::forget(take(&test.queue));
        drop(take(&test.queue));
        let position = test.queue.position();
        assert!(fake.next_used().is_none());
        let views = arena.views();
        let memory = fake.memory(&views.0, &views.1);
        let queue = |features| memory.clone().queue(test.notify.clone()).unwrap().with_features(features);
        assert!(queue(IN_ORDER).resume(position).is_none());
        assert!(queue(0).resume(position).is_some());
    });
}

#[test]
fn descriptors_as_they_lie() {
    each(0, |arena, mut test| {
        let chain = ChainBuilder::new(arena).readable(b"abc").writable(5).build();
        let data = chain.segments.iter().map(|segment| (segment.address, segment.len)).collect::<Vec<_>>();
        test.fake.publish(chain).unwrap();
        let chain = take(&test.queue);
        let descs = chain.iter().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(descs.iter().map(|desc| desc.data()).collect::<Vec<_>>(), data);
        assert_eq!(descs[0].access_type(), DescType::Direct(DescAccess::DeviceRead));
        assert_eq!(descs[1].access_type(), DescType::Direct(DescAccess::DeviceWrite));
        assert!(descs[0].has_next() && descs[0].next().is_some() && !descs[0].write_only());
        assert!(!descs[1].has_next() && descs[1].next().is_none() && descs[1].write_only());
        assert!(!descs[0].is_indirect());
    });
}

#[test]
fn parts_in_order_and_complete() {
    each(0, |arena, mut test| {
        let publish = |test: &mut TestQueue<'_, '_>| {
            test.fake.publish(ChainBuilder::new(arena).readable(b"head").writable(6).build()).unwrap();
        };
        let views = arena.views();
        for _ in 0..4 {
            publish(&mut test);
            let mut input = ReadableChain::new(take(&test.queue), &views.0);
            let mut two = [0; 2];
            assert_eq!((input.read(&mut two), two), (Ok(2), *b"he"));
            assert!(input.next_with_limit(0).is_none());
            assert_eq!(input.remaining(), Ok(Remaining { bytes: 2, descriptors: 1 }));
            let refused = WritableChain::from_readable(input, &views.1).map(drop);
            assert_eq!(refused, Err(ChainError::ReadableRemaining));
            assert_eq!(test.fake.next_used().unwrap().written, 0);

            publish(&mut test);
            let mut input = ReadableChain::new(take(&test.queue), &views.0);
            assert_eq!(input.read(&mut two), Ok(2));
            let mut output = WritableChain::from_incomplete_readable(input, &views.1).unwrap();
            assert_eq!(output.next_with_limit(4).unwrap().unwrap().len(), 4);
            assert_eq!(output.add_written(5), Err(ChainError::Overwritten));
            assert_eq!((output.add_written(3), output.written()), (Ok(()), 3));
            assert_eq!(output.add_written(u32::MAX), Err(ChainError::Overwritten));
            assert_eq!(output.return_complete(), Err(ChainCompleteError::WritableRemaining));
            assert_eq!(test.fake.next_used().unwrap().written, 3);

            publish(&mut test);
            let refused = WritableChain::new(take(&test.queue), &views.0, &views.1).map(drop);
            assert_eq!(refused, Err(ChainError::ReadableRemaining));
            assert_eq!(test.fake.next_used().unwrap().written, 0);

            publish(&mut test);
            let mut output =
                WritableChain::new_ignore_readable(take(&test.queue), &views.0, &views.1).unwrap();
            assert_eq!(output.write(b"0123456789"), Ok(6));
            assert_eq!(output.write(b"x"), Ok(0));
            assert_eq!(output.return_complete(), Ok(()));
            let used = test.fake.next_used().unwrap();
            assert_eq!((used.written, used.chain.writable(arena)), (6, b"012345".to_vec()));

            publish(&mut test);
            let mut input = ReadableChain::new(take(&test.queue), &views.0);
            assert_eq!(input.next().unwrap().unwrap().len(), 4);
            assert_eq!(input.return_complete(), Err(ChainCompleteError::WritableRemaining));
            publish(&mut test);
            let input = ReadableChain::new(take(&test.queue), &views.0);
            assert_eq!(input.return_complete(), Err(ChainCompleteError::ReadableRemaining));
            assert!(test.fake.next_used().is_some() && test.fake.next_used().is_some());
        }
    });
}

#[test]
fn rings_must_fit_exactly() {
    let arena = Arena::new(1 << 20);
    let (readable, writable) = arena.views();
    let at = Arena::BASE;
    let get = |writes: bool, address: u64, len: usize| -> DeviceRange<'_> {
        let range = DriverRange::try_from((address, len as u32)).unwrap();
        (if writes { &writable } else { &readable }).translate(range).unwrap()
    };
    for size in [1_u16, 2, 8, 1024, 1 << 15] {
        let n = usize::from(size);
        assert_eq!(Driver::avail_len_for_queue_size(size), 6 + 2 * n);
        assert_eq!(Device::used_len_for_queue_size(size), 6 + 8 * n);
        let driver = |address, desc, avail| {
            Driver::new(get(false, address, desc), get(false, at, avail)).map(|ring| ring.queue_size())
        };
        assert_eq!(driver(at, 16 * n, 6 + 2 * n), Some(size));
        for (address, desc, avail) in [
            (at, 16 * n + 16, 6 + 2 * n),
            (at, 16 * n - 1, 6 + 2 * n),
            (at, 16 * n, 5 + 2 * n),
            (at, 16 * n, 7 + 2 * n),
            (at + 8, 16 * n, 6 + 2 * n),
        ] {
            assert_eq!(driver(address, desc, avail), None);
        }
        let device = |address, used| Device::new(get(true, address, used)).map(|ring| ring.queue_size());
        assert_eq!(device(at, 6 + 8 * n), Some(size));
        for (address, used) in [(at, 5 + 8 * n), (at, 7 + 8 * n), (at, 8 * n), (at + 2, 6 + 8 * n)] {
            assert_eq!(device(address, used), None);
        }
        assert!(Device::new(get(false, at, 6 + 8 * n)).is_none(), "cannot be written");
        assert!(Driver::new(get(true, at, 16 * n), get(true, at, 6 + 2 * n)).is_none(), "cannot be read");
    }
    assert!(Driver::new(get(false, at, 0), get(false, at, 6)).is_none());
    assert!(Driver::new(get(false, at, 48), get(false, at, 12)).is_none(), "not a power of two");
    assert!(Device::new(get(true, at, 6 + 24)).is_none(), "not a power of two");
    let memory = |desc, avail, used| QueueMemory {
        desc: get(false, at, desc),
        avail: get(false, at, avail),
        used: get(true, at, used),
    };
    assert!(Queue::new(memory(64, 14, 38), || ()).is_some());
    assert!(Queue::new(memory(64, 14, 70), || ()).is_none(), "rings of different sizes");
    let packed = |n: usize, shift: u64, event: usize, writes: bool| {
        let (desc, desc_used) = (get(false, at, 16 * n), get(writes, at + shift, 16 * n));
        let (driver_event, device_event) = (get(false, at, event), get(true, at, 4));
        Queue::new_packed(PackedMemory { desc, desc_used, driver_event, device_event }, || ())
            .map(|queue| queue.size())
    };
    for n in [1_u16, 3, 1000, 1 << 15] {
        assert_eq!(packed(n.into(), 0, 4, true), Some(n));
    }
    assert_eq!(packed(0, 0, 4, true), None);
    assert_eq!(packed((1 << 15) + 1, 0, 4, true), None);
    assert_eq!(packed(4, 16, 4, true), None, "two rings instead of one");
    assert_eq!(packed(4, 0, 3, true), None);
    assert_eq!(packed(4, 0, 4, false), None);
    // Positions that are not of this ring.
    let queue = || Queue::new(memory(64, 14, 38), || ()).unwrap();
    assert!(queue().resume(Position { next: 9, used: 5, signalled: 5 }).is_some());
    assert!(queue().resume(Position { next: 9, used: 4, signalled: 4 }).is_none());
    assert!(queue().resume(Position { next: 4, used: 5, signalled: 5 }).is_none());
}

#[test]
fn rings_by_hand() {
    let arena = Arena::new(1 << 16);
    let mut fake = FakeQueue::new(&arena, false, 4, 65534);
    let all = [arena.all()];
    let (readable, writable) =
        (arena.view(Direction::ToDevice, &all), arena.view(Direction::FromDevice, &all));
    let get = |address, len| DriverRange::try_from((address, len)).unwrap();
    let desc = readable.translate(get(fake.desc, 64)).unwrap();
    let avail = readable.translate(get(fake.driver, 14)).unwrap();
    let driver = Driver::new(desc, avail).unwrap();
    let mut device = Device::new(writable.translate(get(fake.device, 38)).unwrap()).unwrap();
    let ids = [(); 3].map(|()| fake.publish(ChainBuilder::new(&arena).writable(1).build()).unwrap());
    let seen = [65534, 65535, 0, 1].map(|next| driver.get_avail(next));
    assert_eq!(seen, [Some(ids[0]), Some(ids[1]), Some(ids[2]), None]);
    assert_eq!(driver.get_avail(65530), None, "a jump of more than the queue size is not believed");
    assert!(driver.get_desc(3).is_some() && driver.get_desc(4).is_none());
    device.insert_used(Used::new(ids[1], 1), 65534);
    assert!(fake.next_used().is_none(), "not before it is published");
    device.publish_used(65535);
    assert_eq!(fake.next_used().unwrap().id, ids[1]);
    // Event index: at 65535, over the wrap.
    fake.set_used_event(65535);
    let needs = [(65534, 65535), (65534, 0), (65535, 0), (0, 2), (65534, 65534)];
    let needs = needs.map(|(old, new)| driver.needs_notification(true, old, new));
    assert_eq!(needs, [false, true, true, false, false]);
    assert!(driver.needs_notification(false, 0, 1));
    fake.suppress_interrupts(true);
    assert!(!driver.needs_notification(false, 0, 1));
}

/// Each area has to be where the device may use it so, to its last byte.
#[test]
fn a_queue_is_found_as_a_whole_or_not() {
    let arena = Arena::new(1 << 12);
    let areas = [16 * 4, 14, 38].map(|len| arena.allocate(len, 16));
    let ends = [areas[0] + 16 * 4, areas[1] + 14, areas[2] + 38];
    let found = |readable: [u64; 3], writable: [u64; 3], packed| {
        let view = |direction, ends: [u64; 3]| {
            let windows: Vec<_> = areas.iter().zip(ends).map(|(&start, end)| start..end).collect();
            arena.view(direction, &windows)
        };
        let views = [view(Direction::ToDevice, readable), view(Direction::FromDevice, writable)];
        RingMemory::find(views.each_ref(), packed, 4, areas).is_some()
    };
    let less = |area: usize, by: u64| {
        let mut less = ends;
        less[area] -= by;
        less
    };
    assert!(found(ends, ends, false) && found(ends, ends, true));
    assert!(!found(less(0, 1), ends, false) && !found(less(0, 1), ends, true));
    assert!(!found(ends, less(0, 1), true), "used descriptors are written there");
    assert!(!found(less(1, 1), ends, false) && !found(ends, less(2, 1), false));
    // Event suppression structures have four bytes.
    assert!(found(less(1, 10), less(2, 34), true));
    assert!(!found(less(1, 11), ends, true) && !found(ends, less(2, 35), true));
}
