//! The buffers of a chain: first those that the device reads, then those that it writes, each translated when
//! it is reached.
//!
//! A chain is looked through as a whole before anything of it is handed out; of a malformed one nothing is.

use alloc::vec::{self, Vec};

use ringfence_memory::{
    Bytes,
    fuchsia::{DeviceRange, DriverMem, DriverRange},
    virtqueue::{DESCRIPTOR_LEN, MAX_SIZE},
};

use super::queue::{DescChain, DescError, DriverNotify};
use super::ring::{Desc, DescAccess, DescType, descriptor};
use super::taken::{walk, writable};

/// Why the buffers of a chain cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainError {
    /// The chain, or a table that it refers to, breaks off.
    Desc(DescError),
    /// A buffer to read follows one to write (2.7.4.2).
    ReadableAfterWritable,
    /// Something is not in memory that the device may use in this way.
    TranslateFailed,
    /// A descriptor of an indirect table refers to a table (2.7.5.3.1).
    InvalidNestedIndirectChain,
    /// An indirect descriptor, without VIRTIO_F_INDIRECT_DESC or with another descriptor after it
    /// (2.7.5.3.1).
    InvalidIndirect,
    /// The length of an indirect table is not that of 1 to 32768 descriptors.
    InvalidTableLength(u32),
    /// A buffer of no bytes.
    Empty,
    /// More than 2^32 bytes (2.7.5.2).
    TooLong,
    /// There are buffers to read where only buffers to write are expected.
    ReadableRemaining,
    /// More was said to be written than was handed out.
    Overwritten,
}

ringfence_memory::messages! { ChainError {
    Desc(error: DescError) => "{error}",
    ReadableAfterWritable => "a buffer to read follows one to write",
    TranslateFailed => "not in memory that the device may use so",
    InvalidNestedIndirectChain => "a table of descriptors refers to a table",
    InvalidIndirect => "a table of descriptors where none may be",
    InvalidTableLength(bytes) => "a table of descriptors of {bytes} bytes",
    Empty => "an empty buffer",
    TooLong => "more than 4 GiB",
    ReadableRemaining => "buffers to read where none are expected",
    Overwritten => "more is said to be written than was handed out",
} }

/// Why a chain was not complete when it was returned. It was returned all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainCompleteError {
    /// There were buffers to read left.
    ReadableRemaining,
    /// There were buffers to write left.
    WritableRemaining,
    /// The chain has an error.
    Chain(ChainError),
}

ringfence_memory::messages! { ChainCompleteError {
    ReadableRemaining => "buffers to read are left",
    WritableRemaining => "buffers to write are left",
    Chain(error) => "the chain is bad: {error}",
} }

/// What is left of the readable or writable part of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// In bytes: at most 2^32.
    pub bytes: usize,
    /// In descriptors; one that was handed out in part counts.
    pub descriptors: usize,
}

/// The buffers of `chain`, in order, from indirect tables too; `tables` is memory that the device may read.
fn buffers<N: DriverNotify, M: DriverMem + ?Sized>(
    chain: &DescChain<'_, '_, N>,
    tables: &M,
) -> Result<Vec<Desc>, ChainError> {
    let mut buffers = Buffers::default();
    for desc in chain.iter() {
        let desc = desc?;
        if !desc.is_indirect() {
            buffers.push(desc)?;
            continue;
        }
        if !chain.allows_indirect() || desc.has_next() {
            return Err(ChainError::InvalidIndirect);
        }
        let (descs, error) = indirect(desc, tables, chain.is_packed())?;
        descs.into_iter().try_for_each(|desc| buffers.push(desc))?;
        error.map_or(Ok(()), Err)?;
    }
    Ok(buffers.descs)
}

