//! `check::document_names`: whatever file or item a document names is there.
//!
//! In backquotes, outside blocks of code, a document names
//! - a file or folder, from the root or from any folder on (`net/ingress`, also without `.rs`), with
//!   alternatives as in `devices/{disk, nic}`;
//! - an item of a file: `kernel/src/executor.rs::pender`, or of any: `Queue::kick`, `boot::start`.
//!
//! The lines of a block of Rust are some file's in Rust, of its documentation's examples for instance, where
//! they are compiled: in this order, whatever else is between them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::root;

/// The name of this check among the tests.
pub const NAME: &str = "check::document_names";

/// Folders that are read for documents.
const FOLDERS: [&str; 3] = ["", "docs", "docs/decisions"];
/// What a name with a slash may begin with and be no file: URLs of the guest, options of fw_cfg, what a build
/// makes, placeholders.
const NO_FILES: [&str; 5] = ["/", "opt/", "target/", "http", "NAME"];
/// What a name with `::` may begin with and be no item: names of tests.
const NO_ITEMS: [&str; 5] = ["check::", "host::", "kernel::", "system::", "bench::"];
/// Words before the name of an item where it is declared.
const KEYWORDS: [&str; 9] =
    ["fn ", "struct ", "enum ", "trait ", "const ", "static ", "type ", "mod ", "macro_rules! "];

/// Checks all documents.
pub fn check() -> Result<()> {
    let tree = Tree::read(root())?;
    let mut wrong = Vec::new();
    for folder in FOLDERS {
        for entry in std::fs::read_dir(root().join(folder)).with_context(|| format!("no folder {folder}"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path)?;
                let document = path.strip_prefix(root())?.display().to_string();
                wrong.extend(
                    names(&text).filter(|name| !tree.has(name)).map(|name| format!("{document}: {name}")),
                );
                let unknown = rust_blocks(&text).filter_map(|lines| tree.missing(&lines));
                wrong.extend(unknown.map(|line| format!("{document}: compiled nowhere: {line}")));
                let folder = Path::new(folder);
                wrong.extend(
                    links(&text)
                        .filter(|link| !root().join(folder).join(link).exists())
                        .map(|link| format!("{document}: a link to {link}")),
                );
            }
        }
    }
    ensure!(wrong.is_empty(), "what these name is not there:\n{}", wrong.join("\n"));
    Ok(())
}

/// What stands in backquotes in `text`, but for blocks of code.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    let lines = text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    });
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The lines of each block of Rust.
fn rust_blocks(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let blocks = text.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(|block| block.lines().map(str::trim).filter(|line| !line.is_empty()).collect())
}

/// The files that `text` links to.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    links.filter(|link| !link.is_empty() && !link.contains("://"))
}

/// All files of the repository, and the text of those in Rust.
struct Tree {
    files: Vec<String>,
    sources: Vec<(String, String)>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let (mut files, mut sources) = (Vec::new(), Vec::new());
        let mut folders: Vec<PathBuf> = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                if path.is_dir() && !name.starts_with("target") && name != ".git" {
                    folders.push(path);
                } else if path.is_file() {
                    if name.ends_with(".rs") {
                        sources.push((name.clone(), std::fs::read_to_string(&path)?));
                    }
                    files.push(name);
                }
            }
        }
        Ok(Self { files, sources })
    }

    /// Whether what `name` names is there. True for what names neither a file nor an item.
    fn has(&self, name: &str) -> bool {
        let starts = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
        let is_path =
            |name: &str| name.chars().all(|letter| letter.is_alphanumeric() || "_-./".contains(letter));
        if let Some((file, item)) = name.split_once(".rs::") {
            let file = format!("{file}.rs");
            let found =
                self.sources.iter().find(|(path, _)| *path == file || path.ends_with(&format!("/{file}")));
            found.is_some_and(|(path, text)| declares(path, text, item))
        } else if name.contains("::") {
            let name = name.split(['(', '<']).next().unwrap_or_default().trim_end_matches("::");
            starts(&NO_ITEMS)
                || name.contains([' ', '{'])
                || self
                    .sources
                    .iter()
                    .any(|(path, text)| declares(path, text, name) || has_word(text, "", name))
        } else if (name.contains('/') || is_file_name(name)) && !starts(&NO_FILES) {
            alternatives(name).iter().all(|name| !is_path(name) || self.has_file(name))
        } else {
            true
        }
    }

    /// The first of `lines` that is not in the source, or its documentation, which has the most of them, in
    /// this order.
    fn missing<'a>(&self, lines: &[&'a str]) -> Option<&'a str> {
        let bare = |line: &str| {
            let line = line.trim();
            let documented = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            documented.unwrap_or(line).trim().to_owned()
        };
        let has = |(_, text): &(String, String)| {
            let mut rest = text.lines().map(bare);
            lines.iter().take_while(|wanted| rest.any(|line| line == **wanted)).count()
        };
        lines.get(self.sources.iter().map(has).max().unwrap_or_default()).copied()
    }

    /// Whether there is a file or folder whose path, with or without its extension, is or ends in `name`.
    fn has_file(&self, name: &str) -> bool {
        let name = format!("/{}/", name.trim_start_matches("./").trim_end_matches('/'));
        self.files.iter().any(|file| {
            let stem = file.strip_suffix(".rs").unwrap_or(file);
            format!("/{file}/").contains(&name) || format!("/{stem}/").contains(&name)
        })
    }
}

