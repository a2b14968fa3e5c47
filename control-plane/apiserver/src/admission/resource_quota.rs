//! ResourceQuota, the last word of admission: what a write adds is charged to the namespace's quotas before the object
//! is stored, by compare-and-swap on `status.used`, so that requests at the same moment cannot exceed a quota together.
//!
//! A write that fails after it was charged is refunded; what is deleted is given back by the controller, which recounts.

use std::sync::{Arc, LazyLock};

use api::{
    meta,
    quota::{self, Amounts},
    status::Status,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{Operation, Request};
use crate::storage::{
    StorageError,
    cache::{Cache, Object},
    keys,
};

/// A charge that loses this many races in a row is given up.
const ATTEMPTS_MAX: usize = 50;
/// Writers to one namespace take turns, so that they do not lose races to each other.
static TURNS: LazyLock<Vec<Mutex<()>>> = LazyLock::new(|| (0..64).map(|_| Mutex::new(())).collect());

/// What a write under way was charged. It is refunded when this is dropped before [`Charge::keep`].
#[derive(Default)]
pub struct Charge {
    cache: Option<Arc<Cache>>,
    amounts_by_key: Vec<(String, Amounts)>,
}

impl Charge {
    /// The write succeeded.
    pub fn keep(mut self) {
        self.amounts_by_key.clear();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(cache) = self.cache.take().filter(|_| !self.amounts_by_key.is_empty()) else { return };
        let charged = std::mem::take(&mut self.amounts_by_key);
        tokio::spawn(async move {
            for (key, amounts) in charged {
                refund(&cache, &key, &amounts).await;
            }
        });
    }
}

/// Checks a write against all quotas of its namespace and charges it, unless it is a dry run.
///
/// # Errors
/// 403 where a quota would be exceeded or cannot be judged; 409 after too many lost races.
pub async fn charge(cache: &Arc<Cache>, request: &Request<'_>, object: &Value) -> Result<Charge, Status> {
    let mut charge = Charge { cache: Some(Arc::clone(cache)), amounts_by_key: Vec::new() };
    if !is_counted(request, object) {
        return Ok(charge);
    }
    let prefix = keys::list_prefix("", "resourcequotas", Some(request.namespace));
    let quotas = cache.list(&prefix);
    if quotas.is_empty() {
        return Ok(charge);
    }
    let now = jiff::Timestamp::now().as_second();
    let _turn = TURNS[turn(request.namespace)].lock().await;
    // All are asked before any is charged: most refusals then cost no write.
    for found in quotas.iter() {
        added(request, object, &found.value(), now)?;
    }
    if request.dry_run {
        return Ok(charge);
    }
    for found in quotas.iter() {
        if let Some(amounts) = charge_one(cache, request, object, found, now).await? {
            charge.amounts_by_key.push((found.key().to_string(), amounts));
        }
    }
    Ok(charge)
}

fn turn(namespace: &str) -> usize {
    namespace.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % TURNS.len()
}

/// Whether the write can change what quotas count.
fn is_counted(request: &Request<'_>, object: &Value) -> bool {
    let (group, plural) = (request.target.resource.group.as_str(), request.target.resource.plural.as_str());
    if request.namespace.is_empty() || plural == "events" && matches!(group, "" | "events.k8s.io") {
        return false;
    }
    let creates = request.operation == Operation::Create;
    let updates = request.operation == Operation::Update;
    match (group, plural, request.subresource) {
        ("", "pods", "") if updates => {
            let deadline = |pod: &Value| {
                pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
            };
            request.old.is_some_and(|old| deadline(old) != deadline(object))
        }
        ("", "pods", "resize") => updates,
        ("", "services" | "persistentvolumeclaims", "") => creates || updates,
        ("", "persistentvolumeclaims", "status") => updates,
        (_, _, "") => creates,
        _ => false,
    }
}

/// What the write adds to one quota; `None` where it adds nothing or the quota is not about it.
fn added(request: &Request<'_>, object: &Value, quota: &Value, now: i64) -> Result<Option<Amounts>, Status> {
    let (group, plural) = (request.target.resource.group.as_str(), request.target.resource.plural.as_str());
    let hard = quota::amounts(quota, "/status/hard");
    let tracked = quota::tracked(&hard, group, plural);
    if tracked.is_empty() || !quota::in_scope(quota, group, plural, object) {
        return Ok(None);
    }
    let name = meta::name(quota);
    if plural == "pods"
        && group.is_empty()
        && let Some(missing) = quota::unspecified(object, tracked.iter().copied())
    {
        return Err(request.forbidden(format!("failed quota: {name}: {missing}")));
    }
    let used = quota::amounts(quota, "/status/used");
    if tracked.iter().any(|resource| !used.contains_key(*resource)) {
        let resources = tracked.join(",");
        return Err(request.forbidden(format!("status unknown for quota: {name}, resources: {resources}")));
    }
    let mut adds = quota::usage(group, plural, object, now);
    let negative: Vec<&str> = names(&adds, |amount| amount.sign() < 0);
    if !negative.is_empty() {
        let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
        return Err(request.forbidden(why));
    }
    if let Some(old) = request.old.filter(|old| quota::in_scope(quota, group, plural, old)) {
        let before = quota::usage(group, plural, old, now);
        for (resource, amount) in &mut adds {
            if let Some(before) = before.get(resource) {
                *amount = amount.sub(before);
            }
        }
    }
    adds.retain(|resource, amount| amount.sign() > 0 && hard.contains_key(resource));
    if adds.is_empty() {
        return Ok(None);
    }
    let exceeded = names(&adds, |_| true).into_iter().filter(|resource| {
        let total = used.get(*resource).map_or(adds[*resource], |used| used.add(&adds[*resource]));
        total > hard[*resource]
    });
    let exceeded: Vec<&str> = exceeded.collect();
    if exceeded.is_empty() || request.subresource == "status" {
        return Ok(Some(adds));
    }
    let show = |amounts: &Amounts| quota::listed(amounts, exceeded.iter().copied());
    let (asked, held, limit) = (show(&adds), show(&used), show(&hard));
    let why = format!("exceeded quota: {name}, requested: {asked}, used: {held}, limited: {limit}");
    Err(request.forbidden(why))
}

fn names(amounts: &Amounts, wanted: impl Fn(&api::quantity::Quantity) -> bool) -> Vec<&str> {
    amounts.iter().filter(|(_, amount)| wanted(amount)).map(|(name, _)| name.as_str()).collect()
}

async fn charge_one(
    cache: &Cache,
    request: &Request<'_>,
    object: &Value,
    found: &Arc<Object>,
    now: i64,
) -> Result<Option<Amounts>, Status> {
    let mut current = cache.get(found.key());
    for _ in 0..ATTEMPTS_MAX {
        // A quota that was deleted meanwhile limits nothing.
        let Some(stored) = current else { return Ok(None) };
        let mut value = stored.value();
        let Some(adds) = added(request, object, &value, now)? else { return Ok(None) };
        let mut used = quota::amounts(&value, "/status/used");
        quota::add(&mut used, &adds);
        value["status"]["used"] = quota::to_json(&used);
        match cache.update(stored.key(), stored.revision(), value).await {
            Ok(_) => return Ok(Some(adds)),
            Err(StorageError::Conflict { .. } | StorageError::NotFound { .. }) => {
                current = cache.get(found.key());
            }
            Err(error) => return Err(Status::internal(error)),
        }
    }
    let name = &found.meta().name;
    Err(Status::modified("", "resourcequotas", name))
}

/// Takes a charge back; a quota that has been recounted since may show too little for the moment until the next count.
async fn refund(cache: &Cache, key: &str, amounts: &Amounts) {
    for _ in 0..ATTEMPTS_MAX {
        let Some(stored) = cache.get(key) else { return };
        let mut value = stored.value();
        let mut used = quota::amounts(&value, "/status/used");
        for (resource, amount) in amounts {
            if let Some(used) = used.get_mut(resource) {
                let left = used.sub(amount);
                *used = if left.sign() < 0 { api::quantity::Quantity::ZERO } else { left };
            }
        }
        value["status"]["used"] = if used.is_empty() { json!({}) } else { quota::to_json(&used) };
        match cache.update(key, stored.revision(), value).await {
            Err(StorageError::Conflict { .. }) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(key, %error, "a charge to a quota cannot be taken back; the controller will recount");
                return;
            }
        }
    }
}
