//! Operators, conversions, times and optionals: the functions that the specification names.

use std::{cmp::Ordering, sync::Arc};

use super::{Entry, built_in, lists, no_overload};
use crate::{
    error::EvalError,
    time,
    value::{List, Map, Str, Val},
};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

pub(super) const OPERATORS: &[Entry] = &[
    ("_?:_", built_in, &[("conditional", "(bool, A, A) -> A")]),
    ("_&&_", built_in, &[("logical_and", "(bool, bool) -> bool")]),
    ("_||_", built_in, &[("logical_or", "(bool, bool) -> bool")]),
    ("!_", not, &[("logical_not", "(bool) -> bool")]),
    ("@not_strictly_false", built_in, &[("not_strictly_false", "(bool) -> bool")]),
    ("_==_", built_in, &[("equals", "(A, A) -> bool")]),
    ("_!=_", built_in, &[("not_equals", "(A, A) -> bool")]),
    (
        "_+_",
        add,
        &[
            ("add_bytes", "(bytes, bytes) -> bytes"),
            ("add_double", "(double, double) -> double"),
            ("add_duration_duration", "(duration, duration) -> duration"),
            ("add_duration_timestamp", "(duration, timestamp) -> timestamp"),
            ("add_timestamp_duration", "(timestamp, duration) -> timestamp"),
            ("add_int64", "(int, int) -> int"),
            ("add_list", "(list(A), list(A)) -> list(A)"),
            ("add_string", "(string, string) -> string"),
            ("add_uint64", "(uint, uint) -> uint"),
        ],
    ),
    (
        "_-_",
        subtract,
        &[
            ("subtract_double", "(double, double) -> double"),
            ("subtract_duration_duration", "(duration, duration) -> duration"),
            ("subtract_int64", "(int, int) -> int"),
            ("subtract_timestamp_duration", "(timestamp, duration) -> timestamp"),
            ("subtract_timestamp_timestamp", "(timestamp, timestamp) -> duration"),
            ("subtract_uint64", "(uint, uint) -> uint"),
        ],
    ),
    (
        "_*_",
        multiply,
        &[
            ("multiply_double", "(double, double) -> double"),
            ("multiply_int64", "(int, int) -> int"),
            ("multiply_uint64", "(uint, uint) -> uint"),
        ],
    ),
    (
        "_/_",
        divide,
        &[
            ("divide_double", "(double, double) -> double"),
            ("divide_int64", "(int, int) -> int"),
            ("divide_uint64", "(uint, uint) -> uint"),
        ],
    ),
    ("_%_", modulo, &[("modulo_int64", "(int, int) -> int"), ("modulo_uint64", "(uint, uint) -> uint")]),
    ("-_", negate, &[("negate_double", "(double) -> double"), ("negate_int64", "(int) -> int")]),
    (
        "_[_]",
        built_in,
        &[
            ("index_list", "(list(A), int) -> A"),
            ("index_map", "(map(A, B), A) -> B"),
            ("optional_list_index_int", "(opt(list(V)), int) -> opt(V)"),
            ("optional_map_index_value", "(opt(map(K, V)), K) -> opt(V)"),
        ],
    ),
    ("@in", is_in, &[("in_list", "(A, list(A)) -> bool"), ("in_map", "(A, map(A, B)) -> bool")]),
    (
        "size",
        size,
        &[
            ("size_bytes", "(bytes) -> int"),
            ("bytes_size", "bytes.() -> int"),
            ("size_list", "(list(A)) -> int"),
            ("list_size", "list(A).() -> int"),
            ("size_map", "(map(A, B)) -> int"),
            ("map_size", "map(A, B).() -> int"),
            ("size_string", "(string) -> int"),
            ("string_size", "string.() -> int"),
        ],
    ),
];

macro_rules! comparison {
    ($name:literal, $prefix:literal) => {
        (
            $name,
            compare,
            &[
                (concat!($prefix, "_bool"), "(bool, bool) -> bool"),
                (concat!($prefix, "_int64"), "(int, int) -> bool"),
                (concat!($prefix, "_int64_double"), "(int, double) -> bool"),
                (concat!($prefix, "_int64_uint64"), "(int, uint) -> bool"),
                (concat!($prefix, "_uint64"), "(uint, uint) -> bool"),
                (concat!($prefix, "_uint64_double"), "(uint, double) -> bool"),
                (concat!($prefix, "_uint64_int64"), "(uint, int) -> bool"),
                (concat!($prefix, "_double"), "(double, double) -> bool"),
                (concat!($prefix, "_double_int64"), "(double, int) -> bool"),
                (concat!($prefix, "_double_uint64"), "(double, uint) -> bool"),
                (concat!($prefix, "_string"), "(string, string) -> bool"),
                (concat!($prefix, "_bytes"), "(bytes, bytes) -> bool"),
                (concat!($prefix, "_timestamp"), "(timestamp, timestamp) -> bool"),
                (concat!($prefix, "_duration"), "(duration, duration) -> bool"),
            ],
        )
    };
}

