//! Semantic versions.

use std::{cmp::Ordering, sync::Arc};

use super::{Entry, no_overload};
use crate::{error::EvalError, value::Val};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

/// A version; the build's metadata is checked and dropped, since it takes no part in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
}

pub(super) const TABLE: &[Entry] = &[
    (
        "semver",
        to_semver,
        &[("string_to_semver", "(string) -> semver"), ("string_bool_to_semver", "(string, bool) -> semver")],
    ),
    (
        "isSemver",
        is_semver,
        &[("is_semver_string", "(string) -> bool"), ("is_semver_string_bool", "(string, bool) -> bool")],
    ),
    ("isGreaterThan", no_dispatch, &[("semver_is_greater_than", "semver.(semver) -> bool")]),
    ("isLessThan", no_dispatch, &[("semver_is_less_than", "semver.(semver) -> bool")]),
    ("compareTo", no_dispatch, &[("semver_compare_to", "semver.(semver) -> int")]),
    ("major", number, &[("semver_major", "semver.() -> int")]),
    ("minor", number, &[("semver_minor", "semver.() -> int")]),
    ("patch", number, &[("semver_patch", "semver.() -> int")]),
];

/// Never called: the function's implementation is that of the table that names it first.
fn no_dispatch<'a>(_: &'static str, _: &[Val<'a>]) -> Result<'a> {
    no_overload()
}

impl Semver {
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let mut parts = text.splitn(3, '.');
        let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
        let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
        let numbers = [("major", major), ("minor", minor), ("patch", patch)];
        let mut found = [0; 3];
        for (slot, (name, text)) in found.iter_mut().zip(numbers) {
            *slot = whole(name, text)?;
        }
        let pre: Vec<String> = pre.into_iter().flat_map(|pre| pre.split('.')).map(str::to_owned).collect();
        for part in &pre {
            identifier(part, "Prerelease")?;
            if is_number(part) && part.len() > 1 && part.starts_with('0') {
                return Err(format!("Numeric PreRelease version must not contain leading zeroes {part:?}"));
            }
        }
        for part in build.into_iter().flat_map(|build| build.split('.')) {
            identifier(part, "Build meta data")?;
        }
        Ok(Self { numbers: found, pre })
    }

    /// As `parse`, for what people write: a `v` before it, missing minor and patch, leading zeros.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_normalized(text: &str) -> std::result::Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
        if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
            return Err("Short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
        Self::parse(&parts.join("."))
    }

    /// The order of precedence.
    pub fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => compare_pre(&self.pre, &other.pre),
        })
    }
}

fn without_zeros(part: &str) -> String {
    if part.len() < 2 {
        return part.to_owned();
    }
    let trimmed = part.trim_start_matches('0');
    if trimmed.starts_with(|letter: char| letter.is_ascii_digit()) {
        trimmed.to_owned()
    } else {
        format!("0{trimmed}")
    }
}

fn compare_pre(one: &[String], two: &[String]) -> Ordering {
    for (one, two) in one.iter().zip(two) {
        let order = match (is_number(one), is_number(two)) {
            (true, true) => one.len().cmp(&two.len()).then_with(|| one.cmp(two)),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => one.cmp(two),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    one.len().cmp(&two.len())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn whole(name: &str, text: &str) -> std::result::Result<u64, String> {
    if !is_number(text) {
        return Err(format!("Invalid character(s) found in {name} number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        let mut title = name.to_owned();
        title[..1].make_ascii_uppercase();
        return Err(format!("{title} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))
}

fn identifier(part: &str, what: &str) -> std::result::Result<(), String> {
    if part.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Ok(());
    }
    Err(format!("Invalid character(s) found in {} {part:?}", what.to_lowercase()))
}

fn read(args: &[Val<'_>]) -> std::result::Result<std::result::Result<Semver, String>, EvalError> {
    match args {
        [Val::String(text)] | [Val::String(text), Val::Bool(false)] => Ok(Semver::parse(text)),
        [Val::String(text), Val::Bool(true)] => Ok(Semver::parse_normalized(text)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn to_semver<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    read(args)?.map(|version| Val::Semver(Arc::new(version))).map_err(EvalError::new)
}

fn is_semver<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    Ok(Val::Bool(read(args)?.is_ok()))
}

fn number<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Semver(version)] = args else { return no_overload() };
    let [major, minor, patch] = version.numbers;
    let number = match name {
        "major" => major,
        "minor" => minor,
        _ => patch,
    };
    Ok(Val::Int(i64::try_from(number).unwrap_or(i64::MAX)))
}
