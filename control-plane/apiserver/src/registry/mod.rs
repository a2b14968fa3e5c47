//! What one resource does differently from the others: a [`Strategy`] of pure functions, in the fixed order of a write:
//! decode, `default`, `prepare_*`, mutating admission, `validate*`, validating admission, store.
//!
//! Handlers never know kinds; they ask [`strategy`]. A kind without rules of its own gets the generic strategy.
//! Deliberately absent: IO, clocks (`now` is in the [`Context`]), storage.

use api::{field::FieldError, schema::Resource};
use serde_json::Value;

/// What a write knows about itself.
pub struct Context<'a> {
    pub resource: &'a Resource,
    /// Empty for the object itself, else `status`, `scale`, `ephemeralcontainers`, ...
    pub subresource: &'a str,
    /// RFC 3339, to the second, UTC.
    pub now: &'a str,
    pub user: &'a str,
}

/// How a resource is deleted when the caller does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// A column of the server-side Table (`kubectl get`).
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, ... as in Table.columnDefinitions.
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// The cell; `now` in seconds since the epoch, for ages.
    pub cell: fn(object: &Value, now: i64) -> Value,
}

/// The rules of one resource. Every function is pure; the defaults are right for kinds without rules of their own.
pub trait Strategy: Send + Sync {
    /// Fills what the caller left out (on create, update and on reading old objects).
    fn default(&self, _object: &mut Value) {}
    /// Clears what a creator may not set (status), sets what the server owns.
    fn prepare_create(&self, _context: &Context<'_>, _object: &mut Value) {}
    /// Keeps what this request may not change: status for the object, all but status for `/status`, and allocated
    /// fields that the caller left out. Generation is counted by the generic code: it compares what
    /// [`Strategy::generation_content`] returns before and after.
    fn prepare_update(&self, _context: &Context<'_>, _new: &mut Value, _old: &Value) {}
    fn validate(&self, _context: &Context<'_>, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    fn validate_update(&self, _context: &Context<'_>, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// Warnings for the client's `Warning:` headers.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
    /// Whether the kind counts `metadata.generation`.
    fn has_generation(&self) -> bool {
        false
    }
    /// Whether PUT without a resourceVersion is allowed.
    fn allow_unconditional_update(&self) -> bool {
        true
    }
    /// Whether PUT may create the object (Lease: yes; most: no).
    fn allow_create_on_update(&self) -> bool {
        false
    }
    /// Fields besides metadata.name and metadata.namespace that field selectors may name, with their values.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// The names that [`Strategy::selectable_fields`] returns, to refuse others.
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[]
    }
    /// Seconds of grace for a deletion, where the kind deletes gracefully (pods): `requested` is what the caller asked
    /// for. `None`: at once.
    fn grace_period_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }
    fn default_propagation(&self) -> Propagation {
        Propagation::Background
    }
    /// Finalizers that creation adds (namespaces keep theirs in spec).
    fn columns(&self) -> &'static [Column] {
        &[]
    }
    /// How a name is checked: the rule of upstream for `metadata.name`. Returns what is wrong.
    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        api::names::dns1123_subdomain(name, is_prefix)
    }
}
