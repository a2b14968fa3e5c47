//! Strict YAML: a document as JSON would have it, plus the keys that a mapping has twice, with their lines.

use serde_json::Value;
use serde_saphyr::{
    DuplicateKeyPolicy,
    granit_parser::{Event, Parser},
};

use crate::field::quote;

/// How many duplicates are reported; a document of nothing else must not answer with itself.
const DUPLICATES_MAX: usize = 100;

/// Reads one YAML document. The last of several values of a key counts.
///
/// The second part lists texts such as `line 5: key "name" already set in map`.
///
/// # Errors
/// Where and why the text is not YAML, or is more than its size lets expect (aliases of aliases).
pub fn parse_strict(text: &str) -> Result<(Value, Vec<String>), String> {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let value = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    Ok((value, duplicates(text)))
}

/// Where the reader is: in a sequence, or in a mapping with these keys so far.
enum Place {
    Sequence,
    Mapping { keys: Vec<String>, is_key_next: bool },
}

fn duplicates(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut places: Vec<Place> = Vec::new();
    for event in Parser::new_from_str(text) {
        // A document that cannot be read was refused already.
        let Ok((event, span)) = event else { return found };
        match event {
            Event::MappingEnd | Event::SequenceEnd => {
                places.pop();
            }
            Event::Scalar(content, ..) => {
                if let Some(Place::Mapping { keys, is_key_next }) = places.last_mut() {
                    if *is_key_next && content != "<<" {
                        match keys.binary_search_by(|key| key.as_str().cmp(&content)) {
                            Ok(_) if found.len() < DUPLICATES_MAX => found.push(format!(
                                "line {}: key {} already set in map",
                                span.start.line(),
                                quote(&content)
                            )),
                            Ok(_) => return found,
                            Err(at) => keys.insert(at, content.into_owned()),
                        }
                    }
                    *is_key_next = !*is_key_next;
                }
            }
            Event::Alias(_) => turn(&mut places),
            Event::SequenceStart(..) => {
                turn(&mut places);
                places.push(Place::Sequence);
            }
            Event::MappingStart(..) => {
                turn(&mut places);
                places.push(Place::Mapping { keys: Vec::new(), is_key_next: true });
            }
            _ => {}
        }
    }
    found
}

/// A node that is no scalar takes the place of a key or a value.
fn turn(places: &mut [Place]) {
    if let Some(Place::Mapping { is_key_next, .. }) = places.last_mut() {
        *is_key_next = !*is_key_next;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_named_with_their_line_and_the_last_counts() {
        let text = "a: 1\nlist:\n- x: 1\n  x: 2\n- x: 1\na: 3\nnested: {k: [a, a], k: 2}\n";
        let (value, duplicates) = parse_strict(text).unwrap();
        assert_eq!(value, json!({"a": 3, "list": [{"x": 2}, {"x": 1}], "nested": {"k": 2}}));
        assert_eq!(
            duplicates,
            [
                "line 4: key \"x\" already set in map",
                "line 6: key \"a\" already set in map",
                "line 7: key \"k\" already set in map"
            ]
        );
    }

    #[test]
    fn broken_and_exploding_documents_are_refused() {
        assert!(parse_strict("a: [b").is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(parse_strict(&bomb).is_err());
    }
}
