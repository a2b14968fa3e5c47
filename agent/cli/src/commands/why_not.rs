use std::{fmt::Write, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::agent::read;

#[derive(Deserialize)]
struct Answer {
    peer: IpAddr,
    prefix: IpNetwork,
    told: bool,
    /// What holds for every path.
    why: Option<String>,
    paths: Vec<Path>,
}

#[derive(Deserialize)]
struct Path {
    source: String,
    why: String,
}

pub fn show(answer: &Value, _wide: bool) -> anyhow::Result<String> {
    let Answer { peer, prefix, told, why, paths } = read(answer)?;
    let verb = if told { "is" } else { "is not" };
    // Writing to a String does not fail.
    let mut text = format!("{prefix} {verb} told to {peer}");
    let _ = writeln!(text, "{}", why.map_or_else(String::new, |why| format!(": {why}")));
    for path in paths {
        let from = if path.source == "local" {
            "this node's own".to_owned()
        } else {
            format!("from {}", path.source)
        };
        let _ = writeln!(text, "  {from}: {}", path.why);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reason_stands_with_the_path_that_it_is_of() {
        let answer = json!({ "peer": "10.89.0.1", "prefix": "10.244.1.0/26", "told": false, "why": null, "paths": [
            { "source": "10.89.0.12", "told": false, "why": "rule cut/exportV4/0 of the export policy rejects it" },
            { "source": "local", "told": false, "why": "the path from 10.89.0.12 goes instead: higher LOCAL_PREF" },
        ]});
        assert_eq!(
            show(&answer, false).unwrap(),
            "10.244.1.0/26 is not told to 10.89.0.1\n  \
             from 10.89.0.12: rule cut/exportV4/0 of the export policy rejects it\n  \
             this node's own: the path from 10.89.0.12 goes instead: higher LOCAL_PREF\n"
        );
        let answer = json!({ "peer": "10.89.0.1", "prefix": "10.244.1.0/26", "told": false,
            "why": "the session is Active", "paths": [] });
        assert_eq!(
            show(&answer, false).unwrap(),
            "10.244.1.0/26 is not told to 10.89.0.1: the session is Active\n"
        );
    }
}
