//! Functions of lists, sets and maps.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Entry, no_overload, strings};
use crate::{
    error::EvalError,
    value::{List, Map, OwnedMap, Val},
};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

/// Elements that one call may make.
const ELEMENTS_MAX: usize = 1 << 22;

macro_rules! comparable {
    ($prefix:literal, $suffix:literal, $signature:literal, $result:literal) => {
        &[
            (concat!($prefix, "int", $suffix), concat!("list(int).(", $signature, ") -> ", $result)),
            (concat!($prefix, "uint", $suffix), concat!("list(uint).(", $signature, ") -> ", $result)),
            (concat!($prefix, "double", $suffix), concat!("list(double).(", $signature, ") -> ", $result)),
            (concat!($prefix, "bool", $suffix), concat!("list(bool).(", $signature, ") -> ", $result)),
            (
                concat!($prefix, "duration", $suffix),
                concat!("list(duration).(", $signature, ") -> ", $result),
            ),
            (
                concat!($prefix, "timestamp", $suffix),
                concat!("list(timestamp).(", $signature, ") -> ", $result),
            ),
            (concat!($prefix, "string", $suffix), concat!("list(string).(", $signature, ") -> ", $result)),
            (concat!($prefix, "bytes", $suffix), concat!("list(bytes).(", $signature, ") -> ", $result)),
        ]
    };
    (element $prefix:literal) => {
        &[
            (concat!("list_int_", $prefix, "_int"), "list(int).() -> int"),
            (concat!("list_uint_", $prefix, "_uint"), "list(uint).() -> uint"),
            (concat!("list_double_", $prefix, "_double"), "list(double).() -> double"),
            (concat!("list_bool_", $prefix, "_bool"), "list(bool).() -> bool"),
            (concat!("list_duration_", $prefix, "_duration"), "list(duration).() -> duration"),
            (concat!("list_timestamp_", $prefix, "_timestamp"), "list(timestamp).() -> timestamp"),
            (concat!("list_string_", $prefix, "_string"), "list(string).() -> string"),
            (concat!("list_bytes_", $prefix, "_bytes"), "list(bytes).() -> bytes"),
        ]
    };
}

pub(super) const TABLE: &[Entry] = &[
    ("isSorted", is_sorted, comparable!("list_", "_is_sorted_bool", "", "bool")),
    (
        "sum",
        sum,
        &[
            ("list_int_sum_int", "list(int).() -> int"),
            ("list_uint_sum_uint", "list(uint).() -> uint"),
            ("list_double_sum_double", "list(double).() -> double"),
            ("list_duration_sum_duration", "list(duration).() -> duration"),
        ],
    ),
    ("max", extreme, comparable!(element "max")),
    ("min", extreme, comparable!(element "min")),
    (
        "indexOf",
        index_of,
        &[
            ("list_a_index_of_int", "list(A).(A) -> int"),
            ("string_index_of_string", "string.(string) -> int"),
            ("string_index_of_string_int", "string.(string, int) -> int"),
        ],
    ),
    (
        "lastIndexOf",
        index_of,
        &[
            ("list_a_last_index_of_int", "list(A).(A) -> int"),
            ("string_last_index_of_string", "string.(string) -> int"),
            ("string_last_index_of_string_int", "string.(string, int) -> int"),
        ],
    ),
    ("slice", slice, &[("list_slice", "list(T).(int, int) -> list(T)")]),
    (
        "flatten",
        flatten,
        &[
            ("list_flatten", "list(list(T)).() -> list(T)"),
            ("list_flatten_int", "list(dyn).(int) -> list(dyn)"),
        ],
    ),
    (
        "sort",
        sort,
        &[
            ("list_int_sort", "list(int).() -> list(int)"),
            ("list_uint_sort", "list(uint).() -> list(uint)"),
            ("list_double_sort", "list(double).() -> list(double)"),
            ("list_bool_sort", "list(bool).() -> list(bool)"),
            ("list_duration_sort", "list(duration).() -> list(duration)"),
            ("list_timestamp_sort", "list(timestamp).() -> list(timestamp)"),
            ("list_string_sort", "list(string).() -> list(string)"),
            ("list_bytes_sort", "list(bytes).() -> list(bytes)"),
        ],
    ),
    (
        "@sortByAssociatedKeys",
        sort,
        &[
            ("list_int_sortByAssociatedKeys", "list(T).(list(int)) -> list(T)"),
            ("list_uint_sortByAssociatedKeys", "list(T).(list(uint)) -> list(T)"),
            ("list_double_sortByAssociatedKeys", "list(T).(list(double)) -> list(T)"),
            ("list_bool_sortByAssociatedKeys", "list(T).(list(bool)) -> list(T)"),
            ("list_duration_sortByAssociatedKeys", "list(T).(list(duration)) -> list(T)"),
            ("list_timestamp_sortByAssociatedKeys", "list(T).(list(timestamp)) -> list(T)"),
            ("list_string_sortByAssociatedKeys", "list(T).(list(string)) -> list(T)"),
            ("list_bytes_sortByAssociatedKeys", "list(T).(list(bytes)) -> list(T)"),
        ],
    ),
    ("lists.range", range, &[("lists_range", "(int) -> list(int)")]),
    ("reverse", reverse, &[("list_reverse", "list(T).() -> list(T)")]),
    ("distinct", distinct, &[("list_distinct", "list(T).() -> list(T)")]),
];

