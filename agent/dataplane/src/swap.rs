//! Maps that are exchanged for others while programs use them: for larger ones, or for ones of a newer layout.
//!
//! ```text
//!   1 prepare   next/MAP is made; programs in between and programs after are loaded over it
//!   2 move      maps that only the agent writes are copied, and next/MAP becomes maps/MAP
//!   3 bridge    every hook gets the programs in between: they write flows to both maps, and read the new one, else the old
//!   4 copy      what is only in the old map goes to the new one; nothing newer is overwritten
//!   5 commit    next/MAP becomes maps/MAP
//!   6 switch    every hook gets the programs after, which know the new map alone
//! ```
//!
//! Steps 3 to 5 are left out where no map moves that programs write. A hook always has a program, and each program finds what
//! those of its neighbours in time wrote: so in each of these steps some hooks may be ahead of others. The names on disk say
//! how far an agent came that was killed. Before 5 the old map has everything, since all who write, write it too: the next
//! agent forgets `next` and begins again. From 5 on the new one has everything, and the next agent goes on from it. In 2 both
//! have the same, as no agent writes before all hooks know the map that it has under its name.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::Ebpf;
use ebpf_common::{Flow, maps, maps::bridged, retired::Flow0};

use crate::{
    bpf,
    maps::MapError,
    programs::{LogLevel, Object, ProgramError},
    sizes::{SIZED, Sizes},
    view::{self, Walk},
};

/// Where a swap may be left off, as by a kill: for tests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    Prepared,
    Moved,
    /// Sockets have programs in between, and links those from before.
    HalfBridged,
    Bridged,
    /// Half of the elements.
    HalfCopied,
    Copied,
    Committed,
    HalfSwitched,
}

impl Step {
    pub const ALL: [Self; 8] = [
        Self::Prepared,
        Self::Moved,
        Self::HalfBridged,
        Self::Bridged,
        Self::HalfCopied,
        Self::Copied,
        Self::Committed,
        Self::HalfSwitched,
    ];
}

/// What hooks get new programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hooks {
    Sockets,
    All,
}

/// One map for another.
#[derive(Debug)]
struct Exchange {
    map: &'static str,
    /// As it is pinned: an older layout has another name.
    from: String,
    entries: u32,
}

impl Exchange {
    /// Bits of the programs in between, and the name by which they know the old map; `None` where only the agent writes.
    fn bridge(&self) -> Option<(u32, &'static str)> {
        if self.from == maps::CONNTRACK_0 {
            return Some((bridged::CONNTRACK | bridged::CONNTRACK_0, maps::CONNTRACK_0));
        }
        let found = bridged::ALL.iter().find(|(map, ..)| *map == self.map);
        found.map(|(_, bit, old)| (*bit, *old))
    }
}

/// All that is exchanged at once.
#[derive(Debug)]
pub(crate) struct Swap {
    directory: PathBuf,
    exchanges: Vec<Exchange>,
    halt_at: Option<Step>,
}

/// Programs that are loaded and hang nowhere yet.
pub(crate) struct Prepared {
    between: Option<Ebpf>,
    after: Ebpf,
}

impl Swap {
    /// What an agent finds pinned under `directory` that is smaller or larger than `sizes` says, or of an older layout that
    /// programs wrote.
    pub(crate) fn at_start(
        directory: &Path,
        sizes: &Sizes,
        halt_at: Option<Step>,
    ) -> Result<Self, ProgramError> {
        let maps_dir = directory.join("maps");
        let mut exchanges = Vec::new();
        for (map, size) in sizes.iter() {
            let of_layout_0 = maps_dir.join(maps::CONNTRACK_0);
            let (from, pinned) = match bpf::get_pinned(&maps_dir.join(map)) {
                Err(_) if map == maps::CONNTRACK && of_layout_0.exists() => {
                    (maps::CONNTRACK_0, bpf::get_pinned(&of_layout_0))
                }
                pinned => (map, pinned),
            };
            let Ok(pinned) = pinned else { continue };
            let path = maps_dir.join(from);
            let info = bpf::map_info(pinned.as_fd()).map_err(|source| MapError::Open { path, source })?;
            let entries = match info.max_entries {
                capacity if capacity < size.entries => size.entries,
                capacity if capacity > size.limit => {
                    let used = Walk::open(&maps_dir, from)?.count()?;
                    if used.saturating_mul(4) > u64::from(size.limit) * 3 {
                        let limit = size.limit;
                        tracing::warn!(map, capacity, used, limit, "the map has too much in it to shrink");
                        capacity
                    } else {
                        size.limit
                    }
                }
                capacity => capacity,
            };
            if entries != info.max_entries || from != map {
                exchanges.push(Exchange { map, from: from.to_owned(), entries });
            }
        }
        Ok(Self { directory: directory.to_owned(), exchanges, halt_at })
    }

