//! Makes maps larger before they are full, beside everything else: only hooks that get their programs wait, for some
//! milliseconds.

use std::sync::Arc;

use ebpf_common::{Counter, maps};

use crate::{
    datapath::{Config, Error, PodLinks},
    programs::Object,
    sizes,
    swap::{Swap, Turn},
    view::Walk,
};

/// A map that programs fill: the counter of what fills it, and the elements of each.
const FILLED: [(&str, Counter, u64); 2] =
    [(maps::CONNTRACK, Counter::FlowNew, 2), (maps::SOCKETS_CONNECTED, Counter::SocketConnect, 1)];

/// When a map's elements were counted last.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    elements: u64,
    /// The counter then, and when it was looked at last.
    at: u64,
    last: u64,
}

#[derive(Clone, Debug)]
pub struct Growth {
    config: Config,
    programs: PodLinks,
    turn: Arc<Turn>,
    counted: [Option<Counted>; FILLED.len()],
}

impl Growth {
    pub(crate) fn new(config: Config, programs: PodLinks, turn: Arc<Turn>) -> Self {
        Self { config, programs, turn, counted: [None; FILLED.len()] }
    }

    /// The map that programs are about to fill, and the size that it should get. To be called every second or so with the
    /// counters, at rest with no more cost than a few subtractions: elements are counted only where there may be too many.
    pub fn look(&mut self, counters: &[(Counter, u64)]) -> Result<Option<(&'static str, u32)>, Error> {
        for ((map, counter, each), counted) in FILLED.iter().zip(&mut self.counted) {
            let now = counters.iter().find(|(found, _)| found == counter).map_or(0, |(_, count)| *count);
            let mut walk = Walk::open(&self.config.maps(), map)?;
            let capacity = walk.room().unwrap_or(0);
            let count = |walk: &mut Walk| -> Result<Counted, Error> {
                Ok(Counted { elements: walk.count()?, at: now, last: now })
            };
            let known = match *counted {
                Some(known) => known,
                None => *counted.insert(count(&mut walk)?),
            };
            // For ten seconds: who counts and exchanges takes a moment too.
            let more = 10 * each * now.saturating_sub(known.last);
            let most = known.elements + each * now.saturating_sub(known.at);
            *counted = Some(Counted { last: now, ..known });
            if self.config.sizes.grown(map, capacity, most, more).is_none() {
                continue;
            }
            let exact = count(&mut Walk::open(&self.config.maps(), map)?)?;
            *counted = Some(exact);
            let due = due(&self.config, map, exact.elements, more)?;
            if let Some(entries) = due {
                return Ok(Some((map, entries)));
            }
        }
        Ok(None)
    }

    /// How large a map should become that has `used` elements, and may get `more` before anybody looks again; `None` where it
    /// need not or may not. Not more than half of the memory that is left goes to a map.
    pub fn due(&self, map: &str, used: u64, more: u64) -> Result<Option<u32>, Error> {
        due(&self.config, map, used, more)
    }

    /// Exchanges a map for a larger one with the same in it. To be called in the node's network namespace, and
    /// [`crate::datapath::Datapath::reopen`] after it. Of a map that the agent writes, nothing may be written meanwhile.
    pub fn grow(&self, map: &str, entries: u32) -> Result<(), Error> {
        let Some(swap) = Swap::of(&self.config.bpf_dir, map, entries) else { return Ok(()) };
        self.turn.take(|| {
            let prepared = swap.prepare(&Object::new(&self.config))?;
            swap.carry_out(prepared, |ebpf, hooks| {
                let mut programs = self.programs.programs();
                ebpf.into_iter().for_each(|ebpf| programs.exchange(ebpf));
                programs.install(hooks)
            })
        })?;
        tracing::info!(map, entries, "the map is larger");
        Ok(())
    }
}

fn due(config: &Config, map: &str, used: u64, more: u64) -> Result<Option<u32>, Error> {
    let capacity = Walk::open(&config.maps(), map)?.room().unwrap_or(0);
    let used = used.min(u64::from(capacity));
    let Some(entries) = config.sizes.grown(map, capacity, used, more) else { return Ok(None) };
    let (needed, left) = (sizes::full_bytes(map, entries), sizes::memory_left());
    if left.is_some_and(|left| needed > left / 2) {
        tracing::warn!(map, capacity, used, needed, left, "no memory for a larger map");
        return Ok(None);
    }
    Ok(Some(entries))
}
