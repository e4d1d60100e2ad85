//! Steps with DMA memory, and with device models.

use std::num::NonZeroUsize;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use ringfence_memory::*;
use ringfence_memory::{
    fuchsia::{DriverMem, DriverRange},
    rust_vmm::*,
};

use crate::input::Input;
use crate::with_table;
use crate::world::{Region, Table, Who, World};

const ORDERS: [Ordering; 3] = [Ordering::Relaxed, Ordering::Release, Ordering::SeqCst];

fn direction(input: &mut Input<'_>) -> Direction {
    [Direction::Both, Direction::ToDevice, Direction::FromDevice][input.below(3)]
}

/// One step.
pub fn step(world: &mut World, input: &mut Input<'_>) {
    match input.below(22) {
        0 => claim(world, input),
        1 => {
            if let Some((who, windows)) = world.windows.pick(input) {
                drop(windows.snapshot::<AtomicBitmap>(Direction::FromDevice).unwrap());
                let _ = (windows.generation(), windows.now());
                world.lives.put((*who, windows.life()));
                let copy = (*who, windows.clone());
                world.windows.put(copy);
            }
        }
        2 => drop(world.windows.take(input)),
        3 => {
            let Some((who, windows)) = world.windows.pick(input) else { return };
            world.serve(*who);
            let (who, len, direction) = (*who, usize::from(input.word()) % 9000, direction(input));
            let Ok(region) = windows.allocate_for(len, direction) else { return };
            let fill = input.byte();
            region.as_volatile_slice().fill(fill).expect("all of it");
            world.regions.put((who, Region { region, fill }));
        }
        4 => drop(world.regions.take(input)),
        5 => {
            let Some((who, region)) = world.regions.take(input) else { return };
            let at = usize::from(input.word());
            world.arrays.0.extend(region.region.array(at & !7, input.below(64)).ok().map(|it| (who, it)));
            world.halves.0.extend(region.region.array(at, input.below(64)).ok().map(|it| (who, it)));
            drop(region);
        }
        6 => {
            let Some((_, array)) = world.arrays.pick(input) else { return };
            let at = input.below(70);
            let _ = array.store(at, u64::from(input.word()) << input.below(48), Ordering::Relaxed);
            assert_eq!(array.load(at, Ordering::Relaxed).is_some(), at < array.len());
            array.store_wrapping(at, array.load_wrapping(at / 2, Ordering::Relaxed), Ordering::Relaxed);
            let part = array.part(at / 8, at % 8);
            assert!(part.is_none_or(|part| part.len() == at % 8 && at / 8 + part.len() <= array.len()));
            let Some((who, windows)) = world.windows.pick(input) else { return };
            world.serve(*who);
            let (who, count) = (*who, input.below(9));
            let blocks = DmaBlocks::<3>::new(windows, count);
            assert!(blocks.as_ref().is_ok_and(|blocks| blocks.len() == count) || blocks.is_err());
            world.blocks.0.extend(blocks.ok().map(|blocks| (who, blocks)));
            if let Some((_, blocks)) = world.blocks.pick(input)
                && let Some(block) = blocks.get(input.below(10))
            {
                block.store::<2>(block.load::<0>(Ordering::Relaxed), Ordering::Relaxed);
                let _ = blocks.get_wrapping(input.below(1000)).load::<1>(Ordering::Relaxed);
            }
        }
        7 => {
            let (first, second, third) = (world.arrays.take(input), input.flag(), input.flag());
            drop(first);
            drop(second.then(|| world.halves.take(input)));
            drop(third.then(|| world.blocks.take(input)));
        }
        8 => {
            let Some((who, windows)) = world.windows.pick(input) else { return };
            world.serve(*who);
            let (who, count, len) = (*who, input.below(9), usize::from(input.word()) % 1500);
            let direction = direction(input);
            let region = |len| match len % 2 {
                0 => windows.allocate_for(len, direction),
                _ => {
                    let pages = NonZeroUsize::new(len.div_ceil(4096)).ok_or(DmaError::BadLength)?;
                    let memory = world.sides[who.side].dma_allocate(windows.device(), pages, direction);
                    windows.adopt(memory.map_err(DmaError::Platform)?, direction).map_err(|(error, _)| error)
                }
            };
            let pool = match len % 4 {
                1 => {
                    region(count * len).and_then(|it| DmaPool::of(vec![it], len).map_err(|(error, _)| error))
                }
                2 => {
                    let buffer =
                        region(len).and_then(|it| DmaBuf::from_region(it).map_err(|(error, _)| error));
                    buffer.into_iter().for_each(|buffer| world.buffers.put((who, buffer)));
                    return;
                }
                _ => DmaPool::new_for(windows, count, len, direction),
            };
            pool.into_iter().for_each(|pool| world.pools.put((who, pool)));
        }
        9 => {
            for _ in 0..=input.below(3) {
                let Some((who, pool)) = world.pools.pick(input) else { return };
                let before = pool.available();
                let Some(mut buffer) = pool.take() else { return };
                assert_eq!((pool.available() + 1, buffer.len()), (before, pool.slot_len()));
                buffer.write_slice(&[0x77], input.below(buffer.len())).expect("inside");
                let who = *who;
                world.buffers.put((who, buffer));
            }
        }
        10 => drop(world.buffers.take(input)),
        11 => {
            if let Some((_, buffer)) = world.buffers.take(input) {
                if input.flag() { buffer.abandon() } else { world.forgotten.push(Box::new(buffer)) }
            }
        }
        12 => drop(world.pools.take(input)),
        13 => {
            let Some((who, windows)) = world.windows.pick(input) else { return };
            world.serve(*who);
            let (who, count, more, direction) =
                (*who, input.below(10), usize::from(input.word()) % 600, direction(input));
            let split = || DescriptorTable::new(windows, count, more, direction).map(Table::Split);
            let packed = || DescriptorTable::new(windows, count, more, direction).map(Table::Packed);
            let table = if input.flag() { split() } else { packed() };
            let Ok(table) = table else { return };
            let (words, halves) = (input.below(64), input.below(64));
            world.arrays.0.extend(with_table!(&table, it => it.array_after(words)).ok().map(|it| (who, it)));
            world.halves.0.extend(with_table!(&table, it => it.array_after(halves)).ok().map(|it| (who, it)));
            world.tables.put((who, table));
        }
        14..16 => store(world, input),
        16 => indirect(world, input),
        17 => {
            let Some((_, table)) = world.tables.pick_mut(input) else { return };
            let (what, at) = (input.below(4), input.below(10));
            match what {
                0 => with_table!(table, it => it.clear()),
                1 => {
                    let order = ORDERS[input.below(3)];
                    let held = with_table!(table, it => [it.store_held(order), it.store_held(order)]);
                    assert!(!held[1]);
                }
                _ => {
                    let (rest, len) =
                        with_table!(table, it => (it.load_rest(at, Ordering::Relaxed), it.len()));
                    assert_eq!(rest.is_some(), at < len);
                }
            }
        }
        18 => drop(world.tables.take(input)),
        19 => view(world, input),
        20 => publish(world, input),
        _ => end_life(world, input),
    }
    // Beyond the slots' number, from `extend`.
    while world.arrays.0.len() > 8 {
        world.arrays.0.remove(0);
    }
    while world.halves.0.len() > 8 {
        world.halves.0.remove(0);
    }
    while world.blocks.0.len() > 8 {
        world.blocks.0.remove(0);
    }
}