/// The descriptors of a table: linked in a split virtqueue (2.7.5.3), all of them in a packed one (2.8.8).
fn indirect<M: DriverMem + ?Sized>(
    desc: Desc,
    tables: &M,
    packed: bool,
) -> Result<(Vec<Desc>, Option<DescError>), ChainError> {
    const LEN: u32 = DESCRIPTOR_LEN as u32;
    let (address, len) = desc.data();
    let count = u16::try_from(len / LEN).ok().filter(|_| len.is_multiple_of(LEN));
    let count = count.filter(|count| (1..=MAX_SIZE).contains(count));
    let count = count.ok_or(ChainError::InvalidTableLength(len))?;
    let table = translate(tables, address, len)?;
    if packed {
        let descs = (0..count).map(|index| descriptor(&table, index));
        let descs = descs.map(|words| words.map(|words| Desc::packed(words, 0).0.in_packed_table()));
        let descs = descs.collect::<Result<_, _>>().map_err(|_| ChainError::TranslateFailed)?;
        return Ok((descs, None));
    }
    Ok(walk(0, count.into(), |index| descriptor(&table, index).ok().map(Desc::split)))
}

fn translate<'m, M: DriverMem + ?Sized>(
    memory: &'m M,
    address: u64,
    len: u32,
) -> Result<DeviceRange<'m>, ChainError> {
    let range = DriverRange::try_from((address, len)).map_err(|_| DescError::BadRange(address, len))?;
    let range = memory.translate(range).ok_or(ChainError::TranslateFailed)?;
    // Whoever implements the trait decides where, not how much.
    if usize::try_from(len) == Ok(range.len()) { Ok(range) } else { Err(ChainError::TranslateFailed) }
}

#[derive(Default)]
struct Buffers {
    descs: Vec<Desc>,
    bytes: u64,
    writable: bool,
}

impl Buffers {
    fn push(&mut self, desc: Desc) -> Result<(), ChainError> {
        match desc.access_type() {
            DescType::Indirect => return Err(ChainError::InvalidNestedIndirectChain),
            DescType::Direct(DescAccess::DeviceWrite) => self.writable = true,
            DescType::Direct(DescAccess::DeviceRead) if self.writable => {
                return Err(ChainError::ReadableAfterWritable);
            }
            DescType::Direct(DescAccess::DeviceRead) => (),
        }
        let (_, len) = desc.data();
        if len == 0 {
            return Err(ChainError::Empty);
        }
        self.bytes = self.bytes.saturating_add(len.into());
        if self.bytes > 1 << 32 {
            return Err(ChainError::TooLong);
        }
        self.descs.push(desc);
        Ok(())
    }
}

/// The part of a chain that is not handed out yet.
struct Rest<'q, 'a, N: DriverNotify> {
    chain: DescChain<'q, 'a, N>,
    descs: vec::IntoIter<Desc>,
    error: Option<ChainError>,
    reported: bool,
}

impl<'q, 'a, N: DriverNotify> Rest<'q, 'a, N> {
    fn new<M: DriverMem + ?Sized>(mut chain: DescChain<'q, 'a, N>, tables: &M) -> Self {
        let (descs, error) = match buffers(&chain, tables) {
            Ok(descs) => (descs, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        chain.writable = error.is_none().then(|| writable(&descs));
        Self { chain, descs: descs.into_iter(), error, reported: false }
    }

    /// Translates the next buffer of this kind. An error comes once.
    fn next<'m, M: DriverMem + ?Sized>(
        &mut self,
        access: DescAccess,
        memory: &'m M,
    ) -> Option<Result<DeviceRange<'m>, ChainError>> {
        if self.error.is_none() {
            let desc = self.descs.as_slice().first()?;
            if desc.access_type() != DescType::Direct(access) {
                return None;
            }
            let (address, len) = desc.data();
            match translate(memory, address, len) {
                Ok(range) => {
                    self.descs.next();
                    return Some(Ok(range));
                }
                Err(error) => self.error = Some(error),
            }
        }
        let reported = core::mem::replace(&mut self.reported, true);
        self.error.filter(|_| !reported).map(Err)
    }

