//! What is asked of the guests, in this order: what is cold has not been read before.

use std::time::Duration;

use super::client::Task;
use super::files::{File, QUICK, Size};

/// Small files that are asked for are so far apart.
const STRIDE: usize = 37;
/// How many of them are asked for, some several times.
const SMALL_FILES: usize = 1000;
/// How many files of middle size are asked for at once.
const FILES_AT_ONCE: usize = 16;

pub const SMALL: [&str; 2] = ["4 KiB file, cold", "4 KiB file, warm"];
pub const KEEP_ALIVE: &str = "1 byte, keep-alive";
pub const CLOSING: &str = "1 byte, closing";
pub const AT_ONCE: [&str; 2] = ["16 files at once, different", "16 files at once, the same"];
pub const LARGE: [&str; 2] = ["large file, cold", "large file, warm"];
/// What comes before the warm one.
const WARMING: &str = "large file, to warm it";
pub const IDLE: &str = "idle";
pub const START: &str = "start to first byte";
pub const SMALL_START: &str = "start to first byte, 16 MiB of RAM";

/// Clients of [`KEEP_ALIVE`], and of [`CLOSING`].
pub const KEPT: [usize; 3] = [1, 16, 64];
pub const CLOSED: [usize; 3] = [1, 16, 200];

/// What is timed: short requests for as long as a `limit` says.
pub fn timed(size: Size) -> Vec<Task> {
    let (limit, requests) = match size == QUICK {
        true => (Duration::from_millis(200), 5000),
        false => (Duration::from_secs(2), 50_000),
    };
    let at_once = |name, number: fn(usize) -> usize| {
        let files = (0..FILES_AT_ONCE).map(|each| size.middle(number(each))).collect();
        task(name, FILES_AT_ONCE, files)
    };
    let again = Task { limit: Some(limit), ..small(SMALL[1], 10 * SMALL_FILES) };
    let mut tasks = vec![small(SMALL[0], SMALL_FILES), again];
    for (name, clients) in [(KEEP_ALIVE, KEPT), (CLOSING, CLOSED)] {
        let task = |clients| Task { limit: Some(limit), ..bytes(name, clients, requests) };
        tasks.extend(clients.map(task));
    }
    tasks.extend([at_once(AT_ONCE[0], |each| each), at_once(AT_ONCE[1], |_| FILES_AT_ONCE)]);
    tasks.extend([(WARMING, size.again()), (LARGE[1], size.again()), (LARGE[0], size.large())].map(one));
    tasks
}

/// What is counted. The large file is one of 16 MiB, as counting takes long.
pub fn counted(size: Size) -> Vec<Task> {
    let file = if size == QUICK { size.again() } else { size.middle(0) };
    let mut tasks = Vec::from(LARGE.map(|name| one((name, file.clone()))));
    tasks.extend(SMALL.map(|name| small(name, SMALL_FILES)));
    for (name, clients) in [(KEEP_ALIVE, &KEPT[..]), (CLOSING, &CLOSED[..2])] {
        tasks.extend(
            clients.iter().map(|clients| bytes(name, *clients, if *clients == 1 { 500 } else { 2000 })),
        );
    }
    tasks
}

fn one((name, file): (&'static str, File)) -> Task {
    task(name, 1, vec![file])
}

fn small(name: &'static str, requests: usize) -> Task {
    task(name, 1, (0..requests).map(|number| Size::small(number % SMALL_FILES * STRIDE)).collect())
}

fn bytes(name: &'static str, clients: usize, requests: usize) -> Task {
    task(name, clients, vec![Size::byte(); requests])
}

fn task(name: &'static str, clients: usize, files: Vec<File>) -> Task {
    Task { name, clients, keep_alive: name != CLOSING, files, limit: None }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::files::FULL;
    use super::*;

    #[test]
    fn what_is_cold_was_not_read_before() {
        for tasks in [timed(FULL), timed(QUICK), counted(FULL), counted(QUICK)] {
            let mut read = HashSet::new();
            for task in &tasks {
                let paths: Vec<_> = task.files.iter().map(|file| file.path.clone()).collect();
                let known = paths.iter().filter(|path| read.contains(*path)).count();
                read.extend(paths.iter().cloned());
                match task.name {
                    name if name.ends_with("warm") => assert_eq!(known, paths.len(), "{name}"),
                    name if name.starts_with("1 byte") => {}
                    name => assert_eq!(known, 0, "{name}"),
                }
            }
        }
        let task = timed(FULL).into_iter().find(|task| task.name == AT_ONCE[0]).unwrap();
        let paths: HashSet<_> = task.files.iter().map(|file| &file.path).collect();
        assert_eq!((paths.len(), task.clients), (16, 16));
    }
}
