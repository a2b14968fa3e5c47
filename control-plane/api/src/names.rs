//! The rules for names, labels and keys, with upstream's messages: every function returns what is wrong, and an empty
//! list means right. `is_prefix` is for `generateName`: a trailing dash is then allowed.

use std::sync::LazyLock;

use regex::Regex;

const LABEL_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_1123: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY: &str = "[-._a-zA-Z0-9]+";
const C_IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";
const HTTP_HEADER: &str = "[-A-Za-z0-9]+";
const PERCENT: &str = "[0-9]+%";

const LABEL_1123_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
    and must start and end with an alphanumeric character";
const SUBDOMAIN_1123_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
    '-' or '.', and must start and end with an alphanumeric character";
const LABEL_1035_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with \
    an alphabetic character, and end with an alphanumeric character";
const WILDCARD_RULE: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, \
    which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
const LABEL_KEY_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
    an alphanumeric character";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' \
    or '.', and must start and end with an alphanumeric character";
const CONFIG_KEY_RULE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
const C_IDENTIFIER_RULE: &str = "a valid C identifier must start with alphabetic character or '_', followed by a \
    string of alphanumeric characters or '_'";
const HTTP_HEADER_RULE: &str = "a valid HTTP header must consist of alphanumeric characters or '-'";
const PERCENT_RULE: &str = "a valid percent string must be a numeric string followed by an ending '%'";

const LABEL_BYTES_MAX: usize = 63;
const SUBDOMAIN_BYTES_MAX: usize = 253;
const PORT_NAME_BYTES_MAX: usize = 15;

fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("the patterns of this file are constants that compile")
}

macro_rules! patterns {
    ($($name:ident = $pattern:expr;)*) => {
        $(static $name: LazyLock<Regex> = LazyLock::new(|| whole($pattern));)*
    };
}

patterns! {
    LABEL_1123_PATTERN = LABEL_1123;
    SUBDOMAIN_1123_PATTERN = SUBDOMAIN_1123;
    LABEL_1035_PATTERN = LABEL_1035;
    LABEL_KEY_PATTERN = LABEL_KEY;
    LABEL_VALUE_PATTERN = LABEL_VALUE;
}

fn rule(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    match examples.as_slice() {
        [] => format!("{message} (regex used for validation is '{pattern}')"),
        examples => {
            format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
        }
    }
}

fn characters_max(length: usize) -> String {
    format!("must be no more than {length} characters")
}

fn bytes_max(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

/// A prefix ends in what a random suffix follows, so its last dash is no mistake.
fn masked(name: &str, is_prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(rest) if is_prefix && !rest.is_empty() => {
            let mut rest = rest.to_owned();
            rest.pop();
            rest + "a"
        }
        _ => name.to_owned(),
    }
}

/// A DNS label of RFC 1123: at most 63 of `[-a-z0-9]`.
pub fn dns1123_label(name: &str, is_prefix: bool) -> Vec<String> {
    let name = masked(name, is_prefix);
    let mut errors = Vec::new();
    if name.len() > LABEL_BYTES_MAX {
        errors.push(characters_max(LABEL_BYTES_MAX));
    }
    if !LABEL_1123_PATTERN.is_match(&name) {
        if SUBDOMAIN_1123_PATTERN.is_match(&name) {
            errors.push("must not contain dots".to_owned());
        } else {
            errors.push(rule(LABEL_1123_RULE, LABEL_1123, &["my-name", "123-abc"]));
        }
    }
    errors
}

/// A DNS subdomain of RFC 1123: labels with dots between, at most 253 characters.
pub fn dns1123_subdomain(name: &str, is_prefix: bool) -> Vec<String> {
    let name = masked(name, is_prefix);
    let mut errors = Vec::new();
    if name.len() > SUBDOMAIN_BYTES_MAX {
        errors.push(characters_max(SUBDOMAIN_BYTES_MAX));
    }
    if !SUBDOMAIN_1123_PATTERN.is_match(&name) {
        errors.push(rule(SUBDOMAIN_1123_RULE, SUBDOMAIN_1123, &["example.com"]));
    }
    errors
}

/// A DNS label of RFC 1035: as [`dns1123_label`], beginning with a letter. The names of Services.
pub fn dns1035_label(name: &str, is_prefix: bool) -> Vec<String> {
    let name = masked(name, is_prefix);
    let mut errors = Vec::new();
    if name.len() > LABEL_BYTES_MAX {
        errors.push(characters_max(LABEL_BYTES_MAX));
    }
    if !LABEL_1035_PATTERN.is_match(&name) {
        errors.push(rule(LABEL_1035_RULE, LABEL_1035, &["my-name", "abc-123"]));
    }
    errors
}

/// A subdomain behind `*.`.
pub fn wildcard_dns1123_subdomain(name: &str) -> Vec<String> {
    let pattern = format!(r"\*\.{SUBDOMAIN_1123}");
    let mut errors = Vec::new();
    if name.len() > SUBDOMAIN_BYTES_MAX {
        errors.push(characters_max(SUBDOMAIN_BYTES_MAX));
    }
    if !whole(&pattern).is_match(name) {
        errors.push(rule(WILDCARD_RULE, &pattern, &["*.example.com"]));
    }
    errors
}

