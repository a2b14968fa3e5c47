//! BFD of a peer, as people write it: `true`, `false`, or a JSON object whose fields all have defaults.
//!
//! ```json
//! {"minimumSendInterval": "300ms", "minimumReceiveInterval": "300ms", "detectionMultiplier": 3, "maximumHops": 1}
//! ```
//!
//! Calico's API has no word for it: it is the value of the annotation `seaway.dev/bfd` of a BGPPeer, or of the
//! BGPConfiguration `default` for the mesh of nodes, and the field `bfd` in a file of peers.

use std::time::Duration;

use bfd::{Config, Hops};
use serde_json::{Map, Value};

pub const ANNOTATION: &str = "seaway.dev/bfd";

/// A failure is known after three times that, and a little: the rest of 0.3 s is for withdrawing the routes.
const INTERVAL: Duration = Duration::from_millis(90);
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(10);
const MULTIPLIER: u8 = 3;

const FIELDS: [&str; 4] =
    ["minimumSendInterval", "minimumReceiveInterval", "detectionMultiplier", "maximumHops"];

/// What `true` stands for: 90 ms, three times, on the link.
pub const DEFAULT: Config = Config {
    send_interval: INTERVAL,
    receive_interval: INTERVAL,
    multiplier: MULTIPLIER,
    hops: Hops::Single,
};

/// Reads the text of an annotation; `None` is no BFD.
///
/// # Errors
/// Says which field is wrong, and what it may be.
pub fn of_text(text: &str) -> Result<Option<Config>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("{text:?} is no JSON: {error}"))?;
    of_value(&value)
}

/// The same of JSON.
///
/// # Errors
/// Says which field is wrong, and what it may be.
pub fn of_value(value: &Value) -> Result<Option<Config>, String> {
    let fields = match value {
        Value::Bool(is_on) => return Ok(is_on.then_some(DEFAULT)),
        Value::Object(fields) => fields,
        other => return Err(format!("{other} is neither true nor false nor an object")),
    };
    if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(format!("unknown field {unknown:?}, expected {}", FIELDS.join(", ")));
    }
    let [send, receive, multiplier, hops] = FIELDS;
    Ok(Some(Config {
        send_interval: interval(fields, send)?,
        receive_interval: interval(fields, receive)?,
        multiplier: number(fields, multiplier)?.unwrap_or(MULTIPLIER),
        hops: match number(fields, hops)? {
            None | Some(1) => Hops::Single,
            Some(hops) => Hops::Multiple(hops),
        },
    }))
}

fn interval(fields: &Map<String, Value>, name: &str) -> Result<Duration, String> {
    let Some(value) = fields.get(name) else { return Ok(INTERVAL) };
    let parsed = value.as_str().and_then(calico::duration);
    let valid = parsed.filter(|time| (INTERVAL_MIN..=INTERVAL_MAX).contains(time));
    valid.ok_or_else(|| format!("{name}: {value} is no duration from \"10ms\" to \"10s\""))
}

/// 1 to 255.
fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<u8>, String> {
    let Some(value) = fields.get(name) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| u8::try_from(number).ok()).filter(|number| *number > 0);
    number.map(Some).ok_or_else(|| format!("{name}: {value} is no number from 1 to 255"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        assert_eq!(of_text("true"), Ok(Some(DEFAULT)));
        assert_eq!(of_text("{}"), Ok(Some(DEFAULT)));
        assert_eq!(of_text("false"), Ok(None));
        let all = r#"{"minimumReceiveInterval": "300ms", "minimumSendInterval": "1s", "detectionMultiplier": 5,
            "maximumHops": 255}"#;
        let expected = Config {
            send_interval: Duration::from_secs(1),
            receive_interval: Duration::from_millis(300),
            multiplier: 5,
            hops: Hops::Multiple(255),
        };
        assert_eq!(of_text(all), Ok(Some(expected)));
        assert_eq!(of_text(r#"{"maximumHops": 1}"#), Ok(Some(DEFAULT)));
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_fields_name_and_range() {
        for (text, expected) in [
            ("yes", "is no JSON"),
            ("", "is no JSON"),
            ("3", "3 is neither true nor false nor an object"),
            (
                r#"{"minimumSendInterval": "9ms"}"#,
                "minimumSendInterval: \"9ms\" is no duration from \"10ms\"",
            ),
            (
                r#"{"minimumReceiveInterval": "10001ms"}"#,
                "minimumReceiveInterval: \"10001ms\" is no duration",
            ),
            (r#"{"minimumReceiveInterval": 300}"#, "minimumReceiveInterval: 300 is no duration"),
            (r#"{"detectionMultiplier": 0}"#, "detectionMultiplier: 0 is no number from 1 to 255"),
            (r#"{"detectionMultiplier": 256}"#, "detectionMultiplier: 256"),
            (r#"{"maximumHops": "2"}"#, "maximumHops: \"2\" is no number"),
            (r#"{"interval": "1s"}"#, "unknown field \"interval\", expected minimumSendInterval,"),
        ] {
            let error = of_text(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }
}
