//! The file system against images that e2fsprogs made, damaged images, and disks that answer late, out of order or not
//! at all. The oracle is the folder an image was made from, or `debugfs`.

mod allocations;
mod cache;
mod corruption;
mod disks;
mod images;
mod mounted;
mod reads;
mod support;

/// Says that a test cannot run here, in the words that `xtask` reads. Not by `eprint!`, which libtest swallows.
fn skip(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "\ntest-skipped: {test}: {}", why.replace('\n', " "));
}
