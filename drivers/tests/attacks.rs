//! What safe code could once do to get at memory that a device still has, or to have a device do what it
//! should not yet. What the compiler refuses now is in the crate `compile-fail`.

use ringfence_drivers::block::{Block, Request, RequestError};
use ringfence_drivers::net::Net;
use ringfence_drivers::virtio::{
    BufferList, Device, DeviceType, Error, Queue, QueueError, QueueOptions, RESET_LIMIT, features,
};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    Direction, DmaError, DmaPool, DmaWindows, Platform, ResetError,
    fuchsia::{DriverMem, DriverRange},
};
use ringfence_testkit::bench::{BUFFER_LEN, Bench, FORMATS, Shape, no_controls};
use ringfence_testkit::disk::{SECTOR, SECTORS, config, disk, read};
use ringfence_testkit::{
    Event, Fake, FakeNotifier, FakeTransport, ID, RING_PACKED, RING_RESET, grant, platform,
};

const OPTIONS: QueueOptions = QueueOptions { size: 8, chains: 2, segments: 3, longest: 3 };

fn shape(features: u64) -> Shape {
    Shape { features, size: 8, chains: 2, segments: 3, longest: 3, fixed: false }
}

/// A chain of one buffer to write to.
fn chain(pool: &DmaPool) -> BufferList {
    BufferList::new(7, vec![], vec![pool.take().unwrap()], 0)
}

/// The device brought up, and its queue.
fn begin(fake: &Fake, features: u64) -> (Device<FakeTransport>, Queue<BufferList, FakeNotifier>) {
    let offer = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), fake.windows());
    let mut device = offer.unwrap().negotiate(features).unwrap();
    let queue = device.queue(0, &OPTIONS, 1, no_controls).unwrap();
    (device, queue)
}

/// O8: the device's queue would be exchanged for one that an old proof covers.
#[test]
fn a_queue_of_an_earlier_life_is_not_reset() {
    for format in FORMATS {
        let mut before = Bench::with(shape(format | RING_RESET));
        let stale = before.device.shut_down().unwrap();
        let Bench { fake, queue: mut old, .. } = before;
        let (mut device, mut queue) = begin(&fake, format | RING_RESET);
        queue.start(&device.driver_ok().unwrap());
        let at = fake.model().queues[0].descriptors;
        assert_eq!(device.reset_queue(&mut old), Err(Error::Dma(DmaError::WrongLife)));
        assert!(!fake.model().events.contains(&Event::QueueReset(0)));
        assert_eq!(fake.model().queues[0].descriptors, at, "the device knows the queue that it had");
        assert!(!old.is_broken() && !queue.is_broken());

        let pool = DmaPool::new(&fake.windows(), 1, BUFFER_LEN).unwrap();
        queue.submit(chain(&pool)).unwrap();
        queue.kick();
        assert_eq!(queue.reclaim(&stale).count(), 0);
        assert_eq!((queue.in_flight(), pool.available()), (1, 0), "the device has it");
        assert_eq!(device.reset_queue(&mut queue), Err(Error::Busy), "its own queue it would");
        assert_eq!(queue.reclaim(&device.shut_down().unwrap()).count(), 1);
    }
}

/// What was in flight when a device did not reset is free when it does, however late.
#[test]
fn a_proof_covers_all_lives_before() {
    for format in FORMATS {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | format, vec![], &[8]);
        let pool = DmaPool::new(&fake.windows(), 3, BUFFER_LEN).unwrap();
        let mut queues = Vec::new();
        for life in 0..3 {
            let (mut device, mut queue) = begin(&fake, format);
            queue.start(&device.driver_ok().unwrap());
            queue.submit(chain(&pool)).unwrap();
            queue.kick();
            queues.push(queue);
            fake.model().stuck = true;
            assert_eq!(device.shut_down().map(drop), Err(ResetError::Timeout));
            drop(device);
            assert_eq!(pool.available(), 2 - life);
            fake.model().stuck = false;
        }
        let (mut device, mut last) = begin(&fake, format);
        // The reset that began this life was one, but nobody has its proof.
        assert_eq!(pool.available(), 0);
        let quiet = device.shut_down().unwrap();
        for (queue, free) in queues.iter_mut().zip(1..) {
            assert_eq!(queue.reclaim(&quiet).count(), 1);
            assert_eq!(pool.available(), free);
        }
        assert_eq!(last.reclaim(&quiet).count(), 0);
        drop((queues, last, device, pool));
        assert_eq!((fake.windows().usage(), fake.platform.dma_in_use()), ((0, 0), 0));
    }
}

