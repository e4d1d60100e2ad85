//! Tries files on the compiler with trybuild: `ringfence-compile-fail pass|fail GLOB`. A process of its own,
//! because trybuild reports on the terminal as it goes, in the middle of what the test harness prints.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(expected), Some(files)) = (arguments.next(), arguments.next()) else {
        panic!("usage: ringfence-compile-fail pass|fail GLOB");
    };
    // Does the work when it is dropped, and panics there if something is not as expected.
    let cases = trybuild::TestCases::new();
    match expected.as_str() {
        "pass" => cases.pass(files),
        _ => cases.compile_fail(files),
    }
}
