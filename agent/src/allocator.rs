//! Who gives this process its memory.
//!
//! What is freed stays with the process for a while, for what may come next. After a start little comes: loading the
//! programs and taking all Services needed much that is never needed again.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// Gives back to the system what this thread has freed. It takes milliseconds, and what is allocated next costs a
/// little more.
pub fn give_back() {
    // SAFETY: it is part of the allocator that is linked for the line above, and any thread may call it at any time.
    unsafe { mi_collect(true) }
}
