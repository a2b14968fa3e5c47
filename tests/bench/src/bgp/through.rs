//! Prefixes from a sender through a device to a receiver: all at once, and one at a time.

use std::{
    io::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Options,
    device::{Device, Kind, RECEIVER, SENDER, Setting},
    report::Figures,
    session::{self, Counter, Reached},
};
use crate::services::ground::Ground;

/// What a device gets to come to rest before its memory is read.
const REST: Duration = Duration::from_millis(700);

/// Starts a device anew, measures, ends it.
pub(super) fn measure(
    kind: Kind,
    options: &Options,
    ground: &Ground,
    name: &str,
    figures: &mut Figures,
) -> Result<()> {
    let mut device = Device::start(kind, &options.agent, ground, name, Setting::default())?;
    let mut probe =
        Probe { sender: device.session(SENDER)?, counter: Counter::start(device.session(RECEIVER)?)? };
    let count = options.prefixes;
    let announcements = session::announcements(count, SENDER.1, &[SENDER.0]);
    let withdrawals = session::withdrawals(count);
    let one = [session::announcements(1, SENDER.1, &[SENDER.0]), session::withdrawals(1)];
    let mut measured = || -> Result<()> {
        // Also tells that the device takes what the sender says: a session may take a moment after its handshake.
        probe.pass(&one[0], 1)?;
        probe.pass(&one[1], 0)?;
        std::thread::sleep(REST);
        let memory = device.memory()?;
        let cpu = device.process.cpu()?;
        let (took, updates) = probe.pass(&announcements, count)?;
        figures.announce.push(took.as_secs_f64());
        figures.announce_updates.push(f64::from(updates));
        std::thread::sleep(REST);
        figures.announce_cpu.push(device.process.cpu()? - cpu);
        figures.octets_per_route.push((device.memory()? as f64 - memory as f64) / f64::from(count));
        let cpu = device.process.cpu()?;
        let (took, updates) = probe.pass(&withdrawals, 0)?;
        figures.withdraw.push(took.as_secs_f64());
        figures.withdraw_updates.push(f64::from(updates));
        std::thread::sleep(REST);
        figures.withdraw_cpu.push(device.process.cpu()? - cpu);
        for _ in 0..options.singles {
            figures.single.push(probe.pass(&one[0], 1)?.0.as_secs_f64());
            probe.pass(&one[1], 0)?;
        }
        Ok(())
    };
    let measured = measured().with_context(|| device.said());
    device.process.kill();
    measured
}

pub(super) struct Probe {
    pub(super) sender: TcpStream,
    pub(super) counter: Counter,
}

impl Probe {
    /// Sends, and waits until the receiver has this many prefixes: the time from the first send on, and the UPDATEs.
    pub(super) fn pass(&mut self, octets: &[u8], held: u32) -> Result<(Duration, u32)> {
        self.counter.expect(held)?;
        let began = Instant::now();
        self.sender.write_all(octets).context("sending to the device")?;
        let Reached { at, updates } = self.counter.wait()?;
        Ok((at.duration_since(began), updates))
    }
}
