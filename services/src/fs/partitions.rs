//! Partition tables: GPT (UEFI 2.10, section 5.3), and the MBR with its chain of logical partitions.
//!
//! A table only says where to look: each partition is a [`Part`](crate::block::Part) of the disk, which ends
//! where the disk does, so that partitions which overlap or lie elsewhere do no harm.

use super::{FsError, PageCache, corrupt, zeroed};
use crate::block::{BlockSource, SECTOR_SIZE};
use alloc::vec::Vec;
use crc::{CRC_32_ISO_HDLC, Crc};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Partitions of one disk that are looked at: as many as a GPT usually has room for. So many logical
/// partitions are followed, too.
pub const MAX_PARTITIONS: usize = 128;

/// Most bytes of entries that are read, to check their sum: 64 times the usual.
const MAX_ENTRIES: u64 = 1 << 20;
/// So much of them is read at once; no entry may be longer.
const PIECE: u64 = 4096;
const SECTOR: u64 = SECTOR_SIZE as u64;
const CACHE: usize = 16 << 10;
const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Where a partition is. It may lie outside of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: a place in the table, from 1 on; logical ones begin with 5.
    pub number: u32,
    /// Its first sector of [`SECTOR_SIZE`].
    pub first: u64,
    /// Its length in such sectors.
    pub sectors: u64,
}

/// A partition table.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// What it is called.
    pub kind: &'static str,
    /// Its first [`MAX_PARTITIONS`] partitions, in the order of their numbers.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// Reads the table of `disk`; `None` if there is none.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] for a GPT of which neither copy is whole; [`FsError::Io`], [`FsError::NoMemory`].
    pub async fn read<B: BlockSource>(disk: &B) -> Result<Option<Self>, FsError> {
        let reader = Reader { unit: disk.block_size(), cache: PageCache::new(disk, CACHE) };
        let Some(mbr) = reader.mbr(0).await? else { return reader.gpt(false).await };
        if mbr.iter().any(|entry| entry.kind == PROTECTIVE) {
            let gpt = reader.gpt(true).await?;
            return gpt.map(Some).ok_or(corrupt("of its partition table (GPT) neither copy is whole"));
        }
        match reader.partitions_of(&mbr).await? {
            None => reader.gpt(false).await,
            table => Ok(table),
        }
    }
}

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MbrEntry {
    boot: u8,
    _first_place: [u8; 3],
    kind: u8,
    _last_place: [u8; 3],
    first: U32,
    count: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Mbr {
    _code: [u8; 446],
    entries: [MbrEntry; 4],
    signature: [u8; 2],
}

const _: () = assert!(size_of::<Mbr>() == SECTOR_SIZE);

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptHeader {
    signature: [u8; 8],
    _revision: U32,
    size: U32,
    checksum: U32,
    _reserved: U32,
    here: U64,
    _other: U64,
    _usable: [U64; 2],
    _disk: [u8; 16],
    entries: U64,
    count: U32,
    entry_size: U32,
    entries_checksum: U32,
}

/// Where [`GptHeader::checksum`] lies; it counts as zeros.
const HEADER_CHECKSUM: usize = 16;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptEntry {
    kind: [u8; 16],
    _id: [u8; 16],
    first: U64,
    last: U64,
}

struct Reader<'a, B> {
    /// Bytes in the disk's logical block.
    unit: u64,
    cache: PageCache<&'a B>,
}

