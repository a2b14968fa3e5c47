//! `format`: clauses `%s %d %f %e %b %x %X %o %%`, with a precision for the two that take one.

use super::{no_overload, standard};
use crate::{
    error::EvalError,
    value::{List, Map, Val},
};

const PRECISION_DEFAULT: usize = 6;
const PRECISION_MAX: usize = 1000;

type Text = Result<String, EvalError>;

pub(super) fn format<'a>(_: &'static str, args: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
    let [Val::String(template), Val::List(args)] = args else { return no_overload() };
    let mut out = String::with_capacity(template.len());
    let mut rest = &**template;
    let mut index = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let Some(arg) = args.get(index) else {
            return Err(EvalError::new(format!("index {index} out of range")));
        };
        index += 1;
        let (precision, after) = precision(rest)?;
        let Some(verb) = after.chars().next() else {
            return Err(EvalError::new("unexpected end of string"));
        };
        rest = &after[verb.len_utf8()..];
        out.push_str(&clause(verb, precision, &arg?)?);
    }
    out.push_str(rest);
    Ok(Val::text(out))
}

fn precision(text: &str) -> Result<(usize, &str), EvalError> {
    let Some(rest) = text.strip_prefix('.') else { return Ok((PRECISION_DEFAULT, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let precision = rest[..digits].parse().ok().filter(|precision| *precision <= PRECISION_MAX);
    match precision {
        Some(precision) => Ok((precision, &rest[digits..])),
        None => {
            Err(EvalError::new("error while parsing precision: error while converting precision to integer"))
        }
    }
}

fn wrong(clause: &str, takes: &str, given: &Val<'_>) -> EvalError {
    EvalError::new(format!(
        "error during formatting: {clause} clause can only be used on {takes}, was given {}",
        given.type_name()
    ))
}

fn clause(verb: char, precision: usize, arg: &Val<'_>) -> Text {
    match verb {
        's' => string(arg),
        'd' => match arg {
            Val::Int(value) => Ok(value.to_string()),
            Val::Uint(value) => Ok(value.to_string()),
            other => Err(wrong("decimal", "integers", other)),
        },
        'f' => match double(arg) {
            Some(value) => Ok(fixed(value, precision)),
            None => Err(wrong("fixed-point", "doubles", arg)),
        },
        'e' => match double(arg) {
            Some(value) => Ok(scientific(value, precision)),
            None => Err(wrong("scientific", "doubles", arg)),
        },
        'b' => match arg {
            Val::Int(value) => Ok(signed(*value, |size| format!("{size:b}"))),
            Val::Uint(value) => Ok(format!("{value:b}")),
            Val::Bool(value) => Ok(u8::from(*value).to_string()),
            other => Err(wrong("binary", "integers and bools", other)),
        },
        'o' => match arg {
            Val::Int(value) => Ok(signed(*value, |size| format!("{size:o}"))),
            Val::Uint(value) => Ok(format!("{value:o}")),
            other => Err(wrong("octal", "integers", other)),
        },
        'x' => hexadecimal(arg),
        'X' => hexadecimal(arg).map(|text| text.to_ascii_uppercase()),
        other => Err(EvalError::new(format!("unrecognized formatting clause \"{other}\""))),
    }
}

fn signed(value: i64, text: impl Fn(u64) -> String) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", text(value.unsigned_abs()))
}

fn hexadecimal(arg: &Val<'_>) -> Text {
    let bytes = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match arg {
        Val::Int(value) => Ok(signed(*value, |size| format!("{size:x}"))),
        Val::Uint(value) => Ok(format!("{value:x}")),
        Val::String(text) => Ok(bytes(text.as_bytes())),
        Val::Bytes(value) => Ok(bytes(value)),
        other => Err(wrong("hex", "integers, byte buffers, and strings", other)),
    }
}

fn double(arg: &Val<'_>) -> Option<f64> {
    match arg {
        Val::Double(value) => Some(*value),
        Val::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn special(value: f64) -> Option<&'static str> {
    match value {
        value if value.is_nan() => Some("NaN"),
        f64::INFINITY => Some("∞"),
        f64::NEG_INFINITY => Some("-∞"),
        _ => None,
    }
}

/// With commas between thousands, as upstream's English locale prints.
fn fixed(value: f64, precision: usize) -> String {
    if let Some(special) = special(value) {
        return special.to_owned();
    }
    let plain = format!("{value:.precision$}");
    let (sign, digits) = plain.strip_prefix('-').map_or(("", &*plain), |digits| ("-", digits));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

/// `1.052033×10⁰³`, as upstream's English locale prints.
fn scientific(value: f64, precision: usize) -> String {
    if let Some(special) = special(value) {
        return special.to_owned();
    }
    let plain = format!("{value:.precision$e}");
    let (digits, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |exponent| ("⁻", exponent));
    let raised: String = format!("{exponent:0>2}")
        .bytes()
        .map(|digit| ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][usize::from(digit - b'0')])
        .collect();
    format!("{digits}×10{sign}{raised}")
}

fn string(arg: &Val<'_>) -> Text {
    match arg {
        Val::List(list) => formatted_list(list),
        Val::Map(map) => formatted_map(map),
        Val::Null => Ok("null".to_owned()),
        Val::Int(_)
        | Val::Uint(_)
        | Val::Double(_)
        | Val::Bool(_)
        | Val::String(_)
        | Val::Bytes(_)
        | Val::Timestamp(_)
        | Val::Duration(_)
        | Val::Type(_) => match standard::to_string("string", std::slice::from_ref(arg))? {
            Val::String(text) => Ok(text.to_string()),
            _ => Err(EvalError::no_such_overload()),
        },
        other => Err(wrong(
            "string",
            "strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps",
            other,
        )),
    }
}

/// A value inside a list or map: strings are quoted.
fn nested(value: &Val<'_>) -> Text {
    Ok(match value {
        Val::String(text) => format!("{:?}", &**text),
        Val::Bytes(bytes) => format!("b{:?}", String::from_utf8_lossy(bytes)),
        Val::Double(double) if double.is_finite() => format!("{double:.PRECISION_DEFAULT$}"),
        Val::Double(double) => format!("{:?}", standard::double_text(*double)),
        Val::Type(name) => format!("type({name})"),
        Val::Timestamp(at) => format!("timestamp(\"{at}\")"),
        Val::Duration(_) => format!("duration(\"{}\")", value.plain_text()),
        other => string(other)?,
    })
}

fn formatted_list(list: &List<'_>) -> Text {
    let items: Vec<String> = list.iter().map(|item| nested(&item?)).collect::<Result<_, _>>()?;
    Ok(format!("[{}]", items.join(", ")))
}

fn formatted_map(map: &Map<'_>) -> Text {
    let mut entries = Vec::with_capacity(map.len());
    for key in map.keys() {
        if !matches!(key, Val::String(_) | Val::Bool(_) | Val::Int(_) | Val::Uint(_)) {
            let name = key.type_name();
            return Err(EvalError::new(format!("no formatting function for map key of type {name}")));
        }
        if let Some(value) = map.get(&key)? {
            entries.push((nested(&key)?, nested(&value)?));
        }
    }
    entries.sort();
    let entries: Vec<String> = entries.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
    Ok(format!("{{{}}}", entries.join(", ")))
}
