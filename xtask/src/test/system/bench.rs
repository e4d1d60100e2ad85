//! The benchmarks still run, and what they count is still what it was.

use super::Run;
use crate::bench;

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[
    ("bench::blk_self_check", |_| bench::blk::self_check()),
    ("bench::blk_without_fences", |_| bench::blk::without_fences()),
    ("bench::http_self_check", |_| bench::http::self_check()),
    ("bench::memory_self_check", |_| bench::memory::self_check()),
    ("bench::net_self_check", |_| bench::net::self_check()),
];
