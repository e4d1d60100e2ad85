//! Steps with `Device`, `Transport` and `Queue`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::PoisonError;

use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{
    BufferList, Controls, Device, DeviceType, Error, PciTransport, QueueOptions, features,
};
use ringfence_memory::{DmaError, DmaPool, MsiMessage};

use crate::input::Input;
use crate::reached;
use crate::transport::{Liar, Lie, Proofs};
use crate::world::{Driven, Driver, Who, World};

/// One step.
pub fn step(world: &mut World, input: &mut Input<'_>) {
    match input.below(32) {
        0..2 => begin(world, input),
        2 => {
            let Some((who, offer, life)) = world.offers.take(input) else { return };
            let _ = (offer.offered(), offer.config::<u32>(input.byte().into()));
            negotiate(world, who, offer, life, input);
        }
        3..7 => queue(world, input),
        8..14 => submit(world, input),
        14..16 => kick(world, input),
        16..18 => take_back(world, input),
        18..20 => driver_ok(world, input),
        20..22 => start(world, input),
        22..24 => reset_queue(world, input),
        24..26 => reclaim(world, input),
        26 => shut_down(world, input),
        27 => {
            let Some(driven) = world.devices.take(input) else { return };
            if input.byte() & 7 == 7 { world.forgotten.push(Box::new(driven)) } else { drop(driven) }
        }
        28 => {
            let Some(driver) = world.queues.take(input) else { return };
            if input.byte() & 3 == 3 { world.forgotten.push(Box::new(driver)) } else { drop(driver) }
        }
        29 => {
            let (a, b) = (input.byte(), input.byte());
            if let at @ 1.. = world.devices.0.len() {
                world.devices.0.swap(usize::from(a) % at, usize::from(b) % at);
            }
            if let at @ 1.. = world.queues.0.len() {
                world.queues.0.swap(usize::from(a) % at, usize::from(b) % at);
            }
        }
        7 => {
            let Some(driven) = world.devices.pick(input) else { return };
            let device = &driven.device;
            let _ = (device.check(), device.config::<u16>(input.word().into()), device.config_u64(8));
            let _ = device.consistent_config(|device| device.config::<u32>(4));
            let windows = (driven.who, device.windows().clone());
            world.windows.put(windows);
        }
        30 => {
            let Some(driver) = world.queues.pick_mut(input) else { return };
            if input.flag() {
                driver.queue.disable_interrupts()
            } else {
                let _ = driver.queue.enable_interrupts();
            }
        }
        _ if input.flag() => drop(world.offers.take(input)),
        _ => drop(world.transports.take(input)),
    }
}

fn begin(world: &mut World, input: &mut Input<'_>) {
    let mut who = Who::any(input);
    who.party.model = false;
    let card = world.card(who);
    card.recover();
    let Some(function) = Function::read(card.config()) else { return };
    let shared = world.transports.0.iter().find(|(of, _)| *of == who).map(|(_, transport)| transport.clone());
    let transport = match shared {
        Some(transport) => transport,
        None => {
            let Ok(transport) = PciTransport::new(world.sides[who.side], &function) else { return };
            let transport = Rc::new(RefCell::new(transport));
            world.transports.put((who, transport.clone()));
            transport
        }
    };
    if input.flag() {
        transport.borrow_mut().use_intx().acknowledge();
    } else {
        // SAFETY: nobody sends it.
        let message = unsafe { MsiMessage::new(0xfee0_0000, 0x40) };
        let mut transport = transport.borrow_mut();
        let vectors = usize::from(transport.msix_vectors()).min(2);
        let _ = transport.use_msix(&vec![message; vectors]);
    }
    let lies =
        [Lie::None, Lie::None, Lie::None, Lie::None, Lie::OldProof, Lie::NoProof, Lie::NoQueue, Lie::Status];
    let lie = lies[input.below(lies.len())];
    let transport = Liar::new(transport, lie, Proofs(world.proofs.clone()));
    // Mostly its own windows.
    let own = world.windows.0.iter().find(|(of, _)| *of == who);
    let windows = match input.below(4) {
        0 => world.windows.pick(input),
        _ => own,
    };
    let (of, windows) = match windows {
        Some((of, windows)) => (*of, windows.clone()),
        None => {
            match ringfence_memory::DmaWindows::new(world.sides[who.side], card.config().address().id()) {
                Ok(windows) => (who, windows),
                Err(_) => return,
            }
        }
    };
    let how = input.byte();
    let grant = if how == 7 { world.sides[0].cards()[1].grant() } else { card.grant() };
    let before = card.lives();
    let offer = if how & 8 == 0 {
        Device::begin(transport, DeviceType::BLOCK, &grant, windows)
    } else {
        let starting = Device::begin_reset(transport, DeviceType::BLOCK, &grant, windows);
        let asked = starting.map_err(|(error, _)| error);
        asked.and_then(|mut starting| (0..3).find_map(|_| starting.poll()).unwrap_or(Err(Error::Timeout)))
    };
    card.look();
    if let Ok(offer) = offer {
        assert_eq!(of, who, "a device was begun with other windows than its own");
        assert!(card.lives() > before, "a device was begun that was never reset");
        let life = card.lives();
        if input.byte() & 3 == 3 {
            world.offers.put((who, offer, life));
        } else {
            negotiate(world, who, offer, life, input);
        }
    }
}

