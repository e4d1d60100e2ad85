//! Random programs, and those that are kept.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ringfence_fuzz::REACHED;

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/adversary")
}

/// Steps with numbers that mostly name something, and mostly the driver's, of which more must come together.
fn program() -> impl Strategy<Value = Vec<u8>> {
    // 7 and so on: somebody else's (see `Slots::pick_of`).
    let number = prop_oneof![6 => 0..3_u8, 1 => any::<u8>(), 1 => (0..8_u8).prop_map(|at| at << 3 | 7)];
    let kind = prop::sample::select(vec![0_u8, 32, 112, 160, 160, 160, 160]);
    let step = (kind, any::<u8>(), prop::collection::vec(number, 2..8));
    let step = step.prop_map(|(kind, what, rest)| [vec![kind, what], rest].concat());
    let steps = prop::collection::vec(step, 0..60);
    (any::<u8>(), steps).prop_map(|(manner, steps)| [vec![manner, 1], steps.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000),
        // Each failing run breaks a pair of machines, of which there are 128.
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    })]

    fn programs(bytes in prop_oneof![program(), prop::collection::vec(any::<u8>(), 0..600)]) {
        ringfence_fuzz::run(&bytes);
    }
}

/// Random programs, and what they reached: a test that reaches nothing finds nothing.
#[test]
fn random_programs() {
    programs();
    REACHED.with_borrow(|reached| println!("{reached:#?}"));
}

/// Every seed, and the file that `RINGFENCE_REPLAY` names.
#[test]
fn replay() {
    let mut files: Vec<PathBuf> = seeds()
        .read_dir()
        .expect("they are checked in")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    files.extend(std::env::var_os("RINGFENCE_REPLAY").map(PathBuf::from));
    for file in files {
        println!("{}", file.display());
        let bytes = std::fs::read(file).expect("readable");
        // Machines of its own: nothing depends on the files before.
        std::thread::spawn(move || ringfence_fuzz::run(&bytes)).join().expect("it found something");
    }
}