fn is_file_name(name: &str) -> bool {
    [".rs", ".md", ".toml", ".sh", ".json", ".ld"]
        .iter()
        .any(|end| name.len() > end.len() && name.ends_with(end))
}

/// `a/{b, c}` is `a/b` and `a/c`.
fn alternatives(name: &str) -> Vec<String> {
    let Some((before, (list, after))) =
        name.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return vec![name.to_owned()];
    };
    list.split(',').map(|word| format!("{before}{}{after}", word.trim())).collect()
}

/// Whether the file at `path` declares `item`. Its last part is an item, a variant or a field, and the one
/// before it, if there is one, the module or type that this belongs to.
fn declares(path: &str, text: &str, item: &str) -> bool {
    let (of, last) = item
        .rsplit_once("::")
        .map_or(("", item), |(before, last)| (before.rsplit("::").next().unwrap_or_default(), last));
    let declared = |name: &str| KEYWORDS.iter().any(|word| has_word(text, word, name));
    let is_module = path.split('/').any(|part| part.strip_suffix(".rs").unwrap_or(part) == of);
    let is_member = |name: &str| {
        text.lines().any(|line| {
            let line = line.trim_start().trim_start_matches("pub ");
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([',', '(', ':', ' ']) && !rest.starts_with("::"))
        })
    };
    let owns = of.is_empty()
        || is_module
        || declared(of)
        || has_word(text, " for ", of)
        || has_word(text, "> ", of)
        || has_word(text, "impl ", of);
    owns && (declared(last) || !of.is_empty() && is_member(last))
}

/// Whether `name` stands behind `before`, as a whole word.
fn has_word(text: &str, before: &str, name: &str) -> bool {
    let wanted = format!("{before}{name}");
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(&wanted).any(|(at, _)| {
        let (start, end) =
            (text.get(..at).unwrap_or_default(), text.get(at + wanted.len()..).unwrap_or_default());
        let begins_inside = wanted.starts_with(is_part) && start.ends_with(is_part);
        !begins_inside && !end.starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let source = "pub struct Queue<B> {\n    pub size: u16,\n}\nimpl<B> Queue<B> {\n    pub fn kick(&mut self) {}\n}\n\
                      pub enum Format {\n    Split(u8),\n    Packed,\n}\nimpl<F: Files> Server<F> {\n    async fn serve() {}\n}\n\
                      use core::mem::swap;\n";
        let files =
            ["README.md", "drivers/src/queue/mod.rs", "drivers/src/net.rs", "kernel/.cargo/config.toml"];
        let sources = vec![("drivers/src/queue/mod.rs".to_owned(), source.to_owned())];
        Tree { files: files.map(str::to_owned).into(), sources }
    }

    #[test]
    fn what_is_there() {
        for name in [
            "README.md",
            "./README.md",
            "drivers/src/queue/mod.rs",
            "drivers/src/queue",
            "drivers/",
            "src/net",
            "net.rs",
            "src/{queue, net}",
            "kernel/.cargo/config.toml",
            "drivers/src/queue/mod.rs::Queue",
            "queue/mod.rs::Queue::kick",
            "Queue::kick",
            "Queue::kick()",
            "queue::Queue",
            "Format::Split",
            "Queue::size",
            "queue/mod.rs::Server::serve",
            "mem::swap",
            // Neither files nor items.
            "/metrics",
            "opt/org.ringfence/log",
            "kernel::memory::x",
            "./run-qemu.sh test",
            "EVENT_IDX",
            "a / b = c",
        ] {
            assert!(tree().has(name), "{name}");
        }
    }

    #[test]
    fn what_is_not() {
        for name in [
            "SECURITY.md",
            "drivers/src/queue/ring.rs",
            "drivers/src/que",
            "src/{queue, ring}",
            "ring.rs",
            "drivers/src/queue/mod.rs::Ring",
            "queue/ring.rs::Queue",
            "Queue::kic",
            "Queue::kick_again",
            "Ring::kick",
            "Format::Indirect",
            "mem::take",
        ] {
            assert!(!tree().has(name), "{name}");
        }
    }

    #[test]
    fn rust_is_compiled_somewhere() {
        let tree = tree();
        let text = "`a`\n```rust\npub size: u16,\n\n  pub fn kick(&mut self) {}\n```\n```sh\nls\n```\n";
        let blocks: Vec<_> = rust_blocks(text).collect();
        assert_eq!(blocks, [["pub size: u16,", "pub fn kick(&mut self) {}"]]);
        assert_eq!(tree.missing(&blocks[0]), None);
        assert_eq!(tree.missing(&["pub size: u16,", "pub size: u32,", "}"]), Some("pub size: u32,"));
        let turned = ["pub fn kick(&mut self) {}", "pub size: u16,"];
        assert_eq!(tree.missing(&turned), Some("pub size: u16,"), "it stands before");
    }

    #[test]
    fn names_stand_outside_blocks() {
        let text = "`a` b `c::d`\n```\n`no`\n```\n[x](docs/y.md#z) [h](https://a/b) `e`\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["a", "c::d", "e"]);
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/y.md"]);
    }
}