fn negotiate(
    world: &mut World,
    who: Who,
    offer: ringfence_drivers::virtio::Offer<Liar>,
    life: u64,
    input: &mut Input<'_>,
) {
    let choice = input.byte();
    let rings = (0..u64::BITS).map(|bit| 1 << bit).filter(|feature| features::QUEUES & feature != 0);
    let chosen = (0..).zip(rings).filter(|(bit, _)| choice >> bit & 1 != 0).map(|(_, feature)| feature);
    if let Ok(device) = offer.negotiate(chosen.sum()) {
        reached("device begun");
        assert_eq!(device.features() & !(device.offered()), 0);
        world.devices.put(Driven { who, device, life });
    }
    world.card(who).look();
}

fn queue(world: &mut World, input: &mut Input<'_>) {
    let at = usize::from(input.byte());
    let Some(at) = at.checked_rem(world.devices.0.len()) else { return };
    let (index, size, chains, segments) =
        (input.below(5) as u16, input.below(10) as u16, input.below(9) as u16, input.below(5) as u16);
    let framed = input.byte();
    let who = world.devices.0[at].who;
    world.serve(who);
    let foreign = world.windows.pick(input).map(|(of, windows)| (*of, windows.clone()));
    let Driven { device, life, .. } = &mut world.devices.0[at];
    let (windows, life) = (device.windows().clone(), *life);
    let sides = world.sides;
    let longest = segments + u16::from(framed >> 4 & 3);
    let options = QueueOptions { size, chains, segments, longest };
    let queue = device.queue::<BufferList>(index, &options, 1, |shape| match framed & 3 {
        0 => Controls::new(&windows, shape.slots).map(Some),
        1 if framed > 128 && foreign.is_some() => {
            let (of, windows) = foreign.as_ref().ok_or(Error::BadConfig)?;
            sides[of.side].serve(of.party);
            let controls = Controls::new(windows, shape.slots).map(Some);
            sides[who.side].serve(who.party);
            controls
        }
        _ => Ok(None),
    });
    let card = world.card(who);
    card.look();
    if let Ok(queue) = queue {
        reached("queue set up");
        let table = card.told().last().expect("it was told of a queue").addresses[0];
        world.queues.put(Driver { who, queue, life, table, started: false });
        // Something to submit; and often the rest of what a driver does.
        let pool = DmaPool::new(&windows, 4, 64).ok();
        let buffers = pool.iter().flat_map(|pool| [pool.take(), pool.take(), pool.take()]).flatten();
        buffers.for_each(|buffer| world.buffers.put((who, buffer)));
        if framed == 1
            && let Ok(ok) = world.devices.0[at].device.driver_ok()
            && let Some(driver) = world.queues.0.last_mut()
        {
            driver.queue.start(&ok);
            driver.started = true;
            world.driver_oks.put((who, ok, life));
        }
    }
}

