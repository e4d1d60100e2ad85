//! What safe code could once do to get at memory that a device still has, or to have a device do what it
//! should not yet. What the compiler refuses now is in the crate `compile-fail`.

use std::collections::VecDeque;
use std::time::Duration;

use ringfence_drivers::block::{Block, Request, RequestError};
use ringfence_drivers::net::Net;
use ringfence_drivers::virtio::{
    BufferList, ConfigField, Device, DeviceType, Error, Queue, QueueError, QueueOptions, QueueSetup,
    RESET_LIMIT, Transport, features,
};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    DeviceId, Direction, DmaBuf, DmaError, DmaGrant, DmaPool, DmaWindows, Platform, Quiet, ResetError,
    fuchsia::{DriverMem, DriverRange},
};
use ringfence_testkit::bench::{BUFFER_LEN, Bench, FORMATS, Shape, no_controls};
use ringfence_testkit::disk::{ALL, SECTOR, SECTORS, config};
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

/// A transport that lets the device go on, and says this of its resets, in turn; the truth where there is
/// nothing.
struct Liar {
    inner: FakeTransport,
    answers: VecDeque<Option<Result<Quiet, ResetError>>>,
    /// How many queues can be set up.
    queues: usize,
}

impl Transport for Liar {
    type Notifier = FakeNotifier;

    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }
    fn status(&self) -> u8 {
        self.inner.status()
    }
    fn set_status(&mut self, status: u8) {
        self.inner.set_status(status);
    }
    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        self.answers.pop_front().flatten().unwrap_or_else(|| self.inner.reset(windows, limit))
    }
    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        self.inner.start(grant)
    }
    fn stop(&mut self) {
        self.inner.stop();
    }
    fn device_features(&mut self) -> u64 {
        self.inner.device_features()
    }
    fn set_driver_features(&mut self, features: u64) {
        self.inner.set_driver_features(features);
    }
    fn config_generation(&self) -> u8 {
        self.inner.config_generation()
    }
    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        self.inner.read_config(offset)
    }
    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.inner.queue_max_size(index)
    }
    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<FakeNotifier, Error> {
        self.queues = self.queues.checked_sub(1).ok_or(Error::QueueRefused(queue.index))?;
        self.inner.set_up_queue(windows, queue)
    }
    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        self.inner.begin_reset_queue(index)
    }
    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        self.inner.poll_reset_queue(index)
    }
}

fn disk(features: u64) -> Fake {
    disk_on(platform(), features)
}

fn disk_on(platform: &'static HostPlatform, features: u64) -> Fake {
    Fake::on(platform, DeviceType::BLOCK, ALL | features, config(SECTORS, 1 << 20, 4, 512), &[16])
}

fn read(buffer: DmaBuf) -> Request {
    Request::Read { sector: 0, buffer, len: SECTOR }
}

/// Drops a driver with a request in flight, whose transport says `lie`; nothing may come free, neither memory
/// nor buffer.
#[track_caller]
fn frees_nothing(fake: &Fake, lie: Result<Quiet, ResetError>) {
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 2, SECTOR).unwrap();
    let liar = Liar { inner: fake.transport(), answers: [None, Some(lie)].into(), queues: 1 };
    let mut block = Block::new(liar, &grant(), windows.clone()).unwrap();
    block.submit(read(pool.take().unwrap())).unwrap();
    block.kick();
    let mut ring = fake.ring(0);
    let taken = ring.take().unwrap();
    let in_use = fake.platform.dma_in_use();
    let before = windows.usage();
    drop(block);
    assert_eq!((pool.available(), fake.platform.dma_in_use()), (1, in_use));
    let after = windows.usage();
    assert!(after.1 > before.1, "{before:?}, {after:?}");
    assert_eq!(after.0 + after.1, before.0 + before.1);
    // The device goes on, and hits nobody's memory.
    ring.write(&taken.segments[1], &[0xee; SECTOR]);
    ring.complete(taken.head, 513);
    let other = pool.take().unwrap();
    let mut bytes = [1; SECTOR];
    other.read_slice(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; SECTOR]);
    drop(other);
    drop(pool);
    // The truth frees all of it.
    drop(Block::new(fake.transport(), &grant(), windows.clone()).unwrap());
    assert_eq!((windows.usage(), fake.platform.dma_in_use()), ((0, 0), 0));
}

