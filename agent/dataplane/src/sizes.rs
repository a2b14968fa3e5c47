//! How many elements maps may hold, where the operator says so, and when one is to grow.
//!
//! | name | map | least | limit | what fills it |
//! |---|---|---|---|---|
//! | conntrack | CONNTRACK | 524,288 | 2,097,152 | two for each flow that tc translates |
//! | sockets-connected | SOCK_CONN | 32,768 | 262,144 | UDP sockets connected by way of a Service |
//! | affinity | AFFINITY | 32,768 | as the least | clients of Services with session affinity |
//! | socket-forward, socket-reverse | SOCK_FWD, SOCK_REV | 32,768 | as the least | UDP sockets that are not connected |
//! | frontends, addresses | FRONTENDS, ADDRESSES | 131,072 | 1,048,576 | a port of a Service at an address |
//! | slots, backends | SLOTS, BACKENDS | 262,144 | 2,097,152 | endpoints of each of them |
//!
//! A map has at least the least, and grows by itself up to the limit. Those of affinity and of sockets that are not connected
//! are LRU: they are full most of the time and forget what is used least, so they have the size that they are given.
//! An element costs what [`element_bytes`] says, an empty map of those that are not LRU 16 bytes for each that it may hold.

use std::{collections::BTreeMap, str::FromStr};

use ebpf_common::maps;

/// Of any map, in elements.
pub const LEAST: u32 = 1 << 10;
pub const MOST: u32 = 1 << 24;

/// A map whose size can be said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sized {
    word: &'static str,
    pub(crate) map: &'static str,
    default: Size,
    pub(crate) is_lru: bool,
    /// Of key and value.
    bytes: u32,
}

const fn hash(word: &'static str, map: &'static str, entries: u32, limit: u32, bytes: u32) -> Sized {
    Sized { word, map, default: Size { entries, limit }, is_lru: false, bytes }
}

const fn lru(word: &'static str, map: &'static str, entries: u32, bytes: u32) -> Sized {
    Sized { word, map, default: Size { entries, limit: entries }, is_lru: true, bytes }
}

pub(crate) const SIZED: [Sized; 9] = [
    hash("conntrack", maps::CONNTRACK, maps::CONNTRACK_MAX, 1 << 21, 40 + 64),
    hash("sockets-connected", maps::SOCKETS_CONNECTED, maps::SOCKETS_CONNECTED_MAX, 1 << 18, 8 + 56),
    lru("affinity", maps::AFFINITY, maps::AFFINITY_MAX, 24 + 16),
    lru("socket-forward", maps::SOCKET_FORWARD, maps::SOCKET_FORWARD_MAX, 32 + 8),
    lru("socket-reverse", maps::SOCKET_REVERSE, maps::SOCKET_REVERSE_MAX, 32 + 24),
    hash("frontends", maps::FRONTENDS, maps::FRONTENDS_MAX, 1 << 20, 20 + 24),
    hash("addresses", maps::ADDRESSES, maps::ADDRESSES_MAX, 1 << 20, 16 + 4),
    hash("slots", maps::SLOTS, maps::SLOTS_MAX, 1 << 21, 8 + 4),
    hash("backends", maps::BACKENDS, maps::BACKENDS_MAX, 1 << 21, 4 + 28),
];

/// In elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// That there is room for from the start.
    pub entries: u32,
    /// What the map may grow to by itself.
    pub limit: u32,
}

/// One map's size, as an operator says it: `conntrack=1048576` or `conntrack=1048576..4194304`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    map: &'static str,
    size: Size,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, size) = text.split_once('=').ok_or_else(|| format!("{text:?} is no NAME=ENTRIES"))?;
        let sized = SIZED.iter().find(|sized| sized.word == word).ok_or_else(|| {
            let words = SIZED.map(|sized| sized.word).join(", ");
            format!("no map {word:?}: one of {words}")
        })?;
        let number = |text: &str| -> Result<u32, String> {
            let number = text.parse().map_err(|error| format!("{word}: {text:?}: {error}"))?;
            if (LEAST..=MOST).contains(&number) {
                Ok(number)
            } else {
                Err(format!("{word}: {number} elements: from {LEAST} to {MOST} are possible"))
            }
        };
        let size = match size.split_once("..") {
            Some((entries, limit)) => Size { entries: number(entries)?, limit: number(limit)? },
            None => {
                let entries = number(size)?;
                let limit = if sized.is_lru { entries } else { sized.default.limit.max(entries) };
                Size { entries, limit }
            }
        };
        if size.limit < size.entries {
            return Err(format!("{word}: the limit {} is below the size {}", size.limit, size.entries));
        }
        if sized.is_lru && size.limit != size.entries {
            return Err(format!("{word}: a map that forgets what is used least does not grow by itself"));
        }
        Ok(Self { map: sized.map, size })
    }
}

