//! Steps with configuration space and registers, without a driver.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

use crate::card::{Card, Hook};
use crate::input::Input;
use crate::mmio;
use crate::with_table;
use crate::world::{Who, World};
use crate::{LIMIT, reached};

/// One step.
pub fn step(world: &mut World, input: &mut Input<'_>) {
    match input.below(15) {
        0 => {
            let who = on_bus(input);
            let card = world.card(who);
            card.recover();
            if let Ok(virtio) = VirtioPci::new(world.sides[who.side], card.config()) {
                begin(world, who, &virtio);
                world.registers.put((who, Arc::new(virtio)));
            }
        }
        1 => drop(world.registers.take(input)),
        2..4 => set_queue(world, input),
        4 => stale(world, input),
        5 => access(world, input),
        6..8 => reset(world, input),
        8..10 => config(world, input),
        10 => msix(world, input),
        11 => {
            let who = on_bus(input);
            world.card(who).happen(input.below(5));
        }
        12 => notify(world, input),
        13 => mmio::step(world, input),
        _ => shared(world, input),
    }
}

/// The device's registers.
pub fn prepare(world: &mut World, who: Who) {
    let virtio = VirtioPci::new(world.sides[who.side], world.card(who).config()).expect("nobody has them");
    begin(world, who, &virtio);
    world.registers.put((who, Arc::new(virtio)));
}

/// Resets the device if nobody drives it: before that it is told of no queue.
fn begin(world: &World, who: Who, virtio: &VirtioPci) {
    if let Ok(windows) = DmaWindows::new(world.sides[who.side], world.card(who).config().address().id()) {
        let _ = virtio.common.reset(&windows, LIMIT);
        world.card(who).look();
    }
}

fn on_bus(input: &mut Input<'_>) -> Who {
    let mut who = Who::any(input);
    who.party.model = false;
    who
}

/// Tells a device of any queue: of whichever owner, life, format, size and place.
fn set_queue(world: &mut World, input: &mut Input<'_>) {
    let Some((of_registers, virtio)) = world.registers.pick(input) else { return };
    let who = *of_registers;
    let Some((of_windows, windows)) = world.windows.pick_of(who, input) else { return };
    let Some((of_table, table)) = world.tables.pick_of(who, input) else { return };
    let byte = input.byte();
    let _ = virtio.common.set_driver_features(u64::from(byte & 15) << 33);
    if byte != 0xff {
        virtio.common.set_status(0x0b);
    }
    let driver = address(world, who, input);
    let device = address(world, who, input);
    let (Some((of_driver, driver)), Some((of_device, device))) = (driver, device) else { return };
    let Ok(addresses) = with_table!(table, it => it.queue(driver, device)) else { return };
    let told = virtio.common.set_queue(windows, u16::from(byte >> 4), &addresses);
    if told == Err(SetQueueError::WrongFormat) {
        reached("wrong format");
    }
    if told.is_ok() {
        reached("queue told");
        let all = [of_windows, of_table, &of_driver, &of_device];
        assert!(all.iter().all(|of| **of == who), "{who:?} is told of {all:?}");
    }
    world.card(who).look();
}

/// Any address.
fn address<'a>(world: &'a World, who: Who, input: &mut Input<'_>) -> Option<(Who, DmaAddr<'a>)> {
    match input.below(4) {
        0 => {
            let (of, it) = world.regions.pick_of(who, input)?;
            Some((*of, it.region.address(usize::from(input.word()) % 4200)?))
        }
        1 => world.regions.pick_of(who, input).and_then(|(of, it)| Some((*of, it.region.address(0)?))),
        2 => {
            let (of, it) = world.halves.pick_of(who, input)?;
            Some((*of, it.address(input.below(16))?))
        }
        _ => world.buffers.pick_of(who, input).map(|(of, it)| (*of, it.address())),
    }
}