/// A label key: `name` or `prefix/name`, where the prefix is a DNS subdomain and the name at most 63 bytes.
pub fn qualified_name(value: &str) -> Vec<String> {
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let parts: Vec<&str> = value.split('/').collect();
    let mut errors = Vec::new();
    let name = match parts.as_slice() {
        [name] => *name,
        ["", name] => {
            errors.push("prefix part must be non-empty".to_owned());
            *name
        }
        [prefix, name] => {
            if prefix.len() > SUBDOMAIN_BYTES_MAX {
                errors.push(format!("prefix part {}", bytes_max(SUBDOMAIN_BYTES_MAX)));
            }
            if !SUBDOMAIN_1123_PATTERN.is_match(prefix) {
                let text = rule(SUBDOMAIN_1123_RULE, SUBDOMAIN_1123, &["example.com"]);
                errors.push(format!("prefix part {text}"));
            }
            *name
        }
        _ => {
            let text = rule(LABEL_KEY_RULE, LABEL_KEY, EXAMPLES);
            return vec![format!(
                "a valid label key {text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_BYTES_MAX {
        errors.push(format!("name part {}", bytes_max(LABEL_BYTES_MAX)));
    }
    if !LABEL_KEY_PATTERN.is_match(name) {
        errors.push(format!("name part {}", rule(LABEL_KEY_RULE, LABEL_KEY, EXAMPLES)));
    }
    errors
}

/// The value of a label: empty, or at most 63 bytes of alphanumerics, `-`, `_` and `.`.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        errors.push(bytes_max(LABEL_BYTES_MAX));
    }
    if !LABEL_VALUE_PATTERN.is_match(value) {
        errors.push(rule(LABEL_VALUE_RULE, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// A name that can be one segment of a URL path, such as the names of RBAC objects.
pub fn path_segment(name: &str, is_prefix: bool) -> Vec<String> {
    if !is_prefix && matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"]
        .into_iter()
        .filter(|illegal| name.contains(illegal))
        .map(|illegal| format!("may not contain '{illegal}'"))
        .collect()
}

/// The key of a ConfigMap or Secret: what can be a file name.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_BYTES_MAX {
        errors.push(characters_max(SUBDOMAIN_BYTES_MAX));
    }
    if !whole(CONFIG_KEY).is_match(value) {
        errors.push(rule(CONFIG_KEY_RULE, CONFIG_KEY, &["key.name", "KEY_NAME", "key-name"]));
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        value if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// An environment variable's name: printable ASCII without `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if value.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

/// A name such as C's identifiers have.
pub fn c_identifier(value: &str) -> Vec<String> {
    if whole(C_IDENTIFIER).is_match(value) {
        return Vec::new();
    }
    vec![rule(C_IDENTIFIER_RULE, C_IDENTIFIER, &["my_name", "MY_NAME", "MyName"])]
}

/// The name of an HTTP header field.
pub fn http_header_name(value: &str) -> Vec<String> {
    if whole(HTTP_HEADER).is_match(value) {
        return Vec::new();
    }
    vec![rule(HTTP_HEADER_RULE, HTTP_HEADER, &["X-Header-Name"])]
}

/// A percentage such as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    if whole(PERCENT).is_match(value) {
        return Vec::new();
    }
    vec![rule(PERCENT_RULE, PERCENT, &["1%", "93%"])]
}

/// The name of a port (RFC 6335's service names, lower case).
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > PORT_NAME_BYTES_MAX {
        errors.push(characters_max(PORT_NAME_BYTES_MAX));
    }
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// A port number from 1 to 65535.
pub fn port_number(value: i64) -> Vec<String> {
    in_range(value, 1, 65535)
}

/// A number from `low` to `high`, both included.
pub fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) {
        return Vec::new();
    }
    vec![format!("must be between {low} and {high}, inclusive")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_have_no_errors() {
        assert!(dns1123_label("a-1", false).is_empty());
        assert!(dns1123_label("web-", true).is_empty());
        assert!(dns1123_subdomain("a.b-c.d", false).is_empty());
        assert!(dns1035_label("a-1", false).is_empty());
        assert!(qualified_name("example.com/My_Name.x").is_empty());
        assert!(label_value("").is_empty());
        assert!(path_segment("system:node", false).is_empty());
        assert!(port_name("http-2").is_empty());
        assert!(config_map_key("game.properties").is_empty());
        assert!(wildcard_dns1123_subdomain("*.example.com").is_empty());
    }

    #[test]
    fn a_bad_label_names_rule_example_and_regex() {
        assert_eq!(
            dns1123_label("Web_1", false),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(dns1123_label("a.b", false), ["must not contain dots"]);
        assert_eq!(dns1123_label(&"a".repeat(64), false), ["must be no more than 63 characters"]);
    }

    #[test]
    fn a_trailing_dash_is_wrong_unless_it_is_a_prefix() {
        assert_eq!(dns1123_subdomain("web-", false).len(), 1);
        assert!(dns1123_subdomain("web-", true).is_empty());
        assert_eq!(dns1123_subdomain("-", true).len(), 1);
    }

    #[test]
    fn label_keys_are_checked_in_both_parts() {
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("x/").len(), 2);
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert!(qualified_name("Bad_/x")[0].starts_with("prefix part a lowercase RFC 1123 subdomain"));
    }

    #[test]
    fn path_segments_may_not_climb() {
        assert_eq!(path_segment("..", false), ["may not be '..'"]);
        assert_eq!(path_segment("a/b%", false), ["may not contain '/'", "may not contain '%'"]);
    }

    #[test]
    fn ports_are_bounded() {
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(port_number(65535).is_empty());
        assert_eq!(port_name("").len(), 2);
    }
}