    /// Gives the chain up because of an error that the caller reports.
    fn fail(&mut self, error: ChainError) -> ChainError {
        self.reported = true;
        *self.error.insert(error)
    }

    fn remaining(&self, access: DescAccess, current: usize) -> Result<Remaining, ChainError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut remaining = Remaining { bytes: current, descriptors: usize::from(current > 0) };
        let of_kind = |desc: &&Desc| desc.access_type() == DescType::Direct(access);
        for desc in self.descs.as_slice().iter().filter(of_kind) {
            remaining.bytes = remaining.bytes.saturating_add(desc.data().1 as usize);
            remaining.descriptors = remaining.descriptors.saturating_add(1);
        }
        Ok(remaining)
    }

    /// Checks that all was handed out; `current` bytes of a buffer were not.
    fn complete(&self, access: DescAccess, current: usize) -> Result<(), ChainCompleteError> {
        let has = |access, current| {
            let remaining = self.remaining(access, current).map_err(ChainCompleteError::Chain)?;
            Ok(remaining.descriptors > 0)
        };
        let (readable, writable) = if access == DescAccess::DeviceRead { (current, 0) } else { (0, current) };
        if has(DescAccess::DeviceRead, readable)? {
            Err(ChainCompleteError::ReadableRemaining)
        } else if has(DescAccess::DeviceWrite, writable)? {
            Err(ChainCompleteError::WritableRemaining)
        } else {
            Ok(())
        }
    }
}

/// Takes at most `limit` bytes from `current`, or else from what `next` gives.
fn limited<'m>(
    current: &mut Option<DeviceRange<'m>>,
    limit: usize,
    next: impl FnOnce() -> Option<Result<DeviceRange<'m>, ChainError>>,
) -> Option<Result<DeviceRange<'m>, ChainError>> {
    if limit == 0 {
        return None;
    }
    let range = match current.take() {
        Some(range) => range,
        None => match next()? {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        },
    };
    Some(Ok(match range.split_at(limit) {
        Some((head, tail)) => {
            *current = Some(tail).filter(|tail| !tail.is_empty());
            head
        }
        None => range,
    }))
}

fn len(range: &Option<DeviceRange<'_>>) -> usize {
    range.as_ref().map_or(0, DeviceRange::len)
}

/// The part of a chain that the device reads.
///
/// As an iterator it hands out the buffers, translated; after an error only `None`. Dropping it returns the
/// chain to the driver with nothing written.
pub struct ReadableChain<'q, 'a, 'm, N: DriverNotify, M: DriverMem + ?Sized> {
    rest: Rest<'q, 'a, N>,
    memory: &'m M,
    current: Option<DeviceRange<'m>>,
}

impl<'q, 'a, 'm, N: DriverNotify, M: DriverMem + ?Sized> ReadableChain<'q, 'a, 'm, N, M> {
    /// `memory` is what the device may read. An error of the chain shows in the first
    /// [`next`](Iterator::next) and in [`remaining`](Self::remaining).
    pub fn new(chain: DescChain<'q, 'a, N>, memory: &'m M) -> Self {
        Self { rest: Rest::new(chain, memory), memory, current: None }
    }

