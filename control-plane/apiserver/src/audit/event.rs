//! What is noted about one request on its way.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// How much of a request is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// Collects what the parts of the server know about one request.
#[derive(Debug)]
pub struct Recorder {
    level: Level,
    annotations: Mutex<BTreeMap<String, String>>,
}

impl Recorder {
    pub fn new(level: Level) -> Self {
        Self { level, annotations: Mutex::default() }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// The first value of a key stays, as upstream has it.
    pub fn annotate(&self, key: &str, value: String) {
        let mut annotations = self.annotations.lock().unwrap_or_else(PoisonError::into_inner);
        annotations.entry(key.to_owned()).or_insert(value);
    }
}
