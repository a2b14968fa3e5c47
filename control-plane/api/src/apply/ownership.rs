//! One write by one manager: what it owns afterwards, and what others lose.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::{
    compare::{self, Comparison},
    element::PathElement,
    fresh, last_applied,
    managed::{Entry, Fields, Id, Managed, is_reset},
    path_text, prune,
    set::FieldSet,
    typed::{Typed, shape_of},
    validate::validate,
    walk,
};
use crate::{
    schema::{Schema, Shape, TypeId},
    shared::Shared,
};

/// Who owned the fields of an object before anybody was asked.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The applier that takes over what it once applied from the client's side.
const KUBECTL: &str = "kubectl";

/// Fields that nobody owns, though what is below them may be owned.
const NEVER_OWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Fields that a write cannot change, so that it owns none of them. Paths are of field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// These, and what is below them.
    Fields(&'static [&'static [&'static str]]),
    /// All but what begins with one of these; `*` is any one step.
    AllBut(&'static [&'static [&'static str]]),
}

impl Reset {
    pub const NONE: Self = Self::Fields(&[]);

    fn filter(self, set: &mut FieldSet) {
        match self {
            Self::Fields(paths) => paths.iter().for_each(|path| set.remove_below(path)),
            Self::AllBut(prefixes) => *set = set.keep_prefixes(prefixes),
        }
    }
}

/// An object in one version, and its type there.
#[derive(Clone, Debug)]
pub struct Versioned {
    pub object: Value,
    /// Where `ty` is: versions of a custom kind have a schema each.
    pub schema: Shared<Schema>,
    pub ty: TypeId,
}

/// How an object is shown in the versions that its entries are of.
pub trait Versions: Sync {
    /// `object`, whatever version it is in, in `api_version`; `None` where there is no such version.
    ///
    /// # Errors
    /// When it cannot be converted, or is not yet: then the write is made again once it is.
    fn versioned(&self, object: &Value, api_version: &str) -> Result<Option<Versioned>, String>;
}

/// Objects that are served in one version only.
pub struct OneVersion;

impl Versions for OneVersion {
    fn versioned(&self, _object: &Value, _api_version: &str) -> Result<Option<Versioned>, String> {
        Ok(None)
    }
}

/// One write.
#[derive(Clone, Copy)]
pub struct Ownership<'a> {
    pub schema: &'a Schema,
    pub ty: TypeId,
    /// `apps/v1`.
    pub api_version: &'a str,
    pub kind: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub manager: &'a str,
    /// RFC 3339, to the second, UTC.
    pub now: &'a str,
    pub reset: Reset,
    pub versions: &'a dyn Versions,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As texts name the manager: `"web" using apps/v1`.
    pub manager: String,
    /// `.spec.replicas`.
    pub field: String,
    path: Vec<PathElement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [Conflict { manager, field, .. }] = self.0.as_slice() {
            return write!(f, "Apply failed with 1 conflict: conflict with {manager}: {field}");
        }
        write!(f, "Apply failed with {} conflicts: ", self.0.len())?;
        for (i, Conflict { manager, field, .. }) in self.0.iter().enumerate() {
            if i == 0 || self.0[i - 1].manager != *manager {
                let start = if i == 0 { "" } else { "\n" };
                write!(f, "{start}conflicts with {manager}:")?;
            }
            write!(f, "\n- {field}")?;
        }
        Ok(())
    }
}

/// Why an apply patch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The patch is not one for this object: 400.
    #[error("{0}")]
    BadRequest(String),
    /// 409; the text is that of the Status.
    #[error("{0}")]
    Conflict(Conflicts),
    /// The patch or the object does not fit the schema: upstream answers 500 with the plain text.
    #[error("{0}")]
    Untyped(String),
}

impl<'a> Ownership<'a> {
    fn id(&self, updates: bool) -> Id {
        Id::new(self.manager, updates, self.api_version, self.subresource)
    }

    fn managed_of(object: &Value) -> &Value {
        object.get("metadata").and_then(|metadata| metadata.get("managedFields")).unwrap_or(&Value::Null)
    }

    fn take_managed(object: &mut Value) -> Value {
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        metadata.and_then(|metadata| metadata.remove("managedFields")).unwrap_or_default()
    }

    fn put_managed(object: &mut Value, managed: Managed) {
        if let Some(entries) = managed.encode() {
            crate::meta::metadata_mut(object).insert("managedFields".to_owned(), entries);
        }
    }

    /// An object of this kind with nothing in it.
    fn nothing(&self) -> Value {
        json!({"apiVersion": self.api_version, "kind": self.kind})
    }

