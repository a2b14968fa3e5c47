//! Looks every second whether a map of the datapath is about to be full, and gives it more room: beside the event loop, since
//! the kernel takes a second for the programs.

use std::sync::Arc;
use std::time::Duration;

use dataplane::datapath::Error;
use dataplane::growth::Growth;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::network::Network;
use crate::watch;

const INTERVAL: Duration = Duration::from_secs(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(60);

/// Starts the task where there is a datapath.
pub fn start(network: &Arc<Network>, cancel: CancellationToken) {
    let growth = network.datapath().map(|datapath| datapath.growth());
    if let Some(growth) = growth {
        tokio::spawn(run(Arc::clone(network), growth, cancel));
    }
}

async fn run(network: Arc<Network>, mut growth: Growth, cancel: CancellationToken) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = interval.tick() => {}
        }
        let looked_at = Arc::clone(&network);
        let working = tokio::task::spawn_blocking(move || {
            let result = look(&looked_at, &mut growth);
            (growth, result)
        });
        let result = match working.await {
            Ok((returned, result)) => {
                growth = returned;
                result
            }
            Err(error) => {
                tracing::error!(%error, "making maps larger; it is not tried again");
                return;
            }
        };
        if let Err(error) = result {
            tracing::warn!(error = watch::chain(&error), "making a map larger");
            interval.reset_after(RETRY);
        }
    }
}

fn look(network: &Network, growth: &mut Growth) -> Result<(), Error> {
    let Some(counters) = network.datapath().map(|datapath| datapath.counters()) else { return Ok(()) };
    let Some((map, entries)) = growth.look(&counters?)? else { return Ok(()) };
    growth.grow(map, entries)?;
    network.datapath().map_or(Ok(()), |mut datapath| datapath.reopen())
}
