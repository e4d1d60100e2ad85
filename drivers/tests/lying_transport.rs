//! A transport that says of a reset what is not true, and queues that it does not set up.

use std::collections::VecDeque;
use std::time::Duration;

use ringfence_drivers::block::{Block, RequestError};
use ringfence_drivers::virtio::{
    ConfigField, Device, DeviceType, Error, QueueError, QueueSetup, RESET_LIMIT, Transport,
};
use ringfence_memory::{DeviceId, DmaError, DmaGrant, DmaPool, DmaWindows, Quiet, ResetError};
use ringfence_testkit::bench::FORMATS;
use ringfence_testkit::disk::{SECTOR, disk, read};
use ringfence_testkit::{Event, Fake, FakeNotifier, FakeTransport, ID, RING_RESET, grant, platform};

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
    fn config_generation(&self) -> u32 {
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

/// Drops a driver with a request in flight, whose transport says `lie`; nothing may come free, neither memory
/// nor buffer.
#[track_caller]
fn frees_nothing(fake: &Fake, lie: Result<Quiet, ResetError>) {
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 2, SECTOR).unwrap();
    let liar = Liar { inner: fake.transport(), answers: [None, Some(lie)].into(), queues: 1 };
    let mut block = Block::new(liar, &grant(), windows.clone()).unwrap();
    block.queue.submit(read(pool.take().unwrap())).unwrap();
    block.queue.kick();
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
        assert_eq!(block.control.reset_queue(&mut block.queue), Err(expected));
        assert!(block.queue.is_broken());
        let (error, back) = block.queue.submit(read(pool.take().unwrap())).unwrap_err();
        assert_eq!((error, back.into_buffer().is_some()), (RequestError::Broken, true));
        block.queue.kick();
        assert_eq!((fake.kicks(0), block.queue.reap(drop)), (0, Err(QueueError::Broken)));
        fake.model().stuck_queues = false;
        // It stays so, and the device, which may not know the queue, is not asked again (2.6.1.2).
        let asked = fake.model().events.len();
        assert_eq!(block.control.reset_queue(&mut block.queue), Err(Error::Queue(QueueError::Broken)));
        assert_eq!((fake.model().events.len(), block.queue.is_broken()), (asked, true));
    }
}