pub(super) const SETS: &[Entry] = &[
    ("sets.contains", sets, &[("list_sets_contains_list", "(list(T), list(T)) -> bool")]),
    ("sets.equivalent", sets, &[("list_sets_equivalent_list", "(list(T), list(T)) -> bool")]),
    ("sets.intersects", sets, &[("list_sets_intersects_list", "(list(T), list(T)) -> bool")]),
];

pub(super) const MAPS: &[Entry] = &[(
    "cel.@mapInsert",
    map_insert,
    &[
        ("@mapInsert_map_key_value", "(map(K, V), K, V) -> map(K, V)"),
        ("@mapInsert_map_map", "(map(K, V), map(K, V)) -> map(K, V)"),
    ],
)];

/// `one + two`; lists with `x-kubernetes-list-type` set or map merge.
pub(super) fn concatenate<'a>(one: &List<'a>, two: &List<'a>) -> Result<'a> {
    if one.len() + two.len() > ELEMENTS_MAX {
        return Err(EvalError::new("list too long"));
    }
    let mut items = one.to_vec()?;
    let equality = match one {
        List::Json(_, Some(node)) => node.list_equality(),
        _ => None,
    };
    match equality {
        None => items.extend(two.to_vec()?),
        Some(equality) => equality.merge(&mut items, two.to_vec()?),
    }
    Ok(Val::list(items))
}

fn list<'v, 'a>(args: &'v [Val<'a>]) -> std::result::Result<&'v List<'a>, EvalError> {
    match args.first() {
        Some(Val::List(list)) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn is_sorted<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let items = list(args)?.to_vec()?;
    for pair in items.windows(2) {
        if pair[0].compare(&pair[1])? == Ordering::Greater {
            return Ok(Val::Bool(false));
        }
    }
    Ok(Val::Bool(true))
}

fn sum<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let items = list(args)?.to_vec()?;
    let mut total = match items.first() {
        Some(Val::Uint(_)) => Val::Uint(0),
        Some(Val::Double(_)) => Val::Double(0.0),
        Some(Val::Duration(_)) => Val::Duration(0),
        _ => Val::Int(0),
    };
    let overflow = |of: &str| EvalError::new(format!("{of} overflow"));
    for item in &items {
        total = match (&total, item) {
            (Val::Int(one), Val::Int(two)) => {
                Val::Int(one.checked_add(*two).ok_or_else(|| overflow("integer"))?)
            }
            (Val::Uint(one), Val::Uint(two)) => {
                Val::Uint(one.checked_add(*two).ok_or_else(|| overflow("unsigned integer"))?)
            }
            (Val::Double(one), Val::Double(two)) => Val::Double(one + two),
            (Val::Duration(one), Val::Duration(two)) => {
                Val::Duration(one.checked_add(*two).ok_or_else(|| overflow("duration"))?)
            }
            _ => return no_overload(),
        };
    }
    Ok(total)
}

fn extreme<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let mut items = list(args)?.to_vec()?.into_iter();
    let Some(mut best) = items.next() else {
        return Err(EvalError::new(format!("{name} called on empty list")));
    };
    let wanted = if name == "max" { Ordering::Greater } else { Ordering::Less };
    for item in items {
        if item.compare(&best)? == wanted {
            best = item;
        }
    }
    Ok(best)
}

fn index_of<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let last = name == "lastIndexOf";
    match args {
        [Val::String(text), Val::String(part)] => strings::index_of(text, part, None, last).map(Val::Int),
        [Val::String(text), Val::String(part), Val::Int(from)] => {
            strings::index_of(text, part, Some(*from), last).map(Val::Int)
        }
        [Val::List(list), item] => {
            let items = list.to_vec()?;
            let equal = |other: &Val<'a>| other.equals(item);
            let at = if last { items.iter().rposition(equal) } else { items.iter().position(equal) };
            Ok(Val::Int(at.map_or(-1, |at| at as i64)))
        }
        _ => no_overload(),
    }
}

