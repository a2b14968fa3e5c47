//! Server-side apply and the ownership of fields: KEP-555, and the algorithm of upstream's structured-merge-diff.
//!
//! A [`FieldSet`] is `fieldsV1`; a typed walk turns a value into one, merges, compares and prunes; [`Ownership`] is one
//! write by one manager: [`Ownership::record`] after every other verb, [`Ownership::apply`] for an apply patch. All of
//! it is pure: the schema, the time and the conversion between versions are arguments.
//!
//! ```text
//! create, update, patch:  live, new -> compare -> who changed what -> managedFields of new
//! apply:                  live, config -> merge -> prune what only this applier owned -> conflicts -> managedFields
//! ```

mod compare;
mod element;
mod extract;
mod fresh;
mod last_applied;
mod managed;
mod ownership;
mod prune;
mod scale;
mod set;
mod typed;
mod validate;
mod walk;

pub use compare::Comparison;
pub use element::PathElement;
pub use extract::extract;
pub use managed::{keep_times, spell_out_reset, validate_managed_fields};
pub use ownership::{ApplyError, Conflict, Conflicts, OneVersion, Ownership, Reset, Versioned, Versions};
pub use scale::ScaleFields;
pub use set::{FieldSet, path_text};

#[cfg(test)]
mod tests;
