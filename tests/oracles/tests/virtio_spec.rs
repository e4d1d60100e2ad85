//! Rings in memory against the structures of the `virtio-spec` crate: what ours write theirs decode, and the
//! reverse.
#![cfg(not(ringfence_loom))]

use std::cell::Cell;
use std::mem::{align_of, offset_of, size_of};
use std::ptr::NonNull;

use ringfence_device_side::queue::{PackedMemory, Position, Queue as DeviceQueue};
use ringfence_device_side::ring::{Device, Driver, Used};
use ringfence_drivers::block::features as disk;
use ringfence_drivers::net::features as card;
use ringfence_drivers::virtio::{
    BufferList, Device as Bringup, DeviceType, Queue, QueueOptions, features, status,
};
use ringfence_memory::{
    DeviceId, Direction, DmaBuf, DmaPool, DmaRegion, DmaWindows, VolatileSlice, fuchsia::DeviceRange,
};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::{Fake, FakeNotifier, grant, platform};
use virtio_spec::virtq::{self, AvailF, DescF, UsedF};
use virtio_spec::{DeviceStatus, F, RingEventFlags, blk, net, pvirtq};

const SIZES: [u16; 5] = [1, 2, 8, 256, 32768];

fn region(len: usize) -> DmaRegion {
    DmaWindows::new(platform(), DeviceId(1)).unwrap().allocate(len).unwrap()
}

fn part(region: &DmaRegion, offset: usize, len: usize, direction: Direction) -> DeviceRange<'_> {
    region.as_volatile_slice().subslice(offset, len).unwrap().restrict(direction).into()
}

/// Their structure at `offset`.
fn their<T>(slice: &VolatileSlice<'_>, offset: usize) -> NonNull<T> {
    let at = slice.subslice(offset, size_of::<T>()).unwrap().as_ptr().cast();
    assert!(at.is_aligned());
    at
}

fn bytes(slice: &VolatileSlice<'_>, offset: usize, len: usize) -> NonNull<[u8]> {
    NonNull::slice_from_raw_parts(slice.subslice(offset, len).unwrap().as_ptr(), len)
}

#[test]
fn sizes_and_alignments() {
    for size in SIZES {
        // With event index; their used ring is padded to its alignment of 4.
        assert_eq!(Driver::avail_len_for_queue_size(size), virtq::Avail::layout(size, true).size());
        let used = virtq::Used::layout(size, true);
        assert_eq!(Device::used_len_for_queue_size(size).next_multiple_of(used.align()), used.size());
        assert_eq!((virtq::Avail::layout(size, true).align(), used.align()), (2, 4));
    }
    assert_eq!((size_of::<virtq::Desc>(), size_of::<pvirtq::Desc>()), (16, 16));
    assert_eq!((size_of::<virtq::UsedElem>(), size_of::<pvirtq::EventSuppress>()), (8, 4));
    assert_eq!(align_of::<virtq::UsedElem>(), 4);
    let region = region(4096);
    let fits = |offset, len| {
        let desc = part(&region, offset, len, Direction::ToDevice);
        let avail = part(&region, 1024, virtq::Avail::layout(4, true).size(), Direction::ToDevice);
        Driver::new(desc, avail).is_some()
    };
    assert!(fits(0, 4 * size_of::<virtq::Desc>()));
    // Their alignment is that of the fields; the specification asks for 16 (2.7).
    assert!(!fits(align_of::<virtq::Desc>(), 4 * size_of::<virtq::Desc>()));
}

/// A chain of one part to read and one to write.
fn chain([to_read, to_write]: [DmaBuf; 2]) -> BufferList {
    BufferList::new(0, vec![to_read], vec![to_write], 0).with_segments(vec![0..10, 16..36])
}

