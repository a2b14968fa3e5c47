//! What is wrong with literals although their types fit: durations, timestamps and patterns that do not parse, and
//! elements of different types in one list or map.

use super::Checked;
use crate::{
    ast::{Id, Kind, Literal},
    error::Issues,
    functions::regex,
    time,
    types::Type,
};

pub(super) fn validate(checked: &Checked, issues: &mut Issues) {
    let exempt = formatted(checked);
    for (index, node) in checked.ast.nodes.iter().enumerate() {
        match &node.kind {
            Kind::Call { function, args, .. } => argument(checked, function, args, issues),
            Kind::List(elements) if !exempt[index] => {
                same(checked, elements.iter().map(|element| (element.value, element.optional)), issues);
            }
            Kind::Map(entries) if !exempt[index] => {
                same(checked, entries.iter().map(|entry| (entry.key, false)), issues);
                same(checked, entries.iter().map(|entry| (entry.value, entry.optional)), issues);
            }
            _ => {}
        }
    }
}

fn argument(checked: &Checked, function: &str, args: &[Id], issues: &mut Issues) {
    let Some(arg) = args.first() else { return };
    let Kind::Literal(Literal::String(text)) = checked.ast.kind(*arg) else { return };
    let valid = match function {
        "duration" => time::parse_duration(text).is_ok(),
        "timestamp" => time::parse_timestamp(text).is_ok(),
        "matches" => regex::compile(text).is_ok(),
        _ => return,
    };
    if !valid {
        issues.report(Some(checked.ast.offset(*arg)), format!("invalid {function} argument"));
    }
}

/// Which nodes are arguments of `format`, at any depth.
fn formatted(checked: &Checked) -> Vec<bool> {
    let mut exempt = vec![false; checked.ast.nodes.len()];
    for node in checked.ast.nodes.iter().rev() {
        if let Kind::Call { function, args, .. } = &node.kind
            && &**function == "format"
        {
            for arg in args {
                exempt[*arg as usize] = true;
            }
        }
    }
    for index in (0..exempt.len()).rev().filter(|index| exempt[*index]).collect::<Vec<_>>() {
        spread(checked, index as Id, &mut exempt);
    }
    exempt
}

fn spread(checked: &Checked, id: Id, exempt: &mut [bool]) {
    exempt[id as usize] = true;
    match checked.ast.kind(id) {
        Kind::List(elements) => elements.iter().for_each(|element| spread(checked, element.value, exempt)),
        Kind::Map(entries) => entries.iter().for_each(|entry| spread(checked, entry.value, exempt)),
        Kind::Call { args, .. } => args.iter().for_each(|arg| spread(checked, *arg, exempt)),
        _ => {}
    }
}

fn same(checked: &Checked, entries: impl Iterator<Item = (Id, bool)>, issues: &mut Issues) {
    let mut first: Option<&Type> = None;
    for (id, optional) in entries {
        let ty = &checked.types[id as usize];
        let ty = if optional { ty.unwrap_optional().unwrap_or(ty) } else { ty };
        match first {
            None => first = Some(ty),
            Some(expected) if expected != ty => {
                let message = format!("expected type '{expected}' but found '{ty}'");
                issues.report(Some(checked.ast.offset(id)), message);
                return;
            }
            Some(_) => {}
        }
    }
}
