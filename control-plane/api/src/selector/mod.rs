//! Selectors: which objects a list, a watch or an owner means.
//!
//! [`LabelSelector`] reads the query form (`app=web,tier in (a,b),!old`) and the object form
//! (`{matchLabels, matchExpressions}`); [`FieldSelector`] reads `metadata.name=x,status.phase!=Running`.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::{LabelSelector, Operator, Requirement};
