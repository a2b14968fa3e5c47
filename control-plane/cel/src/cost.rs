//! What calls cost when they run, in upstream's units: a tenth for each character or byte that is looked at.

use crate::value::Val;

const TRAVERSAL: f64 = 0.1;
const REGEX: f64 = 0.25;
/// A check by the authorizer: two fit into one expression.
const CHECK_COST: u64 = 350_000;
/// A call that makes a list, empty.
const ALLOCATING_CALL: u64 = 11;

fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

fn size(args: &[Val<'_>], index: usize) -> u64 {
    args.get(index).map_or(1, Val::size)
}

/// The cost of walking through a value.
fn traversal(value: &Val<'_>) -> u64 {
    match value {
        Val::String(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Val::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Val::List(list) => list.iter().flatten().map(|item| traversal(&item)).sum(),
        Val::Map(map) => map
            .keys()
            .iter()
            .map(|key| traversal(key) + map.get(key).ok().flatten().map_or(0, |value| traversal(&value)))
            .sum(),
        _ => 1,
    }
}

/// The product of the costs of a text and of a pattern; one is added, so that an empty text is not free.
fn pattern_cost(text: u64, pattern: u64) -> u64 {
    let text = ((1.0 + text as f64) * TRAVERSAL).ceil() as u64;
    text.saturating_mul(scaled(pattern, REGEX))
}

/// The worst case of comparing every element of a list with every other.
fn self_comparison(list: Option<&Val<'_>>) -> u64 {
    let Some(Val::List(list)) = list else { return ALLOCATING_CALL };
    let texts = matches!(list.get(0), Some(Ok(Val::String(_) | Val::Bytes(_))));
    let size = list.len() as f64;
    ALLOCATING_CALL + (size * size * if texts { 2.0 + TRAVERSAL } else { 2.0 }) as u64
}

/// The cost that is known before a call, for calls that take long: it is charged first.
pub(crate) fn before(name: &str, args: &[Val<'_>]) -> Option<u64> {
    match name {
        "matches" | "find" | "findAll" => Some(pattern_cost(size(args, 0), size(args, 1))),
        "check" => Some(CHECK_COST),
        "sets.contains" | "sets.intersects" => {
            Some(size(args, 0).saturating_mul(size(args, 1)).saturating_add(1))
        }
        "sets.equivalent" => {
            Some(size(args, 0).saturating_mul(size(args, 1)).saturating_mul(2).saturating_add(1))
        }
        "distinct" | "sort" => Some(self_comparison(args.first())),
        "@sortByAssociatedKeys" => Some(self_comparison(args.get(1))),
        _ => None,
    }
}

/// The cost that is left to charge after a call.
pub(crate) fn after(name: &str, args: &[Val<'_>], result: &Val<'_>) -> u64 {
    if before(name, args).is_some() {
        return 0;
    }
    match name {
        "fieldSelector" | "labelSelector" => {
            let length = size(args, 1);
            10 + scaled(length, TRAVERSAL) + scaled(scaled(length, 0.5), 50.0)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, traversal),
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "startsWith"
        | "endsWith"
        | "format"
        | "strings.quote" => scaled(size(args, 0), TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => scaled(size(args, 0), 2.0 * TRAVERSAL),
        "join" => scaled(result.size(), 2.0 * TRAVERSAL),
        "ip" => {
            if matches!(args, [Val::Cidr(_)]) {
                1
            } else {
                scaled(size(args, 0), TRAVERSAL)
            }
        }
        "containsIP" | "containsCIDR" => contains(name, args),
        "validate" => match args.first() {
            Some(Val::Format(format)) => pattern_cost(size(args, 1), format.pattern_length),
            _ => 1,
        },
        "contains" => scaled(size(args, 0), TRAVERSAL).saturating_mul(scaled(size(args, 1), TRAVERSAL)),
        "bytes" | "string" => match args {
            [Val::String(_)] if name == "bytes" => scaled(size(args, 0), TRAVERSAL),
            [Val::Bytes(_)] if name == "string" => scaled(size(args, 0), TRAVERSAL),
            _ => 1,
        },
        "@in" => match args {
            [_, Val::List(list)] => list.len() as u64,
            _ => 1,
        },
        "_<_" | "_<=_" | "_>_" | "_>=_" => match args {
            [Val::String(_) | Val::Bytes(_), _] => scaled(size(args, 0).min(size(args, 1)), TRAVERSAL),
            _ => 1,
        },
        "_+_" => match args {
            [Val::String(_) | Val::Bytes(_), _] => scaled(size(args, 0) + size(args, 1), TRAVERSAL),
            _ => 1,
        },
        "slice" | "lists.range" | "reverse" => ALLOCATING_CALL + result.size(),
        "flatten" => {
            let depth = match args.get(1) {
                Some(Val::Int(depth)) => u64::try_from(*depth).unwrap_or(0),
                _ => 1,
            };
            ALLOCATING_CALL.saturating_add(size(args, 0).saturating_mul(depth))
        }
        _ => 1,
    }
}

fn contains(name: &str, args: &[Val<'_>]) -> u64 {
    let (network, other) = (size(args, 0), size(args, 1));
    let mut cost = scaled(2 * network, TRAVERSAL);
    if name == "containsCIDR" {
        cost += scaled(network, TRAVERSAL) + 1;
    }
    if matches!(args, [_, Val::String(_)]) {
        cost += scaled(other, TRAVERSAL);
    }
    cost
}

/// What `==` and `!=` cost.
pub(crate) fn equality(one: &Val<'_>, two: &Val<'_>) -> u64 {
    match one {
        Val::Quantity(_)
        | Val::Ip(_)
        | Val::Cidr(_)
        | Val::Format(_)
        | Val::Url(_)
        | Val::Semver(_)
        | Val::Authorizer(_) => 1,
        _ => scaled(one.size().min(two.size()), TRAVERSAL),
    }
}