pub(super) const COMPARISONS: &[Entry] = &[
    comparison!("_<_", "less"),
    comparison!("_<=_", "less_equals"),
    comparison!("_>_", "greater"),
    comparison!("_>=_", "greater_equals"),
];

pub(super) const CONVERSIONS: &[Entry] = &[
    ("type", type_of, &[("type", "(A) -> type(A)")]),
    ("dyn", identity, &[("to_dyn", "(A) -> dyn")]),
    ("bool", to_bool, &[("bool_to_bool", "(bool) -> bool"), ("string_to_bool", "(string) -> bool")]),
    ("bytes", to_bytes, &[("bytes_to_bytes", "(bytes) -> bytes"), ("string_to_bytes", "(string) -> bytes")]),
    (
        "double",
        to_double,
        &[
            ("double_to_double", "(double) -> double"),
            ("int64_to_double", "(int) -> double"),
            ("string_to_double", "(string) -> double"),
            ("uint64_to_double", "(uint) -> double"),
        ],
    ),
    (
        "duration",
        to_duration,
        &[
            ("duration_to_duration", "(duration) -> duration"),
            ("int64_to_duration", "(int) -> duration"),
            ("string_to_duration", "(string) -> duration"),
        ],
    ),
    (
        "int",
        to_int,
        &[
            ("int64_to_int64", "(int) -> int"),
            ("double_to_int64", "(double) -> int"),
            ("duration_to_int64", "(duration) -> int"),
            ("string_to_int64", "(string) -> int"),
            ("timestamp_to_int64", "(timestamp) -> int"),
            ("uint64_to_int64", "(uint) -> int"),
        ],
    ),
    (
        "string",
        to_string,
        &[
            ("string_to_string", "(string) -> string"),
            ("bool_to_string", "(bool) -> string"),
            ("bytes_to_string", "(bytes) -> string"),
            ("double_to_string", "(double) -> string"),
            ("duration_to_string", "(duration) -> string"),
            ("int64_to_string", "(int) -> string"),
            ("timestamp_to_string", "(timestamp) -> string"),
            ("uint64_to_string", "(uint) -> string"),
            ("ip_to_string", "(ip) -> string"),
            ("cidr_to_string", "(cidr) -> string"),
        ],
    ),
    (
        "timestamp",
        to_timestamp,
        &[
            ("timestamp_to_timestamp", "(timestamp) -> timestamp"),
            ("int64_to_timestamp", "(int) -> timestamp"),
            ("string_to_timestamp", "(string) -> timestamp"),
        ],
    ),
    (
        "uint",
        to_uint,
        &[
            ("uint64_to_uint64", "(uint) -> uint"),
            ("double_to_uint64", "(double) -> uint"),
            ("int64_to_uint64", "(int) -> uint"),
            ("string_to_uint64", "(string) -> uint"),
        ],
    ),
];

macro_rules! accessor {
    ($name:literal, $id:literal, $zoned:literal $(, $duration:literal)?) => {
        (
            $name,
            time_part,
            &[
                ($id, "timestamp.() -> int"),
                ($zoned, "timestamp.(string) -> int"),
                $(($duration, "duration.() -> int"),)?
            ],
        )
    };
}

pub(super) const TIMES: &[Entry] = &[
    accessor!("getFullYear", "timestamp_to_year", "timestamp_to_year_with_tz"),
    accessor!("getMonth", "timestamp_to_month", "timestamp_to_month_with_tz"),
    accessor!("getDayOfYear", "timestamp_to_day_of_year", "timestamp_to_day_of_year_with_tz"),
    accessor!("getDayOfMonth", "timestamp_to_day_of_month", "timestamp_to_day_of_month_with_tz"),
    accessor!("getDate", "timestamp_to_day_of_month_1_based", "timestamp_to_day_of_month_1_based_with_tz"),
    accessor!("getDayOfWeek", "timestamp_to_day_of_week", "timestamp_to_day_of_week_with_tz"),
    accessor!("getHours", "timestamp_to_hours", "timestamp_to_hours_with_tz", "duration_to_hours"),
    accessor!("getMinutes", "timestamp_to_minutes", "timestamp_to_minutes_with_tz", "duration_to_minutes"),
    accessor!("getSeconds", "timestamp_to_seconds", "timestamp_to_seconds_tz", "duration_to_seconds"),
    accessor!(
        "getMilliseconds",
        "timestamp_to_milliseconds",
        "timestamp_to_milliseconds_with_tz",
        "duration_to_milliseconds"
    ),
];

