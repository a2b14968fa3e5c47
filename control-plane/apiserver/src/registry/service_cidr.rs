//! ServiceCIDRs, the ranges of cluster IPs, and IPAddresses, one for each address in use.

use std::net::IpAddr;

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{AGE, NAME, NONE},
};

pub(super) struct ServiceCidrs;
pub(super) struct IpAddresses;

const CIDRS: &str = "spec.cidrs";

impl Strategy for ServiceCidrs {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        ranges(&mut errors, object);
        errors.into_vec()
    }

    /// Ranges stay as they are, but for a second one of the other family.
    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if !context.subresource.is_empty() {
            return errors.into_vec();
        }
        let (now, then) = (items(new, "/spec/cidrs"), items(old, "/spec/cidrs"));
        let gains_a_family = then.len() == 1 && now.len() == 2;
        if now.len() != then.len() && !gains_a_family {
            errors.invalid(CIDRS, at(new, "/spec/cidrs"), IMMUTABLE);
            return errors.into_vec();
        }
        for (i, (now, then)) in now.iter().zip(then).enumerate() {
            if now != then {
                errors.invalid(format!("{CIDRS}[{i}]"), now, IMMUTABLE);
            }
        }
        if gains_a_family {
            ranges(&mut errors, new);
        }
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("CIDRs", "string", |o, _| {
                items(o, "/spec/cidrs").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into()
            }),
            AGE,
        ];
        COLUMNS
    }
}

const IMMUTABLE: &str = "field is immutable";

fn ranges(errors: &mut Errors, object: &Value) {
    let all = at(object, "/spec/cidrs");
    let list = items(all, "");
    if list.is_empty() {
        return errors.required(CIDRS, "at least one CIDR required");
    }
    if list.len() > 2 {
        return errors.invalid(CIDRS, all, "may only hold up to 2 values");
    }
    for (i, range) in list.iter().enumerate() {
        errors.cidr(format!("{CIDRS}[{i}]"), range);
    }
    let parsed: Vec<ipnetwork::IpNetwork> =
        list.iter().filter_map(|range| range.as_str()?.parse().ok()).collect();
    if let [first, second] = parsed[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(CIDRS, all, detail);
    }
}

impl Strategy for IpAddresses {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let path = "spec.parentRef";
        let parent = at(object, "/spec/parentRef");
        if parent.is_null() {
            errors.required(path, "");
            return errors.into_vec();
        }
        if !text(parent, "/group").is_empty() {
            errors.dns1123_subdomain(&format!("{path}.group"), at(parent, "/group"));
        }
        for key in ["resource", "name", "namespace"] {
            let value = text(parent, &format!("/{key}"));
            if !value.is_empty() {
                let wrong = api::names::path_segment(value, false);
                errors.all_invalid(&format!("{path}.{key}"), &value.into(), wrong);
            } else if key != "namespace" {
                errors.required(format!("{path}.{key}"), "");
            }
        }
        errors.into_vec()
    }

    fn validate_update(&self, _context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let parent = at(new, "/spec/parentRef");
        if !same(parent, at(old, "/spec/parentRef")) {
            errors.invalid("spec.parentRef", parent, IMMUTABLE);
        }
        errors.into_vec()
    }

    fn name_errors(&self, name: &str, _is_prefix: bool) -> Vec<String> {
        match name.parse::<IpAddr>() {
            Err(_) => vec![format!("ParseAddr({name:?}): unable to parse IP")],
            Ok(ip) if ip.to_string() != name => vec!["must be a canonical format IP address".to_owned()],
            Ok(_) => Vec::new(),
        }
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] =
            &[NAME, Column::new("ParentRef", "string", |o, _| parent(at(o, "/spec/parentRef")).into()), AGE];
        COLUMNS
    }
}

fn parent(reference: &Value) -> String {
    if reference.is_null() {
        return NONE.to_owned();
    }
    let resource = match (text(reference, "/resource"), text(reference, "/group")) {
        (resource, "") => resource.to_lowercase(),
        (resource, group) => format!("{resource}.{group}").to_lowercase(),
    };
    match text(reference, "/namespace") {
        "" => format!("{resource}/{}", text(reference, "/name")),
        namespace => format!("{resource}/{namespace}/{}", text(reference, "/name")),
    }
}