fn submit(world: &mut World, input: &mut Input<'_>) {
    let Some(driver) = world.queues.pick_mut(input) else { return };
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    for _ in 0..=input.below(3) {
        if let Some((_, buffer)) = world.buffers.take_of(driver.who, input) {
            if input.flag() { writable.push(buffer) } else { readable.push(buffer) }
        }
    }
    let name = input.word();
    let list = BufferList::new(name.into(), readable, writable, u32::from(input.byte() & 1));
    let next = driver.queue.next_slot();
    match driver.queue.submit(list) {
        Ok(ticket) => {
            assert_eq!(next.map(usize::from), Some(ticket.index()));
            reached("chain submitted");
            assert!(driver.queue.is_in_flight(ticket) && ticket.index() < driver.queue.slots());
            if name % 8 == 7 {
                let lost = driver.queue.lost();
                assert!(driver.queue.give_up(ticket) && !driver.queue.give_up(ticket));
                assert_eq!(driver.queue.lost(), lost + 1);
            }
        }
        Err((_, list)) => drop(list.into_buffers()),
    }
}

fn kick(world: &mut World, input: &mut Input<'_>) {
    let Some(driver) = world.queues.pick_mut(input) else { return };
    let card = world.sides[driver.who.side].cards()[driver.who.party.card];
    let _ = card.take_rung();
    driver.queue.kick();
    driver.queue.kick_again();
    let rung = card.take_rung();
    if rung {
        reached("doorbell rung");
    }
    assert!(!rung || driver.started, "a doorbell rings before DRIVER_OK");
}

fn take_back(world: &mut World, input: &mut Input<'_>) {
    let Some(driver) = world.queues.pick_mut(input) else { return };
    let before = driver.queue.in_flight();
    if input.flag() {
        if let Ok(Some(done)) = driver.queue.pop() {
            reached("chain completed");
            let _ = done.buffers.name();
        }
    } else {
        let _ = driver.queue.reap(|done, _| drop(done.buffers.into_buffers()));
    }
    let now = driver.queue.in_flight();
    assert!(now <= before && (driver.queue.is_broken() || usize::from(now) == driver.queue.occupied()));
}

fn driver_ok(world: &mut World, input: &mut Input<'_>) {
    let Some(driven) = world.devices.pick_mut(input) else { return };
    if let Ok(ok) = driven.device.driver_ok() {
        let ok = (driven.who, ok, driven.life);
        world.driver_oks.put(ok);
    }
}

fn start(world: &mut World, input: &mut Input<'_>) {
    let Some(driver) = world.queues.pick_mut(input) else { return };
    let Some((who, ok, life)) = world.driver_oks.pick(input) else { return };
    driver.queue.start(ok);
    reached("queue started");
    driver.started |= (driver.who, driver.life) == (*who, *life);
}

fn reset_queue(world: &mut World, input: &mut Input<'_>) {
    let Some(driven) = world.devices.pick_mut(input) else { return };
    let Some(driver) = world.queues.pick_mut(input) else { return };
    let (broken, own) = (driver.queue.is_broken(), (driver.who, driver.life) == (driven.who, driven.life));
    let result = driven.device.reset_queue(&mut driver.queue);
    match result {
        Ok(()) => {
            reached("queue reset");
            assert!(own, "a queue of another life was set up again");
        }
        Err(Error::Dma(DmaError::WrongLife)) => {
            assert!(
                !own && driver.queue.is_broken() == broken,
                "something was done to a queue of another life"
            );
        }
        Err(_) => {}
    }
    world.sides.iter().flat_map(|side| side.cards()).for_each(|card| card.look());
}

fn reclaim(world: &mut World, input: &mut Input<'_>) {
    let proofs = world.proofs.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(proof) = proofs.pick(input) else { return };
    let Some(driver) = world.queues.pick_mut(input) else { return };
    let count = driver.queue.reclaim(&proof.quiet).count();
    let card = world.sides[driver.who.side].cards()[driver.who.party.card];
    if count > 0 {
        reached("chains reclaimed");
    }
    let known = card.told().iter().any(|told| told.addresses[0] == driver.table);
    assert!(count == 0 || !known, "{count} chains were taken from a device that still has them");
}

fn shut_down(world: &mut World, input: &mut Input<'_>) {
    let Some(driven) = world.devices.pick_mut(input) else { return };
    let who = driven.who;
    let before = world.sides[who.side].cards()[who.party.card].lives();
    let asked = driven.device.begin_shut_down();
    let first = driven.device.poll_shut_down();
    assert!(asked.is_ok() || first.is_none() || who.party.model);
    let again = driven.device.shut_down().ok();
    first.into_iter().chain(again).for_each(|quiet| world.proved(who, quiet, before));
    world.card(who).look();
}