pub(super) const OPTIONALS: &[Entry] = &[
    ("optional.of", optional_of, &[("optional_of", "(V) -> opt(V)")]),
    ("optional.ofNonZeroValue", optional_of_non_zero, &[("optional_ofNonZeroValue", "(V) -> opt(V)")]),
    ("optional.none", optional_none, &[("optional_none", "() -> opt(V)")]),
    ("value", optional_value, &[("optional_value", "opt(V).() -> V")]),
    ("hasValue", optional_has_value, &[("optional_hasValue", "opt(V).() -> bool")]),
    ("or", built_in, &[("optional_or_optional", "opt(V).(opt(V)) -> opt(V)")]),
    ("orValue", built_in, &[("optional_orValue_value", "opt(V).(V) -> V")]),
    (
        "_[?_]",
        built_in,
        &[
            ("list_optindex_optional_int", "(list(V), int) -> opt(V)"),
            ("optional_list_optindex_optional_int", "(opt(list(V)), int) -> opt(V)"),
            ("map_optindex_optional_value", "(map(K, V), K) -> opt(V)"),
            ("optional_map_optindex_optional_value", "(opt(map(K, V)), K) -> opt(V)"),
        ],
    ),
];

fn overflow<'a>(of: &str) -> Result<'a> {
    Err(EvalError::new(format!("{of} overflow")))
}

fn int<'a>(value: Option<i64>) -> Result<'a> {
    value.map_or_else(|| overflow("integer"), |value| Ok(Val::Int(value)))
}

fn uint<'a>(value: Option<u64>) -> Result<'a> {
    value.map_or_else(|| overflow("unsigned integer"), |value| Ok(Val::Uint(value)))
}

fn duration<'a>(value: Option<i64>) -> Result<'a> {
    value.map_or_else(|| overflow("duration"), |value| Ok(Val::Duration(value)))
}

fn not<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Bool(value)] => Ok(Val::Bool(!value)),
        _ => no_overload(),
    }
}

fn add<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(one), Val::Int(two)] => int(one.checked_add(*two)),
        [Val::Uint(one), Val::Uint(two)] => uint(one.checked_add(*two)),
        [Val::Double(one), Val::Double(two)] => Ok(Val::Double(one + two)),
        [Val::String(one), Val::String(two)] => {
            let mut text = String::with_capacity(one.len() + two.len());
            text.push_str(one);
            text.push_str(two);
            Ok(Val::text(text))
        }
        [Val::Bytes(one), Val::Bytes(two)] => Ok(Val::Bytes(one.iter().chain(two.iter()).copied().collect())),
        [Val::List(one), Val::List(two)] => lists::concatenate(one, two),
        [Val::Timestamp(at), Val::Duration(by)] | [Val::Duration(by), Val::Timestamp(at)] => {
            at.plus(*by).map(Val::Timestamp)
        }
        [Val::Duration(one), Val::Duration(two)] => duration(one.checked_add(*two)),
        _ => no_overload(),
    }
}

fn subtract<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(one), Val::Int(two)] => int(one.checked_sub(*two)),
        [Val::Uint(one), Val::Uint(two)] => uint(one.checked_sub(*two)),
        [Val::Double(one), Val::Double(two)] => Ok(Val::Double(one - two)),
        [Val::Duration(one), Val::Duration(two)] => duration(one.checked_sub(*two)),
        [Val::Timestamp(one), Val::Timestamp(two)] => one.minus(*two).map(Val::Duration),
        [Val::Timestamp(at), Val::Duration(by)] => match by.checked_neg() {
            Some(by) => at.plus(by).map(Val::Timestamp),
            None => overflow("duration"),
        },
        _ => no_overload(),
    }
}

fn multiply<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(one), Val::Int(two)] => int(one.checked_mul(*two)),
        [Val::Uint(one), Val::Uint(two)] => uint(one.checked_mul(*two)),
        [Val::Double(one), Val::Double(two)] => Ok(Val::Double(one * two)),
        _ => no_overload(),
    }
}