/// The sizes of all maps that have one to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sizes {
    by_map: BTreeMap<&'static str, Size>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { by_map: SIZED.iter().map(|sized| (sized.map, sized.default)).collect() }
    }
}

impl FromIterator<Setting> for Sizes {
    fn from_iter<T: IntoIterator<Item = Setting>>(settings: T) -> Self {
        let mut sizes = Self::default();
        sizes.by_map.extend(settings.into_iter().map(|setting| (setting.map, setting.size)));
        sizes
    }
}

impl Sizes {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, Size)> {
        self.by_map.iter().map(|(map, size)| (*map, *size))
    }

    /// By the map's name with its layout's version.
    pub fn of(&self, map: &str) -> Option<Size> {
        self.by_map.get(map).copied()
    }

    /// The size that a map of `capacity` with `used` elements should get, where `more` may come before anybody looks again;
    /// `None` where it has room, or may not grow.
    pub fn grown(&self, map: &str, capacity: u32, used: u64, more: u64) -> Option<u32> {
        let limit = self.of(map)?.limit;
        let expected = used.saturating_add(more);
        // Half is left for what comes while the kernel looks at the programs, which takes seconds where others want it too.
        if expected.saturating_mul(2) < u64::from(capacity) || capacity >= limit {
            return None;
        }
        let wanted = expected.saturating_mul(3).max(u64::from(capacity) * 2);
        Some(wanted.min(u64::from(limit)) as u32)
    }
}

/// What the kernel takes for one element, in bytes: the next size that it gives out for key, value and its own 48.
pub fn element_bytes(map: &str) -> Option<u64> {
    const OVERHEAD: u64 = 48;
    const GIVEN_OUT: [u64; 4] = [64, 96, 128, 192];
    let sized = SIZED.iter().find(|sized| sized.map == map)?;
    let bytes = OVERHEAD + u64::from(sized.bytes);
    if sized.is_lru {
        return Some(bytes);
    }
    GIVEN_OUT.into_iter().find(|given| *given >= bytes)
}

/// What a full map of so many elements takes, in bytes.
pub fn full_bytes(map: &str, entries: u32) -> u64 {
    const BUCKET: u64 = 16;
    u64::from(entries) * element_bytes(map).unwrap_or(0) + u64::from(entries).next_power_of_two() * BUCKET
}

/// Memory that the kernel can give, in bytes; `None` where it does not say.
pub(crate) fn memory_left() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_name_a_size_and_maybe_a_limit() {
        let of = |text: &str| text.parse::<Setting>().map(|setting| (setting.map, setting.size));
        let size = |entries, limit| Size { entries, limit };
        assert_eq!(of("conntrack=4096"), Ok((maps::CONNTRACK, size(4096, 1 << 21))));
        assert_eq!(of("conntrack=4194304"), Ok((maps::CONNTRACK, size(1 << 22, 1 << 22))));
        assert_eq!(of("slots=4096..8192"), Ok((maps::SLOTS, size(4096, 8192))));
        assert_eq!(of("affinity=4096"), Ok((maps::AFFINITY, size(4096, 4096))));
    }

    #[test]
    fn what_is_no_setting_is_told_by_name_and_range() {
        for (text, words) in [
            ("conntrack", "is no NAME=ENTRIES"),
            ("flows=1024", "no map \"flows\": one of conntrack, sockets-connected, affinity"),
            ("conntrack=1023", "conntrack: 1023 elements: from 1024 to 16777216 are possible"),
            ("conntrack=16777217", "from 1024 to 16777216"),
            ("conntrack=many", "conntrack: \"many\": invalid digit"),
            ("conntrack=8192..4096", "the limit 4096 is below the size 8192"),
            ("affinity=4096..8192", "does not grow by itself"),
        ] {
            let error = text.parse::<Setting>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_map_grows_before_it_is_full_and_not_beyond_its_limit() {
        let sizes = Sizes::from_iter(["conntrack=4096..10000".parse().expect("a setting")]);
        let grown = |capacity, used, more| sizes.grown(maps::CONNTRACK, capacity, used, more);
        assert_eq!(grown(4096, 2047, 0), None);
        assert_eq!(grown(4096, 2048, 0), Some(8192));
        assert_eq!(grown(4096, 1000, 2000), Some(9000), "what is to come counts");
        assert_eq!(grown(4096, 1000, 100_000), Some(10_000));
        assert_eq!(grown(10_000, 10_000, 0), None);
        assert_eq!(sizes.grown("COUNTERS_2", 64, 64, 0), None);
    }

    #[test]
    fn a_full_map_of_flows_takes_what_is_documented() {
        assert_eq!(element_bytes(maps::CONNTRACK), Some(192));
        assert_eq!(full_bytes(maps::CONNTRACK, 1 << 21), (192 + 16) << 21);
    }
}