/// Addresses that were taken before a reset, used after it.
fn stale(world: &mut World, input: &mut Input<'_>) {
    let mut proof = None;
    let begun = world.begun.take();
    if let Some((of, virtio)) = world.registers.pick(input)
        && let Some((who, windows)) = world.windows.pick_of(*of, input)
        && let Some((_, table)) = world.tables.pick_of(*of, input)
        && let Some((_, region)) = world.regions.pick_of(*of, input)
    {
        let (Some(at), card) = (region.region.address(0), world.card(*of)) else { return };
        let Ok(old) = with_table!(table, it => it.queue(at, at)) else { return };
        // Asked for by any step before, of any device.
        let begun = begun.map(|(begun, before)| (virtio.common.poll_reset(windows, &begun), before));
        if let Some((Some(quiet), before)) = begun {
            card.look();
            assert!(card.lives() > before && !quiet.ends(&windows.life()), "it was never reset");
        }
        let before = card.lives();
        proof = virtio.common.reset(windows, LIMIT).ok().map(|quiet| (*who, quiet, before));
        card.look();
        let _ = virtio.common.set_driver_features(if old.is_packed() { 1 << 34 } else { 0 });
        virtio.common.set_status(0x0b);
        let told = virtio.common.set_queue(windows, 0, &old);
        assert!(told.is_err() || proof.is_none(), "an address outlives a reset");
        card.look();
        let before = card.lives();
        world.begun = virtio.common.begin_reset(windows).ok().map(|begun| (begun, before));
        let _ = windows.wait(Duration::ZERO, || {
            card.look();
            Some(())
        });
    }
    if let Some((who, quiet, before)) = proof {
        world.proved(who, quiet, before);
    }
}

/// Reads and writes registers as numbers.
fn access(world: &mut World, input: &mut Input<'_>) {
    let Some((who, virtio)) = world.registers.pick(input) else { return };
    let (common, value) = (&virtio.common, u64::from(input.word()) * 0x1_0001_0001_0001);
    let offset = match input.byte() {
        0xff => usize::MAX - input.below(9),
        offset => usize::from(offset % 0x44),
    };
    let index = offset as u16;
    match input.below(5) {
        0 => _ = common.set_config_vector(value as u16),
        1 => _ = common.set_queue_vector(index, value as u16),
        2 => _ = common.reset_queue(index % 5),
        3 => _ = common.set_driver_features(value),
        _ => common.set_status(value as u8),
    };
    let _ = (common.read::<u64>(offset), common.read_queue::<u8>(index, offset), common.device_features());
    let _ = (common.status(), virtio.isr.read());
    let _ = virtio.device.as_ref().map(|device| (device.read::<u32>(offset), device.part(offset, 8).is_ok()));
    world.card(*who).look();
}

/// Called with the number of each read of configuration space.
type AtRead = Box<dyn FnMut(&Card, usize) + Send>;

/// Resets a device by the registers of any, by windows of any; something may happen meanwhile.
fn reset(world: &mut World, input: &mut Input<'_>) {
    let Some((of, virtio)) = world.registers.pick(input) else { return };
    let Some((who, windows)) = world.windows.pick_of(*of, input) else { return };
    let (of, who, virtio, windows) = (*of, *who, virtio.clone(), windows.clone());
    let (card, what, wait) = (world.card(of), input.below(8), input.below(13));
    let side = world.sides[of.side];
    let mut reads = 0;
    let at_each_read = |mut then: AtRead| {
        let hook: Hook = Box::new(move |card| {
            then(card, reads);
            reads += 1;
        });
        *card.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    };
    match what {
        // The first six reads of configuration space are before the device is asked, which takes its time.
        0 => {
            world.serve(who);
            let mut other = Some((virtio.clone(), windows.clone()));
            at_each_read(Box::new(move |card, read| {
                if let Some((virtio, windows)) = other.take_if(|_| read == 6) {
                    card.show(0x40);
                    let tell =
                        move || tell_beside(side.cards()[of.party.card], &virtio, &windows, wait % 2 == 1);
                    *side.meanwhile.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tell));
                }
            }));
        }
        // Decoding goes off, comes back, and goes off again.
        1 => at_each_read(Box::new(move |card, read| {
            if (wait..wait + 3).contains(&read) {
                card.happen((read - wait) % 2);
            }
        })),
        event @ 2..5 => at_each_read(Box::new(move |card, read| {
            if read == wait {
                card.happen([0, 2, 4][event - 2]);
            }
        })),
        _ => {}
    }
    let before = world.card(who).lives();
    let proof = virtio.common.reset(&windows, LIMIT);
    *card.hook.lock().unwrap_or_else(PoisonError::into_inner) = None;
    *side.meanwhile.lock().unwrap_or_else(PoisonError::into_inner) = None;
    card.settle();
    if let Ok(quiet) = proof {
        world.proved(who, quiet, before);
    }
}

