//! What is no proof of a reset, and that nothing safe makes it look like one.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{
    DeviceType, Error, PciTransport, QueueSetup, RESET_LIMIT, Transport, features, status,
};
use ringfence_kernel::devices::bring_up;
use ringfence_kernel::devices::bus::BusTransport;
use ringfence_kernel::interrupts::device::DeviceInterrupts;
use ringfence_kernel::memory::space;
use ringfence_kernel::platform::KERNEL;
use ringfence_kernel::testing::On;
use ringfence_memory::{
    ConfigAccess, ConfigSpace, DescriptorTable, Direction, DmaError, DmaGrant, DmaWindows, Life, Owner,
    PAGE_SIZE, PciAddress, PlatformError, ResetError, Split,
};

use crate::support::{assert_audit_clean, config, functions_for};

const COMMAND: u16 = 0x04;
const MEMORY: u32 = 1 << 1;

const CHOSEN: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
const RUNNING: u8 = CHOSEN | status::DRIVER_OK;

/// A disk that was told of memory which was dropped since.
struct Told {
    transport: BusTransport,
    _interrupts: DeviceInterrupts,
    windows: DmaWindows,
    life: Life,
}

impl Told {
    fn new(function: &Function) -> Self {
        let (mut transport, interrupts, windows) =
            bring_up(function, 1, |transport, _, _| Ok(transport)).expect("its registers are there");
        transport.reset(&windows, RESET_LIMIT).expect("the disk resets");
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
        // SAFETY: the devices of this machine access only what they are told.
        let grant = unsafe { DmaGrant::without_iommu(function.address().id()) };
        transport.start(&grant).expect("it is this device's");
        transport.set_driver_features(features::VERSION_1);
        transport.set_status(CHOSEN);
        let table: DescriptorTable<Split> =
            DescriptorTable::new(&windows, 4, 128, Direction::Both).expect("there is memory");
        let rest = table.array_after::<u32>(32).expect("it is inside");
        let at = |index| rest.address(index).expect("it is inside");
        let setup = QueueSetup { index: 0, addresses: table.queue(at(0), at(16)).expect("there is room") };
        transport.set_up_queue(&windows, &setup).expect("the disk takes it");
        transport.set_status(RUNNING);
        drop((rest, table));
        let told = Self { transport, _interrupts: interrupts, life: windows.life(), windows };
        told.assert_quarantined();
        told
    }

    #[track_caller]
    fn assert_quarantined(&self) {
        assert_eq!(self.windows.life(), self.life);
        assert_eq!(self.windows.usage(), (0, PAGE_SIZE));
        assert_eq!(space().frames().count(Owner::Quarantined), 1);
        assert_audit_clean();
    }

    #[track_caller]
    fn assert_no_proof(&mut self, limit: Duration) {
        assert_eq!(self.transport.reset(&self.windows, limit).err(), Some(ResetError::Timeout));
        self.assert_quarantined();
    }

    #[track_caller]
    fn assert_proof(&mut self) {
        let quiet = self.transport.reset(&self.windows, RESET_LIMIT).expect("the disk resets");
        assert!(quiet.ends(&self.life) && !quiet.ends(&self.windows.life()));
        assert_eq!((self.transport.status(), self.windows.usage()), (0, (0, 0)));
        assert_eq!(space().frames().count(Owner::Quarantined), 0);
        assert_audit_clean();
        self.transport.stop();
    }
}

fn decodes(function: &Function) -> bool {
    function.config().read_u32(COMMAND) & MEMORY != 0
}

/// Changes the command register behind the back of `memory`. The upper half is written as 0, which clears
/// nothing.
fn set_command(function: &Function, change: impl FnOnce(u32) -> u32) {
    let command = change(function.config().read_u32(COMMAND)) & 0xffff;
    // SAFETY: the function answers at no other place than before, and masters the bus no more than before.
    unsafe { config().write(function.address(), COMMAND, command) };
}

fn decoding_off_is_no_reset() {
    let function = functions_for(DeviceType::BLOCK)[0];
    let mut told = Told::new(&function);
    for _ in 0..2 {
        set_command(&function, |command| command & !MEMORY);
        assert_ne!(told.transport.status(), RUNNING, "nobody answers");
        told.assert_no_proof(Duration::from_millis(50));
        assert!(!decodes(&function), "that is as it was");
        function.config().enable_memory();
        assert_eq!(told.transport.status(), RUNNING, "the disk knows nothing of a reset");
        told.assert_quarantined();
    }
    told.assert_proof();
}

/// The status reads as something else than what it is while nobody answers: then nothing is proved.
#[test_case]
const DECODING_OFF: On = On("blk,formats", &decoding_off_is_no_reset);

