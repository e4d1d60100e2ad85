//! The kernel's test harness: each file in `kernel/tests/` is a bootable image, each test in it a boot of its
//! own.
//!
//! The host chooses through the fw_cfg option `opt/org.ringfence/test`. With `list` the guest prints
//! `test-name: NAME` for each test, followed by ` qemu=KEY` for one that needs a special machine. With a name
//! it runs that test, prints `test-passed: NAME` or `test-failed: NAME: MESSAGE`, and leaves QEMU with the
//! matching [`ExitCode`]. Passing takes both the line and the code, so a test that leaves QEMU on its own
//! does not pass.

use spin::Once;

pub use crate::arch::recovery::{FaultInfo, expect_fault};
use crate::qemu::{self, ExitCode};
use crate::{fw_cfg, println};

/// Something the harness can run: a function marked `#[test_case]`, or an [`On`].
pub trait Test: Sync {
    /// Its name: that of the function.
    fn name(&self) -> &'static str;
    /// Key of the special machine it needs.
    fn qemu(&self) -> Option<&'static str> {
        None
    }
    /// Runs it; it fails by panicking.
    fn run(&self);
}

impl<F: Fn() + Sync> Test for F {
    fn name(&self) -> &'static str {
        core::any::type_name::<F>().rsplit("::").next().unwrap_or_default()
    }

    fn run(&self) {
        self();
    }
}

/// A test that needs a special machine: its key, as in `blk` or `cpu=qemu64`, and the test function.
pub struct On(pub &'static str, pub &'static dyn Test);

impl Test for On {
    fn name(&self) -> &'static str {
        self.1.name()
    }

    fn qemu(&self) -> Option<&'static str> {
        Some(self.0)
    }

    fn run(&self) {
        self.1.run();
    }
}

static CURRENT: Once<&'static str> = Once::new();

/// The test that is running, if any.
pub fn current() -> Option<&'static str> {
    CURRENT.get().copied()
}

/// Does what the host asks for; see the module documentation.
pub fn run(tests: &[&'static dyn Test]) -> ! {
    let wanted = fw_cfg::option("test").unwrap_or_default();
    if wanted == "list" {
        for test in tests {
            match test.qemu() {
                Some(key) => println!("test-name: {} qemu={key}", test.name()),
                None => println!("test-name: {}", test.name()),
            }
        }
        qemu::exit(ExitCode::Passed);
    }
    let Some(test) = tests.iter().find(|test| test.name() == wanted) else {
        panic!("there is no test called {wanted:?}");
    };
    CURRENT.call_once(|| test.name());
    test.run();
    pass()
}

/// Ends the running test as passed: for tests that cannot return, such as tasks.
pub fn pass() -> ! {
    println!("test-passed: {}", current().unwrap_or_default());
    qemu::exit(ExitCode::Passed)
}

/// Makes a test image out of a file in `kernel/tests/`. The file begins with
///
/// ```ignore
/// #![no_std]
/// #![no_main]
/// #![feature(custom_test_frameworks)]
/// #![test_runner(ringfence_kernel::testing::run)]
/// #![reexport_test_harness_main = "run_tests"]
///
/// ringfence_kernel::test_image!();
/// ```
///
/// and marks its tests with `#[test_case]`.
#[macro_export]
macro_rules! test_image {
    () => {
        $crate::entry!(main);

        fn main(_boot: $crate::boot::Boot) -> ! {
            run_tests();
            unreachable!("the harness leaves QEMU")
        }
    };
}