/// Another CPU tells the device of a queue while its reset is waited for, after a reset of its own if
/// `again`. The device may hear of it at once or when it is reset; its status reads 0 then, by right or not.
fn tell_beside(card: &Card, virtio: &VirtioPci, windows: &DmaWindows, again: bool) {
    if again {
        let _ = virtio.common.reset(windows, LIMIT);
        card.look();
    }
    let _ = virtio.common.set_driver_features(0);
    virtio.common.set_status(0x0b);
    card.race(true);
    if let Ok(table) = DescriptorTable::<Split>::new(windows, 8, 0, Direction::ToDevice)
        && let Ok(areas) = windows.allocate(4096)
        && let (Some(driver), Some(device)) = (areas.address(0), areas.address(2048))
    {
        let queue = table.queue(driver, device).expect("there is room");
        let told = virtio.common.set_queue(windows, 1, &queue);
        reached(if told.is_ok() { "told beside" } else { "not told beside" });
    }
    card.race(false);
    card.show(0);
}

fn config(world: &mut World, input: &mut Input<'_>) {
    let who = on_bus(input);
    let card = world.card(who);
    let config = card.config();
    let before = config.bars();
    match input.below(7) {
        0 => config.enable_memory(),
        1 => config.enable_intx(input.flag()),
        2 => {
            let other = on_bus(input);
            let granted = config.enable_bus_master(&world.card(other).grant());
            assert_eq!(granted.is_ok(), other.party == who.party);
        }
        3 => config.disable_bus_master(),
        4 => assert!(config.capabilities().count() < 64),
        5 => drop((config.read_u8(input.word() & 0xfff), config.read_u16(input.word() & 0xfff))),
        _ => {
            let Some(Bar::Memory { address: Some(start), .. }) = before[0] else { return };
            let held = world.registers.0.iter().any(|(of, _)| *of == who)
                || world.transports.0.iter().any(|(of, _)| *of == who);
            let region = MmioRegion::map(world.sides[who.side], None, start, usize::from(input.word()));
            assert!(region.is_err() || !held, "registers of two owners");
        }
    }
    card.look();
    assert_eq!(config.bars(), before, "a BAR has moved");
}

fn msix(world: &mut World, input: &mut Input<'_>) {
    let Some((_, virtio)) = world.registers.pick(input) else { return };
    let Some(table) = &virtio.msix else { return };
    let vector = input.below(8) as u16;
    // SAFETY: nobody sends it.
    let message = unsafe { MsiMessage::new(0xfee0_0000, input.byte().into()) };
    assert_eq!(table.set(vector, message).is_ok(), vector < table.size());
    let _ = table.enable(input.flag());
}

fn notify(world: &mut World, input: &mut Input<'_>) {
    if let Some((who, virtio)) = world.registers.pick_mut(input)
        && let Some(virtio) = Arc::get_mut(virtio)
        && let Ok(notifier) = virtio.notify.notifier(input.word(), input.word(), input.flag())
    {
        let who = *who;
        let _ = world.card(who).take_rung();
        world.notifiers.put(notifier);
    }
    if let Some(notifier) = world.notifiers.pick(input) {
        notifier.notify(input.word());
    }
    for card in world.sides.iter().flat_map(|side| side.cards()) {
        let _ = card.take_rung();
    }
}

/// Physical memory, in which only what is lent can be accessed.
fn shared(world: &mut World, input: &mut Input<'_>) {
    let side = input.below(2);
    let lent: Vec<&DmaRegion> = world.regions.0.iter().map(|(_, region)| &region.region).collect();
    let lent = &lent[..lent.len().min(input.below(7))];
    let map = world.sides[side].system.space.phys_map(lent);
    let allowed = map.iter().filter(|region| region.is_shared()).count();
    assert!(allowed <= lent.len());
    for region in map.iter() {
        let wrote = region.as_volatile_slice().is_ok();
        assert_eq!(wrote, region.is_shared(), "{region:?}");
        if wrote {
            let (_, block) = world.sides[side].block(region.start_addr().0).expect("it has an owner");
            assert!(block.party.card < 2);
        }
    }
    let at = GuestAddress(u64::from(input.word()) << 7);
    let inside = map.find_region(at).is_some_and(|region| region.is_shared());
    assert_eq!(map.get_slice(at, 1).is_ok(), inside);
}
