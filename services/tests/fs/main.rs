//! The file system against images that e2fsprogs made, damaged images, and disks that answer late, out of
//! order or not at all. The oracle is the folder an image was made from, or `debugfs`.

mod allocations;
mod cache;
mod corruption;
mod damage;
mod disks;
mod fast_commits;
mod fast_damage;
mod foreign;
mod images;
mod journal;
mod mounted;
mod oracle;
mod partitions;
mod reads;
#[path = "../common/skip.rs"]
mod skip;
mod support;
mod trees;
