//! The geometry of a file system, validated once, and where its inodes lie.

use super::hash::Hasher;
use super::layout::{
    self, CRC_START, GROUP_CHECKSUM, GROUP_HIGH, GroupDescriptor, GroupDescriptorHigh, SuperBlock, crc16,
    crc32c,
};
use super::{FsError, corrupt};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Byte of the disk at which the super block starts.
pub const SUPER_BLOCK_OFFSET: u64 = 1024;
/// Bytes in the super block.
pub const SUPER_BLOCK_SIZE: usize = size_of::<SuperBlock>();

/// Incompatible features: whoever does not know one must not read.
mod incompat {
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BIT64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGEDIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;

    /// What this reader knows. Encrypted inodes are refused one by one.
    pub const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BIT64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;

    /// Why the others are refused.
    pub const REFUSED: [(u32, &str); 3] =
        [(0x1, "compression"), (0x8, "this is an external journal"), (0x1000, "data in directory entries")];
}

mod ro_compat {
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const GDT_CSUM: u32 = 0x10;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CSUM: u32 = 0x400;
}

mod compat {
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const DIR_INDEX: u32 = 0x20;
    pub const SPARSE_SUPER2: u32 = 0x200;
}

/// Where the number of the journal's inode lies; 0 for a journal on another disk.
const JOURNAL_INODE: usize = 0xe0;
const FLAG_UNSIGNED_HASH: u32 = 2;

/// What the super block says, checked against itself and the size of the disk.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Bytes in a block: 1 KiB to 64 KiB.
    pub block_size: usize,
    /// log2 of `block_size`.
    pub block_bits: u32,
    /// Blocks in the file system.
    pub blocks: u64,
    /// Bytes in an inode.
    pub inode_size: usize,
    /// Volume label, padded with zeros.
    pub label: [u8; 16],
    /// Volume UUID.
    pub uuid: [u8; 16],
    /// Seed of all metadata checksums, where there are any.
    pub checksum_seed: Option<u32>,
    /// Directory entries have a type byte.
    pub has_file_type: bool,
    /// Directories may be larger than 4 GiB.
    pub has_large_dir: bool,
    /// The inode of the journal, if there is one; 0 if that is on another disk.
    pub journal: Option<u32>,
    /// The journal has to be replayed.
    pub needs_replay: bool,
    /// Directories may have hash trees.
    pub has_dir_index: bool,
    /// The hash of names in them.
    pub hasher: Hasher,
    first_data_block: u64,
    blocks_per_group: u64,
    inodes: u32,
    inodes_per_group: u32,
    desc_size: usize,
    is_64bit: bool,
    has_gdt_csum: bool,
    meta_bg_from: u64,
    reserved_descriptor_blocks: u64,
    sparse_super: bool,
    backup_groups: Option<[u32; 2]>,
}

/// What a group descriptor says of where the group's metadata lies, in blocks.
pub struct Descriptor {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
}