/// O8: after a reset the device was set to work again, and its end was not noticed.
#[test]
fn nothing_begins_after_the_end() {
    for (format, stuck) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let mut bench = Bench::with(shape(format | RING_RESET));
        let fake = &bench.fake;
        assert_eq!(bench.device.driver_ok().map(drop), Err(Error::WrongState), "twice");
        let late = bench.device.queue::<BufferList>(0, &OPTIONS, 1, no_controls);
        assert_eq!(late.map(drop), Err(Error::WrongState), "after DRIVER_OK");
        fake.model().stuck = stuck;
        assert_eq!(bench.device.shut_down().is_err(), stuck);
        let events = fake.model().events.len();
        assert_eq!(bench.device.driver_ok().map(drop), Err(Error::WrongState));
        assert_eq!(bench.device.reset_queue(&mut bench.queue), Err(Error::WrongState));
        let late = bench.device.queue::<BufferList>(0, &OPTIONS, 1, no_controls);
        assert_eq!(late.map(drop), Err(Error::WrongState));
        assert_eq!(fake.model().events.len(), events, "the device was left alone");
    }
}

/// O8: the same before the device was told to start, and after it was shut down without.
#[test]
fn nothing_begins_too_early() {
    for format in FORMATS {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | format | RING_RESET, vec![], &[8]);
        let (mut device, mut queue) = begin(&fake, format | RING_RESET);
        assert_eq!(device.reset_queue(&mut queue), Err(Error::WrongState));
        device.shut_down().unwrap();
        assert_eq!(device.driver_ok().map(drop), Err(Error::WrongState));
        assert_eq!(fake.model().status, 0);
        assert!(!fake.model().events.contains(&Event::QueueReset(0)));
    }
}

/// Somebody else with a handle of the windows proves that the device knows nothing, before it does.
#[test]
fn a_life_that_ends_behind_the_drivers_back() {
    for format in FORMATS {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | format | RING_RESET, vec![], &[8]);
        let offer = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), fake.windows()).unwrap();
        let mut device = offer.negotiate(format | RING_RESET).unwrap();
        fake.windows().reset_model().unwrap();
        let queue = device.queue::<BufferList>(0, &OPTIONS, 1, no_controls);
        assert_eq!(queue.err(), Some(Error::WrongState));
        assert_eq!(device.driver_ok().err(), Some(Error::WrongState));
        device.shut_down().unwrap();
    }
}

/// O9: the doorbell of a device that was not started (the model would not stand for it).
#[test]
fn an_earlier_start_does_not_count() {
    for format in FORMATS {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | format, vec![], &[8]);
        let pool = DmaPool::new(&fake.windows(), 2, BUFFER_LEN).unwrap();
        let (mut device, mut old) = begin(&fake, format);
        let stale = device.driver_ok().unwrap();
        old.start(&stale);
        drop(device);
        // Of a device that was reset.
        old.submit(chain(&pool)).unwrap();
        old.kick();
        let (mut device, mut queue) = begin(&fake, format);
        queue.start(&stale);
        queue.submit(chain(&pool)).unwrap();
        queue.kick();
        old.kick();
        assert_eq!((fake.kicks(0), fake.ring(0).pending()), (0, 1), "published, not notified");
        queue.start(&device.driver_ok().unwrap());
        queue.kick();
        old.kick();
        assert_eq!(fake.kicks(0), 1);
    }
}

/// O11: it would be a fault behind an IOMMU, or a write to what is only lent for reading.
#[test]
fn a_buffer_for_the_other_direction_comes_back() {
    // In one segment, and in several.
    let several = config(SECTORS, 512, 4, 512);
    for (format, config) in FORMATS.into_iter().flat_map(|format| [(format, None), (format, Some(&several))])
    {
        let fake = disk(format);
        config.into_iter().for_each(|config| fake.model().config.clone_from(config));
        let windows = fake.windows();
        let mut block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
        let [to, from, both] = [Direction::ToDevice, Direction::FromDevice, Direction::Both]
            .map(|direction| DmaPool::new_for(&windows, 1, 2 * SECTOR, direction).unwrap());
        let len = 2 * SECTOR;
        for (pool, good, bad) in [(&to, "w", "ri"), (&from, "ri", "w"), (&both, "wri", "")] {
            let request = |kind| match (kind, pool.take().unwrap()) {
                ('r', buffer) => Request::Read { sector: 3, buffer, len },
                ('w', buffer) => Request::Write { sector: 3, buffer, len },
                (_, buffer) => Request::Identify { buffer },
            };
            for kind in bad.chars() {
                let (error, back) = block.queue.submit(request(kind)).unwrap_err();
                assert_eq!(error, RequestError::WrongDirection, "{kind} {:?}", pool.take().is_none());
                match (kind, &back) {
                    ('r', Request::Read { sector, len: found, .. })
                    | ('w', Request::Write { sector, len: found, .. }) => {
                        assert_eq!((*sector, *found), (3, len));
                    }
                    ('i', Request::Identify { .. }) => {}
                    _ => panic!("{kind} came back as {back:?}"),
                }
                assert_eq!(back.into_buffer().map(|buffer| buffer.len()), Some(len));
                block.queue.kick();
                assert_eq!((block.queue.in_flight(), fake.ring(0).pending(), fake.kicks(0)), (0, 0, 0));
            }
            for kind in good.chars() {
                block.queue.submit(request(kind)).unwrap();
                block.queue.kick();
                let mut ring = fake.ring(0);
                let chain = std::iter::from_fn(|| ring.take()).last().unwrap();
                let parts = &chain.segments[1..chain.segments.len() - 1];
                assert!(parts.iter().all(|part| part.writable == (kind != 'w')));
                // Start over, so that there is one in the ring.
                drop(block);
                block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
                fake.model().events.clear();
            }
        }
    }
}