    /// Records in `new` who owns its fields after it was written in any way but by an apply patch; `live` is `None` for
    /// a new object. Where that cannot be told, nobody is recorded, as upstream does.
    pub fn record(&self, live: Option<&Value>, new: &mut Value) {
        let given = Self::take_managed(new);
        if live.is_none() && given.is_null() && self.record_fresh(new) {
            return;
        }
        let nothing = if live.is_none() { self.nothing() } else { Value::Null };
        let managed = self.given_or_live(given, live.map_or(&Value::Null, Self::managed_of));
        // An object that nobody ever owned is not owned from the middle of its life.
        if managed.0.is_empty() && live.is_some() {
            return;
        }
        if let Ok(managed) = self.after_update(live.unwrap_or(&nothing), new, managed) {
            Self::put_managed(new, managed);
        }
    }

    /// The short way for a new object of which the request says no owners; whether it could be gone.
    fn record_fresh(&self, new: &mut Value) -> bool {
        let Reset::Fields(reset) = self.reset else { return false };
        let shape = shape_of(self.ty);
        let Ok(Some(mut fields)) = fresh::added(Typed::root(self.schema, &shape), new) else { return false };
        reset.iter().for_each(|path| fresh::take_out(&mut fields, path, true));
        NEVER_OWNED.iter().for_each(|path| fresh::take_out(&mut fields, path, false));
        let mut managed = Managed::default();
        let entry = Entry {
            api_version: self.api_version.to_owned(),
            time: Some(self.now.to_owned()),
            fields: Fields::Encoded(fields),
        };
        managed.0.insert(self.id(true), entry);
        managed.drop_empty();
        Self::put_managed(new, managed);
        true
    }

    /// What the request says about ownership, where it may and it makes sense; else what is stored.
    fn given_or_live(&self, given: Value, live: &Value) -> Managed {
        if self.subresource.is_empty() {
            if is_reset(&given) {
                return Managed::default();
            }
            if let Ok(managed) = Managed::decode(given, live)
                && !managed.0.is_empty()
            {
                return managed;
            }
        }
        Managed::decode_stored(live).unwrap_or_default()
    }

    fn after_update(&self, live: &Value, new: &Value, mut managed: Managed) -> Result<Managed, String> {
        let shape = shape_of(self.ty);
        let mut comparison = compare::compare(Typed::root(self.schema, &shape), live, new)?;
        comparison.each(|set| self.reset.filter(set));
        self.take_from_others(live, new, &mut managed, &comparison, None)?;
        let mut gained = comparison.set();
        strip(&mut gained);
        managed.drop_empty();
        if !gained.is_empty() {
            let entry = managed.0.entry(self.id(true)).or_insert_with(|| Entry {
                api_version: self.api_version.to_owned(),
                time: None,
                fields: Fields::Set(FieldSet::default()),
            });
            if !entry.fields.has_all(&gained) {
                let union = entry.fields.set()?.union(&gained);
                entry.fields = Fields::Set(union);
            }
            entry.time = Some(self.now.to_owned());
        }
        managed.cap_updaters()?;
        Ok(managed)
    }

    /// Takes what changed from everybody but `writer`, in the version of each. The writer of an update is among the
    /// others: it gets back what it set.
    fn take_from_others(
        &self,
        live: &Value,
        new: &Value,
        managed: &mut Managed,
        comparison: &Comparison,
        writer: Option<&Id>,
    ) -> Result<(), String> {
        let mut changed_by_version = vec![(self.api_version.to_owned(), Some(comparison.all()))];
        let updater = writer.is_none().then(|| {
            let mut set = comparison.set();
            strip(&mut set);
            (self.id(true), set)
        });
        for (id, entry) in managed.0.iter_mut().filter(|(id, _)| Some(*id) != writer) {
            let known = changed_by_version.iter().position(|(version, _)| *version == entry.api_version);
            let known = match known {
                Some(known) => known,
                None => {
                    let other = self.compare_in(live, new, &entry.api_version)?;
                    changed_by_version.push((entry.api_version.clone(), other.map(|other| other.all())));
                    changed_by_version.len() - 1
                }
            };
            match &changed_by_version[known].1 {
                // What it set stays its own; only what is gone is taken.
                Some(_)
                    if updater.as_ref().is_some_and(|(own, set)| own == id && entry.fields.has_all(set)) =>
                {
                    entry.fields.subtract(&comparison.removed)?;
                }
                Some(changed) => entry.fields.subtract(changed)?,
                // A version that is served no more.
                None => entry.fields = Fields::Set(FieldSet::default()),
            }
        }
        Ok(())
    }

    fn compare_in(&self, live: &Value, new: &Value, version: &str) -> Result<Option<Comparison>, String> {
        // Both are asked for before either is missed, so that they are converted together.
        let (live, new) = (self.versions.versioned(live, version), self.versions.versioned(new, version));
        let (Some(live), Some(new)) = (live?, new?) else { return Ok(None) };
        let shape = shape_of(new.ty);
        let typed = Typed::root(&new.schema, &shape);
        let mut comparison = compare::compare(typed, &live.object, &new.object)?;
        comparison.each(|set| self.reset.filter(set));
        Ok(Some(comparison))
    }