fn divide<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)] => Err(EvalError::new("division by zero")),
        [Val::Int(one), Val::Int(two)] => int(one.checked_div(*two)),
        [Val::Uint(one), Val::Uint(two)] => uint(one.checked_div(*two)),
        [Val::Double(one), Val::Double(two)] => Ok(Val::Double(one / two)),
        _ => no_overload(),
    }
}

fn modulo<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)] => Err(EvalError::new("modulus by zero")),
        [Val::Int(one), Val::Int(two)] => int(one.checked_rem(*two)),
        [Val::Uint(one), Val::Uint(two)] => uint(one.checked_rem(*two)),
        _ => no_overload(),
    }
}

fn negate<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(value)] => int(value.checked_neg()),
        [Val::Double(value)] => Ok(Val::Double(-value)),
        _ => no_overload(),
    }
}

fn compare<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [one, two] = args else { return no_overload() };
    let order = one.compare(two)?;
    Ok(Val::Bool(match name {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}

fn is_in<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [item, Val::List(list)] => {
            for element in list.iter() {
                if element?.equals(item) {
                    return Ok(Val::Bool(true));
                }
            }
            Ok(Val::Bool(false))
        }
        [key, Val::Map(map)] => Ok(Val::Bool(map.get(key)?.is_some())),
        _ => no_overload(),
    }
}

fn size<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [sized @ (Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_))] => {
            Ok(Val::Int(sized.size() as i64))
        }
        _ => no_overload(),
    }
}

fn type_of<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [value] = args else { return no_overload() };
    Ok(Val::Type(value.type_name()))
}

fn identity<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [value] = args else { return no_overload() };
    Ok(value.clone())
}

fn conversion_error<'a>(from: &str, to: &str) -> Result<'a> {
    Err(EvalError::new(format!("type conversion error from '{from}' to '{to}'")))
}

fn to_bool<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Bool(value)] => Ok(Val::Bool(*value)),
        [Val::String(text)] => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Val::Bool(false)),
            _ => conversion_error("string", "bool"),
        },
        _ => no_overload(),
    }
}

fn to_bytes<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Bytes(bytes)] => Ok(Val::Bytes(bytes.clone())),
        [Val::String(text)] => Ok(Val::Bytes(text.as_bytes().into())),
        _ => no_overload(),
    }
}

fn to_double<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Double(value)] => Ok(Val::Double(*value)),
        [Val::Int(value)] => Ok(Val::Double(*value as f64)),
        [Val::Uint(value)] => Ok(Val::Double(*value as f64)),
        [Val::String(text)] => match text.parse::<f64>() {
            Ok(value) => Ok(Val::Double(value)),
            Err(_) => conversion_error("string", "double"),
        },
        _ => no_overload(),
    }
}

fn to_duration<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Duration(value)] => Ok(Val::Duration(*value)),
        [Val::Int(nanos)] => Ok(Val::Duration(*nanos)),
        [Val::String(text)] => time::parse_duration(text).map(Val::Duration),
        _ => no_overload(),
    }
}

fn to_int<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Int(value)] => Ok(Val::Int(*value)),
        [Val::Uint(value)] => int(i64::try_from(*value).ok()),
        [Val::Double(value)] => {
            let fits = value.is_finite() && *value > i64::MIN as f64 && *value < i64::MAX as f64;
            int(fits.then_some(*value as i64))
        }
        [Val::String(text)] => match text.parse() {
            Ok(value) => Ok(Val::Int(value)),
            Err(_) => conversion_error("string", "int"),
        },
        [Val::Timestamp(value)] => Ok(Val::Int(value.seconds())),
        [Val::Duration(value)] => Ok(Val::Int(*value)),
        _ => no_overload(),
    }
}

fn to_uint<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Uint(value)] => Ok(Val::Uint(*value)),
        [Val::Int(value)] => uint(u64::try_from(*value).ok()),
        [Val::Double(value)] => {
            let fits = value.is_finite() && *value >= 0.0 && *value < u64::MAX as f64;
            uint(fits.then_some(*value as u64))
        }
        [Val::String(text)] => match text.parse() {
            Ok(value) => Ok(Val::Uint(value)),
            Err(_) => conversion_error("string", "uint"),
        },
        _ => no_overload(),
    }
}

