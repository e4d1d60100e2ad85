//! A device over MMIO that nobody has windows of: whatever is done with it, it is told of no memory, and no
//! status of its own proves a reset of another.

use std::time::Duration;

use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::*;

use crate::input::Input;
use crate::side::Side;
use crate::with_table;
use crate::world::{Who, World};

/// Apart from the cards'.
const START: u64 = 0xfd00_0000;
const LEN: usize = 0x1000;
const ID: DeviceId = DeviceId::off_bus(1);
/// Magic value, version, type, and the largest size of a queue.
const THERE: [(usize, u32); 4] = [(0, 0x7472_6976), (4, 2), (8, 2), (0x34, 8)];
/// What tells of a queue: that it is ready, and its addresses.
const TELLING: [usize; 7] = [0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];

/// The device, and its registers as it sees them.
pub struct Mmio {
    registers: HostMemory,
    virtio: VirtioMmio,
}

impl Mmio {
    /// Puts it there.
    pub fn new(side: &'static Side, host: &HostPlatform) -> Self {
        let registers = host.add_registers(START, LEN);
        for (at, value) in THERE {
            registers.slice().write_obj(value, at).expect("it is there");
        }
        let start = PhysAddr::new(START).expect("an address");
        let region = MmioRegion::map(host, None, start, LEN).expect("nobody has them");
        // SAFETY: nobody else uses the number or the registers.
        let virtio = unsafe { VirtioMmio::new(side, ID, &region) }.expect("it is there");
        Self { registers, virtio }
    }
}

/// One step.
pub fn step(world: &mut World, input: &mut Input<'_>) {
    let who = Who::any(input);
    let Mmio { registers, virtio } = world.sides[who.side].mmio();
    let (value, index) = (u64::from(input.word()) * 0x1_0001_0001_0001, u16::from(input.byte()));
    // SAFETY: in this world no device reaches what it was not told of.
    let grant = unsafe { DmaGrant::without_iommu(if input.flag() { ID } else { DeviceId(value) }) };
    match input.below(8) {
        0 => assert_eq!(virtio.grant(&grant).is_ok(), grant.device() == ID),
        1 => virtio.revoke(),
        2 => virtio.set_status(index as u8),
        3 => _ = virtio.set_driver_features(value),
        4 => virtio.reset_queue(index),
        5 => _ = virtio.interrupts().map(|interrupts| interrupts.acknowledge()),
        6 => _ = virtio.notifier(index, input.flag()).map(|notifier| notifier.notify(value as u16)),
        // What the device says.
        _ => _ = registers.slice().write_obj(value as u8, 0x70),
    }
    let _ = (virtio.queue_max_size(index), virtio.is_queue_reset(index), virtio.device_features());
    let _ = (virtio.status(), virtio.config_generation(), virtio.config().read::<u64>(value as usize));
    assert_eq!((virtio.device(), virtio.device_type()), (ID, 2));
    if let Some((_, windows)) = world.windows.pick(input) {
        assert_eq!(virtio.reset(windows, Duration::ZERO).err(), Some(ResetError::WrongDevice));
        if let Some((begun, _)) = &world.begun {
            assert!(virtio.poll_reset(windows, begun).is_none(), "another's reset");
        }
        if let Some((_, table)) = world.tables.pick(input)
            && let Some((_, region)) = world.regions.pick(input)
            && let Some(at) = region.region.address(0)
            && let Ok(queue) = with_table!(table, it => it.queue(at, at))
        {
            let told = virtio.set_queue(windows, index % 4, &queue);
            assert_eq!(told, Err(SetQueueError::Dma(DmaError::WrongDevice)));
        }
    }
    let told = TELLING.map(|at| registers.slice().read_obj::<u32>(at).expect("it is there"));
    assert_eq!(told, [0; TELLING.len()], "it is told of memory");
}