    /// One map for one of another size.
    pub(crate) fn of(directory: &Path, map: &str, entries: u32) -> Option<Self> {
        let map = SIZED.iter().find(|sized| sized.map == map)?.map;
        let exchange = Exchange { map, from: map.to_owned(), entries };
        Some(Self { directory: directory.to_owned(), exchanges: vec![exchange], halt_at: None })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// The first step, which takes the kernel a second or so. Nothing that is in use is touched.
    pub(crate) fn prepare(&self, object: &Object<'_>) -> Result<Prepared, ProgramError> {
        self.forget_next()?;
        let new = |exchange: &Exchange| (exchange.map, self.next(exchange));
        let mut after = object.clone();
        after.pins.extend(self.exchanges.iter().map(new));
        after.entries.extend(self.exchanges.iter().map(|exchange| (exchange.map, exchange.entries)));
        let mut between = after.clone();
        for exchange in &self.exchanges {
            if let Some((bits, old)) = exchange.bridge() {
                between.bridged |= bits;
                between.pins.push((old, self.directory.join("maps").join(&exchange.from)));
            }
        }
        // They serve for a second, and the verifier has enough to look at.
        between.log_level = LogLevel::Off;
        let is_bridged = between.bridged != 0;
        let between = is_bridged.then(|| between.load()).transpose()?;
        let prepared = Prepared { between, after: after.load()? };
        self.may_go_on(Step::Prepared)?;
        Ok(prepared)
    }

    /// The other steps. `install` puts programs into hooks.
    pub(crate) fn carry_out(
        &self,
        prepared: Prepared,
        mut install: impl FnMut(Option<Ebpf>, Hooks) -> Result<(), ProgramError>,
    ) -> Result<(), ProgramError> {
        let (moving, flowing): (Vec<_>, Vec<_>) =
            self.exchanges.iter().partition(|exchange| exchange.bridge().is_none());
        for exchange in moving {
            self.copy(exchange, 0)?;
            self.commit(exchange)?;
        }
        self.may_go_on(Step::Moved)?;
        if let Some(between) = prepared.between {
            install(Some(between), Hooks::Sockets)?;
            self.may_go_on(Step::HalfBridged)?;
            install(None, Hooks::All)?;
            bpf::wait_for_programs();
            self.may_go_on(Step::Bridged)?;
            for exchange in &flowing {
                self.copy(exchange, BPF_NOEXIST)?;
            }
            self.may_go_on(Step::Copied)?;
            flowing.iter().try_for_each(|exchange| self.commit(exchange))?;
            self.may_go_on(Step::Committed)?;
        }
        install(Some(prepared.after), Hooks::Sockets)?;
        self.may_go_on(Step::HalfSwitched)?;
        install(None, Hooks::All)
    }

    fn next(&self, exchange: &Exchange) -> PathBuf {
        self.directory.join("next").join(exchange.map)
    }

    /// What an agent left that was killed before it came to use it.
    pub(crate) fn forget_next(&self) -> Result<(), ProgramError> {
        let next = self.directory.join("next");
        let failed = |source| ProgramError::FileSystem { path: next.clone(), source };
        for entry in fs::read_dir(&next).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    fn commit(&self, exchange: &Exchange) -> Result<(), ProgramError> {
        let path = self.directory.join("maps").join(exchange.map);
        fs::rename(self.next(exchange), &path).map_err(|source| ProgramError::Pin { path, source })
    }

    fn may_go_on(&self, step: Step) -> Result<(), ProgramError> {
        if self.halt_at == Some(step) { Err(ProgramError::Halted(step)) } else { Ok(()) }
    }

    /// Writes the elements of the old map to the new one, those that are there already only without `BPF_NOEXIST`.
    fn copy(&self, exchange: &Exchange, flags: u64) -> Result<(), ProgramError> {
        let path = self.next(exchange);
        let new = bpf::get_pinned(&path).map_err(|source| MapError::Open { path, source })?;
        let mut walk = Walk::open(&self.directory.join("maps"), &exchange.from)?;
        let from_layout_0 = exchange.from == maps::CONNTRACK_0;
        let mut pieces = 0;
        while walk.advance()? {
            for (key, value) in walk.elements() {
                let converted = from_layout_0.then(|| view::read::<Flow0>(value)).flatten();
                let converted = converted.map(|old| Flow::of_layout_0(&old));
                let value = converted.as_ref().map_or(value, view::as_bytes);
                add(new.as_fd(), key, value, flags).map_err(|source| match source.raw_os_error() {
                    Some(libc::E2BIG) => MapError::Full { name: exchange.map.to_owned() },
                    _ => MapError::Access { operation: "copy", name: exchange.map.to_owned(), source },
                })?;
            }
            pieces += 1;
            if pieces == 1 && flags == BPF_NOEXIST {
                self.may_go_on(Step::HalfCopied)?;
            }
        }
        Ok(())
    }
}

const BPF_NOEXIST: u64 = 1;

fn add(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    // SAFETY: key and value are elements of a map of the same sizes, or a value of the type that programs give this map.
    match unsafe { bpf::update_bytes(map, key.as_ptr(), value.as_ptr(), flags) } {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Refuses maps of layouts that this agent does not know yet: those are what a newer agent serves flows from.
pub(crate) fn refuse_newer(maps_dir: &Path) -> Result<(), ProgramError> {
    for name in view::names(maps_dir)? {
        let (base, Some(version)) = view::split_version(&name) else { continue };
        let own = maps::ALL.iter().map(|own| view::split_version(own)).find(|(own, _)| *own == base);
        if let Some((_, Some(own))) = own
            && version > own
        {
            return Err(ProgramError::Newer { path: maps_dir.join(&name), version, own });
        }
    }
    Ok(())
}

/// One swap at a time: all use one folder for what is to come.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<()>);

impl Turn {
    pub(crate) fn take<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }
}