pub(super) fn to_string<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    Ok(match args {
        [Val::String(text)] => Val::String(text.clone()),
        [Val::Bytes(bytes)] => match std::str::from_utf8(bytes) {
            Ok(text) => Val::text(text),
            Err(_) => return Err(EvalError::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        [Val::Double(value)] => Val::text(double_text(*value)),
        [Val::Ip(ip)] => Val::text(ip.to_string()),
        [Val::Cidr(cidr)] => Val::text(cidr.to_string()),
        [value @ (Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Timestamp(_) | Val::Duration(_))] => {
            Val::text(value.plain_text())
        }
        [Val::Type(name)] => Val::text(name.clone()),
        _ => return no_overload(),
    })
}

/// As Go prints with `%g`: an exponent from 10^21 on and below 10^-4.
pub(super) fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |rest| ("-", rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    value.to_string()
}

fn to_timestamp<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Timestamp(value)] => Ok(Val::Timestamp(*value)),
        [Val::Int(seconds)] => time::Timestamp::new(*seconds, 0).map(Val::Timestamp),
        [Val::String(text)] => time::parse_timestamp(text).map(Val::Timestamp),
        _ => no_overload(),
    }
}

fn time_part<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let zone: &str = match args {
        [_] => "",
        [_, Val::String(zone)] => zone,
        _ => return no_overload(),
    };
    match &args[0] {
        Val::Timestamp(at) => at.part(name, zone)?.map(Val::Int).ok_or_else(EvalError::no_such_overload),
        Val::Duration(nanos) => Ok(Val::Int(match name {
            "getHours" => nanos / 3_600_000_000_000,
            "getMinutes" => nanos / 60_000_000_000,
            "getSeconds" => nanos / 1_000_000_000,
            "getMilliseconds" => nanos / 1_000_000,
            _ => return no_overload(),
        })),
        _ => no_overload(),
    }
}

fn optional_of<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [value] = args else { return no_overload() };
    Ok(Val::Optional(Some(Arc::new(value.clone()))))
}

fn optional_of_non_zero<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [value] = args else { return no_overload() };
    let zero = match value {
        Val::Null
        | Val::Bool(false)
        | Val::Int(0)
        | Val::Uint(0)
        | Val::Optional(None)
        | Val::Duration(0) => true,
        Val::Double(value) => *value == 0.0,
        Val::String(Str::Borrowed(text)) => text.is_empty(),
        Val::String(Str::Shared(text)) => text.is_empty(),
        Val::Bytes(bytes) => bytes.is_empty(),
        Val::List(list) => list.is_empty(),
        Val::Map(map) => map.is_empty(),
        Val::Object(object) => object.fields.is_empty(),
        _ => false,
    };
    Ok(Val::Optional((!zero).then(|| Arc::new(value.clone()))))
}

fn optional_none<'a>(_: &'static str, _: &[Val<'a>]) -> Result<'a> {
    Ok(Val::Optional(None))
}

fn optional_value<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Optional(Some(value))] => Ok((**value).clone()),
        [Val::Optional(None)] => Err(EvalError::new("optional.none() dereference")),
        _ => no_overload(),
    }
}

fn optional_has_value<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::Optional(value)] => Ok(Val::Bool(value.is_some())),
        _ => no_overload(),
    }
}

/// The element of a list or the value of a map; `None` where there is none.
pub(crate) fn element<'a>(
    container: &Val<'a>,
    key: &Val<'_>,
) -> std::result::Result<Option<Val<'a>>, EvalError> {
    match container {
        Val::List(list) => {
            let index = match key {
                Val::Int(index) => i128::from(*index),
                Val::Uint(index) => i128::from(*index),
                Val::Double(index) if index.fract() == 0.0 && index.abs() < 1e18 => *index as i128,
                Val::Double(_) => return Err(EvalError::new("unsupported index value in list")),
                other => {
                    let name = other.type_name();
                    return Err(EvalError::new(format!("unsupported index type '{name}' in list")));
                }
            };
            usize::try_from(index).ok().and_then(|index| list.get(index)).transpose()
        }
        Val::Map(map) => map.get(key),
        Val::Object(_) => match key {
            Val::String(name) => container.field(name),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Why there is no element.
pub(crate) fn missing(container: &Val<'_>, key: &Val<'_>) -> EvalError {
    match container {
        Val::List(List::Owned(_) | List::Json(..)) => {
            EvalError::new(format!("index out of bounds: {}", key.plain_text()))
        }
        Val::Map(Map::Owned(_) | Map::Json(..)) => {
            EvalError::new(format!("no such key: {}", key.plain_text()))
        }
        _ => EvalError::new(format!("no such key: {}", key.plain_text())),
    }
}
