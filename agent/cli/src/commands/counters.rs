use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

use crate::{agent::read, table::Table};

#[derive(Deserialize)]
struct Counter {
    name: String,
    count: u64,
    /// Whether it counts packets that were dropped.
    drop: bool,
}

/// Those that count drops.
pub fn drops(answer: Value) -> Value {
    match answer {
        Value::Array(counters) => counters.into_iter().filter(|counter| counter["drop"] == true).collect(),
        other => other,
    }
}

/// Those that count drops come first where they are not zero.
pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    if let Some(error) = answer["error"].as_str() {
        bail!("the agent cannot read its counters: {error}");
    }
    let mut counters: Vec<Counter> = read(answer)?;
    counters.sort_by_key(|counter| !(counter.drop && counter.count > 0));
    let mut table = Table::new(&["EVENT", "COUNT", "DROP"], &[], "No counters: the datapath is not loaded.");
    for counter in counters {
        let drop = if counter.drop { "yes" } else { "" };
        table.row([counter.name, counter.count.to_string(), drop.to_owned()]);
    }
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn drops_that_happened_come_first() {
        let counter =
            |name: &str, count: u64, drop: bool| json!({ "name": name, "count": count, "drop": drop });
        let answer = json!([
            counter("flow_new", 5, false),
            counter("drop_fragment", 0, true),
            counter("drop_no_backend", 2, true)
        ]);
        assert_eq!(
            list(&answer, false).unwrap(),
            "EVENT             COUNT   DROP\n\
             drop_no_backend   2       yes\n\
             flow_new          5       -\n\
             drop_fragment     0       yes\n"
        );
        assert!(!list(&drops(answer), false).unwrap().contains("flow_new"));
    }
}
