//! What the host asks for: the option `opt/org.ringfence/bench`, as `MODE,key=value,…`.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ringfence_kernel::fw_cfg;

/// A mode and named values, each with a default. Whatever cannot be understood panics.
pub struct Options {
    /// What comes first.
    pub mode: String,
    values: BTreeMap<String, String>,
}

impl Options {
    /// Reads the option.
    pub fn read() -> Self {
        let text = fw_cfg::option("bench").unwrap_or_default();
        let mut parts = text.split(',');
        let mode = parts.next().unwrap_or_default().to_string();
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or_else(|| panic!("{part:?} is not KEY=VALUE"));
            (key.to_string(), value.to_string())
        };
        Self { mode, values: parts.map(pair).collect() }
    }

    /// The number called `key`.
    pub fn number(&mut self, key: &str, default: u64) -> u64 {
        let Some(value) = self.values.remove(key) else { return default };
        value.parse().unwrap_or_else(|_| panic!("{key}={value} is not a number"))
    }

    /// The words called `key`, separated by `+`.
    pub fn words(&mut self, key: &str, default: &str) -> Vec<String> {
        let value = self.values.remove(key).unwrap_or_else(|| default.to_string());
        value.split('+').map(str::to_string).collect()
    }

    /// The numbers called `key`, separated by `+`.
    pub fn numbers(&mut self, key: &str, default: &str) -> Vec<usize> {
        let number = |word: &String| word.parse().unwrap_or_else(|_| panic!("{key}: {word} is not a number"));
        self.words(key, default).iter().map(number).collect()
    }

    /// All that matter have been asked for: panics if there are others.
    pub fn done(self) {
        assert!(self.values.is_empty(), "unknown options: {:?}", self.values);
    }
}