impl Geometry {
    /// Parses the super block of a disk of `disk_size` bytes.
    pub fn parse(bytes: &[u8], disk_size: u64) -> Result<Self, FsError> {
        let (sb, _) = SuperBlock::ref_from_prefix(bytes).map_err(|_| FsError::NotExt4)?;
        if sb.magic.get() != 0xef53 {
            return Err(FsError::NotExt4);
        }
        // Revision 0 knows no features and has a fixed inode size.
        let has_features = sb.rev_level.get() >= 1;
        let feature = |set: U32, bit: u32| has_features && set.get() & bit != 0;
        let has_csum = feature(sb.feature_ro_compat, ro_compat::METADATA_CSUM);
        if has_csum {
            let sum =
                crc32c(CRC_START, &[bytes.get(..SUPER_BLOCK_SIZE.saturating_sub(4)).unwrap_or_default()]);
            if sb.checksum_type != 1 {
                return Err(FsError::Unsupported("an unknown checksum type"));
            }
            if sum != sb.checksum.get() {
                return Err(corrupt("the super block fails its checksum"));
            }
        }
        if has_features {
            check_features(sb.feature_incompat.get())?;
        }
        let incompat = |bit| feature(sb.feature_incompat, bit);

        let log_block_size = sb.log_block_size.get();
        if log_block_size > 6 {
            return Err(corrupt("the block size is not 1 KiB to 64 KiB"));
        }
        let block_bits = log_block_size.saturating_add(10);
        let block_size = 1usize << block_bits;
        let is_64bit = incompat(incompat::BIT64);
        let blocks_hi = if is_64bit { sb.blocks_count_hi.get() } else { 0 };
        let checksum_seed = has_csum.then(|| match incompat(incompat::CSUM_SEED) {
            true => sb.checksum_seed.get(),
            false => crc32c(CRC_START, &[&sb.uuid]),
        });
        let journal = bytes.get(JOURNAL_INODE..).and_then(|rest| U32::read_from_prefix(rest).ok());
        let journal = journal.filter(|_| feature(sb.feature_compat, compat::HAS_JOURNAL));
        let geometry = Self {
            block_size,
            block_bits,
            blocks: u64::from(blocks_hi) << 32 | u64::from(sb.blocks_count_lo.get()),
            inode_size: if has_features { sb.inode_size.get().into() } else { layout::INODE_BASE_SIZE },
            label: sb.volume_name,
            uuid: sb.uuid,
            checksum_seed,
            has_file_type: incompat(incompat::FILETYPE),
            has_large_dir: incompat(incompat::LARGEDIR),
            journal: journal.map(|(inode, _)| inode.get()),
            needs_replay: incompat(incompat::RECOVER),
            has_dir_index: feature(sb.feature_compat, compat::DIR_INDEX),
            hasher: Hasher {
                seed: sb.hash_seed.map(U32::get),
                is_unsigned: sb.flags.get() & FLAG_UNSIGNED_HASH != 0,
            },
            first_data_block: sb.first_data_block.get().into(),
            blocks_per_group: sb.blocks_per_group.get().into(),
            inodes: sb.inodes_count.get(),
            inodes_per_group: sb.inodes_per_group.get(),
            desc_size: if is_64bit { sb.desc_size.get().into() } else { size_of::<GroupDescriptor>() },
            is_64bit,
            has_gdt_csum: feature(sb.feature_ro_compat, ro_compat::GDT_CSUM),
            meta_bg_from: match incompat(incompat::META_BG) {
                true => sb.first_meta_bg.get().into(),
                false => u64::MAX,
            },
            reserved_descriptor_blocks: sb.reserved_gdt_blocks.get().into(),
            sparse_super: feature(sb.feature_ro_compat, ro_compat::SPARSE_SUPER),
            backup_groups: feature(sb.feature_compat, compat::SPARSE_SUPER2)
                .then(|| sb.backup_bgs.map(|group| group.get())),
        };
        geometry.check(disk_size, feature(sb.feature_ro_compat, ro_compat::BIGALLOC))?;
        Ok(geometry)
    }

    fn check(&self, disk_size: u64, bigalloc: bool) -> Result<(), FsError> {
        let bits_per_block = (self.block_size as u64).saturating_mul(8);
        let ensure = |ok: bool, what| if ok { Ok(()) } else { Err(corrupt(what)) };
        let first = u64::from(self.block_size == 1024);
        ensure(
            self.first_data_block == first || (bigalloc && self.first_data_block == 0),
            "the first data block is wrong",
        )?;
        ensure(self.blocks > self.first_data_block, "there are no blocks")?;
        ensure(
            self.blocks.checked_mul(self.block_size as u64).is_some_and(|size| size <= disk_size),
            "the file system is larger than the disk: the image is truncated",
        )?;
        ensure(
            self.blocks_per_group > 0 && (bigalloc || self.blocks_per_group <= bits_per_block),
            "the number of blocks per group is wrong",
        )?;
        ensure(
            (1..=bits_per_block).contains(&u64::from(self.inodes_per_group))
                && self.group_count().checked_mul(self.inodes_per_group.into()) == Some(self.inodes.into()),
            "the number of inodes per group is wrong",
        )?;
        ensure(
            self.inode_size.is_power_of_two()
                && (layout::INODE_BASE_SIZE..=self.block_size).contains(&self.inode_size),
            "the inode size is wrong",
        )?;
        ensure(
            !self.is_64bit
                || (self.desc_size.is_power_of_two() && (64..self.block_size).contains(&self.desc_size)),
            "the group descriptor size is wrong",
        )
    }

