//! An object in the versions that its owners wrote it in. Built-in kinds convert by functions, custom kinds without a
//! webhook by another name of the version; what only a webhook converts is asked for between two runs of the pure step
//! that needs it, once for each object and version:
//!
//! ```text
//! step ─> misses a conversion ─> webhook (all that was missed, by version) ─> step again ─> ... ─> result
//! ```

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use api::{
    apply::{Versioned, Versions},
    meta,
    schema::{Resource, builtin},
    status::Status,
};
use serde_json::Value;

use crate::{
    conversion::{self, Convert, Form},
    handlers::Target,
};

/// How often a step is run again.
const ROUNDS_MAX: usize = 32;
/// So many conversions are kept; the oldest go first.
const KEPT_MAX: usize = 64;

/// The conversions of one request.
pub struct Conversions<'a> {
    target: &'a Target,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    made: Vec<Made>,
    /// By version.
    missed: BTreeMap<String, Vec<Value>>,
}

/// What a webhook made of an object; neither has owners.
struct Made {
    from: Value,
    api_version: String,
    to: Value,
}

impl<'a> Conversions<'a> {
    pub fn of(target: &'a Target) -> Self {
        Self { target, asked: Mutex::default() }
    }

    pub fn target(&self) -> &'a Target {
        self.target
    }

    /// Whether there can be anything to ask a webhook.
    pub fn may_ask(&self) -> bool {
        matches!(self.target.form(), Form::Custom(form) if form.has_webhook())
    }

    /// Runs `step` until it misses no conversion; its result is that of the last run.
    ///
    /// # Errors
    /// What the step or the webhook answers; 500 where the step misses ever more.
    pub async fn settle<T>(&self, mut step: impl FnMut() -> Result<T, Status> + Send) -> Result<T, Status> {
        for _ in 0..ROUNDS_MAX {
            let result = step();
            let missed = std::mem::take(&mut self.asked().missed);
            if missed.is_empty() {
                return result;
            }
            let Form::Custom(form) = self.target.form() else { return result };
            self.make(&**form, missed).await?;
        }
        Err(Status::internal("the versions of the object's owners need too many conversions"))
    }

    async fn make(&self, form: &dyn Convert, missed: BTreeMap<String, Vec<Value>>) -> Result<(), Status> {
        for (api_version, objects) in missed {
            let converted = form.convert(objects.clone(), &api_version).await?;
            let made = objects.into_iter().zip(converted).map(|(from, to)| Made {
                from,
                api_version: api_version.clone(),
                to,
            });
            let mut asked = self.asked();
            asked.made.extend(made);
            let surplus = asked.made.len().saturating_sub(KEPT_MAX);
            asked.made.drain(..surplus);
        }
        Ok(())
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_custom(
        &self,
        form: &dyn Convert,
        object: &Value,
        api_version: &str,
    ) -> Result<Option<Versioned>, String> {
        let Some((schema, ty)) = form.type_in(api_version) else { return Ok(None) };
        if let Some(object) = form.rename(object, api_version) {
            return Ok(Some(Versioned { object, schema, ty }));
        }
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let mut asked = self.asked();
        if let Some(made) =
            asked.made.iter().find(|made| made.api_version == api_version && made.from == object)
        {
            return Ok(Some(Versioned { object: made.to.clone(), schema, ty }));
        }
        let missed = asked.missed.entry(api_version.to_owned()).or_default();
        if !missed.contains(&object) {
            missed.push(object);
        }
        Err(format!("the object is not converted to {api_version} yet"))
    }
}

impl Versions for Conversions<'_> {
    fn versioned(&self, object: &Value, api_version: &str) -> Result<Option<Versioned>, String> {
        match self.target.form() {
            Form::Custom(form) => self.of_custom(&**form, object, api_version),
            Form::Stored | Form::Builtin(_) => Ok(of_builtin(self.target, object, api_version)),
        }
    }
}

/// Built-in kinds that are stored once and served in several versions convert through what is stored.
fn of_builtin(target: &Target, object: &Value, api_version: &str) -> Option<Versioned> {
    let kind = meta::kind(object);
    let resource = |api_version: &str| -> Option<&Resource> {
        let (group, version) = meta::group_and_version(api_version);
        target.schema.kind(group, version, kind)
    };
    let (from, to) = (resource(meta::api_version(object))?, resource(api_version)?);
    if stored_as(from) != stored_as(to) {
        return None;
    }
    let mut object = object.clone();
    if let Some(form) = conversion::of(from) {
        object = (form.to_stored)(object);
    }
    if let Some(form) = conversion::of(to) {
        object = (form.from_stored)(object);
    }
    object["apiVersion"] = Value::from(api_version);
    Some(Versioned { object, schema: builtin().into(), ty: to.ty })
}

fn stored_as(resource: &Resource) -> (&str, &str) {
    (conversion::of(resource).map_or(resource.group.as_str(), |form| form.group), &resource.plural)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_and_autoscalers_are_compared_across_their_versions() {
        let schema = builtin();
        let target = Target::new(schema.resource("events.k8s.io", "v1", "events").unwrap());
        let conversions = Conversions::of(&target);
        let versioned = |object: &Value, version: &str| conversions.versioned(object, version).unwrap();
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"kind": "Pod"}});
        let core = versioned(&event, "v1").unwrap();
        assert_eq!(core.object["message"], "n");
        assert_eq!(core.object["apiVersion"], "v1");
        assert_eq!(core.ty, schema.type_of("", "v1", "Event").unwrap());
        let back = versioned(&core.object, "events.k8s.io/v1").unwrap();
        assert_eq!(back.object["note"], "n");
        assert!(versioned(&event, "apps/v1").is_none());
        let target = Target::new(schema.resource("autoscaling", "v1", "horizontalpodautoscalers").unwrap());
        let scaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "spec": {"targetCPUUtilizationPercentage": 80}});
        let v2 = Conversions::of(&target).versioned(&scaler, "autoscaling/v2").unwrap().unwrap();
        assert_eq!(v2.object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }
}
