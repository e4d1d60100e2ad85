//! Partition tables made by `sfdisk`, and such as nobody would make.

use crate::disks::MemDisk;
use crate::support::{CACHE, e2fsprogs, make_image, run, tool, write};
use futures::executor::block_on;
use proptest::prelude::*;
use ringfence_services::block::{BlockError, BlockSource, Part};
use ringfence_services::fs::{FsError, MAX_PARTITIONS, Partition, Table, open_first};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const SECTOR: usize = 512;

/// A disk with another block size than 512.
struct Blocks(MemDisk, u64);

impl BlockSource for Blocks {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn block_size(&self) -> u64 {
        self.1
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        assert!((sector * 512).is_multiple_of(self.1) && (len as u64).is_multiple_of(self.1));
        self.0.read(sector, bufs).await
    }
}

/// A disk of `mib` MiB with a table by `sfdisk`, and its partitions by `sfdisk --json`: an oracle.
fn partitioned(mib: usize, script: &str) -> (Vec<u8>, Vec<Partition>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, vec![0; mib * MIB]).unwrap();
    let mut sfdisk = tool("sfdisk", "fdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let said = String::from_utf8(run(tool("sfdisk", "fdisk").arg("--dump").arg(&path))).unwrap();
    let name = path.to_str().unwrap();
    let known = said.lines().filter_map(|line| line.strip_prefix(name)?.split_once(" : "));
    let partitions = known.filter(|(_, rest)| !rest.contains("type=5") && !rest.contains("type=f"));
    let field = |rest: &str, name: &str| -> u64 {
        let (_, value) = rest.split_once(name).unwrap();
        value.split(',').next().unwrap().trim().parse().unwrap()
    };
    let partitions = partitions.map(|(number, rest)| Partition {
        number: number.trim().parse().unwrap(),
        first: field(rest, "start="),
        sectors: field(rest, "size="),
    });
    (fs::read(&path).unwrap(), partitions.collect())
}

fn ext4(label: &str, kib: usize) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "name", label.as_bytes());
    let image = make_image(folder.path(), &["-b", "1024", "-O", "^has_journal"], kib);
    let path = folder.path().join("image");
    fs::write(&path, image).unwrap();
    run(e2fsprogs("tune2fs").args(["-L", label]).arg(&path));
    fs::read(path).unwrap()
}

