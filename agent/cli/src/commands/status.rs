use serde::Deserialize;
use serde_json::Value;

use crate::{
    agent::read,
    table::{Table, span, yes},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    node: String,
    version: String,
    uptime_seconds: u64,
    ready: bool,
    reason: String,
    mtu: u32,
    /// What this node cannot do, and why.
    #[serde(default)]
    missing: Vec<String>,
    /// The thread of BFD, once a peer has it.
    bfd: Option<Bfd>,
    /// Where Services are balanced.
    xdp: Option<Xdp>,
}

#[derive(Deserialize)]
struct Bfd {
    scheduling: String,
    #[serde(default)]
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Xdp {
    mode: String,
    /// Why it is off.
    #[serde(default)]
    reason: String,
}

impl Xdp {
    fn text(self) -> String {
        if self.reason.is_empty() { self.mode } else { format!("{}: {}", self.mode, self.reason) }
    }
}

pub fn text(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let status: Status = read(answer)?;
    let mut table = Table::new(
        &["NODE", "READY", "UPTIME", "VERSION", "REASON"],
        &["MTU", "MISSING", "BFD-THREAD", "XDP"],
        "",
    );
    table.row([
        status.node,
        yes(status.ready),
        span(status.uptime_seconds),
        status.version,
        status.reason,
        status.mtu.to_string(),
        status.missing.join("; "),
        status.bfd.map_or_else(String::new, |bfd| [vec![bfd.scheduling], bfd.problems].concat().join("; ")),
        status.xdp.map_or_else(String::new, Xdp::text),
    ]);
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_that_is_not_ready_says_why() {
        let answer = json!({ "node": "n1", "version": "0.1.0", "uptimeSeconds": 75, "ready": false,
            "reason": "no block is confirmed", "mtu": 1500 });
        assert_eq!(
            text(&answer, false).unwrap(),
            "NODE   READY   UPTIME   VERSION   REASON\nn1     no      75s      0.1.0     no block is confirmed\n"
        );
        let mut with_bfd = answer;
        with_bfd["bfd"] = json!({ "scheduling": "SCHED_FIFO", "problems": ["IPv4, UDP port 3784: taken"] });
        let wide = text(&with_bfd, true).unwrap();
        assert!(
            wide.contains("BFD-THREAD") && wide.contains("SCHED_FIFO; IPv4, UDP port 3784: taken"),
            "{wide}"
        );
        with_bfd["xdp"] = json!({ "mode": "off", "reason": "it is switched off" });
        let wide = text(&with_bfd, true).unwrap();
        assert!(wide.contains("XDP") && wide.contains("off: it is switched off"), "{wide}");
    }
}
