//! What belongs to a request wherever its handling leads: when its time is up, and what the audit log is told about it.
//!
//! Set once by the pipeline, for the task that answers the request.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use crate::audit::Recorder;

/// As upstream: the time of a request that does not say one.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct RequestContext {
    pub deadline: Instant,
    /// `None` while nobody audits this request.
    pub audit: Option<Arc<Recorder>>,
}

impl RequestContext {
    /// `time` is what the request may take; without one, what a part of it waits for is bounded all the same.
    pub fn new(time: Option<Duration>, audit: Option<Arc<Recorder>>) -> Self {
        Self { deadline: Instant::now() + time.unwrap_or(REQUEST_TIME_MAX), audit }
    }
}

tokio::task_local! {
    static CONTEXT: RequestContext;
}

/// Runs `handling` with this context around it.
pub async fn within<F: Future>(context: RequestContext, handling: F) -> F::Output {
    CONTEXT.scope(context, handling).await
}

/// How long the request may still take.
pub fn remaining() -> Duration {
    let deadline = CONTEXT.try_with(|context| context.deadline);
    deadline.map_or(REQUEST_TIME_MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
}

/// Notes the body of the request for its audit event.
pub fn note_body(body: &Value) {
    // Outside a request (the server's own writes) nobody audits.
    let _ = CONTEXT.try_with(|context| {
        if let Some(audit) = &context.audit {
            audit.request_object(body);
        }
    });
}

/// Adds an annotation to the request's audit event; the value is only made where one is kept.
pub fn annotate(key: &str, value: impl FnOnce() -> String) {
    // Outside a request (the server's own writes) nobody audits.
    let _ = CONTEXT.try_with(|context| {
        if let Some(audit) = &context.audit {
            audit.annotate(key, value());
        }
    });
}

/// As [`annotate`], for what may show content of the object: kept from level Request on.
pub fn annotate_content(key: &str, value: impl FnOnce() -> String) {
    let _ = CONTEXT.try_with(|context| {
        if let Some(audit) =
            context.audit.as_ref().filter(|audit| audit.level() >= crate::audit::Level::Request)
        {
            audit.annotate(key, value());
        }
    });
}
