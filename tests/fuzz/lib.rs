//! The engine of the fuzz targets: mutates inputs from a corpus with a generator of its own, so that a run is told by its
//! seed. What a target answers with (an outcome) is the feedback: an input with an outcome that was not seen before joins
//! the corpus. Deliberately absent: coverage of code, which the stable toolchain gives no cheap way to read.
//!
//! A target fails when it panics, when it holds more memory than its input allows, or when it takes too long. The input
//! is written to `target/fuzz`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::{HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Inputs are not grown beyond this, in bytes.
const INPUT_MAX: usize = 64 * 1024;
const CORPUS_MAX: usize = 4096;
/// What a target may hold at once, whatever its input: tables that are made on first use.
const MEMORY_BASE: usize = 96 << 20;
/// And for each byte of input.
const MEMORY_PER_BYTE: usize = 4096;
const TIME_MAX: Duration = Duration::from_secs(10);
const SECONDS_DEFAULT: u64 = 5;

/// Counts what the current thread holds.
pub struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn grow(size: usize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get().saturating_add(size));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn shrink(size: usize) {
    let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(size)));
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        shrink(layout.size());
        grow(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }
}

/// One target: where its inputs come from.
pub struct Fuzz<'a> {
    pub name: &'a str,
    pub corpus: Vec<Vec<u8>>,
    /// Pieces that mean something to the target.
    pub dictionary: &'a [&'a [u8]],
}

/// What a target says of an input: equal words are the same to it.
pub fn outcome(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The outcome of an error: its words without the numbers and quotes that the input brought.
pub fn outcome_of_text(text: &str) -> u64 {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() > 3).take(6).collect();
    outcome(&words)
}

impl Fuzz<'_> {
    /// Runs the target until the time that `SEAWAY_FUZZ_SECONDS` gives each is over.
    ///
    /// # Panics
    /// With the input's file, when the target fails.
    pub fn run(mut self, target: impl Fn(&[u8]) -> u64) {
        let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let seconds = variable("SEAWAY_FUZZ_SECONDS").unwrap_or(SECONDS_DEFAULT);
        let seed = variable("SEAWAY_FUZZ_SEED").unwrap_or(1);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut random = Random::new(seed ^ outcome(&self.name));
        let mut seen = HashSet::new();
        let mut runs = 0u64;
        for input in self.corpus.clone() {
            seen.insert(self.once(&input, &target));
        }
        while Instant::now() < end {
            let input = self.mutated(&mut random);
            runs += 1;
            if seen.insert(self.once(&input, &target)) && self.corpus.len() < CORPUS_MAX {
                self.corpus.push(input);
            }
        }
        eprintln!("{}: {runs} inputs in {seconds} s, {} outcomes, seed {seed}", self.name, seen.len());
        assert!(runs > 0 || seconds == 0, "{}: no input ran", self.name);
    }

    fn once(&self, input: &[u8], target: &impl Fn(&[u8]) -> u64) -> u64 {
        let held = HELD.get();
        PEAK.set(held);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| target(input)));
        let took = began.elapsed();
        let peak = PEAK.get().saturating_sub(held);
        let allowed = MEMORY_BASE + input.len() * MEMORY_PER_BYTE;
        let wrong = match result {
            Err(_) => "the target panicked".to_owned(),
            Ok(_) if peak > allowed => format!("{peak} bytes were held, {allowed} are allowed"),
            Ok(_) if took > TIME_MAX => format!("it took {took:?}"),
            Ok(outcome) => return outcome,
        };
        let file = self.save(input);
        panic!("{}: {wrong} on an input of {} bytes: {}", self.name, input.len(), file.display());
    }

    fn save(&self, input: &[u8]) -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        let file = folder.join(format!("{}-{:016x}", self.name, outcome(&input)));
        let saved = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, input));
        if let Err(error) = saved {
            eprintln!("cannot write {}: {error}; the input is {input:?}", file.display());
        }
        file
    }

    fn mutated(&self, random: &mut Random) -> Vec<u8> {
        let mut input = match self.corpus.len() {
            0 => Vec::new(),
            count => self.corpus[random.below(count)].clone(),
        };
        for _ in 0..=random.below(6) {
            self.mutate(&mut input, random);
        }
        input.truncate(INPUT_MAX);
        input
    }

    fn mutate(&self, input: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(input.len() + 1);
        let length = random.below(16).min(input.len() - at);
        match random.below(9) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.insert(at, random.number() as u8),
            3 => drop(input.drain(at..at + length)),
            4 => {
                let piece = input[at..at + length].to_vec();
                let times = 1 << random.below(9);
                let pieces = piece.repeat(times);
                input.splice(at..at, pieces);
            }
            5 | 6 if !self.dictionary.is_empty() => {
                let piece = self.dictionary[random.below(self.dictionary.len())];
                input.splice(at..at + length.min(1), piece.iter().copied());
            }
            7 if !self.corpus.is_empty() => {
                let other = &self.corpus[random.below(self.corpus.len())];
                let from = random.below(other.len() + 1);
                let piece = other[from..].iter().take(256).copied().collect::<Vec<_>>();
                input.splice(at..at + length, piece);
            }
            _ => input.truncate(at.max(1)),
        }
    }
}