/// Some of each.
pub fn prepare(world: &mut World, who: Who) {
    world.serve(who);
    let id = world.card(who).config().address().id();
    let windows = DmaWindows::new(world.sides[who.side], id).expect("nobody has it");
    let made = (|| {
        let region = windows.allocate(4096)?;
        let table = DescriptorTable::new(&windows, 8, 0, Direction::ToDevice)?;
        Ok::<_, DmaError>((region, table, DmaPool::new(&windows, 4, 64)?))
    })();
    let (region, table, pool) = made.expect("the machine is large enough");
    let buffers = [pool.take(), pool.take()];
    buffers.into_iter().flatten().for_each(|buffer| world.buffers.put((who, buffer)));
    world.regions.put((who, Region { region, fill: 0 }));
    world.tables.put((who, Table::Split(table)));
    world.pools.put((who, pool));
    world.windows.put((who, windows));
}

fn claim(world: &mut World, input: &mut Input<'_>) {
    let who = Who::any(input);
    let side = world.sides[who.side];
    let id = world.card(who).config().address().id();
    let windows = if who.party.model { DmaWindows::for_model(side, id) } else { DmaWindows::new(side, id) };
    let taken = world.windows.0.iter().any(|(of, _)| *of == who)
        || world.devices.0.iter().any(|device| device.who == who)
        || world.queues.0.iter().any(|queue| queue.who == who)
        || world.regions.0.iter().any(|(of, _)| *of == who);
    match windows {
        Ok(windows) => {
            assert!(!taken, "two drivers have {who:?}");
            world.windows.put((who, windows));
        }
        Err(error) => assert_eq!(error, DmaError::Claimed),
    }
}

