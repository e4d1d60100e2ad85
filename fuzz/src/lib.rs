//! An adversarial safe caller: [`run`] takes a byte string for a program that calls the safe public functions
//! of `ringfence-memory` and `ringfence-drivers` in any order, with what it has of two platforms, two cards
//! on each, and device models. Behind the registers are [cards](card) that follow everything they were told
//! and not yet made to forget by a reset, and write wherever they may. After each step
//! [everything](world::World::check) must be in order.
//!
//! `tests/adversary.rs` draws programs, `fuzz_targets/adversary.rs` lets libFuzzer find them, and `seeds/`
//! keeps some. A failing input is replayed by `RINGFENCE_REPLAY=FILE cargo test -p ringfence-fuzz -- replay`,
//! or by putting it into `seeds/adversary/`.
#![allow(missing_docs, reason = "nobody calls it but the tests beside it")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use ringfence_memory::Owner;

use crate::card::Manner;
use crate::input::Input;
use crate::side::{Party, Side};
use crate::world::{Who, World};

pub mod card;
mod dma;
mod driver;
pub mod input;
pub mod mmio;
mod private;
mod registers;
pub mod side;
pub mod surface;
mod transport;
pub mod world;

/// Notes that something worked.
pub fn reached(what: &'static str) {
    REACHED.with_borrow_mut(|reached| *reached.entry(what).or_default() += 1);
}

/// How long a reset may take: two looks at the clock.
pub const LIMIT: Duration = Duration::from_millis(200);

/// Steps of a program, at most.
const STEPS: usize = 200;

thread_local! {
    /// How often something worked, by name: what programs reach.
    pub static REACHED: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };

    /// Used again for the next program, unless the one before broke something.
    static SIDES: RefCell<Option<[&'static Side; 2]>> = const { RefCell::new(None) };
}

/// Runs a program.
///
/// # Panics
/// If something is not as it must be.
pub fn run(bytes: &[u8]) {
    let sides = SIDES.take().unwrap_or_else(|| [Side::new(), Side::new()]);
    let before = sides.map(books);
    let mut world = World::new(sides);
    let mut input = Input(bytes);
    let manner = input.byte();
    for card in sides.iter().flat_map(|side| side.cards()) {
        card.behave(if manner == u8::MAX { Manner::Honest } else { Manner::Garbage(manner) });
    }
    if input.flag() {
        // Most programs begin so.
        prepare(&mut world);
    }
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input);
        world.check();
    }
    world.end();
    assert_eq!(sides.map(books), before, "something was lost");
    SIDES.set(Some(sides));
}

/// Two drivers with a device of each platform: one by its registers, one by what it takes to begin a
/// `Device`.
fn prepare(world: &mut World) {
    for side in 0..2 {
        for card in 0..side::CARDS {
            let who = Who { side, party: Party { card, model: false } };
            if card == 0 {
                registers::prepare(world, who);
            }
            dma::prepare(world, who);
        }
    }
}

fn step(world: &mut World, input: &mut Input<'_>) {
    match input.byte() {
        0..32 => {
            let (first, rest) = world.private.split_at_mut(1);
            let (mine, other) = if input.flag() { (first, rest) } else { (rest, first) };
            mine[0].step(input, &mut other[0]);
        }
        32..112 => dma::step(world, input),
        112..160 => registers::step(world, input),
        _ => driver::step(world, input),
    }
}

/// Frames by owner, idle ones together, and free pages.
fn books(side: &'static Side) -> ([usize; Owner::ALL.len()], usize) {
    let space = side.system.space;
    let mut frames = Owner::ALL.map(|owner| space.frames().count(owner));
    let at = |owner| Owner::ALL.iter().position(|it| *it == owner).expect("all of them");
    // The arena may have grown.
    frames[at(Owner::Free)] += std::mem::take(&mut frames[at(Owner::DmaIdle)]);
    (frames, space.pages().free_pages())
}
