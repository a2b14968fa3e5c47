//! Waiting for what must become true.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(100);

/// Waits until `condition` returns nothing to complain about; at the deadline the test fails with the last complaint.
#[track_caller]
pub fn eventually(seconds: u64, what: &str, mut condition: impl FnMut() -> Result<(), String>) {
    eventually_some(seconds, what, || condition().map(Some));
}

/// Waits until `condition` returns a value.
#[track_caller]
pub fn eventually_some<T>(
    seconds: u64,
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>, String>,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let complaint = match condition() {
            Ok(Some(value)) => return value,
            Ok(None) => "not yet".to_owned(),
            Err(complaint) => complaint,
        };
        assert!(Instant::now() < deadline, "waited {seconds} s for {what}: {complaint}");
        std::thread::sleep(PAUSE);
    }
}