#[test]
fn our_driver_writes_a_split_ring_and_they_decode_it() {
    for size in [2, 8, 256] {
        let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[size]);
        let windows = fake.windows();
        let offer = Bringup::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(0).unwrap();
        let options = QueueOptions { size, chains: size, segments: 2, longest: 2 };
        let mut queue: Queue<BufferList, FakeNotifier> =
            device.queue(0, &options, size, no_controls).unwrap();
        queue.start(&device.driver_ok().unwrap());
        let pool = DmaPool::new(&windows, 2 * usize::from(size), 64).unwrap();
        let registers = fake.model().queues[0];
        let ring = fake.ring(0);
        let desc_bytes = ring.memory(registers.descriptors, 16 * usize::from(size));
        let avail_len = virtq::Avail::layout(size, true).size();
        let avail_bytes = ring.memory(registers.driver, avail_len);
        let used_len = Device::used_len_for_queue_size(size).next_multiple_of(4);
        let used_bytes = ring.memory(registers.device, used_len);

        let avail = virtq::Avail::from_ptr(bytes(&avail_bytes.slice(), 0, avail_len)).unwrap();
        let used = virtq::Used::from_ptr(bytes(&used_bytes.slice(), 0, used_len), true).unwrap();
        for round in 0..3 * size {
            let buffers = [(); 2].map(|()| pool.take().unwrap());
            let addresses = buffers.each_ref().map(|buffer| windows.publish(buffer.address()).unwrap().0);
            let head = queue.submit(chain(buffers)).unwrap().index() as u16;
            queue.kick();
            // SAFETY: nobody writes to the ring meanwhile, and both are as large as their layout says.
            let (index, entry, flags) = unsafe {
                let avail = avail.as_ref();
                (avail.idx, avail.ring(true)[usize::from(round % size)], avail.flags)
            };
            assert_eq!((index.to_ne(), entry.to_ne(), flags), (round + 1, head, AvailF::empty()));
            let descriptor = |index: u16| {
                let at = their::<virtq::Desc>(&desc_bytes.slice(), 16 * usize::from(index));
                // SAFETY: as above.
                unsafe { at.read() }
            };
            let first = descriptor(head);
            assert_eq!((first.addr.to_ne(), first.len.to_ne(), first.flags), (addresses[0], 10, DescF::NEXT));
            let second = descriptor(first.next.to_ne());
            assert_eq!(
                (second.addr.to_ne(), second.len.to_ne(), second.flags),
                (addresses[1] + 16, 20, DescF::WRITE)
            );

            // The device, with their structures.
            // SAFETY: as above.
            let used = unsafe { &mut *used.as_ptr() };
            used.ring_mut()[usize::from(round % size)] =
                virtq::UsedElem { id: u32::from(head).into(), len: 15.into() };
            used.idx = (round + 1).into();
            assert_eq!(queue.pop().unwrap().unwrap().written, Some(15));
        }
        queue.disable_interrupts();
        // SAFETY: as above.
        assert_eq!(unsafe { avail.as_ref() }.flags, AvailF::NO_INTERRUPT);
        // SAFETY: as above.
        unsafe { &mut *used.as_ptr() }.flags = UsedF::NO_NOTIFY;
        let kicks = fake.kicks(0);
        assert!(queue.submit(chain([(); 2].map(|()| pool.take().unwrap()))).is_ok());
        queue.kick();
        assert_eq!(fake.kicks(0), kicks);
    }
}

