//! Named formats: `format.dns1123Label().validate(text)` gives what is wrong, or none.

use std::{sync::Arc, sync::LazyLock};

use api::names;
use base64::Engine as _;

use super::{Entry, no_overload, url::Url};
use crate::{error::EvalError, time, value::Val};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

/// A format that text may have.
#[derive(Debug)]
pub struct Format {
    function: &'static str,
    name: &'static str,
    check: fn(&str) -> Vec<String>,
    /// Characters of the pattern that the cost assumes.
    pub(crate) pattern_length: u64,
}

impl Format {
    pub fn name(&self) -> &'static str {
        self.name
    }
}

macro_rules! formats {
    ($($function:literal $name:literal $length:literal $check:expr;)*) => {
        static FORMATS: LazyLock<Vec<Format>> = LazyLock::new(|| {
            vec![$(Format { function: $function, name: $name, check: $check, pattern_length: $length },)*]
        });

        pub(super) const TABLE: &[Entry] = &[
            ("validate", validate, &[("format-validate", "format.(string) -> opt(list(string))")]),
            ("format.named", named, &[("format-named", "(string) -> opt(format)")]),
            $((concat!("format.", $function), constant, &[(concat!("format.", $function), "() -> format")]),)*
        ];
    };
}

formats! {
    "dns1123Label" "DNS1123Label" 30 |text| names::dns1123_label(text, false);
    "dns1123Subdomain" "DNS1123Subdomain" 60 |text| names::dns1123_subdomain(text, false);
    "dns1035Label" "DNS1035Label" 30 |text| names::dns1035_label(text, false);
    "qualifiedName" "QualifiedName" 60 names::qualified_name;
    "dns1123LabelPrefix" "DNS1123LabelPrefix" 30 |text| names::dns1123_label(text, true);
    "dns1123SubdomainPrefix" "DNS1123SubdomainPrefix" 60 |text| names::dns1123_subdomain(text, true);
    "dns1035LabelPrefix" "DNS1035LabelPrefix" 30 |text| names::dns1035_label(text, true);
    "labelValue" "LabelValue" 40 names::label_value;
    "uri" "URI" 700 |text| Url::parse(text).err().into_iter().collect();
    "uuid" "uuid" 71 |text| unless(is_uuid(text), "does not match the UUID format");
    "byte" "byte" 80 |text| unless(is_base64(text), "invalid base64");
    "date" "date" 203 |text| unless(is_date(text), "invalid date");
    "datetime" "datetime" 203 |text| unless(time::parse_timestamp(text).is_ok(), "invalid datetime");
}

fn unless(valid: bool, message: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![message.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let plain: String = text.chars().filter(|letter| *letter != '-').collect();
    let dashes: Vec<usize> =
        text.char_indices().filter(|(_, letter)| *letter == '-').map(|(at, _)| at).collect();
    plain.len() == 32
        && plain.bytes().all(|byte| byte.is_ascii_hexdigit())
        && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

fn is_base64(text: &str) -> bool {
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

pub(crate) fn is_date(text: &str) -> bool {
    text.len() == 10 && time::parse_timestamp(&format!("{text}T00:00:00Z")).is_ok()
}

fn validate<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Format(format), Val::String(text)] = args else { return no_overload() };
    let errors: Vec<Val<'a>> = (format.check)(text).into_iter().map(Val::text).collect();
    Ok(Val::Optional((!errors.is_empty()).then(|| Arc::new(Val::list(errors)))))
}

fn find<'a>(name: &str) -> Option<Val<'a>> {
    FORMATS.iter().find(|format| format.function == name).map(Val::Format)
}

fn named<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(name)] = args else { return no_overload() };
    Ok(Val::Optional(find(name).map(Arc::new)))
}

fn constant<'a>(name: &'static str, _: &[Val<'a>]) -> Result<'a> {
    name.strip_prefix("format.").and_then(find).ok_or_else(EvalError::no_such_overload)
}
