//! What is written to the registers and the configuration space of a device on PCI, and what is left alone.

use std::time::Duration;

use ringfence_drivers::block::{Block, Request};
use ringfence_drivers::virtio::{Device, DeviceType, Error, QueueSetup, Transport, features};
use ringfence_memory::{Bytes, DescriptorTable, Direction, DmaPool, Split};
use ringfence_testkit::pci::*;
use ringfence_testkit::{RING_RESET, grant};

const CONFIG_VECTOR: usize = COMMON + 0x10;
const NUM_QUEUES: usize = COMMON + 0x12;
const GENERATION: usize = COMMON + 0x15;

/// Of a queue that the device does not have nothing is read or written: what there is is the device's choice.
#[test]
fn queues_that_are_not_there() {
    for there in [1, 3, 0xffff] {
        let card = card_with(RING_RESET);
        card.put16(NUM_QUEUES, there);
        let windows = card.windows();
        let mut transport = card.transport().unwrap();
        transport.use_msix(&messages(3)).unwrap();
        transport.reset(&windows, Duration::from_secs(1)).unwrap();
        let last = there - 1;
        let sizes = [last, there, there.saturating_add(1)].map(|index| transport.queue_max_size(index));
        assert_eq!(sizes, [64, 0, 0], "{there} queues");
        for register in [QUEUE_SELECT, QUEUE_VECTOR] {
            card.put16(register, 0x7777);
        }
        let table = DescriptorTable::<Split>::new(&windows, 4, 0, Direction::ToDevice).unwrap();
        let driver = windows.allocate_for(64, Direction::ToDevice).unwrap();
        let device = windows.allocate_for(64, Direction::FromDevice).unwrap();
        let addresses = table.queue(driver.address(0).unwrap(), device.address(0).unwrap()).unwrap();
        let missing = Err(Error::QueueUnavailable(there));
        let set_up = transport.set_up_queue(&windows, &QueueSetup { index: there, addresses });
        assert_eq!(set_up.map(drop), missing);
        assert_eq!(transport.begin_reset_queue(there), missing);
        let seen = [QUEUE_SELECT, QUEUE_VECTOR, QUEUE_RESET].map(|register| card.get16(register));
        assert_eq!(seen, [0x7777, 0x7777, 0], "{there} queues");
        // What is there is set up, and not again.
        let before_features_ok = transport.set_up_queue(&windows, &QueueSetup { index: last, addresses });
        assert_eq!(before_features_ok.map(drop), Err(Error::WrongState));
        assert_eq!((card.get16(QUEUE_SELECT), card.get16(QUEUE_ENABLE)), (last, 0));
    }
}

/// A device without MSI-X may have nothing where vectors would be (4.1.4.3).
#[test]
fn without_msix_there_are_no_vectors() {
    let card = card(&qemu_capabilities()[1..]);
    for register in [CONFIG_VECTOR, QUEUE_VECTOR] {
        card.put16(register, 0x1234);
    }
    let mut transport = card.transport().unwrap();
    assert_eq!((transport.msix_vectors(), transport.use_msix(&messages(1))), (0, Err(Error::NoVector)));
    transport.use_intx();
    let block = Block::new(transport, &grant(), card.windows()).unwrap();
    assert_eq!(card.command() & INTX_OFF, 0);
    assert_eq!([CONFIG_VECTOR, QUEUE_VECTOR].map(|register| card.get16(register)), [0x1234; 2]);
    drop(block);
    assert_eq!(card.command() & (INTX_OFF | BUS_MASTER), INTX_OFF, "it interrupts no more");
}

/// MSI-X that cannot be turned on, or whose vectors stay masked, is off.
#[test]
fn msix_that_does_not_work() {
    const ENABLE: u32 = 1 << 31;
    const MASK_ALL: u32 = 1 << 30;
    for (stuck, writable, works) in [
        (0, ENABLE | MASK_ALL, true),
        (MASK_ALL, ENABLE | MASK_ALL, true),
        (MASK_ALL, ENABLE, false),
        (0, MASK_ALL, false),
        (0, 0, false),
    ] {
        let mut list = qemu_capabilities();
        list[0].1[1] = (stuck >> 24) as u8;
        let card = card(&list);
        card.config.set_writable(card.function.address(), MSIX_AT, writable);
        let mut transport = card.transport().unwrap();
        let expected = if works { Ok(()) } else { Err(Error::NoVector) };
        assert_eq!(transport.use_msix(&messages(2)), expected, "{stuck:#x}, {writable:#x}");
        let control = card.config.word(card.function.address(), MSIX_AT);
        assert_eq!(control & ENABLE != 0, works, "{stuck:#x}, {writable:#x}");
        let _block = Block::new(transport, &grant(), card.windows()).unwrap();
        assert_eq!(card.get16(CONFIG_VECTOR), if works { 0 } else { 0xffff });
    }
}