/// Writes a descriptor of something.
fn store(world: &mut World, input: &mut Input<'_>) {
    let Some((who, table)) = world.tables.pick_mut(input) else { return };
    let who = *who;
    let (at, held) = (input.below(10), input.flag());
    let bits = u64::from(input.word()) << 48 | u64::from(input.word()) << 32 | u64::from(input.byte());
    let (offset, len, writable) =
        (usize::from(input.word()) % 1500, usize::from(input.word()) % 1500, input.flag());
    let found = match input.below(3) {
        0 => world
            .blocks
            .pick_of(who, input)
            .map(|(of, it)| (*of, it.get(offset % 64).map(|block| block.segment::<1, 9>(writable)))),
        1 => world.buffers.pick_of(who, input).map(|(of, it)| (*of, it.segment(0, it.len(), writable))),
        _ => world.buffers.pick_of(who, input).map(|(of, it)| (*of, it.segment(offset, len, writable))),
    };
    let Some((of, Some(segment))) = found else { return };
    let wrapping = input.flag();
    let result = with_table!(table, it => match held {
        true => it.hold(at, [(&segment, bits)]),
        false if wrapping => it.store_wrapping(at, &segment, bits, Ordering::Relaxed),
        false => it.store(at, &segment, bits, Ordering::Relaxed),
    });
    assert_eq!(result == Err(DmaError::WrongDevice), of != who, "{of:?}'s in a table of {who:?}");
}

/// Writes a descriptor that refers to another table, or to the same.
fn indirect(world: &mut World, input: &mut Input<'_>) {
    let Some((who, mut table)) = world.tables.take(input) else { return };
    if let Some((of, other)) = world.tables.pick_of(who, input) {
        let (at, first, count, hold) = (input.below(10), input.below(10), input.below(10), input.flag());
        let bits = u64::from(input.word()) << 48 | u64::from(input.word()) << 32;
        let result = match (&mut table, other) {
            (Table::Split(table), Table::Split(other)) => {
                table.store_indirect(at, (other, first, count), bits, hold)
            }
            (Table::Packed(table), Table::Packed(other)) => {
                table.store_indirect(at, (other, first, count), bits, hold)
            }
            _ => Err(DmaError::WrongDevice),
        };
        assert!(result.is_err() || *of == who, "a table of {of:?} in one of {who:?}");
    }
    world.tables.put((who, table));
}

/// A model looks, writes wherever it may, and looks away.
fn view(world: &mut World, input: &mut Input<'_>) {
    if input.flag() {
        drop(world.snapshots.take(input));
        return;
    }
    let Some((who, windows)) = world.windows.pick(input) else { return };
    let who = *who;
    let view = if input.flag() { windows.readable().unwrap() } else { windows.writable().unwrap() };
    for region in view.iter() {
        let (start, len) = (region.start_addr(), region.len() as usize);
        let wrote = region.write_slice(&vec![0xcc; len], MemoryRegionAddress(0)).is_ok();
        assert!(who.party.model || !wrote, "a view of a device on the bus can be written");
        let last = MemoryRegionAddress(len as u64 - 1);
        assert!(region.write_slice(&[0xcc; 2], last).is_err(), "beyond the end of a window");
        let inside = DriverRange(start.0 as usize..start.0 as usize + len);
        assert_eq!(view.translate(inside).is_some(), who.party.model);
    }
    world.snapshots.put((who, view));
}

/// Tells a model, and sees what it then does.
fn publish(world: &mut World, input: &mut Input<'_>) {
    let Some((who, windows)) = world.windows.pick(input) else { return };
    let offset = usize::from(input.word());
    let addresses = [
        world.regions.pick(input).and_then(|(of, it)| Some((*of, it.region.address(offset)?))),
        world.arrays.pick(input).and_then(|(of, it)| Some((*of, it.address(offset % 64)?))),
        world.buffers.pick(input).map(|(of, it)| (*of, it.address())),
        world.tables.pick(input).map(|(of, it)| (*of, with_table!(it, it => it.address()))),
    ];
    for (of, address) in addresses.into_iter().flatten() {
        let Ok(number) = windows.publish(address) else { continue };
        assert!(who.party.model && of == *who, "{who:?} is told an address of {of:?}");
        world.sides[who.side].reach(who.party, number.0, 1, "published");
        let _ = windows.writable().unwrap().write_slice(&[0xcc; 16], number);
        let mut seen = [0; 16];
        let _ = windows.readable().unwrap().read_slice(&mut seen, number);
    }
}

/// Resets a model, or asks what a proof is worth.
fn end_life(world: &mut World, input: &mut Input<'_>) {
    if input.flag() {
        let proofs = world.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(proof), Some((of, life))) = (proofs.pick(input), world.lives.pick(input)) {
            assert!(!proof.quiet.ends(life) || *of == proof.who, "a proof about {:?} ends {of:?}", proof.who);
        }
        return;
    }
    let Some((who, windows)) = world.windows.pick(input) else { return };
    let who = *who;
    // A view of no memory reaches nothing.
    let viewed = world.snapshots.0.iter().any(|(of, view)| *of == who && view.num_regions() > 0);
    match windows.reset_model() {
        Ok(quiet) => {
            assert!(who.party.model, "{who:?} is no model");
            assert!(!viewed, "somebody looks at the memory of {who:?}");
            world.proved(who, quiet, 0);
        }
        Err(ResetError::Timeout) => assert!(viewed),
        Err(ResetError::WrongDevice) => assert!(!who.party.model),
    }
}