#[test]
fn our_device_reads_and_writes_a_split_ring_of_theirs() {
    let size = 8_u16;
    let region = region(4096);
    let memory = region.as_volatile_slice();
    let (avail_len, used_len) =
        (virtq::Avail::layout(size, true).size(), virtq::Used::layout(size, true).size());
    let (avail_at, used_at) = (128, 256);
    let avail = virtq::Avail::from_ptr(bytes(&memory, avail_at, avail_len)).unwrap();
    let used = virtq::Used::from_ptr(bytes(&memory, used_at, used_len), true).unwrap();

    let desc = virtq::Desc {
        addr: 0x1234_5678_9abc_def0.into(),
        len: 0x0102_0304.into(),
        flags: DescF::NEXT | DescF::WRITE,
        next: 0x0506.into(),
    };
    // SAFETY: in the region, and nobody else uses it now.
    unsafe { their::<virtq::Desc>(&memory, 3 * size_of::<virtq::Desc>()).write(desc) };
    // SAFETY: as above.
    let their_avail = unsafe { &mut *avail.as_ptr() };
    their_avail.flags = AvailF::NO_INTERRUPT;
    their_avail.idx = 6.into();
    their_avail.ring_mut(true)[5] = 3.into();
    *their_avail.used_event_mut(true).unwrap() = 0x7788.into();

    let driver = Driver::new(
        part(&region, 0, 16 * usize::from(size), Direction::ToDevice),
        part(&region, avail_at, avail_len, Direction::ToDevice),
    )
    .unwrap();
    assert_eq!((driver.queue_size(), driver.available(0), driver.get_avail(5)), (size, 6, Some(3)));
    let desc = driver.get_desc(3).unwrap();
    assert_eq!((desc.data(), desc.next()), ((0x1234_5678_9abc_def0, 0x0102_0304), Some(0x0506)));
    assert!(desc.write_only() && !desc.is_indirect());
    assert!(!driver.needs_notification(false, 0, 1));
    assert!(
        driver.needs_notification(true, 0x7788, 0x7789) && !driver.needs_notification(true, 0x7789, 0x778a)
    );

    let used_range = part(&region, used_at, Device::used_len_for_queue_size(size), Direction::FromDevice);
    let mut device = Device::new(used_range).unwrap();
    device.insert_used(Used::new(3, 0x0a0b_0c0d), 13);
    device.publish_used(14);
    device.suppress_notifications(true);
    device.set_avail_event(0x99aa);
    // SAFETY: as above.
    let used = unsafe { used.as_ref() };
    let element = used.ring()[13 % usize::from(size)];
    assert_eq!((element.id.to_ne(), element.len.to_ne()), (3, 0x0a0b_0c0d));
    assert_eq!((used.idx.to_ne(), used.flags), (14, UsedF::NO_NOTIFY));
    assert_eq!(used.avail_event().unwrap().to_ne(), 0x99aa);
}