/// Though it cannot be reset: should it come back it is to write nothing.
#[test]
fn an_unplugged_device_masters_the_bus_no_more() {
    let card = card(&qemu_capabilities());
    let mut transport = card.transport().unwrap();
    transport.use_msix(&messages(1)).unwrap();
    let block = Block::new(transport, &grant(), card.windows()).unwrap();
    assert_ne!(card.command() & BUS_MASTER, 0);
    card.registers.slice().fill(0xff).unwrap();
    drop(block);
    assert_eq!(card.command() & (BUS_MASTER | INTX_OFF), INTX_OFF);
    assert_eq!(card.config.word(card.function.address(), MSIX_AT) >> 31, 0);
    assert_ne!(card.windows().usage().1, 0, "its memory stays in quarantine");
}

#[test]
fn the_generation_of_a_configuration() {
    let card = card(&qemu_capabilities());
    let transport = card.transport().unwrap();
    for generation in [0_u8, 1, 2, 0x7f, 0xa5, 0xff] {
        card.registers.slice().write_obj(generation, GENERATION).unwrap();
        assert_eq!(transport.config_generation(), generation.into());
    }
}

/// What only the device says is read, from its first to its last life (4.1.4.3.2); and queues are not
/// disabled by their register.
#[test]
fn registers_that_are_only_read() {
    let card = card_with(features::NOTIFICATION_DATA | RING_RESET);
    card.put16(COMMON + 0x38, 0x5a5a); // queue_notif_config_data
    let read_only = [(0x04, 4), (0x12, 2), (0x15, 1), (0x1e, 2), (0x38, 2)];
    let seen = || {
        read_only.map(|(offset, len)| {
            let mut bytes = vec![0; len];
            card.registers.slice().read_slice(&mut bytes, COMMON + offset).unwrap();
            bytes
        })
    };
    let before = seen();
    for _ in 0..2 {
        card.put16(QUEUE_ENABLE, 0);
        let mut block = card.block().unwrap();
        assert_eq!(block.control.config_changed(), Ok(false));
        block.queue.kick();
        assert_eq!((seen(), card.get16(QUEUE_ENABLE)), (before.clone(), 1));
        drop(block);
        assert_eq!((seen(), card.get16(QUEUE_ENABLE)), (before.clone(), 1));
    }
}

/// Capabilities say where structures are, and may be longer than those that are known; nothing is written to
/// them (4.1.4.1).
#[test]
fn capabilities_of_a_later_version() {
    for more in [0, 4, 12] {
        let mut list = qemu_capabilities();
        for (id, body) in list.iter_mut().filter(|(id, _)| *id == 9) {
            assert_eq!(*id, 9);
            body[0] += more;
            body.extend(vec![0xee; more.into()]);
        }
        let card = card(&list);
        let words = || -> Vec<u32> {
            (0..64).map(|word| card.config.word(card.function.address(), 4 * word)).collect()
        };
        let before = words();
        let block = card.block().unwrap();
        assert_eq!(block.queue.geometry().sectors, 100, "{more} bytes more");
        drop(block);
        let mut after = words();
        assert_eq!(after[1] & 0xffff, MEMORY | INTX_OFF);
        after[1] = before[1];
        assert_eq!(after, before, "{more} bytes more");
    }
}

/// FEATURES_OK ends the choice (3.1.1), also of a driver that does without `Device`.
#[test]
fn features_are_final() {
    let card = card_with(RING_RESET);
    let windows = card.windows();
    let mut transport = card.transport().unwrap();
    transport.reset(&windows, Duration::from_secs(1)).unwrap();
    let told = || card.registers.slice().read_obj::<u32>(COMMON + 0x0c).unwrap();
    let accepted = features::VERSION_1 | RING_RESET;
    transport.set_driver_features(accepted);
    assert_eq!(u64::from(told()), accepted >> 32);
    transport.set_status(1 | 2 | 8);
    transport.set_driver_features(features::VERSION_1);
    assert_eq!(u64::from(told()), accepted >> 32);
    drop(Device::begin(transport, DeviceType::BLOCK, &grant(), windows).unwrap());
}

/// 3.1.1: nobody notifies a device that was asked to reset.
#[test]
fn a_device_that_resets_is_not_notified() {
    let card = card(&qemu_capabilities());
    let windows = card.windows();
    let mut block = Block::new(card.transport().unwrap(), &grant(), windows.clone()).unwrap();
    let doorbell = NOTIFY + 5 * 4;
    let pool = DmaPool::new(&windows, 2, 512).unwrap();
    let read = |sector| Request::Read { sector, buffer: pool.take().unwrap(), len: 512 };
    block.queue.submit(read(7)).unwrap();
    block.queue.kick();
    card.put16(doorbell, 0xffff);
    block.control.begin_shut_down().unwrap();
    block.queue.submit(read(8)).unwrap();
    block.queue.kick();
    block.queue.kick_again();
    assert_eq!(card.get16(doorbell), 0xffff, "it is not to be notified");
    // The next driver's queues are.
    drop(block);
    card.put16(COMMON + 0x1c, 0);
    let mut block = Block::new(card.transport().unwrap(), &grant(), windows.clone()).unwrap();
    block.queue.submit(read(7)).unwrap();
    block.queue.kick();
    assert_eq!(card.get16(doorbell), 0);
}