    /// Applies a configuration: the object that results, with its owners. `live` is `None` for an object that is not
    /// there yet. The result is not decoded or defaulted yet.
    ///
    /// # Errors
    /// When the patch is not one, does not fit the schema, or (unless `force`) sets what others own.
    pub fn apply(&self, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, ApplyError> {
        self.check_patch(config)?;
        let (live, managed) = self.live_and_owners(live)?;
        let applied = self.apply_to(&live, config, managed.clone(), force);
        let (mut object, managed) = match applied {
            Err(ApplyError::Conflict(conflicts)) if self.manager == KUBECTL => {
                let config_of_client = last_applied::owned_by_client(self, &live);
                let left = conflicts_beside(conflicts, &config_of_client);
                if !left.0.is_empty() {
                    return Err(ApplyError::Conflict(left));
                }
                self.apply_to(&live, config, managed, true)?
            }
            other => other?,
        };
        if self.manager == KUBECTL {
            last_applied::refresh(&mut object, config);
        }
        Self::put_managed(&mut object, managed);
        Ok(object)
    }

    fn check_patch(&self, config: &Value) -> Result<(), ApplyError> {
        let (version, kind) = (crate::meta::api_version(config), crate::meta::kind(config));
        if version != self.api_version || kind != self.kind {
            let (group, version) = crate::meta::group_and_version(version);
            return Err(ApplyError::BadRequest(format!(
                "invalid object type: {group}/{version}, Kind={kind}"
            )));
        }
        if !Self::managed_of(config).is_null() {
            return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
        }
        self.check_type(config, false).map_err(|why| {
            ApplyError::Untyped(format!(
                "failed to create typed patch object ({}): {why}",
                self.named(config)
            ))
        })
    }

    fn check_type(&self, object: &Value, allow_duplicates: bool) -> Result<(), String> {
        let shape = shape_of(self.ty);
        validate(Typed::root(self.schema, &shape), object, allow_duplicates)?;
        // Which fields a custom kind knows is said field by field: by what decoding would drop.
        let Some(structural) = &self.schema.get(self.ty).structural else { return Ok(()) };
        let unknown = if allow_duplicates { Vec::new() } else { structural.prune(&mut object.clone()) };
        let texts: Vec<String> =
            unknown.iter().map(|path| format!(".{path}: field not declared in schema")).collect();
        match texts.as_slice() {
            [] => Ok(()),
            [only] => Err(only.clone()),
            texts => Err(format!("errors:\n  {}", texts.join("\n  "))),
        }
    }

    /// `default/web; apps/v1, Kind=Deployment`.
    fn named(&self, object: &Value) -> String {
        let (namespace, name) = (crate::meta::namespace(object), crate::meta::name(object));
        let slash = if self.api_version.contains('/') { "" } else { "/" };
        format!("{namespace}/{name}; {slash}{}, Kind={}", self.api_version, self.kind)
    }

    /// The stored object without its owners, and these; what nobody owns belongs to a manager of that name.
    fn live_and_owners(&self, live: Option<&Value>) -> Result<(Value, Managed), ApplyError> {
        let Some(live) = live else { return Ok((self.nothing(), Managed::default())) };
        let mut object = live.clone();
        let entries = Self::take_managed(&mut object);
        let failed = |why: String| ApplyError::Untyped(format!("failed to decode managed fields: {why}"));
        let mut managed = Managed::decode(entries, Self::managed_of(live)).map_err(failed)?;
        self.check_type(&object, true).map_err(|why| {
            ApplyError::Untyped(format!("failed to create typed live object ({}): {why}", self.named(live)))
        })?;
        if managed.0.is_empty() {
            let before = Self { manager: BEFORE_FIRST_APPLY, ..*self };
            managed = before.after_update(&self.nothing(), &object, managed).map_err(|why| {
                ApplyError::Untyped(format!("failed to create manager for existing fields: {why}"))
            })?;
        }
        Ok((object, managed))
    }

    fn apply_to(
        &self,
        live: &Value,
        config: &Value,
        mut managed: Managed,
        force: bool,
    ) -> Result<(Value, Managed), ApplyError> {
        let shape = shape_of(self.ty);
        let typed = Typed::root(self.schema, &shape);
        let id = self.id(false);
        self.reconcile(&mut managed).map_err(ApplyError::Untyped)?;
        let merged = walk::merge(typed, Some(live), Some(config)).unwrap_or_default();
        let mut set = walk::fields(typed, config);
        self.reset.filter(&mut set);
        let last = managed.0.remove(&id);
        let time = last.as_ref().and_then(|last| last.time.clone());
        managed.0.insert(
            id.clone(),
            Entry { api_version: self.api_version.to_owned(), time, fields: Fields::Set(set) },
        );
        let merged = prune::prune(self, merged, &mut managed, &id, last).map_err(ApplyError::Untyped)?;
        let mut comparison = compare::compare(typed, live, &merged).map_err(ApplyError::Untyped)?;
        comparison.each(|set| self.reset.filter(set));
        if !force {
            self.find_conflicts(live, &merged, &mut managed, &comparison, &id)?;
        }
        self.take_from_others(live, &merged, &mut managed, &comparison, Some(&id))
            .map_err(ApplyError::Untyped)?;
        let is_changed = super::element::compare_values(live, &merged).is_ne();
        if let Some(entry) = managed.0.get_mut(&id) {
            strip(entry.fields.set().map_err(ApplyError::Untyped)?);
            if is_changed {
                entry.time = Some(self.now.to_owned());
            }
        }
        managed.drop_empty();
        Ok((merged, managed))
    }

    fn find_conflicts(
        &self,
        live: &Value,
        merged: &Value,
        managed: &mut Managed,
        comparison: &Comparison,
        applier: &Id,
    ) -> Result<(), ApplyError> {
        let mut conflicts = Vec::new();
        let mut set_by_version = BTreeMap::from([(self.api_version.to_owned(), Some(comparison.set()))]);
        for (id, entry) in managed.0.iter_mut().filter(|(id, _)| *id != applier) {
            if !set_by_version.contains_key(&entry.api_version) {
                let other = self.compare_in(live, merged, &entry.api_version).map_err(ApplyError::Untyped)?;
                set_by_version.insert(entry.api_version.clone(), other.map(|other| other.set()));
            }
            let Some(set) = &set_by_version[&entry.api_version] else { continue };
            let common = entry.fields.set().map_err(ApplyError::Untyped)?.intersection(set);
            let manager = shown_manager(id, &entry.api_version);
            conflicts.extend(common.paths().into_iter().map(|path| Conflict {
                manager: manager.clone(),
                field: path_text(&path),
                path,
            }));
        }
        if conflicts.is_empty() { Ok(()) } else { Err(ApplyError::Conflict(Conflicts(conflicts))) }
    }

    /// Makes sets fit a schema that changed since they were written: what became owned whole is owned whole.
    fn reconcile(&self, managed: &mut Managed) -> Result<(), String> {
        let shape = shape_of(self.ty);
        for entry in managed.0.values_mut().filter(|entry| entry.api_version == self.api_version) {
            let set = entry.fields.set()?;
            if let Some(fitting) = prune::reconciled(Typed::root(self.schema, &shape), set) {
                *set = fitting;
            }
        }
        Ok(())
    }

    /// The object in another version; unchanged where that is this version. `None` where there is no such version.
    pub(super) fn in_version<'v>(
        &self,
        object: &'v Value,
        version: &str,
    ) -> Result<Option<InVersion<'v>>, String> {
        if version == self.api_version && crate::meta::api_version(object) == version {
            let (object, shape) = (Cow::Borrowed(object), shape_of(self.ty));
            return Ok(Some(InVersion { object, shape, schema: None }));
        }
        let versioned = self.versions.versioned(object, version)?;
        Ok(versioned.map(|Versioned { object, schema, ty }| InVersion {
            object: Cow::Owned(object),
            shape: shape_of(ty),
            schema: Some(schema),
        }))
    }
}

