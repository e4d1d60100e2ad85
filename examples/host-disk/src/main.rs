//! A disk without a kernel: the driver over memory of the host, and a device model on its other end. Run it
//! by `cargo run -p host-disk`.
//!
//! In a kernel two things differ: the platform is the kernel's own, and the transport is that of a device on
//! the bus, whose grant is a promise about it.

use std::error::Error;

use ringfence_device_side::loopback::{Loopback, RamDisk};
use ringfence_drivers::block::{Block, Request, SECTOR_SIZE};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{DeviceId, DmaPool, DmaWindows, Platform};

/// Sectors of the disk, and requests in flight at a time.
const SECTORS: usize = 2048;
const DEPTH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    // What the drivers ask of a kernel: memory for devices, registers, a clock.
    let platform: &'static dyn Platform = Box::leak(Box::new(HostPlatform::new()));
    // What one device may reach; nobody else has it now.
    let windows = DmaWindows::for_model(platform, DeviceId::off_bus(0))?;
    // The device. It sees no memory but through `windows`, so its grant needs no promise.
    let device = Loopback::new(RamDisk::new(SECTORS, *b"host-disk\0\0\0\0\0\0\0\0\0\0\0"), windows.clone());
    let mut disk = Block::new(device.clone(), &device.grant()?, windows.clone())?;
    let queue = &mut disk.queue;
    let geometry = queue.geometry();
    println!("disk        {} sectors, blocks of {} bytes", geometry.sectors, geometry.block_size);

    // Every sector is written: its bytes are its number.
    let pool = DmaPool::new(&windows, DEPTH, SECTOR_SIZE)?;
    let mut next = 0..SECTORS as u64;
    let mut written = 0;
    while written < SECTORS {
        while let Some(mut buffer) = pool.take()
            && let Some(sector) = next.next()
        {
            buffer.write_slice(&sector.to_le_bytes().repeat(SECTOR_SIZE / 8), 0)?;
            // From here on the buffer is the device's.
            queue.submit(Request::Write { sector, buffer, len: SECTOR_SIZE }).map_err(|(error, _)| error)?;
        }
        // One notification for all of them.
        queue.kick();
        // Each buffer is ours again, and goes home to the pool when it is dropped.
        written += queue.reap(|done| done.result.expect("the model writes what it is given"))?;
    }

    // And one of them is read.
    let buffer = pool.take().ok_or("all buffers are home")?;
    queue.submit(Request::Read { sector: 1234, buffer, len: SECTOR_SIZE }).map_err(|(error, _)| error)?;
    queue.kick();
    let mut first = [0; 8];
    let mut copied = Ok(());
    queue.reap(|done| copied = done.buffer.map_or(Ok(()), |buffer| buffer.read_slice(&mut first, 0)))?;
    copied?;
    println!("written     {written} sectors");
    println!("sector 1234 says {}", u64::from_le_bytes(first));
    let counters = queue.counters();
    println!("requests    {}, with {} notifications", counters.completions, counters.kicks);
    if u64::from_le_bytes(first) == 1234 { Ok(()) } else { Err("it is another sector".into()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs() {
        super::main().unwrap();
    }
}
