//! Gives back the memory of what only the start needed of the server.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// After the start of the server, and after that of its parts.
const AFTER: [Duration; 2] = [Duration::ZERO, Duration::from_secs(30)];

/// Gives back what the start needed.
pub(crate) async fn after_start(stop: CancellationToken) {
    for wait in AFTER {
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        resident::give_back_program();
    }
}
