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
}

pub fn text(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let status: Status = read(answer)?;
    let mut table = Table::new(&["NODE", "READY", "UPTIME", "VERSION", "REASON"], &["MTU", "MISSING"], "");
    table.row([
        status.node,
        yes(status.ready),
        span(status.uptime_seconds),
        status.version,
        status.reason,
        status.mtu.to_string(),
        status.missing.join("; "),
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
    }
}
