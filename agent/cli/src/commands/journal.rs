use serde::Deserialize;
use serde_json::Value;

use crate::{agent::read, table::Table};

#[derive(Deserialize)]
struct Entry {
    /// RFC 3339.
    time: String,
    kind: String,
    /// Empty in warnings.
    what: String,
    change: String,
    /// Empty where nobody said so.
    why: String,
}

/// The agent's page.
pub fn page(kind: Option<&str>, about: Option<&str>, limit: usize) -> String {
    let mut page = "/v1/journal?".to_owned();
    for (name, value) in [("kind", kind), ("about", about)] {
        if let Some(value) = value {
            page.push_str(&format!("{name}={value}&"));
        }
    }
    if limit > 0 {
        page.push_str(&format!("limit={limit}"));
    }
    page
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let entries: Vec<Entry> = read(answer)?;
    let mut table = Table::new(
        &["TIME", "KIND", "WHAT", "CHANGE", "WHY"],
        &[],
        "Nothing of that kind since the agent started, as far as it remembers.",
    );
    for entry in entries {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        // Milliseconds are enough to read; the JSON has all digits.
        let time = match entry.time.split_once('.') {
            Some((seconds, rest)) => {
                format!("{seconds}.{}Z", &rest.trim_end_matches('Z').get(..3).unwrap_or("000"))
            }
            None => entry.time,
        };
        table.row([time, entry.kind, or_dash(entry.what), entry.change, or_dash(entry.why)]);
    }
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_their_order_with_what_is_known_of_them() {
        let answer = json!([
            { "time": "2026-01-02T03:04:05.678901Z", "kind": "peer", "what": "192.0.2.2", "change": "Idle",
              "why": "hold timer expired" },
            { "time": "2026-01-02T03:04:06Z", "kind": "warning", "what": "", "change": "route refused", "why": "" },
        ]);
        let text = list(&answer, false).unwrap();
        let words = |line: usize| {
            let cells = text.lines().nth(line).unwrap().split("   ").map(str::trim);
            cells.filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(words(0), ["TIME", "KIND", "WHAT", "CHANGE", "WHY"]);
        assert_eq!(words(1), ["2026-01-02T03:04:05.678Z", "peer", "192.0.2.2", "Idle", "hold timer expired"]);
        assert_eq!(words(2), ["2026-01-02T03:04:06Z", "warning", "-", "route refused", "-"]);
        assert!(list(&json!([]), false).unwrap().starts_with("Nothing of that kind"));
    }

    #[test]
    fn what_is_asked_for_is_in_the_page() {
        assert_eq!(page(None, None, 0), "/v1/journal?");
        assert_eq!(
            page(Some("route"), Some("10.0.0.0/24"), 5),
            "/v1/journal?kind=route&about=10.0.0.0/24&limit=5"
        );
    }
}
