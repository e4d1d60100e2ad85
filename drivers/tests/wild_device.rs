//! The driver's queue on a device that lies about order, and on one that writes anything anywhere it may
//! write, in every combination of ring features.

use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use ringfence_drivers::net::Net;
use ringfence_drivers::virtio::{DeviceType, QueueError, features};
use ringfence_memory::virtqueue::packed::{self, AVAIL, USED};
use ringfence_memory::virtqueue::split::{self, UsedElement};
use ringfence_memory::{
    Bytes,
    virtqueue::{self, WORD_LEN, WRITE},
};
use ringfence_testkit::bench::{Bench, FORMATS, Shape};
use ringfence_testkit::{Chain, EVENT_IDX, Fake, IN_ORDER, INDIRECT_DESC, RING_PACKED};

/// Four chains, which the device has taken, and one that it was not told of.
fn four_in_flight(format: u64) -> (Bench, Vec<Chain>, u16) {
    let mut bench = Bench::new(format | IN_ORDER, 16, 2);
    for _ in 0..4 {
        bench.submit(1, 1).unwrap();
    }
    bench.queue.kick();
    let chains: Vec<_> = std::iter::from_fn(|| bench.ring.take()).collect();
    assert_eq!(chains.len(), 4);
    let last = bench.submit(1, 1).unwrap();
    // In a split ring it is known by its first descriptor, which follows those of the others.
    (bench, chains, if format == 0 { 8 } else { last.index() as u16 })
}

#[test]
fn a_batch_ends_where_its_element_says() {
    for format in FORMATS {
        let (mut bench, chains, _) = four_in_flight(format);
        bench.ring.put_used_batch(&[chains[0].head, chains[1].head, chains[2].head], 7);
        assert!(bench.ring.publish());
        assert_eq!(bench.reap().unwrap(), [(1, Some(64)), (2, Some(64)), (3, Some(7))]);
        bench.ring.complete(chains[3].head, 9);
        assert_eq!(bench.reap().unwrap(), [(4, Some(9))]);
        bench.check();
    }
}

/// The element stands for chains that the used index does not cover.
#[test]
fn a_batch_beyond_the_used_index() {
    for covered in 1..3 {
        let (mut bench, chains, _) = four_in_flight(0);
        bench.ring.put_used(chains[2].head.into(), 7);
        bench.ring.lie(covered);
        for name in 1..=covered {
            let completion = bench.queue.pop().unwrap().unwrap();
            assert_eq!((completion.buffers.name(), completion.written), (name.into(), Some(64)));
            bench.inside.remove(&completion.buffers.name());
        }
        assert_eq!(bench.queue.pop().map(drop), Err(QueueError::Broken));
        bench.check();
        bench.assert_broken();
    }
}