    /// Bytes in the file system.
    pub fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size as u64)
    }

    /// Checks that `count` blocks from `first` on can hold metadata or data.
    pub fn check_blocks(&self, first: u64, count: u64) -> Result<(), FsError> {
        let end = first.checked_add(count);
        if first > self.first_data_block && end.is_some_and(|end| end <= self.blocks) {
            Ok(())
        } else {
            Err(corrupt("a block number is outside the file system"))
        }
    }

    /// Byte of the disk at which a block starts.
    pub fn byte_of(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_size as u64)
    }

    /// The group an inode is in, and its place there.
    pub fn group_of(&self, inode: u32) -> Result<(u32, u32), FsError> {
        let index = inode.checked_sub(1).filter(|_| inode <= self.inodes);
        let index = index.ok_or(corrupt("an inode number is out of range"))?;
        let place = (index.checked_div(self.inodes_per_group), index.checked_rem(self.inodes_per_group));
        place.0.zip(place.1).ok_or(corrupt("the number of inodes per group is wrong"))
    }

    fn group_count(&self) -> u64 {
        self.blocks.saturating_sub(self.first_data_block).div_ceil(self.blocks_per_group.max(1))
    }

    /// How many groups there are.
    pub fn groups(&self) -> u32 {
        // `check` has seen that the inodes, which have 32-bit numbers, are spread over all of them.
        u32::try_from(self.group_count()).unwrap_or(u32::MAX)
    }

    fn descriptors_per_block(&self) -> u64 {
        (self.block_size as u64).checked_div(self.desc_size as u64).unwrap_or(1).max(1)
    }

    fn first_block_of(&self, group: u64) -> u64 {
        group.saturating_mul(self.blocks_per_group).saturating_add(self.first_data_block)
    }

    /// Where on the disk the descriptor of a group lies, its length, and how many bytes of descriptors of the
    /// following groups are behind it.
    pub fn descriptor_of(&self, group: u32) -> Result<(u64, usize, usize), FsError> {
        let wrong = corrupt("a group number is out of range");
        let (group, per_block) = (u64::from(group), self.descriptors_per_block());
        let meta_group = group.checked_div(per_block).ok_or(wrong)?;
        let next_meta_group = meta_group.saturating_add(1).saturating_mul(per_block);
        let (block, end) = if meta_group < self.meta_bg_from {
            // One table, behind the super block.
            let first = u64::from(self.block_size == 1024).saturating_add(1);
            let end = self.meta_bg_from.saturating_mul(per_block).min(self.group_count());
            (meta_group.saturating_add(first), end)
        } else {
            // One block of descriptors in each meta group, behind a copy of the super block if there is one.
            let first_group = meta_group.saturating_mul(per_block);
            let boot_block = self.block_size == 1024 && meta_group == 0 && self.first_data_block == 0;
            let block = self
                .first_block_of(first_group)
                .saturating_add(u64::from(self.has_super_block(first_group)))
                .saturating_add(u64::from(boot_block));
            (block, next_meta_group)
        };
        self.check_blocks(block, 1)?;
        let within = group.checked_rem(per_block).ok_or(wrong)?.saturating_mul(self.desc_size as u64);
        let following = end.saturating_sub(group).saturating_sub(1).saturating_mul(self.desc_size as u64);
        let following = usize::try_from(following).unwrap_or(usize::MAX);
        Ok((self.byte_of(block).saturating_add(within), self.desc_size, following))
    }

    /// The first block of a group, and how many from there on hold copies of the super block and of
    /// descriptors.
    pub fn copies_in(&self, group: u32) -> (u64, u64) {
        let (group, per_block) = (u64::from(group), self.descriptors_per_block());
        let super_block = u64::from(self.has_super_block(group));
        let descriptors = if group.checked_div(per_block).unwrap_or(0) >= self.meta_bg_from {
            let within = group.checked_rem(per_block).unwrap_or(0);
            u64::from(within < 2 || within == per_block.saturating_sub(1))
        } else {
            let table = self.group_count().div_ceil(per_block).min(self.meta_bg_from);
            super_block.saturating_mul(table.saturating_add(self.reserved_descriptor_blocks))
        };
        // With blocks of 1 KiB and clusters, block 0 is the boot block, and before the super block.
        let boot_block = u64::from(group == 0 && self.block_size == 1024 && self.first_data_block == 0);
        let count = super_block.saturating_add(descriptors).saturating_add(boot_block);
        (self.first_block_of(group), count)
    }

    /// Whether a group starts with a copy of the super block.
    fn has_super_block(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            core::iter::successors(Some(base), |power| power.checked_mul(base))
                .take_while(|power| *power <= group)
                .any(|power| power == group)
        };
        match self.backup_groups {
            _ if group == 0 => true,
            Some(backups) => backups.iter().any(|&backup| u64::from(backup) == group),
            None => !self.sparse_super || group == 1 || [3, 5, 7].into_iter().any(is_power_of),
        }
    }

    /// What the descriptor of a group says.
    pub fn descriptor(&self, group: u32, bytes: &[u8]) -> Result<Descriptor, FsError> {
        let wrong = corrupt("a group descriptor is cut off");
        let (desc, _) = GroupDescriptor::ref_from_prefix(bytes).map_err(|_| wrong)?;
        let (before, after) = bytes.split_at_checked(GROUP_CHECKSUM).ok_or(wrong)?;
        let (_, after) = after.split_at_checked(2).ok_or(wrong)?;
        let number = group.to_le_bytes();
        let matches = match self.checksum_seed {
            Some(seed) => crc32c(seed, &[&number, before, &[0; 2], after]) as u16 == desc.checksum.get(),
            None if self.has_gdt_csum => crc16(&[&self.uuid, &number, before, after]) == desc.checksum.get(),
            None => true,
        };
        if !matches {
            return Err(corrupt("a group descriptor fails its checksum"));
        }
        let high = GroupDescriptorHigh::ref_from_prefix(bytes.get(GROUP_HIGH..).unwrap_or_default()).ok();
        let high = high.filter(|_| self.is_64bit).map(|(high, _)| high);
        let whole = |low: U32, high: Option<U32>| {
            u64::from(high.map_or(0, |high| high.get())) << 32 | u64::from(low.get())
        };
        let found = Descriptor {
            block_bitmap: whole(desc.block_bitmap_lo, high.map(|high| high.block_bitmap)),
            inode_bitmap: whole(desc.inode_bitmap_lo, high.map(|high| high.inode_bitmap)),
            inode_table: whole(desc.inode_table_lo, high.map(|high| high.inode_table)),
        };
        self.check_blocks(found.inode_table, self.inode_table_blocks())?;
        Ok(found)
    }

    /// Blocks in the inode table of a group.
    pub fn inode_table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group).saturating_mul(self.inode_size as u64);
        bytes.div_ceil(self.block_size as u64)
    }
}

fn check_features(set: u32) -> Result<(), FsError> {
    if let Some((_, why)) = incompat::REFUSED.iter().find(|(bit, _)| set & bit != 0) {
        return Err(FsError::Unsupported(why));
    }
    match set & !incompat::KNOWN {
        0 => Ok(()),
        _ => Err(FsError::Unsupported("an unknown incompatible feature")),
    }
}