/// The network driver's buffers are for one direction each, and told so.
#[test]
fn packets_go_one_way() {
    for format in FORMATS {
        let offered = features::VERSION_1 | format;
        let fake = Fake::new(DeviceType::NET, offered, vec![0; 12], &[4, 4]);
        let mut net = Net::new(fake.transport(), &grant(), fake.windows()).unwrap();
        assert_eq!(net.pair.send(1, |room| room.write(&[1; 60]).unwrap()), Ok(1));
        net.pair.kick();
        let (readable, writable) = (fake.windows().readable().unwrap(), fake.windows().writable().unwrap());
        for (queue, is_writable) in [(0, true), (1, false)] {
            let mut ring = fake.ring(queue);
            let chains: Vec<_> = std::iter::from_fn(|| ring.take()).collect();
            assert_eq!(chains.len(), if is_writable { 4 } else { 1 });
            for part in chains.iter().flat_map(|chain| &chain.segments) {
                let range = DriverRange::try_from((part.address, part.len)).unwrap();
                assert_eq!(part.writable, is_writable);
                assert_eq!(writable.translate(range.clone()).is_some(), is_writable);
                assert_eq!(readable.translate(range).is_some(), !is_writable);
            }
        }
    }
}

/// D11: documented as up to [`RESET_LIMIT`], it was twice that.
#[test]
fn a_stuck_device_is_waited_for_once() {
    let waited = |platform: &HostPlatform, driver: &mut dyn FnMut()| {
        let start = platform.now();
        driver();
        let waited = platform.now() - start;
        assert!((RESET_LIMIT..RESET_LIMIT + RESET_LIMIT / 2).contains(&waited), "{waited:?}");
    };
    let fake = disk(0);
    let mut block = Some(Block::new(fake.transport(), &grant(), fake.windows()).unwrap());
    fake.model().stuck = true;
    waited(fake.platform, &mut || drop(block.take()));
    waited(fake.platform, &mut || {
        let again = Block::new(fake.transport(), &grant(), fake.windows()).map(drop);
        assert_eq!(again, Err(Error::ResetTimeout));
    });
    let fake = Fake::new(DeviceType::NET, features::VERSION_1, vec![0; 12], &[4, 4]);
    let mut net = Some(Net::new(fake.transport(), &grant(), fake.windows()).unwrap());
    fake.model().stuck = true;
    waited(fake.platform, &mut || drop(net.take()));
    let mut bench = Some(Bench::with(shape(RING_PACKED)));
    let fake = &bench.as_ref().unwrap().fake;
    let platform = fake.platform;
    fake.model().stuck = true;
    waited(platform, &mut || drop(bench.take()));
    // One that was unplugged is not waited for.
    let fake = disk(0);
    let block = Block::new(fake.transport(), &grant(), fake.windows()).unwrap();
    fake.model().gone = true;
    let start = fake.platform.now();
    drop(block);
    assert!(fake.platform.now() - start < RESET_LIMIT / 2);
}

