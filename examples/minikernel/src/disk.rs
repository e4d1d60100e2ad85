//! What is done with a disk: its first blocks are read, and written behind themselves.

use alloc::vec::Vec;

use ringfence_drivers::block::{self, Block, BlockQueue, Request, SECTOR_SIZE};
use ringfence_drivers::virtio::{Error, Notify, Transport, features};
use ringfence_memory::{DmaBuf, DmaError, DmaPool, DmaWindows};

use crate::println;

/// Requests in flight at a time, and bytes of each.
const DEPTH: usize = 32;
const LEN: usize = 4096;

/// Reads, writes, flushes, and reads again.
pub fn try_out<T: Transport>(mut disk: Block<T>, windows: &DmaWindows, wait: &dyn Fn()) -> Result<(), Error> {
    let names: Vec<&str> = features::names(block::features::NAMES, disk.control.features()).collect();
    println!("features    {}", names.join(" "));
    let pool = DmaPool::new(windows, DEPTH, LEN)?;
    let sector = |block: usize| (block * LEN / SECTOR_SIZE) as u64;
    let read = |block| Some(Request::Read { sector: sector(block), buffer: pool.take()?, len: LEN });
    let write = |(block, buffer)| Request::Write { sector: sector(block), buffer, len: LEN };

    let buffers = carry_out("read", &mut disk.queue, (0..DEPTH).filter_map(read), wait)?;
    println!("checksum    {:016x}", checksum(&buffers)?);
    // The buffers are ours again, and so they can be the disk's again.
    let buffers = carry_out("write", &mut disk.queue, (DEPTH..).zip(buffers).map(write), wait)?;
    drop(buffers); // and home they go to the pool
    carry_out("flush", &mut disk.queue, [Request::Flush].into_iter(), wait)?;
    let buffers = carry_out("read", &mut disk.queue, (DEPTH..2 * DEPTH).filter_map(read), wait)?;
    println!("checksum    {:016x}", checksum(&buffers)?);
    Ok(())
}

/// Has the disk do all that is requested at once, and sleeps meanwhile. The buffers come back in the order of
/// the requests.
fn carry_out(
    what: &str,
    queue: &mut BlockQueue<impl Notify>,
    requests: impl Iterator<Item = Request>,
    wait: &dyn Fn(),
) -> Result<Vec<DmaBuf>, Error> {
    let submitted = requests.map(|request| queue.submit(request)); // its buffer is the device's from here on
    let tickets = submitted.collect::<Result<Vec<_>, _>>()?;
    println!("{what:<12}{} at once", queue.in_flight());
    queue.kick(); // one notification for all of them
    let (mut buffers, mut result) = (Vec::new(), Ok(()));
    while queue.in_flight() > 0 {
        wait();
        loop {
            queue.reap(|done| {
                result = result.and(done.result);
                let place = tickets.iter().position(|ticket| *ticket == done.ticket);
                buffers.extend(place.zip(done.buffer)); // and whoever gets it now has it again
            })?;
            if !queue.enable_interrupts() {
                break; // nothing came meanwhile: the next one interrupts
            }
        }
    }
    result?;
    buffers.sort_by_key(|(place, _)| *place);
    Ok(buffers.into_iter().map(|(_, buffer)| buffer).collect())
}

/// FNV-1a, of 64 bits, of all that is in the buffers.
fn checksum(buffers: &[DmaBuf]) -> Result<u64, DmaError> {
    let (mut block, mut sum) = ([0; LEN], 0xcbf2_9ce4_8422_2325);
    for buffer in buffers {
        buffer.read_slice(&mut block, 0)?; // copied once: the device could change what is in the buffer
        sum = block.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    }
    Ok(sum)
}