fn put(disk: &mut [u8], partition: &Partition, bytes: &[u8]) {
    disk[partition.first as usize * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}

fn table(disk: &[u8]) -> Result<Option<Table>, FsError> {
    block_on(Table::read(&MemDisk::new(disk.to_vec())))
}

type Chosen = Result<(usize, Option<u32>, String), String>;

/// Disk, partition and label of what is chosen, and what is said about the others.
fn choose(disks: &[&[u8]], wanted: Option<u32>) -> (Chosen, Vec<String>) {
    let disks: Vec<MemDisk> = disks.iter().map(|disk| MemDisk::new(disk.to_vec())).collect();
    let names = ["a", "b", "c"];
    let named: Vec<_> = names.into_iter().zip(&disks).collect();
    let mut lines = Vec::new();
    let mut say = |line: std::fmt::Arguments<'_>| lines.push(line.to_string());
    let chosen = block_on(open_first(&named, wanted, CACHE, &mut say)).map(|choice| {
        let label = String::from_utf8(choice.files.label().to_vec()).unwrap();
        (choice.disk, choice.partition, label)
    });
    (chosen, lines)
}

fn found(disk: usize, partition: Option<u32>, label: &str) -> Chosen {
    Ok((disk, partition, label.to_owned()))
}

/// Swap, an XFS file system, and two of ext4.
fn four_partitions() -> (Vec<u8>, Vec<Partition>) {
    let script = "label: gpt\nsize=1MiB, type=S\nsize=1MiB\nsize=2MiB\nsize=2MiB\n";
    let (mut disk, partitions) = partitioned(10, script);
    put(&mut disk, &partitions[1], b"XFSB");
    put(&mut disk, &partitions[2], &ext4("second", 2048));
    put(&mut disk, &partitions[3], &ext4("third", 2048));
    (disk, partitions)
}

#[test]
fn gpt() {
    let (disk, partitions) = four_partitions();
    assert_eq!(partitions.len(), 4);
    assert_eq!(table(&disk), Ok(Some(Table { kind: "GPT", partitions })));
    let (chosen, lines) = choose(&[&disk], None);
    assert_eq!(chosen, found(0, Some(3), "second"));
    let expected = [
        "a: GPT with 4 partitions",
        "partition 1 of a: not an ext4 file system",
        "partition 2 of a: an XFS file system: only ext2, ext3 and ext4 are read",
        "partition 4 of a: partition 3 comes first",
    ];
    assert_eq!(lines, expected);
    assert_eq!(choose(&[&disk], Some(4)).0, found(0, Some(4), "third"));
    let (why, _) = choose(&[&disk], Some(2));
    assert!(why.unwrap_err().starts_with("The disk cannot be used: an XFS file system"));
    assert_eq!(choose(&[&disk], Some(5)).0, Err("No disk has a partition 5.".into()));
}

/// Whatever byte of the first table is wrong, the copy is used; and if that is wrong too, it is said.
#[test]
fn damaged_gpt() {
    let (disk, partitions) = four_partitions();
    let end = disk.len();
    // Headers, used entries and unused ones; the reserved rest of the header's sector does not count.
    let places = (0..92).step_by(3).chain([512, 520, 560, 700, 1100, 512 + 127 * 128]);
    for place in places {
        let mut damaged = disk.clone();
        damaged[512 + place] ^= 0x40;
        let table = table(&damaged).unwrap().unwrap();
        assert!(table.kind.contains("copy"), "byte {place}: {}", table.kind);
        assert_eq!(table.partitions, partitions);
        damaged[end - 512 + 24] ^= 1;
        let (why, lines) = choose(&[&damaged], None);
        assert!(why.unwrap_err().contains("neither copy is whole"), "{lines:?}");
    }
}

#[test]
fn mbr_with_logical_partitions() {
    let script = "label: dos\nsize=1MiB, type=83\nsize=1MiB, type=82\nsize=1MiB\nsize=7MiB, type=5\n\
                  size=1MiB, type=83\nsize=2MiB, type=83\nsize=1MiB, type=83\n";
    let (mut disk, partitions) = partitioned(12, script);
    let numbers: Vec<u32> = partitions.iter().map(|partition| partition.number).collect();
    assert_eq!(numbers, [1, 2, 3, 5, 6, 7]);
    put(&mut disk, &partitions[4], &ext4("logical", 2048));
    assert_eq!(table(&disk), Ok(Some(Table { kind: "MBR", partitions })));
    assert_eq!(choose(&[&disk], None).0, found(0, Some(6), "logical"));
    assert_eq!(choose(&[&disk], Some(6)).0, found(0, Some(6), "logical"));
}

/// Chains of logical partitions that lead back, to themselves, on for ever and to nowhere.
#[test]
fn chains_that_do_not_end() {
    let script = "label: dos\nsize=512KiB\nsize=512KiB\nsize=512KiB\nsize=7MiB, type=5\n\
                  size=1MiB, type=83\nsize=1MiB, type=83\n";
    let (disk, partitions) = partitioned(12, script);
    // The second link, which has a partition one MiB behind it.
    let link = (partitions[4].first as usize - 2048) * SECTOR;
    assert_eq!(disk[link + 510..link + 512], [0x55, 0xaa]);
    let itself = (partitions[4].first - partitions[3].first) as u32;
    let entry = link + 446 + 16;
    for next in [0, itself, 0x00ff_ffff, u32::MAX] {
        let mut disk = disk.clone();
        disk[entry + 4] = 5;
        disk[entry + 8..entry + 12].copy_from_slice(&next.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&1u32.to_le_bytes());
        assert_eq!(table(&disk).unwrap().unwrap().partitions.len(), 5, "{next:#x}");
    }
    // 200 links in a row.
    let mut disk = vec![0; 2 * MIB];
    let set = |disk: &mut [u8], sector: usize, slot: usize, kind: u8, first: u32| {
        let at = sector * SECTOR + 446 + slot * 16;
        (disk[at + 4], disk[at + 12]) = (kind, 1);
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[sector * SECTOR + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
    };
    set(&mut disk, 0, 0, 5, 10);
    for link in 0..200 {
        set(&mut disk, 10 + link, 0, 0x83, 1000);
        set(&mut disk, 10 + link, 1, 5, link as u32 + 1);
    }
    assert_eq!(table(&disk).unwrap().unwrap().partitions.len(), MAX_PARTITIONS);
}

/// A first disk that cannot be used hides no second one, and a third is not served but named.
#[test]
fn several_disks() {
    let (table, _) = four_partitions();
    let xfs = [b"XFSB".to_vec(), vec![0; MIB]].concat();
    let (chosen, lines) = choose(&[&xfs, &table, &ext4("whole", 2048)], None);
    assert_eq!(chosen, found(1, Some(3), "second"));
    assert!(lines[0].starts_with("a: an XFS file system"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "c: partition 3 of b comes first");
    assert_eq!(choose(&[&xfs, &ext4("whole", 2048), &table], None).0, found(1, None, "whole"));
    // A whole disk has no partition.
    assert_eq!(choose(&[&ext4("whole", 2048), &table], Some(4)).0, found(1, Some(4), "third"));
    let (why, lines) = choose(&[&vec![0; MIB], &xfs, &[]], None);
    assert!(why.unwrap_err().contains("as the log says. b: an XFS file system"), "{lines:?}");
    assert_eq!(lines.len(), 3);
    assert_eq!(choose(&[], None).0, Err("There is no disk.".into()));
    // One of the partitions is cut off.
    let cut = &table[..table.len() - 4 * MIB];
    assert!(choose(&[cut], Some(4)).0.unwrap_err().contains("truncated"));
}

/// Many partitions are not many lines.
#[test]
fn what_is_said_is_bounded() {
    let entries: Vec<(u64, u64)> = (0..128).map(|n| (100 + n, 100 + n)).collect();
    let (_, lines) = choose(&[&gpt_disk(512, &entries, 128, 2, true)], None);
    assert!((10..20).contains(&lines.len()), "{lines:?}");
}

/// CRC-32 bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1));
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// A disk of 256 KiB with a GPT whose sums are right, whatever it says.
fn gpt_disk(unit: usize, entries: &[(u64, u64)], entry_size: u32, at: u64, is_protected: bool) -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    if is_protected {
        disk[446 + 4] = 0xee;
        disk[446 + 12] = 1;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    let mut table = vec![0; entries.len() * (entry_size as usize).clamp(48, 4096)];
    for (bytes, (first, last)) in table.chunks_mut((entry_size as usize).clamp(48, 4096)).zip(entries) {
        bytes[0] = 1;
        bytes[32..40].copy_from_slice(&first.to_le_bytes());
        bytes[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24] = 1;
    header[72..80].copy_from_slice(&at.to_le_bytes());
    header[80..84].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    header[84..88].copy_from_slice(&entry_size.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(&table).to_le_bytes());
    let sum = crc32(&header).to_le_bytes();
    header[16..20].copy_from_slice(&sum);
    disk[unit..unit + 92].copy_from_slice(&header);
    if let Some(to) = usize::try_from(at).ok().and_then(|at| disk.get_mut(at.checked_mul(unit)?..)) {
        let len = table.len().min(to.len());
        to[..len].copy_from_slice(&table[..len]);
    }
    disk
}

/// Blocks of 4096 bytes, told by the disk or found out; entries that are longer than usual.
#[test]
fn other_sizes() {
    let entries = [(8, 15), (16, 31)];
    for entry_size in [128, 256, 4096] {
        let disk = gpt_disk(4096, &entries, entry_size, 2, true);
        for unit in [512, 4096] {
            let disk = Blocks(MemDisk::new(disk.clone()), unit);
            let table = block_on(Table::read(&disk)).unwrap().unwrap();
            let places: Vec<_> = table.partitions.iter().map(|part| (part.first, part.sectors)).collect();
            assert_eq!(places, [(64, 64), (128, 128)]);
        }
    }
    // Without the MBR that protects it, and with one that says nothing.
    for signature in [[0, 0], [0x55, 0xaa]] {
        let mut disk = gpt_disk(512, &entries, 128, 2, false);
        disk[510..512].copy_from_slice(&signature);
        assert_eq!(table(&disk).unwrap().unwrap().partitions.len(), 2);
    }
    // An MBR counts in blocks of the disk.
    let (disk, partitions) = partitioned(4, "label: dos\nsize=1MiB\n");
    let table = block_on(Table::read(&Blocks(MemDisk::new(disk), 4096))).unwrap().unwrap();
    assert_eq!(table.partitions[0].first, 8 * partitions[0].first);
}

/// Everything that a table can lead to is on the disk.
fn harmless(disk: Vec<u8>) {
    let disk = MemDisk::new(disk);
    let table = block_on(Table::read(&disk));
    assert!(disk.requests.get() < 700, "{} requests", disk.requests.get());
    for Partition { first, sectors, .. } in
        table.ok().flatten().map(|table| table.partitions).into_iter().flatten()
    {
        let part = Part::new(&disk, first, sectors);
        assert!(part.size_bytes() <= disk.size_bytes());
        for sector in [0, 1, part.size_bytes() / 512, u64::MAX - 1, u64::MAX - first] {
            let mut bytes = [0; 1024];
            let read = block_on(part.read(sector, &mut [&mut bytes[..]]));
            assert_eq!(read.is_ok(), sector.saturating_add(2) <= part.size_bytes() / 512);
        }
    }
    let _ = block_on(open_first(&[("disk", &disk)], None, CACHE, &mut |_| {}));
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..600u64, Just(u64::MAX), Just(u64::MAX / 512), Just(1 << 55), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_gpt(
        entries in prop::collection::vec((number(), number()), 0..130),
        entry_size in prop_oneof![Just(128u32), 0..5000u32, any::<u32>()],
        at in number(),
        is_protected: bool,
    ) {
        harmless(gpt_disk(512, &entries, entry_size, at, is_protected));
    }

    #[test]
    fn any_mbr(mut bytes in prop::collection::vec(any::<u8>(), 16 << 10), kinds: [u8; 4], firsts: [u8; 4]) {
        // Each sector is a link that leads somewhere.
        for sector in bytes.chunks_mut(SECTOR) {
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            for (entry, (kind, first)) in
                sector[446..510].chunks_mut(16).zip(kinds.into_iter().zip(firsts))
            {
                entry[0] &= 0x80;
                entry[4] = [kind, 5, 0x83, 0xee][usize::from(kind) % 4];
                let link = first.wrapping_mul(entry[8]) % 40;
                entry[8..12].copy_from_slice(&[link, 0, 0, 0]);
            }
        }
        harmless(bytes);
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        harmless(bytes);
    }
}