/// Nothing of a device is another's with the same number: on another platform, or on the bus.
#[test]
fn the_same_number_twice() {
    for format in FORMATS {
        let [mut ours, mut theirs] = [(); 2].map(|()| Bench::with(shape(format | RING_RESET)));
        let [a, b] = [&ours, &theirs].map(|bench| bench.fake.windows());
        let bus = DmaWindows::new(ours.fake.platform, ID).unwrap();
        assert_eq!([a.device(), b.device(), bus.device()], [ID; 3]);
        assert!(a.life() != b.life() && a.life() != bus.life());

        // Addresses.
        for (foreign, own) in [(&b, &a), (&bus, &a), (&a, &b)] {
            let region = foreign.allocate(4096).unwrap();
            assert_eq!(own.publish(region.address(0).unwrap()), Err(DmaError::WrongDevice));
        }
        let region = bus.allocate(4096).unwrap();
        assert_eq!(bus.publish(region.address(0).unwrap()), Err(DmaError::WrongDevice), "not a model");
        // Buffers, alone and behind one of its own.
        for foreign in [&b, &bus] {
            let pool = DmaPool::new(foreign, 2, BUFFER_LEN).unwrap();
            let (error, _) = ours.queue.submit(chain(&pool)).unwrap_err();
            assert_eq!((error, pool.available()), (QueueError::WrongDevice, 2));
            let [mut readable, writable] = ours.item(1, 1).unwrap().into_buffers();
            readable.push(pool.take().unwrap());
            let (error, _) = ours.queue.submit(BufferList::new(0, readable, writable, 0)).unwrap_err();
            assert_eq!(error, QueueError::WrongDevice);
        }
        // Queues.
        let refused = Err(Error::Dma(DmaError::WrongLife));
        assert_eq!(ours.device.reset_queue(&mut theirs.queue), refused);
        // Proofs.
        ours.submit(1, 1).unwrap();
        ours.queue.kick();
        let life = b.life();
        let quiet = theirs.device.shut_down().unwrap();
        assert_eq!(ours.queue.reclaim(&quiet).count(), 0);
        ours.check();
        assert!(quiet.ends(&life) && !quiet.ends(&a.life()) && !quiet.ends(&bus.life()));
        // Starts.
        let fakes = [(); 2].map(|()| Fake::new(DeviceType(42), features::VERSION_1 | format, vec![], &[8]));
        let [(_ours, mut queue), (mut started, _)] = fakes.each_ref().map(|fake| begin(fake, format));
        queue.start(&started.driver_ok().unwrap());
        let pool = DmaPool::new(&fakes[0].windows(), 1, BUFFER_LEN).unwrap();
        queue.submit(chain(&pool)).unwrap();
        queue.kick();
        assert_eq!(fakes[0].kicks(0), 0);
    }
}

/// An address is of the life in which it was asked for.
#[test]
fn an_address_of_an_earlier_life() {
    let windows = DmaWindows::for_model(platform(), ID).unwrap();
    let region = windows.allocate(4096).unwrap();
    let (stale, before) = (region.address(8).unwrap(), windows.life());
    let quiet = windows.reset_model().unwrap();
    assert!(quiet.ends(&before) && !quiet.ends(&windows.life()));
    assert_eq!(windows.publish(stale), Err(DmaError::WrongLife));
    assert_ne!(stale, region.address(8).unwrap());
    assert!(windows.publish(region.address(8).unwrap()).is_ok());
    drop(region);
    assert_eq!(windows.usage(), (0, 4096));
    assert!(!quiet.ends(&windows.life()), "told since");
}

/// A device in this program that still looks at memory is not quiet, whatever its status says.
#[test]
fn a_model_that_goes_on_looking() {
    for access in [false, true] {
        let fake = disk(0);
        let windows = fake.windows();
        let pool = DmaPool::new(&windows, 2, SECTOR).unwrap();
        let mut block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
        block.queue.submit(read(pool.take().unwrap())).unwrap();
        block.queue.kick();
        let view = if access { windows.writable().unwrap() } else { windows.readable().unwrap() };
        let (in_use, usage) = (fake.platform.dma_in_use(), windows.usage());
        drop(block);
        assert_eq!(fake.model().status, 0, "it says that it is");
        assert_eq!((pool.available(), fake.platform.dma_in_use()), (1, in_use));
        assert_eq!(windows.reset_model().map(drop), Err(ResetError::Timeout));
        assert_eq!(
            Block::new(fake.transport(), &grant(), windows.clone()).map(drop),
            Err(Error::ResetTimeout)
        );
        // Those that the view shows are held by it; the others are in quarantine.
        let (open, quarantined) = windows.usage();
        assert!(open < usage.0 && quarantined > 0, "{usage:?}, {:?}", (open, quarantined));
        drop(view);
        let (open, quarantined) = windows.usage();
        assert_eq!((open + quarantined, fake.platform.dma_in_use()), (in_use, in_use));
        let block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
        assert_eq!(windows.usage().1, 0, "the next driver's reset is one");
        drop((block, pool));
        assert_eq!((windows.usage(), fake.platform.dma_in_use()), ((0, 0), 0));
    }
}