fn slice<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::List(list), Val::Int(start), Val::Int(end)] = args else { return no_overload() };
    let wrong = |why: String| Err(EvalError::new(format!("cannot slice({start}, {end}), {why}")));
    if *start < 0 || *end < 0 {
        return wrong("negative indexes not supported".to_owned());
    }
    if start > end {
        return wrong("start index must be less than or equal to end index".to_owned());
    }
    if *end > list.len() as i64 {
        return wrong(format!("list is length {}", list.len()));
    }
    let items: std::result::Result<Vec<_>, _> =
        (*start as usize..*end as usize).filter_map(|index| list.get(index)).collect();
    Ok(Val::list(items?))
}

fn flatten<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let depth = match args.get(1) {
        None => 1,
        Some(Val::Int(depth)) if *depth < 0 => return Err(EvalError::new("level must be non-negative")),
        Some(Val::Int(depth)) => (*depth).min(500),
        Some(_) => return no_overload(),
    };
    let mut flat = Vec::new();
    flatten_into(list(args)?, depth, &mut flat)?;
    Ok(Val::list(flat))
}

fn flatten_into<'a>(
    list: &List<'a>,
    depth: i64,
    flat: &mut Vec<Val<'a>>,
) -> std::result::Result<(), EvalError> {
    for item in list.iter() {
        match item? {
            Val::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, flat)?,
            other => flat.push(other),
        }
    }
    Ok(())
}

fn sort<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let items = list(args)?.to_vec()?;
    let keys = match args.get(1) {
        None => items.clone(),
        Some(Val::List(keys)) => keys.to_vec()?,
        Some(_) => return no_overload(),
    };
    if items.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, \
             but got {} and {} elements respectively",
            items.len(),
            keys.len()
        )));
    }
    if let Some(first) = keys.first() {
        first.compare(first).map_err(|_| EvalError::new("list elements must be comparable"))?;
        if keys.iter().any(|key| key.type_name() != first.type_name()) {
            return Err(EvalError::new("list elements must have the same type"));
        }
    }
    let mut pairs: Vec<(Val<'a>, Val<'a>)> = keys.into_iter().zip(items).collect();
    pairs.sort_by(|(one, _), (two, _)| one.compare(two).unwrap_or(Ordering::Equal));
    Ok(Val::list(pairs.into_iter().map(|(_, item)| item).collect()))
}

fn range<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Int(count)] = args else { return no_overload() };
    if *count > ELEMENTS_MAX as i64 {
        return Err(EvalError::new("list too long"));
    }
    Ok(Val::list((0..*count).map(Val::Int).collect()))
}

fn reverse<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let mut items = list(args)?.to_vec()?;
    items.reverse();
    Ok(Val::list(items))
}

fn distinct<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let mut seen: Vec<Val<'a>> = Vec::new();
    for item in list(args)?.iter() {
        let item = item?;
        if !seen.iter().any(|other| other.equals(&item)) {
            seen.push(item);
        }
    }
    Ok(Val::list(seen))
}

fn sets<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::List(one), Val::List(two)] = args else { return no_overload() };
    let (one, two) = (one.to_vec()?, two.to_vec()?);
    let has = |list: &[Val<'a>], item: &Val<'a>| list.iter().any(|other| other.equals(item));
    let contains = |list: &[Val<'a>], part: &[Val<'a>]| part.iter().all(|item| has(list, item));
    Ok(Val::Bool(match name {
        "sets.contains" => contains(&one, &two),
        "sets.equivalent" => contains(&one, &two) && contains(&two, &one),
        _ => one.iter().any(|item| has(&two, item)),
    }))
}

fn map_insert<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let Some(Val::Map(map)) = args.first() else { return no_overload() };
    let mut map = map.to_owned_map()?;
    insert_into(&mut map, &args[1..])?;
    Ok(Val::Map(Map::Owned(Arc::new(map))))
}

/// Adds a key and its value, or all entries of a map.
pub(crate) fn insert_into<'a>(
    map: &mut OwnedMap<'a>,
    what: &[Val<'a>],
) -> std::result::Result<(), EvalError> {
    let mut insert = |key: Val<'a>, value: Val<'a>| {
        let text = key.plain_text();
        map.insert(key, value)
            .map_err(|_| EvalError::new(format!("insert failed: key {text} already exists")))
    };
    match what {
        [Val::Map(entries)] => {
            for key in entries.keys() {
                if let Some(value) = entries.get(&key)? {
                    insert(key, value)?;
                }
            }
            Ok(())
        }
        [key, value] => insert(key.clone(), value.clone()),
        _ => Err(EvalError::no_such_overload()),
    }
}