/// Elements for chains that came back with an earlier one, that were never made available, or of which the
/// device was not told.
#[test]
fn ids_that_are_not_next() {
    for format in FORMATS {
        for which in 0..4 {
            let (mut bench, chains, untold) = four_in_flight(format);
            bench.ring.put_used_batch(&[chains[0].head, chains[1].head], 7);
            bench.ring.publish();
            assert_eq!(bench.reap().unwrap().len(), 2);
            let id = [chains[0].head, chains[1].head, untold, 0xffff][which];
            bench.ring.put_used(id.into(), 0);
            bench.ring.publish();
            assert_eq!(bench.reap().unwrap_err(), QueueError::Broken, "{format:#x} {which}");
            bench.check();
            bench.assert_broken();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit(usize, usize),
    Kick,
    Pop,
    Reap,
    Interrupts(bool),
    /// Two bytes, anywhere that the device may write.
    Write(Index, u16),
    /// What might be a used element, and its index: how far from the last, id, length.
    Use(u16, u16, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = select(vec![0, WRITE, AVAIL, USED, AVAIL | USED, AVAIL | USED | WRITE]);
    let value = prop_oneof![4 => 0_u16..12, 4 => flags, 1 => any::<u16>()];
    let ahead = prop_oneof![6 => Just(1_u16), 2 => 0_u16..4, 1 => any::<u16>()];
    let len = prop_oneof![0_u32..200, any::<u32>()];
    prop_oneof![
        6 => (0_usize..3, 0_usize..3).prop_map(|(readable, writable)| Step::Submit(readable, writable)),
        3 => Just(Step::Kick),
        2 => Just(Step::Pop),
        2 => Just(Step::Reap),
        1 => any::<bool>().prop_map(Step::Interrupts),
        3 => (any::<Index>(), value).prop_map(|(at, value)| Step::Write(at, value)),
        4 => (ahead, 0_u16..12, len).prop_map(|(ahead, id, len)| Step::Use(ahead, id, len)),
    ]
}

/// All that the device may write of a queue: the used ring, or the packed ring and its event structure.
fn areas(fake: &Fake, index: usize) -> Vec<(u64, usize)> {
    let model = fake.model();
    let (queue, accepted) = (model.queues[index], model.accepted);
    if accepted & RING_PACKED != 0 {
        vec![(queue.descriptors, virtqueue::descriptor(queue.size)), (queue.device, packed::Event::LEN)]
    } else {
        vec![(queue.device, split::USED.len(queue.size))]
    }
}

fn put(fake: &Fake, index: usize, at: usize, value: u16) {
    let mut at = at;
    for (start, len) in areas(fake, index) {
        if at < len {
            let memory = fake.platform.translate(fake.id, start + at as u64, 2).unwrap();
            memory.slice().write_obj(value.to_le(), 0).unwrap();
            return;
        }
        at -= len;
    }
}

/// Writes what might be the used element at position `used` of a queue: says where the next one goes.
fn put_used(fake: &Fake, index: usize, used: u16, (ahead, id, written): (u16, u16, u32)) -> u16 {
    let (size, accepted) = {
        let model = fake.model();
        (model.queues[index].size, model.accepted)
    };
    let (at, next) = (used % size, used.wrapping_add(ahead));
    let (at, word) = if accepted & RING_PACKED != 0 {
        let flags = if (used / size).is_multiple_of(2) { AVAIL | USED } else { 0 };
        let [_, rest] = packed::Descriptor { address: 0, len: written, id, flags }.to_words();
        (virtqueue::descriptor(at) + WORD_LEN, rest)
    } else {
        put(fake, index, split::Ring::INDEX, next);
        (split::USED.element(at), UsedElement { id: id.into(), len: written }.to_word())
    };
    (0..4).for_each(|part| put(fake, index, at + 2 * part, (word >> (16 * part)) as u16));
    next
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever it writes: no chain comes back that was not in flight and told of, or twice, or, with
    /// IN_ORDER, out of order; lengths are possible; a broken queue stays broken; nothing panics and nothing
    /// hangs.
    #[test]
    fn anything_anywhere(
        features in subsequence(vec![RING_PACKED, INDIRECT_DESC, EVENT_IDX, IN_ORDER], 0..=4),
        (size, chains, segments, longer) in (1_u16..10, 1_u16..10, 1_u16..4, 0_u16..3),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let features: u64 = features.iter().sum();
        let has = |feature| features & feature != 0;
        let size = if has(RING_PACKED) { size } else { 1 << size.ilog2() };
        let longest = segments + longer;
        let mut bench = Bench::with(Shape { features, size, chains, segments, longest, fixed: false });
        let len = areas(&bench.fake, 0).iter().map(|area| area.1).sum::<usize>();
        // Names of chains that the device was told of; the oldest that is in flight; the device's idea of
        // where it is.
        let (mut told, mut oldest, mut used) = (0, 1, 0_u16);
        for step in steps {
            let mut back = Vec::new();
            match step {
                Step::Submit(readable, writable) => drop(bench.submit(readable, writable)),
                Step::Kick => {
                    bench.queue.kick();
                    told = bench.names;
                }
                Step::Pop => match bench.queue.pop() {
                    Ok(done) => back.extend(done.map(|done| {
                        assert!(bench.inside.remove(&done.buffers.name()).is_some());
                        (done.buffers.name(), done.written)
                    })),
                    Err(error) => assert_eq!(error, QueueError::Broken),
                },
                Step::Reap => {
                    // What `reap` hands out before it fails is lost to this test but for what is inside.
                    let before: Vec<u64> = bench.inside.keys().copied().collect();
                    match bench.reap() {
                        Ok(reaped) => back = reaped,
                        Err(error) => {
                            assert_eq!(error, QueueError::Broken);
                            let gone = before.into_iter().filter(|name| !bench.inside.contains_key(name));
                            back = gone.map(|name| (name, None)).collect();
                            back.sort_unstable();
                        }
                    }
                }
                Step::Interrupts(true) => {
                    let there = bench.queue.enable_interrupts();
                    assert!(there || !bench.queue.is_broken());
                }
                Step::Interrupts(false) => bench.queue.disable_interrupts(),
                Step::Write(at, value) => put(&bench.fake, 0, at.index(len / 2) * 2, value),
                Step::Use(ahead, id, written) => used = put_used(&bench.fake, 0, used, (ahead, id, written)),
            }
            for (name, written) in back {
                assert!(name <= told, "the device was not told of {name}");
                assert!(written.is_none_or(|len| len <= 2 * 64));
                if has(IN_ORDER) {
                    assert!(!bench.inside.keys().any(|&other| other < name), "{name} is not the oldest");
                    assert!(name >= oldest);
                    oldest = name + 1;
                }
            }
            bench.check();
        }
        let held = bench.buffers - bench.pool.available();
        let Bench { queue, pool, buffers, .. } = bench;
        drop(queue);
        assert_eq!(pool.available() + held, buffers, "what the device may still write to is not lent again");
    }

    /// The same of a card, whose buffers stay in their slots: none is taken for used that it was not told of,
    /// lengths are possible, and all memory is free again in the end.
    #[test]
    fn a_card_that_writes_anything(
        features in subsequence(vec![RING_PACKED, INDIRECT_DESC, EVENT_IDX, IN_ORDER], 0..=4),
        size in 1_u16..10,
        steps in prop::collection::vec((0_usize..2, step()), 1..120),
    ) {
        let features: u64 = features.iter().sum();
        let size = if features & RING_PACKED != 0 { size } else { 1 << size.ilog2() };
        let fake = Fake::new(DeviceType::NET, features::VERSION_1 | features, vec![], &[size; 2]);
        let mut net = Net::new(fake.transport(), &fake.grant(), fake.windows()).unwrap();
        let mut told = net.pair.counters().map(|counters| counters.submitted);
        let (mut used, mut shown) = ([0; 2], 0);
        for (queue, step) in steps {
            match step {
                Step::Submit(..) if queue == 0 => net.pair.disable_interrupts(),
                Step::Submit(most, written) => {
                    let mut left = written;
                    let sent = net.pair.send(most, |room| {
                        if left > 0 {
                            left -= 1;
                            room.write(&[7; 60]).unwrap();
                        }
                    });
                    let expected = |sent| sent == written - left;
                    assert!(sent.map_or_else(|error| error == QueueError::Broken, expected));
                }
                Step::Kick => {
                    net.pair.kick();
                    told = net.pair.counters().map(|counters| counters.submitted);
                }
                Step::Pop | Step::Reap => {
                    let most = if matches!(step, Step::Pop) { 1 } else { usize::MAX };
                    let before = shown;
                    let received = net.pair.receive(most, |frame| {
                        assert!((14..=1518).contains(&frame.len()));
                        shown += 1;
                    });
                    match received {
                        Ok(count) => assert!(count == shown - before && count <= most),
                        Err(error) => assert!(error == QueueError::Broken && net.pair.is_broken()),
                    }
                }
                Step::Interrupts(true) => {
                    let there = net.pair.enable_interrupts();
                    assert!(there || !net.pair.is_broken());
                }
                Step::Interrupts(false) => net.pair.disable_interrupts(),
                Step::Write(at, value) => {
                    let len = areas(&fake, queue).iter().map(|area| area.1).sum::<usize>();
                    put(&fake, queue, at.index(len / 2) * 2, value);
                }
                Step::Use(ahead, id, written) => {
                    used[queue] = put_used(&fake, queue, used[queue], (ahead, id, written));
                }
            }
            let counters = net.pair.counters();
            for (counters, told) in counters.iter().zip(told) {
                assert!(counters.completions <= told, "the card was told of {told}: {counters:?}");
                assert!(counters.submitted - counters.completions <= size.into());
            }
            let filled = counters[0].submitted - counters[0].completions;
            assert!(net.pair.is_broken() || filled == u64::from(size), "a buffer in each slot");
        }
        drop(net);
        assert_eq!(fake.platform.dma_in_use(), 0);
    }
}
