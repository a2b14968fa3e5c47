use std::{io::Write, ops::ControlFlow, time::Duration};

use anyhow::Context;
use serde::Deserialize;

use crate::{agent::Agent, arguments::Output};

/// Between two drops may be any time.
const PATIENCE: Duration = Duration::from_secs(365 * 86_400);

const HEADER: &str =
    "TIME           REASON            PROTOCOL   LENGTH   LINK              SOURCE > DESTINATION";

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Drop(Box<Dropped>),
    Missed {
        missed: u64,
        /// Who was too slow.
        by: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dropped {
    /// RFC 3339.
    time: String,
    reason: Option<String>,
    protocol: String,
    source: String,
    source_name: Option<String>,
    destination: String,
    destination_name: Option<String>,
    interface: Option<String>,
    interface_index: u32,
    length: u32,
}

/// Prints drops as they come, until the agent or the reader of the output ends.
pub async fn follow(agent: &Agent, output: Output) -> anyhow::Result<String> {
    let mut out = std::io::stdout();
    if output != Output::Json && writeln!(out, "{HEADER}").is_err() {
        return Ok(String::new());
    }
    let each = |line: &str| {
        let printed = match output {
            Output::Json => writeln!(out, "{line}"),
            Output::Table | Output::Wide => writeln!(out, "{}", text(line)?),
        };
        // A reader that has seen enough, such as head, is no error.
        let ended = printed.and_then(|()| out.flush()).is_err();
        Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    agent.lines("/v1/drops", PATIENCE, each).await?;
    Ok(String::new())
}

fn text(line: &str) -> anyhow::Result<String> {
    let line: Line = serde_json::from_str(line)
        .context("the agent's drops have not the form that this version of seaway knows")?;
    let dropped = match line {
        Line::Missed { missed, by } if by == "datapath" => {
            return Ok(format!("({missed} more drops: too many at once to tell each)"));
        }
        Line::Missed { missed, .. } => return Ok(format!("({missed} more drops: this reader is too slow)")),
        Line::Drop(dropped) => dropped,
    };
    let named = |end: &str, name: &Option<String>| match name {
        Some(name) => format!("{end} ({name})"),
        None => end.to_owned(),
    };
    // The time of day; the JSON has the day too.
    let time = dropped.time.split_once('T').map_or(dropped.time.as_str(), |(_, time)| time);
    Ok(format!(
        "{:<12}   {:<15}   {:<8}   {:>6}   {:<15}   {} > {}",
        time.trim_end_matches('Z'),
        dropped.reason.as_deref().unwrap_or("unknown"),
        dropped.protocol,
        dropped.length,
        dropped.interface.unwrap_or_else(|| dropped.interface_index.to_string()),
        named(&dropped.source, &dropped.source_name),
        named(&dropped.destination, &dropped.destination_name),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_one_line_that_stands_under_its_header() {
        let line = r#"{"time":"2026-01-02T03:04:05.250Z","reason":"no_backend","family":"IPv4","protocol":"TCP","source":"10.244.0.2:40000","sourceName":"pod default/client","destination":"10.96.0.7:80","destinationName":"Service default/web","interface":"sw0123456789","interfaceIndex":7,"pod":"default/client","length":74}"#;
        assert_eq!(
            format!("{HEADER}\n{}", text(line).unwrap()),
            "TIME           REASON            PROTOCOL   LENGTH   LINK              SOURCE > DESTINATION\n\
             03:04:05.250   no_backend        TCP            74   sw0123456789      \
             10.244.0.2:40000 (pod default/client) > 10.96.0.7:80 (Service default/web)"
        );
    }

    #[test]
    fn what_is_not_told_is_said_with_the_reason() {
        let of = |line| text(line).unwrap();
        assert_eq!(of(r#"{"missed":9,"by":"datapath"}"#), "(9 more drops: too many at once to tell each)");
        assert_eq!(of(r#"{"missed":1,"by":"follower"}"#), "(1 more drops: this reader is too slow)");
        assert!(text("{}").unwrap_err().to_string().contains("the form that this version of seaway knows"));
    }
}
