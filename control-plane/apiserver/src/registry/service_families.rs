//! The IP families of a Service: its policy, what it asks for, and what the cluster has. No address is chosen here.
//!
//! A Service never gains or loses a family unless its own fields say so: one that prefers two families and has one keeps
//! one when the cluster gets a second.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{fields::*, service::is_headless};

const POLICY: &str = "spec.ipFamilyPolicy";

/// Fills `ipFamilyPolicy` and `ipFamilies`; `own` are the families of the cluster, its default first.
///
/// # Errors
/// The first field that contradicts the others or asks for what the cluster has not.
pub(super) fn fill(service: &mut Value, old: Option<&Value>, own: &[&'static str]) -> Result<(), FieldError> {
    if text(service, "/spec/type") == "ExternalName" || old.is_some_and(|old| prefers_the_same(service, old))
    {
        return Ok(());
    }
    let anywhere = is_headless(service) && entries(service, "/spec/selector").is_empty();
    let before = old.map_or("", |old| text(old, "/spec/ipFamilyPolicy"));
    let default = match before {
        "" if anywhere => "RequireDualStack",
        "" => "SingleStack",
        before => before,
    };
    set_if_zero(child(service, "spec"), "ipFamilyPolicy", default);
    let policy = text(service, "/spec/ipFamilyPolicy").to_owned();
    if let Some(old) = old {
        release(service, old, &policy)?;
    }
    if policy == "SingleStack" {
        for (key, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if items(service, &format!("/spec/{key}")).len() == 2 {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                return Err(FieldError::invalid(POLICY, policy, detail));
            }
        }
    }
    infer(service, own)?;
    let mut families: Vec<String> =
        items(service, "/spec/ipFamilies").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if !anywhere {
        if policy == "RequireDualStack" && own.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            return Err(FieldError::invalid(POLICY, policy, detail));
        }
        if let Some(i) = families.iter().position(|family| !own.contains(&family.as_str())) {
            let (path, detail) = (format!("spec.ipFamilies[{i}]"), "not configured on this cluster");
            return Err(FieldError::invalid(path, families[i].as_str(), detail));
        }
    }
    if families.is_empty() {
        families.extend(own.first().map(|family| (*family).to_owned()));
    }
    if policy != "SingleStack" && families.len() == 1 && (anywhere || own.len() == 2) {
        let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
    set(child(service, "spec"), "ipFamilies", json!(families));
    Ok(())
}

/// Whether an update leaves a Service that prefers two families with the addresses and families that it has.
fn prefers_the_same(service: &Value, old: &Value) -> bool {
    let policy = |service: &Value| text(service, "/spec/ipFamilyPolicy").to_owned();
    policy(service) == "PreferDualStack"
        && matches!(policy(old).as_str(), "" | "PreferDualStack")
        && is_same(service, old, "clusterIPs")
        && is_same(service, old, "ipFamilies")
}

fn is_same(service: &Value, old: &Value, key: &str) -> bool {
    let pointer = format!("/spec/{key}");
    items(service, &pointer) == items(old, &pointer)
}

/// One family asked for where there were two gives the second up, if the policy says so.
fn release(service: &mut Value, old: &Value, policy: &str) -> Result<(), FieldError> {
    for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let pointer = format!("/spec/{key}");
        let (now, then) = (items(service, &pointer).len(), items(old, &pointer).len());
        if policy == "SingleStack" {
            if now > 1 && is_same(service, old, key) {
                list(child(service, "spec"), key).truncate(1);
            }
        } else if now != 0 && now < then {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            return Err(FieldError::invalid(POLICY, policy, detail));
        }
    }
    Ok(())
}

/// An address tells its family where none is named.
fn infer(service: &mut Value, own: &[&'static str]) -> Result<(), FieldError> {
    let all = at(service, "/spec/clusterIPs").clone();
    for (i, ip) in items(&all, "").iter().filter_map(Value::as_str).enumerate() {
        let Ok(ip) = ip.parse::<std::net::IpAddr>() else { return Ok(()) };
        if i < items(service, "/spec/ipFamilies").len() {
            continue;
        }
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if !own.contains(&family) {
            let detail = format!("{family} is not configured on this cluster");
            return Err(FieldError::invalid(format!("spec.clusterIPs[{i}]"), all.clone(), detail));
        }
        list(child(service, "spec"), "ipFamilies").push(family.into());
    }
    Ok(())
}
