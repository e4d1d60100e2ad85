//! Disks that are missing, many, broken or slow.

use std::fs::{File, copy, read, write};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::served::{self, files, files_disk};
use super::{Kernel, Run, Server, machine};
use crate::image::{Image, make_ext4};
use crate::qemu::Machine;
use crate::test::client::{compare, start_download};
use crate::{setup, work_folder};

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[
    ("disks::none", none),
    ("disks::not_ext4", not_ext4),
    ("disks::truncated", truncated),
    ("disks::20_with_flipped_bits", flipped_bits),
    ("disks::sixteen", sixteen),
    ("disks::read_errors", read_errors),
    ("disks::partitions", partitions),
    ("disks::second_of_two", second_of_two),
    ("disks::not_unmounted", not_unmounted),
];

/// Where there is no file system, files are an error and the rest works.
fn serves_only_itself(server: Server) -> Result<()> {
    for path in ["/", "/notes.txt", "/folder/"] {
        let status = server.get(path, &[])?.status;
        ensure!([404, 500, 503].contains(&status), "{path} without a file system: {status}");
    }
    server.get("/metrics", &[])?.expect(200)?;
    server.get("/api/devices", &[])?.expect(200)?;
    server.finish()
}

fn none(kernel: &Kernel) -> Result<()> {
    serves_only_itself(Server::with_disk(kernel, None)?)
}

fn not_ext4(kernel: &Kernel) -> Result<()> {
    let random = crate::test::client::content(77, 0, 4 << 20);
    for (name, bytes) in
        [("zeros", vec![0; 4 << 20]), ("random", random), ("empty", Vec::new()), ("odd", vec![0xff; 700])]
    {
        let image = scratch(&format!("not-ext4-{name}"))?;
        write(&image, bytes)?;
        serves_only_itself(Server::with_disk(kernel, Some(Image::open(&image)?))?).context(name)?;
    }
    Ok(())
}

/// An ext4 image cut off in the middle: what is there may be served, what is not is an error.
fn truncated(kernel: &Kernel) -> Result<()> {
    for kept in [2 << 10, 1 << 20, 9 << 20] {
        let image = scratch(&format!("truncated-{kept}"))?;
        copy(files()?, &image)?;
        std::fs::File::options().write(true).open(&image)?.set_len(kept)?;
        survives(kernel, &image).with_context(|| format!("cut to {kept} bytes"))?;
    }
    Ok(())
}

/// Bits flipped where the file system keeps its books.
fn flipped_bits(kernel: &Kernel) -> Result<()> {
    let whole = read(files()?)?;
    // Superblock, group descriptors, and whatever blocks are neither zero nor a file's random bytes.
    let books: Vec<usize> =
        (0..whole.len()).step_by(4096).filter(|at| looks_like_books(&whole[*at..at + 4096])).collect();
    ensure!(books.len() > 20, "the image has only {} blocks of metadata", books.len());
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..200) {
            let block = if random.u8(..) < 64 { 0 } else { books[random.usize(..books.len())] };
            bytes[block + random.usize(..4096)] ^= 1 << random.u8(..8);
        }
        let image = scratch(&format!("flipped-{seed}"))?;
        write(&image, bytes)?;
        survives(kernel, &image).with_context(|| format!("seed {seed}"))?;
        std::fs::remove_file(image)?;
    }
    Ok(())
}

/// More zeros than random bytes have, but not only zeros.
fn looks_like_books(block: &[u8]) -> bool {
    let zeros = block.iter().filter(|byte| **byte == 0).count();
    (100..block.len()).contains(&zeros)
}

/// Every request is answered with something, and the guest is well afterwards.
fn survives(kernel: &Kernel, image: &std::path::Path) -> Result<()> {
    let server = Server::with_disk(kernel, Some(Image::open(image)?))?;
    for path in
        ["/", "/notes.txt", "/folder/", "/many/", "/deep/er/still/leaf.txt", "/docs", "/link.txt", "/none"]
    {
        let status = server.get(path, &[])?.status;
        ensure!([200, 301, 404, 500, 503].contains(&status), "{path}: {status}");
    }
    for path in ["/1m.bin", "/5m3.bin"] {
        // Its bytes may be wrong, or end early; what counts is that the guest goes on.
        let _ = start_download(&server.url(path), 10)?.wait_with_output()?;
    }
    server.get("/metrics", &[])?.expect(200)?;
    server.finish()
}

fn sixteen(kernel: &Kernel) -> Result<()> {
    let mut machine = Machine { disk: files_disk()?, ..machine(&kernel.pvh) };
    for index in 1..16 {
        machine.add(&format!("-blockdev driver=null-co,node-name=n{index},size=1048576,read-zeroes=on"));
        machine.add(&format!("-device virtio-blk-pci,drive=n{index}"));
    }
    let server = Server::start(machine)?;
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    let devices = server.get("/api/devices", &[])?.expect(200)?.text();
    ensure!(devices.matches("virtio-blk").count() >= 16, "not 16 disks in {devices}");
    server.finish()
}

