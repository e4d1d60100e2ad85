//! The other side of the drivers, for tests: a device model that shares no code with them. It reaches memory
//! only by device address, and it can lie.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ringfence_drivers::virtio::{ConfigField, DeviceType, Error, Notify, QueueSetup, Transport};
use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::{Bytes, DeviceId, DmaGrant, DmaWindows, Platform, Quiet, ResetError};
// Spin locks: ThreadSanitizer does not see what the standard library does while its locks are contended.
use spin::{Mutex, MutexGuard};

use crate::{DeviceRing, RING_PACKED, RING_RESET, host_does};

pub const ID: DeviceId = DeviceId(0x18);

pub fn platform() -> &'static HostPlatform {
    Box::leak(Box::new(HostPlatform::new()))
}

pub fn grant() -> DmaGrant {
    grant_for(ID)
}

pub fn grant_for(id: DeviceId) -> DmaGrant {
    // SAFETY: the device model reaches memory only through `HostPlatform::translate`, which checks.
    unsafe { DmaGrant::without_iommu(id) }
}

/// A host whose clock calls this when it is read: while a driver waits, with no lock held.
pub struct Clocked<F>(pub &'static HostPlatform, pub F);

// SAFETY: all but the time is the host's.
unsafe impl<F: Fn() + Sync> Platform for Clocked<F> {
    host_does!(0: dma_allocate, mmio_map, registry);

    fn now(&self) -> Duration {
        (self.1)();
        self.0.now()
    }
}

/// Everything that the driver did to the device, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Status(u8),
    Features(u64),
    QueueUp(u16),
    QueueReset(u16),
    Kick(u16),
    Started,
    Stopped,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct FakeQueue {
    pub max: u16,
    pub size: u16,
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
    /// The position in the last notification.
    pub position: Option<u16>,
    /// It was reset, and not set up since.
    reset: bool,
}

/// The device model's registers, and what it lies about.
pub struct Model {
    pub kind: DeviceType,
    pub offered: u64,
    pub accepted: u64,
    pub status: u8,
    pub config: Vec<u8>,
    pub generation: u8,
    pub queues: Vec<FakeQueue>,
    pub events: Vec<Event>,
    /// Status bits that never stick.
    pub refused_status: u8,
    /// The status never reads 0 again.
    pub stuck: bool,
    /// Nobody answers.
    pub gone: bool,
    /// The configuration changes with every look, this many times.
    pub flapping: u32,
    /// Queues do not reset.
    pub stuck_queues: bool,
    /// The queue that was asked to reset, and has not yet.
    resetting: Option<u16>,
    /// The second word of the driver area when a queue was last reset: a split ring's available index.
    pub index_at_reset: u16,
    /// Flip these bits of the configuration when it changes.
    pub flips: u8,
    /// At which offsets the configuration was read, and with which status.
    pub looks: Vec<(usize, u8)>,
    /// After so many more looks the configuration is this.
    pub change: Option<(u32, Vec<u8>)>,
    /// What the device does as soon as it is notified.
    pub on_kick: Option<Box<dyn FnMut() + Send>>,
}

pub struct Fake {
    pub platform: &'static HostPlatform,
    pub model: Arc<Mutex<Model>>,
    pub id: DeviceId,
    windows: OnceLock<DmaWindows>,
}

impl Fake {
    pub fn new(kind: DeviceType, offered: u64, config: Vec<u8>, queues: &[u16]) -> Self {
        Self::on(platform(), kind, offered, config, queues)
    }

    pub fn on(
        platform: &'static HostPlatform,
        kind: DeviceType,
        offered: u64,
        config: Vec<u8>,
        queues: &[u16],
    ) -> Self {
        let queues = queues.iter().map(|&max| FakeQueue { max, ..FakeQueue::default() }).collect();
        let model = Model {
            kind,
            offered,
            accepted: 0,
            status: 0x0f,
            config,
            generation: 0,
            queues,
            events: Vec::new(),
            refused_status: 0,
            stuck: false,
            gone: false,
            flapping: 0,
            stuck_queues: false,
            resetting: None,
            index_at_reset: 0,
            flips: 0,
            looks: Vec::new(),
            change: None,
            on_kick: None,
        };
        Self { platform, model: Arc::new(Mutex::new(model)), id: ID, windows: OnceLock::new() }
    }

    /// The same, at another place on the bus.
    pub fn with_id(self, id: DeviceId) -> Self {
        Self { id, ..self }
    }

    pub fn grant(&self) -> DmaGrant {
        grant_for(self.id)
    }

    pub fn transport(&self) -> FakeTransport {
        let scratch = self.platform.add_registers(0xfee0_0000, 4096);
        FakeTransport { platform: self.platform, id: self.id, model: self.model.clone(), scratch }
    }

    /// The device's windows, which the fake claims with the first call.
    pub fn windows(&self) -> DmaWindows {
        let claim = || DmaWindows::for_model(self.platform, self.id).expect("nobody else has it");
        self.windows.get_or_init(claim).clone()
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock()
    }

    /// The device's view of queue `index`, which the driver must have set up.
    pub fn ring(&self, index: usize) -> DeviceRing {
        let model = self.model();
        let (queue, accepted) = (model.queues[index], model.accepted);
        assert_ne!(queue.size, 0, "queue {index} was not set up");
        let areas = [queue.descriptors, queue.driver, queue.device];
        DeviceRing::new(self.platform, self.id, queue.size, areas, accepted)
    }

    pub fn kicks(&self, index: u16) -> usize {
        self.model().events.iter().filter(|&&event| event == Event::Kick(index)).count()
    }
}

pub struct FakeTransport {
    platform: &'static HostPlatform,
    id: DeviceId,
    model: Arc<Mutex<Model>>,
    /// Where bytes become any integer.
    scratch: HostMemory,
}

impl FakeTransport {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock()
    }

    fn write_status(&self, value: u8) {
        let mut model = self.model();
        model.events.push(Event::Status(value));
        if model.stuck {
            return;
        }
        let refused = model.refused_status;
        model.status = value & !refused;
        if value == 0 {
            for queue in &mut model.queues {
                *queue = FakeQueue { max: queue.max, ..FakeQueue::default() };
            }
        }
    }
}

