//! Which of the file systems on which of the disks is served: the first that can be.

use super::partitions::{MAX_PARTITIONS, Partition, Table};
use super::{FileSystem, FsError, foreign};
use crate::block::{BlockSource, Part};
use crate::text::Text;
use alloc::string::String;
use core::fmt::{self, Arguments, Write};

/// Lines about partitions of one disk that are said.
const LINES: usize = 16;

/// A file system, and where it was found.
pub struct Choice<B> {
    /// The file system.
    pub files: FileSystem<Part<B>>,
    /// The index of its disk.
    pub disk: usize,
    /// Its partition; `None` if it fills the disk.
    pub partition: Option<u32>,
}

/// A place on a disk, in words.
#[derive(Clone, Copy)]
struct Place<'a>(&'a str, Option<u32>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(disk, partition) = self;
        match partition {
            Some(number) => write!(f, "partition {number} of {disk}"),
            None => write!(f, "{disk}"),
        }
    }
}

/// Why nothing is served: the reason that says most, with its place.
#[derive(Default)]
struct Reasons<'a> {
    best: Option<(FsError, Place<'a>)>,
    count: usize,
}

impl<'a> Reasons<'a> {
    fn note(&mut self, place: Place<'a>, why: FsError) {
        let says = |why: &FsError| match why {
            FsError::NotExt4 => 0,
            FsError::Foreign(_) => 1,
            _ => 2,
        };
        self.count = self.count.saturating_add(1);
        if self.best.as_ref().is_none_or(|(best, _)| says(&why) > says(best)) {
            self.best = Some((why, place));
        }
    }
}

/// Opens the first file system that can be, with a page cache of at most `cache_bytes`: of each disk, in
/// their order, the disk itself, then its partitions; or only partition `wanted` of each. A disk has a name
/// by which a person knows it.
///
/// `say` is told, a line at a time, what is not served and why: at most some 20 lines for a disk.
///
/// # Errors
/// Why there are no files, as a sentence for a person.
pub async fn open_first<B: BlockSource + Clone>(
    disks: &[(&str, B)],
    wanted: Option<u32>,
    cache_bytes: usize,
    say: &mut dyn FnMut(Arguments<'_>),
) -> Result<Choice<B>, String> {
    let mut reasons = Reasons::default();
    let mut chosen: Option<Choice<B>> = None;
    for (index, (name, disk)) in disks.iter().enumerate() {
        if let Some(Choice { disk, partition, .. }) = &chosen {
            let before = disks.get(*disk).map_or("", |(name, _)| *name);
            say(format_args!("{name}: {} comes first", Place(before, *partition)));
            continue;
        }
        let mut search = Search { name, disk, cache_bytes, reasons: &mut reasons, said: 0, say: &mut *say };
        if let Some((files, partition)) = search.run(wanted).await {
            chosen = Some(Choice { files, disk: index, partition });
        }
    }
    chosen.ok_or_else(|| sentence(reasons, disks.len(), wanted))
}

fn sentence(reasons: Reasons<'_>, disks: usize, wanted: Option<u32>) -> String {
    let mut text = Text::default();
    let _ = match (&reasons.best, wanted) {
        _ if disks == 0 => write!(text, "There is no disk."),
        (None, Some(number)) => write!(text, "No disk has a partition {number}."),
        (None, None) => write!(text, "No disk can be used."),
        (Some((why, _)), _) if reasons.count == 1 => write!(text, "The disk cannot be used: {why}."),
        (Some((why, place)), _) => {
            write!(text, "No disk can be used, as the log says. {}: {why}.", place)
        }
    };
    text.into_bytes().ok().and_then(|text| String::from_utf8(text).ok()).unwrap_or_default()
}

/// A look at one disk.
struct Search<'a, 'r, B> {
    name: &'a str,
    disk: &'a B,
    cache_bytes: usize,
    reasons: &'r mut Reasons<'a>,
    said: usize,
    say: &'r mut dyn FnMut(Arguments<'_>),
}

/// A file system and the number of its partition.
type Found<B> = Option<(FileSystem<Part<B>>, Option<u32>)>;

impl<B: BlockSource + Clone> Search<'_, '_, B> {
    async fn run(&mut self, wanted: Option<u32>) -> Found<B> {
        let mut whole = None;
        if wanted.is_none() {
            match self.open(Part::whole(self.disk.clone())).await {
                Ok(files) => return Some((files, None)),
                Err(why) => whole = Some(why),
            }
        }
        let table = Table::read(self.disk).await;
        // Where there are partitions, that the disk is no file system says nothing.
        if let Some(why) = whole.filter(|why| *why != FsError::NotExt4 || matches!(table, Ok(None))) {
            self.refuse(None, why);
        }
        match table {
            Ok(Some(table)) => self.partitions(table, wanted).await,
            Ok(None) => {
                wanted.inspect(|_| self.refuse(None, FsError::Unsupported("no partition table")));
                None
            }
            Err(why) => {
                self.refuse(None, why);
                None
            }
        }
    }

    async fn partitions(&mut self, table: Table, wanted: Option<u32>) -> Found<B> {
        let Table { kind, partitions } = table;
        let count = partitions.len();
        let most = if count == MAX_PARTITIONS { "at least " } else { "" };
        (self.say)(format_args!("{}: {kind} with {most}{count} partitions", self.name));
        let mut found: Found<B> = None;
        for Partition { number, first, sectors } in partitions {
            let place = Some(number);
            if wanted.is_some_and(|wanted| wanted != number) {
                continue;
            }
            if let Some((_, before)) = found {
                self.line(place, format_args!("partition {} comes first", before.unwrap_or(0)));
                continue;
            }
            match self.open(Part::new(self.disk.clone(), first, sectors)).await {
                Ok(files) => found = Some((files, place)),
                Err(why) => self.refuse(place, why),
            }
        }
        found
    }

    async fn open(&self, part: Part<B>) -> Result<FileSystem<Part<B>>, FsError> {
        match FileSystem::open(part.clone(), self.cache_bytes).await {
            Err(FsError::NotExt4) => Err(foreign::recognise(&part).await),
            opened => opened,
        }
    }

    fn refuse(&mut self, partition: Option<u32>, why: FsError) {
        self.reasons.note(Place(self.name, partition), why);
        self.line(partition, format_args!("{why}"));
    }

    fn line(&mut self, partition: Option<u32>, text: Arguments<'_>) {
        self.said = self.said.saturating_add(1);
        let place = Place(self.name, partition);
        match self.said {
            ..=LINES => (self.say)(format_args!("{place}: {text}")),
            said if said == LINES.saturating_add(1) => (self.say)(format_args!("{place}, and so on")),
            _ => {}
        }
    }
}
