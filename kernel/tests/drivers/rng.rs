//! An entropy device whose bytes are known.

use alloc::vec::Vec;

use ringfence_drivers::rng::{MOST, Rng};
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::devices::{Devices, bring_up};
use ringfence_kernel::testing::On;
use ringfence_kernel::time;

use crate::support::{assert_audit_clean, functions_for, numbered, rings, tables, until};

fn entropy_is_the_devices() {
    const ROUNDS: usize = 10;
    let function = functions_for(DeviceType::ENTROPY)[0];
    let (mut rng, _interrupts, windows) = bring_up(&function, 1, Rng::new).expect("the device starts");
    assert_eq!(rng.features(), 1 << 32 | rings());
    assert_audit_clean();
    let mut all = Vec::new();
    while all.len() < ROUNDS * MOST {
        rng.request().expect("the ring is sound");
        let mut bytes = [0; MOST];
        let count = until("bytes", || {
            let count = rng.poll(&mut bytes).expect("the ring is sound");
            (count > 0).then_some(count)
        });
        all.extend_from_slice(&bytes[..count]);
    }
    assert_eq!(all, numbered(0, all.len().next_multiple_of(8))[..all.len()]);
    assert_eq!(rng.counters().rejected, 0);
    drop(rng);
    assert_eq!(windows.usage(), (0, 0));
    assert_audit_clean();
}

/// QEMU gives the bytes of a file: all that came are those, and in order.
#[test_case]
const BYTES: On = On("rng-numbered,rings", &entropy_is_the_devices);

fn system_has_entropy() {
    let (devices, started) = Devices::start(tables());
    devices.log();
    let entropy = started.entropy.expect("there is a device");
    let start = time::now();
    let first = u64::from_le_bytes(numbered(0, 8).try_into().expect("eight bytes"));
    assert_eq!(entropy.bits(), Ok(first), "what was asked for at the start");
    assert_eq!(entropy.bits(), Ok(first + MOST as u64), "what fits no more is lost");
    log::info!("twice 64 bits took {:?}", time::now() - start);
    assert_audit_clean();
}

/// As the system asks for a seed, by any kind of interrupt.
#[test_case]
const SEED: On = On("rng-numbered", &system_has_entropy);

fn system_has_entropy_by_line() {
    system_has_entropy()
}
/// Without MSI-X.
#[test_case]
const SEED_LINE: On = On("rng-numbered,intx", &system_has_entropy_by_line);

fn system_has_entropy_over_mmio() {
    system_has_entropy()
}
/// Without PCI.
#[test_case]
const SEED_MMIO: On = On("microvm,rng-numbered", &system_has_entropy_over_mmio);
