//! Encodings that are made of objects when somebody asks for them, and kept within one budget: what is asked for again
//! stays, what nobody asks for goes first, with those whose object is gone. Whoever writes to many readers finds the
//! encoding that the first of them made.
//!
//! ```text
//! Object -> Slot --weak--> Encoding <--strong-- Encodings (a clock: used ones get another turn)
//! ```

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

/// What all objects' protobuf messages may take together, in bytes: some 5,000 pods.
const PROTOBUF_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Beside its bytes, an encoding takes about so much.
const OVERHEAD_BYTES: usize = 96;

/// Those of protobuf, of all objects in the process.
pub(super) static PROTOBUF: Encodings = Encodings::new(PROTOBUF_BYTES_MAX);

#[derive(Debug)]
struct Encoding {
    bytes: Bytes,
    /// Since the clock last came by.
    is_used: AtomicBool,
}

impl Encoding {
    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD_BYTES
    }
}

/// An object's place for one encoding.
#[derive(Debug, Default)]
pub(super) struct Slot {
    kept: Mutex<Weak<Encoding>>,
    length: OnceLock<u32>,
}

impl Slot {
    /// Of the encoding in bytes, also after it was let go.
    pub(super) fn length(&self) -> Option<usize> {
        self.length.get().and_then(|length| usize::try_from(*length).ok())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Encodings {
    bytes_max: usize,
    clock: Mutex<Clock>,
}

#[derive(Debug)]
struct Clock {
    kept: VecDeque<Arc<Encoding>>,
    bytes: usize,
}

impl Encodings {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { bytes_max, clock: Mutex::new(Clock { kept: VecDeque::new(), bytes: 0 }) }
    }

    /// The encoding of a slot's object; made by one caller while the others wait for it, where it is not kept any more.
    pub(super) fn get_or_make(&self, slot: &Slot, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        let mut kept_by = slot.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept_by.upgrade() {
            // Not written without need: many cores read it.
            if !kept.is_used.load(Ordering::Relaxed) {
                kept.is_used.store(true, Ordering::Relaxed);
            }
            return kept.bytes.clone();
        }
        let mut made = make();
        made.shrink_to_fit();
        let bytes = Bytes::from(made);
        let encoding = Arc::new(Encoding { bytes: bytes.clone(), is_used: AtomicBool::new(false) });
        *kept_by = Arc::downgrade(&encoding);
        drop(kept_by);
        if let Ok(length) = u32::try_from(bytes.len()) {
            // The same each time.
            slot.length.get_or_init(|| length);
        }
        self.keep(encoding);
        bytes
    }

    fn keep(&self, encoding: Arc<Encoding>) {
        if encoding.size() > self.bytes_max {
            return;
        }
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.bytes += encoding.size();
        clock.kept.push_back(encoding);
        while clock.bytes > self.bytes_max {
            let Some(oldest) = clock.kept.pop_front() else { return };
            // Each turn clears the mark, so that the second one ends.
            if oldest.is_used.swap(false, Ordering::Relaxed) && Arc::weak_count(&oldest) > 0 {
                clock.kept.push_back(oldest);
            } else {
                clock.bytes -= oldest.size();
            }
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1_000;

    /// Encodings with room for so many of `SIZE` bytes, and a count of those that were made.
    struct Test {
        encodings: Encodings,
        made: usize,
    }

    impl Test {
        fn with_room_for(count: usize) -> Self {
            Self { encodings: Encodings::new(count * (SIZE + OVERHEAD_BYTES)), made: 0 }
        }

        fn read(&mut self, slot: &Slot) {
            let bytes = self.encodings.get_or_make(slot, || {
                self.made += 1;
                vec![7; SIZE]
            });
            assert_eq!(bytes.len(), SIZE);
            assert!(self.encodings.bytes() <= self.encodings.bytes_max);
        }

        /// How many were made for one read of each.
        fn read_all(&mut self, slots: &[Slot]) -> usize {
            let before = self.made;
            slots.iter().for_each(|slot| self.read(slot));
            self.made - before
        }
    }

    fn slots(count: usize) -> Vec<Slot> {
        (0..count).map(|_| Slot::default()).collect()
    }

    #[test]
    fn a_list_that_fits_is_encoded_once_and_one_that_does_not_leaves_no_more_than_the_budget() {
        let mut test = Test::with_room_for(5_000);
        let listed = slots(5_000);
        assert_eq!(test.read_all(&listed), 5_000);
        assert_eq!((test.read_all(&listed), test.read_all(&listed)), (0, 0));
        assert_eq!(test.read_all(&slots(100_000)), 100_000);
        assert_eq!(test.encodings.bytes(), 5_000 * (SIZE + OVERHEAD_BYTES));
    }

    #[test]
    fn one_encoding_serves_all_watchers_of_an_event_even_beside_a_large_list() {
        let mut test = Test::with_room_for(1_000);
        let (events, listed) = (slots(10), slots(50_000));
        let mut of_events = 0;
        for page in listed.chunks(500) {
            for _watcher in 0..100 {
                of_events += test.read_all(&events);
            }
            test.read_all(page);
        }
        assert_eq!(of_events, 10);
    }

    #[test]
    fn objects_that_are_gone_make_room_before_those_that_are_used() {
        let mut test = Test::with_room_for(100);
        let (gone, live) = (slots(50), slots(50));
        for slots in [&gone, &live, &gone, &live] {
            test.read_all(slots);
        }
        drop(gone);
        test.read_all(&slots(50));
        assert_eq!(test.read_all(&live), 0);
    }

    #[test]
    fn what_is_larger_than_the_budget_is_made_each_time() {
        let encodings = Encodings::new(10);
        let slot = Slot::default();
        let mut made = 0;
        for _ in 0..3 {
            encodings.get_or_make(&slot, || {
                made += 1;
                vec![0; 11]
            });
        }
        assert_eq!((made, encodings.bytes()), (3, 0));
    }

    #[test]
    fn readers_at_the_same_moment_wait_for_one_encoding() {
        let encodings = Encodings::new(1 << 20);
        let slot = Slot::default();
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let read = encodings.get_or_make(&slot, || {
                        made.fetch_add(1, Ordering::SeqCst);
                        vec![1, 2, 3]
                    });
                    assert_eq!(&*read, [1, 2, 3]);
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