#[test]
fn a_transport_that_lies_about_a_reset() {
    for format in FORMATS {
        let fake = disk(format);
        frees_nothing(&fake, Err(ResetError::Timeout));
        frees_nothing(&fake, Err(ResetError::WrongDevice));
        // An earlier proof of the same device, and one of a time when it had nothing.
        let earlier = fake.transport().reset(&fake.windows(), RESET_LIMIT).unwrap();
        frees_nothing(&fake, Ok(earlier));
        // Other devices that are quiet: on this platform, with this number on another, and on the bus.
        let other = DmaWindows::for_model(fake.platform, DeviceId(ID.0 + 1)).unwrap();
        frees_nothing(&fake, Ok(other.reset_model().unwrap()));
        let elsewhere = DmaWindows::for_model(platform(), ID).unwrap();
        frees_nothing(&fake, Ok(elsewhere.reset_model().unwrap()));
        let on_bus = DmaWindows::new(fake.platform, ID).unwrap();
        assert_eq!(on_bus.reset_model().map(drop), Err(ResetError::WrongDevice));
    }
}

/// A device whose reset is not proved is not taken either.
#[test]
fn a_transport_that_lies_from_the_start() {
    let fake = disk(0);
    let other = DmaWindows::for_model(platform(), ID).unwrap();
    let earlier = fake.transport().reset(&fake.windows(), RESET_LIMIT).unwrap();
    for (lie, expected) in [
        (Ok(earlier), Error::Dma(DmaError::WrongDevice)),
        (Ok(other.reset_model().unwrap()), Error::Dma(DmaError::WrongDevice)),
        (Err(ResetError::WrongDevice), Error::Dma(DmaError::WrongDevice)),
        (Err(ResetError::Timeout), Error::ResetTimeout),
    ] {
        let liar = Liar { inner: fake.transport(), answers: [Some(lie)].into(), queues: 1 };
        assert_eq!(Block::new(liar, &grant(), fake.windows()).map(drop), Err(expected));
        assert!(!fake.model().events.contains(&Event::Started));
    }
    // Nor is it by who looks now and then, until the truth is told.
    let earlier = fake.transport().reset(&fake.windows(), RESET_LIMIT).unwrap();
    let answers = [Some(Ok(earlier)), Some(Err(ResetError::Timeout)), None].into();
    let (liar, grant) = (Liar { inner: fake.transport(), answers, queues: 1 }, grant());
    let mut starting =
        Device::begin_reset(liar, DeviceType::BLOCK, &grant, fake.windows()).map_err(drop).unwrap();
    let mut polls = || starting.poll().map(|result| result.map(drop));
    assert_eq!([polls(), polls(), polls(), polls()], [None, None, Some(Ok(())), None]);
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
                let (error, back) = block.submit(request(kind)).unwrap_err();
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
                block.kick();
                assert_eq!((block.in_flight(), fake.ring(0).pending(), fake.kicks(0)), (0, 0, 0));
            }
            for kind in good.chars() {
                block.submit(request(kind)).unwrap();
                block.kick();
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
        assert_eq!(net.send(1, |room| room.write(&[1; 60]).unwrap()), Ok(1));
        net.kick();
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

/// D10: a queue that the device may know only in part took requests as before.
#[test]
fn a_queue_that_could_not_be_reset_is_broken() {
    for (format, refused) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let fake = disk(format | RING_RESET);
        let pool = DmaPool::new(&fake.windows(), 1, SECTOR).unwrap();
        let inner = fake.transport();
        let liar = Liar { inner, answers: VecDeque::new(), queues: if refused { 1 } else { 9 } };
        let mut block = Block::new(liar, &grant(), fake.windows()).unwrap();
        fake.model().stuck_queues = !refused;
        let expected = if refused { Error::QueueRefused(0) } else { Error::Timeout };
        assert_eq!(block.reset_queue(0), Err(expected));
        assert!(block.is_broken());
        let (error, back) = block.submit(read(pool.take().unwrap())).unwrap_err();
        assert_eq!((error, back.into_buffer().is_some()), (RequestError::Broken, true));
        block.kick();
        assert_eq!((fake.kicks(0), block.reap(drop)), (0, Err(QueueError::Broken)));
        fake.model().stuck_queues = false;
        // It stays so, and the device, which may not know the queue, is not asked again (2.6.1.2).
        let asked = fake.model().events.len();
        assert_eq!(block.reset_queue(0), Err(Error::Queue(QueueError::Broken)));
        assert_eq!((fake.model().events.len(), block.is_broken()), (asked, true));
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
        block.submit(read(pool.take().unwrap())).unwrap();
        block.kick();
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