impl Transport for FakeTransport {
    type Notifier = FakeNotifier;

    fn device_type(&self) -> DeviceType {
        self.model().kind
    }

    fn status(&self) -> u8 {
        let model = self.model();
        if model.gone { 0xff } else { model.status }
    }

    fn set_status(&mut self, status: u8) {
        assert_ne!(status, 0, "resets go through `reset`");
        self.write_status(status);
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        self.write_status(0);
        if self.status() != 0 {
            self.platform.advance(limit + Duration::from_millis(1));
            return Err(ResetError::Timeout);
        }
        windows.reset_model()
    }

    fn start(&mut self, _: &DmaGrant) -> Result<(), Error> {
        self.model().events.push(Event::Started);
        Ok(())
    }

    fn stop(&mut self) {
        self.model().events.push(Event::Stopped);
    }

    fn device_features(&mut self) -> u64 {
        self.model().offered
    }

    fn set_driver_features(&mut self, features: u64) {
        let mut model = self.model();
        model.accepted = features;
        model.events.push(Event::Features(features));
    }

    fn config_generation(&self) -> u32 {
        self.model().generation.into()
    }

    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        let mut model = self.model();
        let len = size_of::<V>();
        assert!(len <= 4 && offset.is_multiple_of(len), "a {len}-byte access at {offset}");
        let bytes = model.config.get(offset..offset + len).ok_or(Error::BadConfig)?.to_vec();
        let status = model.status;
        model.looks.push((offset, status));
        if model.flapping > 0 {
            model.flapping -= 1;
            model.generation = model.generation.wrapping_add(1);
            let flips = model.flips;
            model.config.iter_mut().for_each(|byte| *byte ^= flips);
        }
        if let Some((looks, config)) = model.change.take() {
            match looks.checked_sub(1) {
                Some(rest) => model.change = Some((rest, config)),
                None => (model.config, model.generation) = (config, model.generation.wrapping_add(1)),
            }
        }
        drop(model);
        self.scratch.slice().write_slice(&bytes, 0).unwrap();
        Ok(self.scratch.slice().load(0, Ordering::Relaxed).unwrap())
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.model().queues.get(usize::from(index)).map_or(0, |queue| queue.max)
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, setup: &QueueSetup<'_>) -> Result<FakeNotifier, Error> {
        let [descriptors, driver, device] = setup.addresses.addresses();
        let tell = |address| windows.publish(address).map(|address| address.0);
        let (descriptors, driver, device) = (tell(descriptors)?, tell(driver)?, tell(device)?);
        let mut model = self.model();
        let (status, accepted) = (model.status, model.accepted);
        let queue = &mut model.queues[usize::from(setup.index)];
        let expected = if queue.reset { 0x0c } else { 0x08 };
        assert_eq!(
            status & 0x0c,
            expected,
            "queues are set up before DRIVER_OK, or after a reset of their own"
        );
        assert_eq!(queue.size, 0, "queue {} is in use", setup.index);
        assert!(
            setup.addresses.size() > 0
                && setup.addresses.size() <= queue.max
                && setup.addresses.size() <= 1 << 15,
            "{} descriptors",
            setup.addresses.size()
        );
        assert!(
            accepted & RING_PACKED != 0 || setup.addresses.size().is_power_of_two(),
            "{} descriptors",
            setup.addresses.size()
        );
        *queue = FakeQueue {
            max: queue.max,
            size: setup.addresses.size(),
            descriptors,
            driver,
            device,
            ..FakeQueue::default()
        };
        model.events.push(Event::QueueUp(setup.index));
        Ok(FakeNotifier { model: self.model.clone(), index: setup.index })
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        let mut model = self.model();
        assert_ne!(model.accepted & RING_RESET, 0, "a queue reset without the feature");
        assert_ne!(model.queues[usize::from(index)].size, 0, "queue {index} was not set up");
        model.events.push(Event::QueueReset(index));
        model.resetting = Some(index);
        Ok(())
    }

    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        self.platform.advance(Duration::from_millis(1));
        let mut model = self.model();
        assert_eq!(model.resetting, Some(index), "nobody asked for it");
        if model.stuck_queues {
            return Ok(false);
        }
        model.resetting = None;
        // The rings are still there.
        let word = self.platform.translate(self.id, model.queues[usize::from(index)].driver + 2, 2).unwrap();
        model.index_at_reset = u16::from_le(word.slice().load(0, Ordering::Relaxed).unwrap());
        let queue = &mut model.queues[usize::from(index)];
        *queue = FakeQueue { max: queue.max, reset: true, ..FakeQueue::default() };
        Ok(true)
    }
}

pub struct FakeNotifier {
    model: Arc<Mutex<Model>>,
    index: u16,
}

impl Notify for FakeNotifier {
    fn notify(&self, position: u16) {
        let mut model = self.model.lock();
        assert_ne!(model.status & 4, 0, "a notification before DRIVER_OK");
        let queue = &mut model.queues[usize::from(self.index)];
        assert_ne!(queue.size, 0, "a notification of a queue that is not set up");
        queue.position = Some(position);
        model.events.push(Event::Kick(self.index));
        model.on_kick.iter_mut().for_each(|act| act());
    }
}
