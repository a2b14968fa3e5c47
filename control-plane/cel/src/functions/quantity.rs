//! Quantities, and `jsonpatch.escapeKey`.

use std::cmp::Ordering;

use api::quantity::{Format, Quantity};

use super::{Entry, no_overload};
use crate::{error::EvalError, value::Val};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

pub(super) const TABLE: &[Entry] = &[
    ("quantity", to_quantity, &[("string_to_quantity", "(string) -> quantity")]),
    ("isQuantity", is_quantity, &[("is_quantity_string", "(string) -> bool")]),
    ("sign", sign, &[("quantity_sign", "(quantity) -> int")]),
    ("isGreaterThan", compare, &[("quantity_is_greater_than", "quantity.(quantity) -> bool")]),
    ("isLessThan", compare, &[("quantity_is_less_than", "quantity.(quantity) -> bool")]),
    ("compareTo", compare, &[("quantity_compare_to", "quantity.(quantity) -> int")]),
    ("asApproximateFloat", as_float, &[("quantity_get_float", "quantity.() -> double")]),
    ("asInteger", as_integer, &[("quantity_get_int", "quantity.() -> int")]),
    ("isInteger", is_integer, &[("quantity_is_integer", "quantity.() -> bool")]),
    (
        "add",
        arithmetic,
        &[
            ("quantity_add", "quantity.(quantity) -> quantity"),
            ("quantity_add_int", "quantity.(int) -> quantity"),
        ],
    ),
    (
        "sub",
        arithmetic,
        &[
            ("quantity_sub", "quantity.(quantity) -> quantity"),
            ("quantity_sub_int", "quantity.(int) -> quantity"),
        ],
    ),
    ("jsonpatch.escapeKey", escape_key, &[("string_jsonpatch_escapeKey_string", "(string) -> string")]),
];

fn to_quantity<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Quantity::parse(text).map(Val::Quantity).map_err(|error| EvalError::new(error.to_string()))
}

fn is_quantity<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(Val::Bool(Quantity::parse(text).is_ok()))
}

fn sign<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Quantity(quantity)] = args else { return no_overload() };
    Ok(Val::Int(i64::from(quantity.sign())))
}

/// Quantities and versions alike.
fn compare<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let order = match args {
        [Val::Quantity(one), Val::Quantity(two)] => one.cmp(two),
        [Val::Semver(one), Val::Semver(two)] => one.compare(two),
        _ => return no_overload(),
    };
    Ok(match name {
        "isGreaterThan" => Val::Bool(order == Ordering::Greater),
        "isLessThan" => Val::Bool(order == Ordering::Less),
        _ => Val::Int(order as i64),
    })
}

fn as_float<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Quantity(quantity)] = args else { return no_overload() };
    Ok(Val::Double(quantity.to_f64()))
}

fn whole(quantity: &Quantity) -> Option<i64> {
    quantity.whole().and_then(|whole| i64::try_from(whole).ok())
}

fn as_integer<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Quantity(quantity)] = args else { return no_overload() };
    whole(quantity).map(Val::Int).ok_or_else(|| EvalError::new("cannot convert value to integer"))
}

fn is_integer<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Quantity(quantity)] = args else { return no_overload() };
    Ok(Val::Bool(whole(quantity).is_some()))
}

fn arithmetic<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (one, two) = match args {
        [Val::Quantity(one), Val::Quantity(two)] => (one, *two),
        [Val::Quantity(one), Val::Int(two)] => (one, Quantity::from_value(*two, Format::DecimalExponent)),
        _ => return no_overload(),
    };
    Ok(Val::Quantity(if name == "add" { one.add(&two) } else { one.sub(&two) }))
}

fn escape_key<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(Val::text(text.replace('~', "~0").replace('/', "~1")))
}
