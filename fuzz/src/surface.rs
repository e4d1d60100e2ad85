//! What there is to call. A function that is public, safe and not called by any step is listed here with the
//! reason, or the test at the end is red.

/// Functions that no step calls, by why.
pub const NOT_CALLED: &[(&str, &[&str])] = &[
    (
        "numbers and names: no memory behind them",
        &[
            "address_at_offset",
            "allows",
            "checked_add",
            "checked_offset_from",
            "checked_sub",
            "containing_address",
            "contains_address",
            "contains_range",
            "depth",
            "device_id",
            "element_size",
            "field",
            "from_ptr",
            "function",
            "is_page_aligned",
            "is_writable",
            "names",
            "offset_of_address",
            "overlap",
            "raw_value",
            "requester_id",
            "select",
            "storage_words",
            "to_extended",
            "total",
            "try_mut_ptr",
            "try_ptr",
            "window",
            "addresses",
            "buffers",
            "context",
            "counters",
            "findings",
            "read_u32",
            "is_modern",
        ],
    ),
    (
        "other ways over `VolatileSlice`, which memory's own properties compare with a plain array",
        &[
            "bitmap",
            "copy_from",
            "copy_to",
            "copy_to_volatile_slice",
            "dirty_pages",
            "fence",
            "from_ranges",
            "from_regions",
            "get_array_ref",
            "get_ref",
            "is_bit_set",
            "offset",
            "ref_at",
            "region_offset",
            "restrict",
            "subslice",
            "to_slice",
            "with_bitmap",
        ],
    ),
    (
        "called by what is called: `audit` by the machine's `check`, `register` and `map` by `VirtioPci::new`",
        &["audit", "empty", "from_mut", "register"],
    ),
    ("of a table over registers that are mapped, which is unsafe to make", &["claim", "offer", "offer_bars"]),
    ("keeps memory for good: soon there would be none", &["allocate_uninit"]),
    ("waits, which nothing here does", &["look_again"]),
    ("for tests alone: plays an interrupt", &["interrupt"]),
    ("a chain of segments of buffers, which the drivers' tests have", &["with_segments"]),
    (
        "of modules that are private",
        &[
            "any_free",
            "change",
            "count_anew",
            "count_on",
            "counts",
            "flush",
            "found",
            "frame",
            "frames_for",
            "free",
            "free_run",
            "free_units",
            "is_free",
            "is_leaf",
            "is_present",
            "leaf",
            "mapped",
            "maps",
            "pool",
            "protection",
            "release",
            "restart",
            "root",
            "table",
            "tag",
            "unmapped",
            "without_history",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::NOT_CALLED;
    use std::collections::BTreeSet;
    use std::fs::read_to_string;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in folder.read_dir().expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
        found
    }

    fn functions(file: &Path) -> Vec<String> {
        let text = read_to_string(file).expect("readable");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().filter_map(|line| {
            let line = line.trim_start().strip_prefix("pub ")?;
            line.strip_prefix("const ").unwrap_or(line).strip_prefix("fn ")
        });
        let name = |line: &str| {
            line.split(|at: char| !(at.is_alphanumeric() || at == '_')).next().map(str::to_owned)
        };
        lines.filter_map(name).filter(|name| !name.is_empty()).collect()
    }

    /// Also the other way round: nothing is excused that is called, or does not exist.
    #[test]
    fn every_safe_public_function_is_called_or_excused() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ours = sources(&root.join("src")).into_iter().filter(|path| !path.ends_with("surface.rs"));
        let ours: String = ours.map(|path| read_to_string(path).expect("readable")).collect();
        let called = |name: &str| {
            [".", ":"].iter().any(|before| {
                [format!("{before}{name}("), format!("{before}{name}::<")]
                    .iter()
                    .any(|call| ours.contains(call))
            })
        };
        let library =
            [sources(&root.join("../memory/src")), sources(&root.join("../drivers/src/virtio"))].concat();
        let skipped = ["host.rs", "shadow.rs", "bits.rs"].map(Some);
        let library = library.iter().filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            !skipped.contains(&name)
                && !name.is_some_and(|name| name.contains("test"))
                // Numbers, all of it.
                && !path.to_string_lossy().contains("virtqueue")
        });
        let all: BTreeSet<String> = library.flat_map(|path| functions(path)).collect();
        assert!(all.len() > 150, "the sources are not where they were");
        let excused: BTreeSet<&str> = NOT_CALLED.iter().flat_map(|(_, names)| *names).copied().collect();
        let missing: Vec<_> =
            all.iter().filter(|name| !called(name) && !excused.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "neither called nor excused: {missing:?}");
        let stale: Vec<_> = excused.iter().filter(|name| !all.contains(**name) || called(name)).collect();
        assert!(stale.is_empty(), "excused for nothing: {stale:?}");
    }
}