    /// The next buffer, or its next `limit` bytes if it is longer. `None` after the last one, and for a
    /// `limit` of 0.
    ///
    /// # Errors
    /// Once: any error of the chain, or a buffer that the device may not read.
    pub fn next_with_limit(&mut self, limit: usize) -> Option<Result<DeviceRange<'m>, ChainError>> {
        limited(&mut self.current, limit, || self.rest.next(DescAccess::DeviceRead, self.memory))
    }

    /// What is left to read. Whether the device may read it is not checked yet.
    ///
    /// # Errors
    /// That of the chain, every time.
    pub fn remaining(&self) -> Result<Remaining, ChainError> {
        self.rest.remaining(DescAccess::DeviceRead, len(&self.current))
    }

    /// Copies as much as there is into `buf`, and says how many bytes that was.
    ///
    /// # Errors
    /// As [`next_with_limit`](Self::next_with_limit), but every time; what `buf` then holds is of no use.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, ChainError> {
        let mut done = 0_usize;
        while let Some(buf) = buf.get_mut(done..) {
            let Some(range) = self.next_with_limit(buf.len()) else { break };
            let part = buf.get_mut(..range.as_ref().map_or(0, DeviceRange::len));
            let (range, part) = (range?, part.ok_or(ChainError::TranslateFailed)?);
            range.read_slice(part, 0).map_err(|_| self.rest.fail(ChainError::TranslateFailed))?;
            done = done.saturating_add(range.len());
        }
        self.rest.error.map_or(Ok(done), Err)
    }

    /// Returns a chain that was read to its end, and that has nothing to write. With an error it is returned
    /// too.
    ///
    /// # Errors
    /// If something was left, or wrong.
    pub fn return_complete(self) -> Result<(), ChainCompleteError> {
        self.rest.complete(DescAccess::DeviceRead, len(&self.current))
    }
}

impl<'m, N: DriverNotify, M: DriverMem + ?Sized> Iterator for ReadableChain<'_, '_, 'm, N, M> {
    type Item = Result<DeviceRange<'m>, ChainError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with_limit(usize::MAX)
    }
}

impl<N: DriverNotify, M: DriverMem + ?Sized> core::iter::FusedIterator for ReadableChain<'_, '_, '_, N, M> {}

/// The part of a chain that the device writes.
///
/// As an iterator it hands out the buffers, translated; after an error only `None`. Dropping it returns the
/// chain to the driver with the bytes written so far: those of [`write`](Self::write) and
/// [`add_written`](Self::add_written).
pub struct WritableChain<'q, 'a, 'm, N: DriverNotify, M: DriverMem + ?Sized> {
    rest: Rest<'q, 'a, N>,
    memory: &'m M,
    current: Option<DeviceRange<'m>>,
    /// Bytes that were handed out.
    given: u64,
}

impl<'q, 'a, 'm, N: DriverNotify, M: DriverMem + ?Sized> WritableChain<'q, 'a, 'm, N, M> {
    /// A chain with nothing to read. `tables` is what the device may read, `memory` what it may write.
    ///
    /// # Errors
    /// [`ReadableRemaining`](ChainError::ReadableRemaining), or an error of the chain. It has gone back to
    /// the driver.
    pub fn new<T: DriverMem + ?Sized>(
        chain: DescChain<'q, 'a, N>,
        tables: &T,
        memory: &'m M,
    ) -> Result<Self, ChainError> {
        Self::over(Rest::new(chain, tables), 0, memory)
    }

    /// As [`new`](Self::new), but buffers to read are skipped.
    ///
    /// # Errors
    /// An error of the chain. It has gone back to the driver.
    pub fn new_ignore_readable<T: DriverMem + ?Sized>(
        chain: DescChain<'q, 'a, N>,
        tables: &T,
        memory: &'m M,
    ) -> Result<Self, ChainError> {
        Self::skipping(Rest::new(chain, tables), memory)
    }

