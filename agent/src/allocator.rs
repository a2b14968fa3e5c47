//! Who gives this process its memory.
//!
//! What is freed stays with the thread that freed it, for what may come next. After a start little comes: loading the
//! programs and taking all Services needed much that is never needed again, of the heap and of the program itself.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// How often all threads were asked to give back what they have freed.
static ASKED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static ANSWERED: Cell<u32> = const { Cell::new(0) };
}

/// Gives back to the system what this thread has freed, and asks the others to. It takes milliseconds, and what is allocated next
/// costs a little more.
pub fn give_back() {
    ASKED.fetch_add(1, Ordering::Relaxed);
    give_back_if_asked();
    resident::give_back_program();
}

/// For threads that have nothing to do just now.
pub fn give_back_if_asked() {
    let asked = ASKED.load(Ordering::Relaxed);
    if ANSWERED.replace(asked) != asked {
        // SAFETY: it is part of the allocator that is linked for the line above, and any thread may call it at any time.
        unsafe { mi_collect(true) }
    }
}