impl<B: BlockSource> Reader<'_, B> {
    async fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let mut bytes = zeroed(len)?;
        self.cache.read(offset, &mut bytes, 0).await?;
        Ok(bytes)
    }

    /// The entries of an MBR, or of what extends it, at a byte of the disk.
    async fn mbr(&self, at: u64) -> Result<Option<[MbrEntry; 4]>, FsError> {
        let end = at.checked_add(SECTOR);
        if end.is_none_or(|end| end > self.cache.size_bytes()) {
            return Ok(None);
        }
        let bytes = self.bytes(at, SECTOR_SIZE).await?;
        // Boot sectors of file systems have the signature too, and code where the entries are.
        let is_table = |mbr: &&Mbr| {
            mbr.signature == [0x55, 0xaa] && mbr.entries.iter().all(|entry| entry.boot & 0x7f == 0)
        };
        Ok(Mbr::ref_from_bytes(&bytes).ok().filter(is_table).map(|mbr| mbr.entries))
    }

    async fn partitions_of(&self, mbr: &[MbrEntry; 4]) -> Result<Option<Table>, FsError> {
        let mut partitions = Vec::new();
        for (number, entry) in (1..).zip(mbr) {
            if entry.is_data() {
                self.add(&mut partitions, number, entry.first.get().into(), entry.count.get().into())?;
            }
        }
        for extended in mbr.iter().filter(|entry| entry.is_extended()) {
            self.follow(extended.first.get().into(), &mut partitions).await?;
        }
        Ok((!partitions.is_empty()).then_some(Table { kind: "MBR", partitions }))
    }

    /// Follows the chain of logical partitions from the start of an extended one. Each link has one
    /// partition, and leads to the next one; the chain may lead anywhere.
    async fn follow(&self, base: u64, partitions: &mut Vec<Partition>) -> Result<(), FsError> {
        let mut number = partitions.iter().map(|partition| partition.number).max().unwrap_or(0).max(4);
        let mut at = base;
        for _ in 0..MAX_PARTITIONS {
            let Some([data, next, ..]) = self.mbr(at.saturating_mul(self.unit)).await? else { break };
            if data.is_data() {
                let first = at.saturating_add(data.first.get().into());
                if partitions.iter().any(|known| known.first == self.sectors(first)) {
                    break; // the chain has come round
                }
                number = number.saturating_add(1);
                self.add(partitions, number, first, data.count.get().into())?;
            }
            if !next.is_extended() {
                break;
            }
            at = base.saturating_add(next.first.get().into());
        }
        Ok(())
    }

    fn add(
        &self,
        partitions: &mut Vec<Partition>,
        number: u32,
        first: u64,
        count: u64,
    ) -> Result<(), FsError> {
        if partitions.len() < MAX_PARTITIONS {
            partitions.try_reserve(1).map_err(|_| FsError::NoMemory)?;
            partitions.push(Partition { number, first: self.sectors(first), sectors: self.sectors(count) });
        }
        Ok(())
    }

    fn sectors(&self, units: u64) -> u64 {
        units.saturating_mul(self.unit / SECTOR)
    }

    /// A GPT for the disk's logical blocks, or for those of the other size that is in use: a disk may be a
    /// copy of another one. The copy at the end counts only where there should be a GPT.
    async fn gpt(mut self, is_expected: bool) -> Result<Option<Table>, FsError> {
        for unit in [self.unit, SECTOR, 4096] {
            self.unit = unit;
            let last = self.cache.size_bytes().checked_div(unit).unwrap_or(0).saturating_sub(1);
            if let Some(partitions) = self.entries_by(1).await? {
                return Ok(Some(Table { kind: "GPT", partitions }));
            }
            if is_expected && let Some(partitions) = self.entries_by(last).await? {
                let kind = "GPT (the copy at the end, as the first is damaged)";
                return Ok(Some(Table { kind, partitions }));
            }
        }
        Ok(None)
    }

    /// The partitions by the GPT header in a logical block, if that is one.
    async fn entries_by(&self, block: u64) -> Result<Option<Vec<Partition>>, FsError> {
        let size = self.cache.size_bytes();
        let Some(at) = block.checked_mul(self.unit).filter(|at| at.saturating_add(self.unit) <= size) else {
            return Ok(None);
        };
        let bytes = self.bytes(at, self.unit.min(PIECE) as usize).await?;
        let Some(header) = checked_header(&bytes, block) else { return Ok(None) };
        let entry = u64::from(header.entry_size.get());
        let len = entry.saturating_mul(header.count.get().into());
        let start = header.entries.get().checked_mul(self.unit);
        let fits = |start: &u64| start.checked_add(len).is_some_and(|end| end <= size) && len <= MAX_ENTRIES;
        let is_entry_size = entry.is_power_of_two() && (128..=PIECE).contains(&entry);
        let Some(start) = start.filter(fits).filter(|_| is_entry_size) else { return Ok(None) };

        let (mut digest, mut partitions, mut number, mut at) = (CRC32.digest(), Vec::new(), 0u32, 0);
        while at < len {
            let piece = PIECE.min(len.saturating_sub(at));
            let bytes = self.bytes(start.saturating_add(at), piece as usize).await?;
            digest.update(&bytes);
            for entry in bytes.chunks_exact(entry as usize) {
                number = number.saturating_add(1);
                if let Some((first, count)) = range_of(entry) {
                    self.add(&mut partitions, number, first, count)?;
                }
            }
            at = at.saturating_add(piece);
        }
        Ok((digest.finalize() == header.entries_checksum.get()).then_some(partitions))
    }
}

impl MbrEntry {
    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind) && self.count.get() > 0
    }

    fn is_data(&self) -> bool {
        self.kind != 0 && !EXTENDED.contains(&self.kind) && self.count.get() > 0
    }
}

/// The GPT header at the start of `bytes`, if it is one for the logical block it is in.
fn checked_header(bytes: &[u8], block: u64) -> Option<&GptHeader> {
    let (header, _) = GptHeader::ref_from_prefix(bytes).ok()?;
    let size = usize::try_from(header.size.get()).ok().filter(|&size| size >= size_of::<GptHeader>())?;
    let (before, after) = bytes.get(..size)?.split_at_checked(HEADER_CHECKSUM)?;
    let mut digest = CRC32.digest();
    [before, &[0; 4], after.get(4..)?].iter().for_each(|part| digest.update(part));
    let is_whole = digest.finalize() == header.checksum.get();
    (header.signature == *b"EFI PART" && header.here.get() == block && is_whole).then_some(header)
}

/// First logical block and number of blocks by an entry of a GPT, if it is in use.
fn range_of(entry: &[u8]) -> Option<(u64, u64)> {
    let (entry, _) = GptEntry::ref_from_prefix(entry).ok()?;
    let count = entry.last.get().checked_sub(entry.first.get())?.saturating_add(1);
    (entry.kind != [0; 16]).then_some((entry.first.get(), count))
}