/// What [`Ownership::in_version`] makes.
pub(super) struct InVersion<'v> {
    pub object: Cow<'v, Value>,
    shape: Shape,
    /// `None` for the schema of the write.
    schema: Option<Shared<Schema>>,
}

impl InVersion<'_> {
    pub fn typed<'t>(&'t self, write: &'t Ownership<'_>) -> Typed<'t> {
        Typed::root(self.schema.as_deref().unwrap_or(write.schema), &self.shape)
    }
}

/// Takes out what nobody owns.
fn strip(set: &mut FieldSet) {
    NEVER_OWNED.iter().for_each(|path| set.remove_member(path));
}

fn conflicts_beside(conflicts: Conflicts, allowed: &Option<FieldSet>) -> Conflicts {
    let Some(allowed) = allowed else { return conflicts };
    Conflicts(conflicts.0.into_iter().filter(|conflict| !allowed.contains(&conflict.path)).collect())
}

/// `"web" with subresource "status" using apps/v1`; appliers have no version.
fn shown_manager(id: &Id, api_version: &str) -> String {
    let quote = crate::field::quote;
    let mut text = quote(&id.manager);
    if !id.subresource.is_empty() {
        text.push_str(&format!(" with subresource {}", quote(&id.subresource)));
    }
    if id.updates {
        text.push_str(&format!(" using {api_version}"));
    }
    text
}