#[test]
fn our_device_reads_and_writes_a_packed_ring_of_theirs() {
    let size = 4_u16;
    let region = region(4096);
    let memory = region.as_volatile_slice();
    let (driver_at, device_at) = (64, 68);
    let put = |index: usize, desc: pvirtq::Desc| {
        // SAFETY: in the region, and nobody else uses it now.
        unsafe { their::<pvirtq::Desc>(&memory, index * size_of::<pvirtq::Desc>()).write(desc) }
    };
    let desc = |addr: u64, len: u32, id: u16, flags| pvirtq::Desc {
        addr: addr.into(),
        len: len.into(),
        id: id.into(),
        flags,
    };
    put(0, desc(0x1122_3344_5566_7788, 10, 0x0708, DescF::NEXT | DescF::AVAIL));
    put(1, desc(0x99, 20, 0x0708, DescF::WRITE | DescF::AVAIL));
    let event = |flags, offset, wrap| pvirtq::EventSuppress {
        desc: pvirtq::EventSuppressDesc::new().with_desc_event_off(offset).with_desc_event_wrap(wrap),
        flags: pvirtq::EventSuppressFlags::new().with_desc_event_flags(flags),
    };
    let range = |offset, len, direction| part(&region, offset, len, direction);
    let interrupts = Cell::new(0);
    let start = || {
        let memory = PackedMemory {
            desc: range(0, 16 * usize::from(size), Direction::ToDevice),
            desc_used: range(0, 16 * usize::from(size), Direction::FromDevice),
            driver_event: range(driver_at, 4, Direction::ToDevice),
            device_event: range(device_at, 4, Direction::FromDevice),
        };
        let notify = || interrupts.set(interrupts.get() + 1);
        DeviceQueue::new_packed(memory, notify)
            .unwrap()
            .with_features(features::EVENT_IDX)
            .resume(Position::PACKED)
            .unwrap()
    };
    for (driver_event, expected) in [
        (event(RingEventFlags::Disable, 0, 1), 0),
        (event(RingEventFlags::Enable, 0, 0), 1),
        (event(RingEventFlags::Desc, 0, 1), 1),
        (event(RingEventFlags::Desc, 1, 1), 1),
        (event(RingEventFlags::Desc, 2, 1), 0),
        (event(RingEventFlags::Desc, 0, 0), 0),
    ] {
        // SAFETY: as above.
        unsafe { their::<pvirtq::EventSuppress>(&memory, driver_at).write(driver_event) };
        put(0, desc(0x1122_3344_5566_7788, 10, 0x0708, DescF::NEXT | DescF::AVAIL));
        interrupts.set(0);
        let queue = start();
        let chain = queue.next_chain().unwrap().unwrap();
        assert_eq!(chain.id(), 0x0708);
        let found: Vec<_> =
            chain.iter().map(Result::unwrap).map(|desc| (desc.data(), desc.write_only())).collect();
        assert_eq!(found, [((0x1122_3344_5566_7788, 10), false), ((0x99, 20), true)]);
        chain.return_written(17);
        assert_eq!(interrupts.get(), expected);
        // SAFETY: as above.
        let used = unsafe { their::<pvirtq::Desc>(&memory, 0).read() };
        assert_eq!((used.id.to_ne(), used.len.to_ne()), (0x0708, 17));
        assert_eq!(used.flags, DescF::WRITE | DescF::AVAIL | DescF::USED);
        // Nothing follows: the device asks to be told of slot 2 of this round.
        assert!(queue.next_chain().unwrap().is_none());
        // SAFETY: as above.
        let asked = unsafe { their::<pvirtq::EventSuppress>(&memory, device_at).read() };
        assert_eq!((asked.desc.desc_event_off(), asked.desc.desc_event_wrap()), (2, 1));
        assert_eq!(asked.flags.desc_event_flags(), RingEventFlags::Desc);
        queue.set_notifications(false);
        // SAFETY: as above.
        let asked = unsafe { their::<pvirtq::EventSuppress>(&memory, device_at).read() };
        assert_eq!(asked.flags.desc_event_flags(), RingEventFlags::Disable);
    }
    assert_eq!((offset_of!(pvirtq::EventSuppress, desc), offset_of!(pvirtq::EventSuppress, flags)), (0, 2));
}

#[test]
fn feature_and_status_bits() {
    let bits = |low: u128| u64::try_from(low).unwrap();
    let common = [
        (features::INDIRECT_DESC, F::INDIRECT_DESC),
        (features::EVENT_IDX, F::EVENT_IDX),
        (features::VERSION_1, F::VERSION_1),
        (features::ACCESS_PLATFORM, F::ACCESS_PLATFORM),
    ];
    for (ours, theirs) in common {
        assert_eq!(ours, bits(theirs.bits().to_ne()));
    }
    let block = [
        (disk::SIZE_MAX, blk::F::SIZE_MAX),
        (disk::SEG_MAX, blk::F::SEG_MAX),
        (disk::RO, blk::F::RO),
        (disk::BLK_SIZE, blk::F::BLK_SIZE),
        (disk::FLUSH, blk::F::FLUSH),
    ];
    for (ours, theirs) in block {
        assert_eq!(ours, bits(theirs.bits().to_ne()));
    }
    let network = [(card::MTU, net::F::MTU), (card::MAC, net::F::MAC), (card::STATUS, net::F::STATUS)];
    for (ours, theirs) in network {
        assert_eq!(ours, bits(theirs.bits().to_ne()));
    }
    let states = [
        (status::ACKNOWLEDGE, DeviceStatus::ACKNOWLEDGE),
        (status::DRIVER, DeviceStatus::DRIVER),
        (status::DRIVER_OK, DeviceStatus::DRIVER_OK),
        (status::FEATURES_OK, DeviceStatus::FEATURES_OK),
        (status::NEEDS_RESET, DeviceStatus::DEVICE_NEEDS_RESET),
        (status::FAILED, DeviceStatus::FAILED),
    ];
    for (ours, theirs) in states {
        assert_eq!(ours, theirs.bits());
    }
}