/// Every fifth or so read of the disk fails: an error for that request, and only for that.
fn read_errors(kernel: &Kernel) -> Result<()> {
    let mut machine = machine(&kernel.pvh);
    let node = json!({
        "driver": "blkdebug", "node-name": "faulty", "read-only": true,
        "inject-error": [{ "event": "read_aio", "iotype": "read", "errno": 5, "sector": 40_000 }],
        "image": { "driver": "file", "filename": files()?, "read-only": true },
    });
    machine.extra.extend(["-blockdev".into(), node.to_string().into()]);
    machine.add("-device virtio-blk-pci,drive=faulty");
    let server = Server::start(machine)?;
    let mut failed = 0;
    for (path, seed, size) in served::FILES {
        failed += u32::from(compare(start_download(&server.url(path), 20)?, seed, size).is_err());
    }
    ensure!(failed <= 1, "one bad sector made {failed} files unreadable");
    let is_explained = server.log().contains("the disk reported an error");
    ensure!(is_explained == (failed > 0), "{failed} files failed, and the log says: {}", server.log());
    server.get("/metrics", &[])?.expect(200)?;
    server.finish()
}

/// Where the partitions of [`partitioned`] are, in MiB: one of XFS, one with the files, a small one.
const PARTITIONS: [(u64, u64); 3] = [(1, 1), (2, 64), (66, 16)];

/// A disk with a GPT.
fn partitioned(name: &str) -> Result<PathBuf> {
    let image = scratch(name)?;
    let folder = work_folder("staging")?.join(name);
    std::fs::create_dir_all(&folder)?;
    write(folder.join("third.txt"), "the third")?;
    let small = scratch(&format!("{name}-third"))?;
    make_ext4(&folder, &small, 16)?;
    let mut disk = File::create(&image)?;
    disk.set_len(84 << 20)?;
    let lines = PARTITIONS.map(|(start, size)| format!("start={start}MiB, size={size}MiB"));
    let mut sfdisk = Command::new(setup::program("sfdisk").context("sfdisk is missing")?)
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(&image)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start sfdisk")?;
    let script = format!("label: gpt\n{}\n", lines.join("\n"));
    sfdisk.stdin.take().context("no pipe")?.write_all(script.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk failed");
    for ((start, _), bytes) in PARTITIONS.into_iter().zip([b"XFSB".to_vec(), read(files()?)?, read(small)?]) {
        disk.seek(SeekFrom::Start(start << 20))?;
        disk.write_all(&bytes)?;
    }
    Ok(image)
}

/// The first partition that can be served is, or the one that is asked for; and each other has its line.
fn partitions(kernel: &Kernel) -> Result<()> {
    let disk = Image::open(&partitioned("partitions")?)?;
    let mut server = Server::with_disk(kernel, Some(disk.clone()))?;
    let log = server.wait_for_log("on partition 2 of")?;
    for line in ["partition 1 of", "an XFS file system", "partition 3 of"] {
        ensure!(log.contains(line), "no {line} in {log}");
    }
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    server.finish()?;

    let options = |number: &str| vec![("partition".into(), number.into())];
    let machine =
        |number| Machine { disk: Some(disk.clone()), options: options(number), ..machine(&kernel.pvh) };
    let server = Server::start(machine("3"))?;
    ensure!(server.get("/third.txt", &[])?.expect(200)?.text() == "the third");
    server.finish()?;

    let server = Server::start(machine("7"))?;
    let reply = server.get("/", &[])?.expect(503)?.text();
    ensure!(reply.contains("No disk has a partition 7"), "{reply}");
    serves_only_itself(server)
}

/// A first disk that cannot be used does not hide the second; a third is not served, and named.
fn second_of_two(kernel: &Kernel) -> Result<()> {
    let first = scratch("first-is-xfs")?;
    write(&first, [b"XFSB".to_vec(), vec![0; 1 << 20]].concat())?;
    let mut machine = Machine { disk: Some(Image::open(&first)?), ..machine(&kernel.pvh) };
    for name in ["second", "third"] {
        machine.extra.extend(["-blockdev".into(), Image::open(&files()?)?.node(name).to_string().into()]);
        machine.add(&format!("-device virtio-blk-pci,drive={name}"));
    }
    let mut server = Server::start(machine)?;
    let log = server.wait_for_log("disk         ext4")?;
    ensure!(log.contains("an XFS file system") && log.contains("comes first"), "{log}");
    compare(start_download(&server.url("/1m.bin"), 60)?, 6, 1 << 20)?;
    server.finish()
}

/// A journal that `debugfs` has written, as if the machine had lost its power: its copy of a file's block is
/// served.
fn not_unmounted(kernel: &Kernel) -> Result<()> {
    let image = scratch("not-unmounted")?;
    copy(files()?, &image)?;
    let debugfs = setup::program("debugfs").context("debugfs is missing")?;
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(&debugfs).args(arguments).arg(&image).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let block = run(&["-R", "blocks /notes.txt"])?.trim().to_owned();
    let (text, commands) = (scratch("journal-text")?, scratch("journal-commands")?);
    write(&text, b"from the journal".iter().copied().chain([0; 4080]).collect::<Vec<u8>>())?;
    write(&commands, format!("jo -c\njw -b {block} {}\njc\n", text.display()))?;
    run(&["-w", "-f", commands.to_str().context("not UTF-8")?])?;
    let mut server = Server::with_disk(kernel, Some(Image::open(&image)?))?;
    server.wait_for_log("its journal")?;
    // The file is as long as it was.
    ensure!(server.get("/notes.txt", &[])?.expect(200)?.text() == "from the j");
    server.finish()
}

fn scratch(name: &str) -> Result<PathBuf> {
    Ok(work_folder("scratch")?.join(name))
}
