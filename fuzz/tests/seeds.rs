//! The seeds that are written by hand: what safe code could do before, one each, by its number in the review
//! of ownership. Each reaches what it is about and finds everything in order. Take away what forbids it, and
//! its seed is red.

use std::path::Path;

use ringfence_fuzz::{REACHED, run};

/// Devices write this; then some of each device's things is made (see `prepare`).
const BEGIN: &[u8] = &[0xee, 1];
/// A descriptor of a buffer that the device writes, in the table of side 0's first card.
const STORE: &[u8] = &[40, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0];
/// That card is told of a queue with this table; areas are in its region.
const TELL: &[u8] = &[128, 2, 0, 0, 0, 0, 1, 0, 1, 0];
/// Its pool and both buffers go.
const DROP_POOL: &[u8] = &[40, 12, 0, 40, 10, 0, 40, 10, 0];
/// It is reset by its own registers.
const RESET: &[u8] = &[128, 6, 0, 0, 7, 0];
/// A driver begins side 0's second card, with RING_RESET.
const DEVICE: &[u8] = &[184, 0, 2, 0, 0, 1, 0, 0, 32];
const QUEUE: &[u8] = &[184, 3, 0, 0, 8, 4, 2, 2, 0];
const DRIVER_OK: &[u8] = &[184, 18, 0];
const START: &[u8] = &[184, 20, 0, 0];
const SUBMIT: &[u8] = &[184, 8, 0, 0, 0, 1, 0, 0, 0];
const KICK: &[u8] = &[184, 14, 0];
const SHUT_DOWN: &[u8] = &[184, 26, 0];
const DROP_DEVICE: &[u8] = &[184, 27, 0, 0];
const RESET_QUEUE: &[u8] = &[184, 22, 0, 0];
const RECLAIM: &[u8] = &[184, 24, 0, 0];

/// Name, program, what it must reach how often.
type Seed = (&'static str, &'static [&'static [u8]], &'static [(&'static str, usize)]);

#[rustfmt::skip]
const SEEDS: &[Seed] = &[
    // By the registers of the other side's card, which has the same number.
    ("o2-foreign-registers", &[STORE, TELL, DROP_POOL, &[128, 6, 1, 7, 7, 0]], &[("queue told", 1)]),
    // Decoding is off before; then it goes off just before the device is asked, and again before the answer.
    ("o3-decoding-off", &[STORE, TELL, DROP_POOL, &[128, 11, 0, 0], RESET], &[("queue told", 1)]),
    ("o3-decoding-off-meanwhile", &[STORE, TELL, DROP_POOL, &[128, 6, 0, 0, 1, 3]], &[("queue told", 1)]),
    ("o5-stale-address", &[STORE, TELL, &[128, 4, 0, 0, 0, 0]], &[("reset proved", 1)]),
    // Its descriptor is of memory that the reset gave back.
    ("o5-stale-table", &[STORE, TELL, DROP_POOL, RESET, TELL], &[("queue told", 1), ("reset proved", 1)]),
    // In the life that is to end, and in the next, which somebody else began.
    ("o6-told-meanwhile", &[&[128, 6, 0, 0, 0, 0]], &[("not told beside", 1), ("reset proved", 1)]),
    ("o6-next-life", &[&[128, 6, 0, 0, 0, 1]], &[("told beside", 1)]),
    // A table of the other side, in a queue and behind a descriptor; then its buffer in a descriptor.
    ("o7-two-platforms", &[&[128, 2, 0, 0, 23, 0, 1, 0, 1, 0]], &[]),
    ("o7-two-platforms-segment", &[&[40, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0x27], TELL],
        &[("queue told", 1)]),
    ("o8-old-queue", &[DEVICE, QUEUE, SHUT_DOWN, DROP_DEVICE, DEVICE, DRIVER_OK, RESET_QUEUE],
        &[("device begun", 2)]),
    ("o8-old-proof",
        &[DEVICE, SHUT_DOWN, DROP_DEVICE, DEVICE, QUEUE, DRIVER_OK, START, SUBMIT, KICK, RECLAIM],
        &[("chain submitted", 1), ("doorbell rung", 1)]),
    ("o8-after-shut-down", &[DEVICE, QUEUE, DRIVER_OK, SHUT_DOWN, RESET_QUEUE], &[("queue set up", 1)]),
    ("o9-old-driver-ok", &[DEVICE, DRIVER_OK, SHUT_DOWN, DROP_DEVICE, DEVICE, QUEUE, SUBMIT, START, KICK],
        &[("chain submitted", 1), ("queue started", 1)]),
    // A transport that hands out a proof of another life.
    ("o2-lying-transport", &[DEVICE, SHUT_DOWN, DROP_DEVICE, &[184, 0, 2, 0, 4, 1, 0, 0, 32]],
        &[("reset proved", 1)]),
    // Numbers in a buffer, which a packed ring would take for an indirect table; an area that goes on behind
    // its region.
    ("queue-format",
        &[&[40, 5, 0, 0, 0, 8, 8], &[40, 6, 0, 0, 0x34, 0x12, 0, 0, 0, 0], &[40, 6, 0, 1, 16, 0, 0, 0, 0, 0],
        &[40, 14, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], &[128, 2, 0, 0, 0, 2, 2, 0, 0, 2, 0, 0]],
        &[("wrong format", 1)]),
    ("queue-room", &[&[128, 2, 0, 0, 0, 0, 0, 0, 0xfe, 0x0f, 1, 0]], &[]),
    ("o26-two-drivers", &[&[40, 0, 0]], &[]),
];

#[test]
fn seeds_are_what_is_written_here() {
    let mut red = Vec::new();
    for (name, program, expected) in SEEDS {
        let bytes = [&[BEGIN], *program].concat().concat();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/adversary").join(name);
        if std::env::var_os("RINGFENCE_WRITE_SEEDS").is_some() {
            std::fs::write(&path, &bytes).expect("writable");
        }
        assert_eq!(std::fs::read(path).expect("checked in"), bytes, "{name}");
        // Machines of its own: nothing depends on the seeds before.
        let ran = std::thread::spawn(move || {
            run(&bytes);
            REACHED.take()
        });
        let Ok(reached) = ran.join() else {
            red.push(format!("{name} finds something"));
            continue;
        };
        let count = |what| reached.get(what).copied().unwrap_or(0);
        let missed = expected.iter().filter(|(what, least)| count(what) < *least);
        red.extend(missed.map(|(what, _)| format!("{name} does not reach {what:?}")));
    }
    assert!(red.is_empty(), "red: {red:?}");
}
