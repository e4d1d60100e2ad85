//! Another kernel with Ringfence's drivers in it: it shares nothing with `kernel/`. Run it by
//! `./run-qemu.sh minikernel`.
//!
//! | file | what is in it |
//! |---|---|
//! | `platform` | the one trait that a kernel implements for the drivers |
//! | `main` | how devices are found and brought up |
//! | `disk`, `card` | what is done with them |
//! | `boot`, `memory`, `interrupts` | what your kernel has already |
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

extern crate alloc;

mod boot;
mod card;
mod disk;
mod interrupts;
mod memory;
mod platform;

use boot::StartInfo;
use platform::{MyKernel, REGISTERS};
use ringfence_drivers::block::Block;
use ringfence_drivers::net::{Net, Options};
use ringfence_drivers::pci::{self, Function};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::{DeviceType, Error, MmioTransport, PciTransport, Transport};
use ringfence_memory::{ConfigPorts, DeviceId, DmaGrant, DmaWindows, MmioRegion, PhysAddr, VirtioMmio};

/// The first Rust, called once, by `boot`.
extern "C" fn main(info: &StartInfo) -> ! {
    interrupts::init();
    let done = start_devices(boot::command_line(info));
    println!("pages lent  {} of {}", memory::pages_in_use(), memory::PAGES);
    let code = match done {
        Ok(()) => 0x10,
        Err(error) => {
            println!("failed      {error}");
            0x11
        }
    };
    boot::exit(code)
}

/// Has all devices do their work, one after the other: those that the command line names, and those on the
/// PCI bus.
fn start_devices(command_line: &str) -> Result<(), Error> {
    // SAFETY: the ports are the host bridge's, or nobody's, and nobody else uses them.
    static PORTS: ConfigPorts = unsafe { ConfigPorts::new() };

    let mut words = command_line.split(' ').filter_map(|word| word.strip_prefix("virtio_mmio.device="));
    words.try_for_each(start_word)?;
    let mut functions = pci::enumerate(&PORTS, 0)
        .filter(|function| matches!(probe(function), Match::Virtio(DeviceType::BLOCK | DeviceType::NET)));
    functions.try_for_each(|function| start_function(&function))
}

/// A device on the PCI bus.
fn start_function(function: &Function) -> Result<(), Error> {
    REGISTERS.offer_bars(&function.config());
    let mut transport = PciTransport::new(&MyKernel, function)?;
    println!("{} at {}, MSI-X", transport.device_type().name(), function.address());
    transport.use_msix(&[interrupts::message()])?; // one for whatever the device has to say
    bring_up(transport, function.address().id(), &interrupts::wait)
}

/// A device that QEMU's microvm names, as in `512@0xfeb00e00:12`: bytes of registers, where, and its line.
fn start_word(word: &str) -> Result<(), Error> {
    let parsed = word.split_once("@0x").and_then(|(len, rest)| {
        let (start, line) = rest.split_once(':')?;
        Some((PhysAddr::new(u64::from_str_radix(start, 16).ok()?)?, len.parse().ok()?, line.parse().ok()?))
    });
    let (start, len, line) = parsed.ok_or(Error::BadConfig)?;
    let device = DeviceId::off_bus(u32::from(line));
    let _ = REGISTERS.offer(start, len); // refused if an earlier device has offered the page that they share
    let registers = MmioRegion::map(&MyKernel, Some(device), start, len)?;
    // SAFETY: QEMU says that they are the device's registers; nobody else uses them or its name.
    let registers = unsafe { VirtioMmio::new(&MyKernel, device, &registers) }?;
    let transport = MmioTransport::new(registers)?;
    let isr = transport.interrupts()?;
    interrupts::enable_line(line);
    println!("{} at {word}", transport.device_type().name());
    bring_up(transport, device, &|| {
        interrupts::wait();
        isr.acknowledge(); // the line falls, and rises again when there is more
    })
}

/// Brings a device up and has it do its work. `wait` sleeps until it calls.
fn bring_up(transport: impl Transport, device: DeviceId, wait: &dyn Fn()) -> Result<(), Error> {
    let windows = DmaWindows::new(&MyKernel, device)?; // nobody else has them now
    // SAFETY: there is no IOMMU; this is the promise that the device accesses only what it was told.
    let grant = unsafe { DmaGrant::without_iommu(device) };
    match transport.device_type() {
        DeviceType::BLOCK => {
            let disk = Block::new(transport, &grant, windows.clone())?;
            disk::try_out(disk, &windows, wait)?;
        }
        DeviceType::NET => {
            let options = Options { queue_size: 16, ..Options::default() }; // 20 pages with its buffers
            let card = Net::with_options(transport, &grant, windows, &options)?;
            card::try_out(card, wait)?;
        }
        _ => {}
    }
    println!("interrupts  {}", interrupts::count());
    Ok(())
}