fn nothing_safe_stops_decoding() {
    let function = functions_for(DeviceType::BLOCK)[0];
    let mut told = Told::new(&function);
    let config = function.config();
    let bars = function.bars();
    for step in 0..6 {
        match step {
            0 => config.enable_memory(),
            1 => config.enable_intx(true),
            2 => config.enable_intx(false),
            3 => assert_eq!(function.bars(), bars),
            4 => {
                let second = PciTransport::new(&KERNEL, &function).err();
                assert_eq!(second, Some(Error::Platform(PlatformError::Claimed)));
                let windows = DmaWindows::new(&KERNEL, function.address().id());
                assert_eq!(windows.err(), Some(DmaError::Claimed));
                let again = bring_up(&function, 1, |transport, _, _| Ok(transport));
                assert_eq!(again.err(), Some(Error::Dma(DmaError::Claimed)));
            }
            _ => told.transport.set_status(0),
        }
        assert!(decodes(&function), "after step {step}");
        assert_eq!(told.transport.status(), RUNNING, "after step {step}");
        told.assert_quarantined();
    }
    config.disable_bus_master();
    assert!(decodes(&function));
    told.assert_proof();
}

/// Not even for somebody who wants to drive the device a second time.
#[test_case]
const SAFE_STEPS: On = On("blk", &nothing_safe_stops_decoding);

/// Configuration space from which one function can be pulled.
struct Slot;

static PULLED: AtomicBool = AtomicBool::new(false);

// SAFETY: it is the kernel's own, but for reads of a function of which a test says that it is not there.
unsafe impl ConfigAccess for Slot {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        if PULLED.load(Ordering::Relaxed) { u32::MAX } else { config().read(function, offset) }
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        if !PULLED.load(Ordering::Relaxed) {
            // SAFETY: the caller answers for it.
            unsafe { config().write(function, offset, value) }
        }
    }

    fn last_bus(&self) -> u8 {
        config().last_bus()
    }
}

fn absent_device_proves_nothing() {
    let address = functions_for(DeviceType::BLOCK)[0].address();
    let function = Function::read(ConfigSpace::new(&Slot, address)).expect("it is there");
    let mut told = Told::new(&function);
    PULLED.store(true, Ordering::Relaxed);
    told.assert_no_proof(Duration::from_millis(50));
    PULLED.store(false, Ordering::Relaxed);
    told.assert_proof();
}

/// A function whose configuration space reads all ones: whatever its registers read.
#[test_case]
const ABSENT: On = On("blk", &absent_device_proves_nothing);

fn queues_are_told_in_their_life() {
    let function = functions_for(DeviceType::BLOCK)[0];
    let (mut transport, _interrupts, windows) =
        bring_up(&function, 1, |transport, _, _| Ok(transport)).expect("its registers are there");
    transport.reset(&windows, RESET_LIMIT).expect("the disk resets");
    let table: DescriptorTable<Split> =
        DescriptorTable::new(&windows, 4, 128, Direction::Both).expect("there is memory");
    let rest = table.array_after::<u32>(32).expect("it is inside");
    let at = |index| rest.address(index).expect("it is inside");
    let setup = |addresses| QueueSetup { index: 0, addresses };
    let old = [at(0), at(16)];
    transport.reset(&windows, RESET_LIMIT).expect("the disk resets");
    let refused = |error: DmaError| Some(Error::Dma(error));
    let of_old = table.queue(old[0], old[1]).expect("there is room");
    assert_eq!(transport.set_up_queue(&windows, &setup(of_old)).err(), refused(DmaError::WrongLife));
    let of_both = table.queue(at(0), at(16)).expect("there is room");
    assert_eq!(transport.set_up_queue(&windows, &setup(of_both)).err(), refused(DmaError::WrongLife));
    let model = DmaWindows::for_model(&KERNEL, function.address().id()).expect("nobody else has it");
    let foreign: DescriptorTable<Split> =
        DescriptorTable::new(&model, 4, 0, Direction::Both).expect("there is memory");
    let of_model = foreign.queue(at(0), at(16)).expect("there is room");
    for windows in [&windows, &model] {
        let told = transport.set_up_queue(windows, &setup(of_model)).err();
        assert_eq!(told, refused(DmaError::WrongDevice), "the same number is not the same device");
    }
    assert_eq!(transport.reset(&model, RESET_LIMIT).err(), Some(ResetError::WrongDevice));
    transport.stop();
}

/// Addresses of another life of the device, or of a model that goes by its number, are not written to its
/// registers.
#[test_case]
const OLD_ADDRESSES: On = On("blk", &queues_are_told_in_their_life);