    /// The rest of a chain whose readable part was read to its end; `memory` is what the device may write.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_readable<R: DriverMem + ?Sized>(
        readable: ReadableChain<'q, 'a, '_, N, R>,
        memory: &'m M,
    ) -> Result<Self, ChainError> {
        let unread = len(&readable.current);
        Self::over(readable.rest, unread, memory)
    }

    /// The rest of a chain; what was not read of it is skipped. `memory` is what the device may write.
    ///
    /// # Errors
    /// An error of the chain. It has gone back to the driver.
    pub fn from_incomplete_readable<R: DriverMem + ?Sized>(
        readable: ReadableChain<'q, 'a, '_, N, R>,
        memory: &'m M,
    ) -> Result<Self, ChainError> {
        Self::skipping(readable.rest, memory)
    }

    fn skipping(mut rest: Rest<'q, 'a, N>, memory: &'m M) -> Result<Self, ChainError> {
        let unread = rest.remaining(DescAccess::DeviceRead, 0)?.descriptors;
        rest.descs.by_ref().take(unread).for_each(drop);
        Self::over(rest, 0, memory)
    }

    fn over(rest: Rest<'q, 'a, N>, unread: usize, memory: &'m M) -> Result<Self, ChainError> {
        if rest.remaining(DescAccess::DeviceRead, unread)?.descriptors > 0 {
            return Err(ChainError::ReadableRemaining);
        }
        Ok(Self { rest, memory, current: None, given: 0 })
    }

    /// The next buffer, or its next `limit` bytes if it is longer. `None` after the last one, and for a
    /// `limit` of 0. What is written to it has to be [added](Self::add_written).
    ///
    /// # Errors
    /// Once: a buffer that the device may not write.
    pub fn next_with_limit(&mut self, limit: usize) -> Option<Result<DeviceRange<'m>, ChainError>> {
        let next = || self.rest.next(DescAccess::DeviceWrite, self.memory);
        let range = limited(&mut self.current, limit, next);
        if let Some(Ok(range)) = &range {
            self.given = self.given.saturating_add(range.len() as u64);
        }
        range
    }

    /// What is left to write. Whether the device may write it is not checked yet.
    ///
    /// # Errors
    /// That of the chain, every time.
    pub fn remaining(&self) -> Result<Remaining, ChainError> {
        self.rest.remaining(DescAccess::DeviceWrite, len(&self.current))
    }

    /// Counts `bytes` as written to the buffers that were handed out, which are written from the start and
    /// without gaps (2.7.8.2).
    ///
    /// # Errors
    /// [`Overwritten`](ChainError::Overwritten) if there would be more than was handed out; nothing is
    /// counted.
    pub fn add_written(&mut self, bytes: u32) -> Result<(), ChainError> {
        let written = self.rest.chain.written.checked_add(bytes).filter(|&sum| u64::from(sum) <= self.given);
        self.rest.chain.written = written.ok_or(ChainError::Overwritten)?;
        Ok(())
    }

    /// Bytes written so far.
    pub fn written(&self) -> u32 {
        self.rest.chain.written
    }

    /// Copies as much of `buf` as there is room for, counts it as written, and says how many bytes that was.
    ///
    /// # Errors
    /// As [`next_with_limit`](Self::next_with_limit), but every time; what was written before is counted.
    pub fn write(&mut self, buf: &[u8]) -> Result<usize, ChainError> {
        let mut done = 0_usize;
        while let Some(buf) = buf.get(done..) {
            let Some(range) = self.next_with_limit(buf.len()) else { break };
            let range = range?;
            let part = buf.get(..range.len()).ok_or(ChainError::TranslateFailed)?;
            range.write_slice(part, 0).map_err(|_| self.rest.fail(ChainError::TranslateFailed))?;
            self.add_written(u32::try_from(range.len()).map_err(|_| ChainError::Overwritten)?)?;
            done = done.saturating_add(range.len());
        }
        self.rest.error.map_or(Ok(done), Err)
    }

    /// Returns a chain whose buffers were all handed out. With an error it is returned too.
    ///
    /// # Errors
    /// If something was left, or wrong.
    pub fn return_complete(self) -> Result<(), ChainCompleteError> {
        self.rest.complete(DescAccess::DeviceWrite, len(&self.current))
    }
}

impl<'m, N: DriverNotify, M: DriverMem + ?Sized> Iterator for WritableChain<'_, '_, 'm, N, M> {
    type Item = Result<DeviceRange<'m>, ChainError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with_limit(usize::MAX)
    }
}

impl<N: DriverNotify, M: DriverMem + ?Sized> core::iter::FusedIterator for WritableChain<'_, '_, '_, N, M> {}
