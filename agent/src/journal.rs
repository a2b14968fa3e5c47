//! What changed on this node, when and why: the last events of the agent, in memory, for `seaway journal`.
//!
//! Whoever changes something tells it with [`note!`]; warnings of the log are told too. The journal ends with the process:
//! what is to be kept longer is in the log. It listens to `tracing`, so that no crate needs to know it.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Events that are kept; each is bounded too.
const ENTRIES_MAX: usize = 2048;
const TEXT_MAX: usize = 400;
/// What came at once and is more than this is told as a number.
pub const SINGLE_MAX: usize = 16;
pub const TARGET: &str = "journal";

/// Notes a change: what kind of thing, which of them, what it is now, and why where that is known.
macro_rules! note {
    ($kind:literal, $what:expr, $change:expr) => {
        $crate::journal::note!($kind, $what, $change, "")
    };
    ($kind:literal, $what:expr, $change:expr, $why:expr) => {
        tracing::debug!(target: $crate::journal::TARGET, kind = $kind, what = %$what, why = %$why, "{}", $change)
    };
}
pub(crate) use note;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub time: Timestamp,
    /// peer, route, service, pod, policy, node or warning.
    pub kind: String,
    pub what: String,
    pub change: String,
    /// Empty where nobody said so.
    pub why: String,
}

#[derive(Clone, Debug, Default)]
pub struct Journal {
    entries: Arc<Mutex<VecDeque<Entry>>>,
}

impl Journal {
    /// The newest `limit` of this kind, if any is asked for, that have `about` in them; in the order in which they came.
    pub fn entries(&self, kind: Option<&str>, about: &str, limit: usize) -> Vec<Entry> {
        let entries = self.lock();
        let is_asked = |entry: &&Entry| {
            kind.is_none_or(|kind| entry.kind == kind)
                && [&entry.what, &entry.change, &entry.why].iter().any(|text| text.contains(about))
        };
        let mut newest: Vec<Entry> = entries.iter().rev().filter(is_asked).take(limit).cloned().collect();
        newest.reverse();
        newest
    }

    fn push(&self, entry: Entry) {
        let mut entries = self.lock();
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the journal is told of all that the process says.
pub fn is_told(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET || *metadata.level() <= Level::WARN
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut reader = Reader::default();
        event.record(&mut reader);
        let mut entry = Entry { time: Timestamp::now(), ..reader.entry };
        if event.metadata().target() != TARGET {
            entry.kind = "warning".to_owned();
            entry.why = reader.rest;
        }
        for text in [&mut entry.what, &mut entry.change, &mut entry.why] {
            shorten(text);
        }
        self.push(entry);
    }
}

#[derive(Default)]
struct Reader {
    entry: Entry,
    /// Fields with other names.
    rest: String,
}

impl Reader {
    fn set(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let text = match field.name() {
            "message" => &mut self.entry.change,
            "kind" => &mut self.entry.kind,
            "what" => &mut self.entry.what,
            "why" => &mut self.entry.why,
            name => {
                let space = if self.rest.is_empty() { "" } else { " " };
                // Writing to a string does not fail.
                let _ = write!(self.rest, "{space}{name}={value}");
                return;
            }
        };
        let _ = text.write_fmt(value);
    }
}

impl Visit for Reader {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format_args!("{value:?}"));
    }
}

fn shorten(text: &mut String) {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn told(tell: impl FnOnce()) -> Journal {
        let journal = Journal::default();
        let layer = journal.clone().with_filter(filter_fn(is_told));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), tell);
        journal
    }

    #[test]
    fn changes_and_warnings_are_kept_and_what_else_is_logged_is_not() {
        let journal = told(|| {
            note!("route", "10.0.0.0/24", "via 192.0.2.1", "learned");
            tracing::info!("the agent is busy");
            tracing::warn!(destination = "10.0.1.0/24", errno = 101, "route refused by the kernel");
            note!("pod", "default/web", format!("attached at {}", "10.244.0.2"));
        });
        let all = journal.entries(None, "", 10);
        let texts: Vec<_> = all
            .iter()
            .map(|e| (e.kind.as_str(), e.what.as_str(), e.change.as_str(), e.why.as_str()))
            .collect();
        assert_eq!(
            texts,
            [
                ("route", "10.0.0.0/24", "via 192.0.2.1", "learned"),
                ("warning", "", "route refused by the kernel", "destination=10.0.1.0/24 errno=101"),
                ("pod", "default/web", "attached at 10.244.0.2", ""),
            ]
        );
        assert_eq!(journal.entries(Some("pod"), "", 10), all[2..]);
        assert_eq!(journal.entries(None, "10.0.1.0", 10), all[1..2]);
        assert_eq!(journal.entries(None, "", 2), all[1..], "the newest, in order");
    }

    #[test]
    fn the_oldest_go_and_long_texts_are_cut_between_characters() {
        let journal = told(|| {
            for number in 0..ENTRIES_MAX + 3 {
                note!("node", number, "\u{e9}".repeat(TEXT_MAX));
            }
        });
        let all = journal.entries(None, "", usize::MAX);
        assert_eq!((all.len(), all[0].what.as_str()), (ENTRIES_MAX, "3"));
        assert!(all[0].change.ends_with("\u{e9} ...") && all[0].change.len() <= TEXT_MAX + 4);
    }
}
