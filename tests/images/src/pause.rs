//! The process of a pod sandbox: holds the namespaces, reaps orphans, ends on SIGTERM or SIGINT.

extern "C" fn end(_signal: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(0) }
}

extern "C" fn reap(_signal: libc::c_int) {
    // SAFETY: waitpid is async-signal-safe; a null status pointer is allowed.
    unsafe { while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {} }
}

fn main() {
    let end: extern "C" fn(libc::c_int) = end;
    let reap: extern "C" fn(libc::c_int) = reap;
    // SAFETY: the handlers call only async-signal-safe functions; pause has no preconditions.
    unsafe {
        libc::signal(libc::SIGTERM, end as *const () as libc::sighandler_t);
        libc::signal(libc::SIGINT, end as *const () as libc::sighandler_t);
        libc::signal(libc::SIGCHLD, reap as *const () as libc::sighandler_t);
        loop {
            libc::pause();
        }
    }
}
