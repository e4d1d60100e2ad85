//! libFuzzer's way in: `./run-qemu.sh test check::fuzz` builds and runs it.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

/// Where the input that runs now is kept: a fault in the machine's memory ends the program before libFuzzer
/// can.
static LAST: LazyLock<Option<File>> =
    LazyLock::new(|| File::create(std::env::var_os("RINGFENCE_FUZZ_LAST")?).ok());

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(last) = &*LAST {
        let _ = last.set_len(bytes.len() as u64);
        let _ = last.write_all_at(bytes, 0);
    }
    ringfence_fuzz::run(bytes);
});
