//! The OpenAPI documents of aggregated servers: those of v2, for clients that read no v3, and the places of those of v3, which
//! are passed on from where they are. Fetched while the APIs are available, looked at again each minute, and kept until the
//! APIService is gone. No request waits for them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::{join, join_all};
use http::StatusCode;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::debug;

use super::{Aggregation, Remote, discover::Asked};
use crate::state::State;

/// The largest document that is taken, in bytes.
const DOCUMENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Between two looks at what is known already.
const PERIOD: Duration = Duration::from_secs(60);
const V2_PATH: &str = "/openapi/v2";
const V3_PATH: &str = "/openapi/v3";

/// What is known of one APIService's server.
#[derive(Clone, Default, PartialEq)]
struct Known {
    etag: String,
    document: Arc<Value>,
    /// Where its v3 document is, with what changes when that does; empty where that is not known.
    v3_url: String,
}

/// By name of the APIService.
#[derive(Default)]
pub(super) struct Documents {
    known: Mutex<BTreeMap<String, Known>>,
    news: Notify,
}

impl Documents {
    /// Looks at all of them soon.
    pub(super) fn look(&self) {
        self.news.notify_one();
    }

    fn known(&self) -> BTreeMap<String, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn root(remote: &Remote) -> String {
    format!("apis/{}/{}", remote.group, remote.version)
}

impl Aggregation {
    /// Adds what aggregated servers document to a v2 document.
    pub fn add_documents(&self, document: &mut Value) {
        let known = self.documents.known();
        let mut remotes: Vec<Arc<Remote>> = self.remotes().values().cloned().collect();
        remotes.sort_by(|a, b| a.name.cmp(&b.name));
        for remote in remotes {
            if let Some(known) = known.get(&remote.name) {
                api::openapi::merge_v2(document, &known.document, &format!("/{}", root(&remote)));
            }
        }
    }

    /// The groups and versions of aggregated servers, as the index of OpenAPI v3 names them, with the places of their
    /// documents.
    pub(super) fn v3_paths(&self) -> Vec<(String, String)> {
        let known = self.documents.known();
        let remotes = self.remotes();
        let available = remotes.values().filter(|remote| remote.available);
        let path = |remote: &Arc<Remote>| {
            let url = known.get(&remote.name).map(|known| known.v3_url.clone()).unwrap_or_default();
            let root = root(remote);
            let url = if url.is_empty() { format!("/openapi/v3/{root}") } else { url };
            (root, url)
        };
        available.map(path).collect()
    }

    /// Fetches what is new; whether anything is.
    async fn refresh_documents(&self) -> bool {
        let remotes = self.remotes();
        let before = self.documents.known();
        let mut known = before.clone();
        known.retain(|name, _| remotes.values().any(|remote| remote.name == *name));
        let asked = remotes.values().filter(|remote| remote.available).map(|remote| {
            let known = known.get(&remote.name).cloned().unwrap_or_default();
            async move { (remote.name.clone(), self.fetch_documents(remote, known).await) }
        });
        let fetched = join_all(asked).await;
        known.extend(fetched);
        let is_changed = known != before;
        *self.documents.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        is_changed
    }

    /// What is known afterwards; where a server does not answer, what was known before.
    async fn fetch_documents(&self, remote: &Remote, mut known: Known) -> Known {
        let accept = "application/json";
        let asked = Asked { path: V2_PATH, accept, etag: &known.etag, bytes_max: DOCUMENT_BYTES_MAX };
        let index = Asked { path: V3_PATH, accept, etag: "", bytes_max: DOCUMENT_BYTES_MAX };
        let (answer, index) = join(self.ask(remote, &asked), self.ask(remote, &index)).await;
        match answer {
            Ok(answer) if answer.code.is_success() => match serde_json::from_slice(&answer.body) {
                Ok(document) => {
                    known.document = Arc::new(document);
                    known.etag = answer.etag;
                }
                Err(error) => debug!(name = remote.name, %error, "no OpenAPI document of an aggregated API"),
            },
            // A server that has none shows none.
            Ok(answer) if answer.code == StatusCode::NOT_FOUND => known.document = Arc::default(),
            Ok(_) => {}
            Err(why) => debug!(name = remote.name, why, "no OpenAPI document of an aggregated API"),
        }
        if let Ok(index) = index {
            let index: Value = serde_json::from_slice(&index.body).unwrap_or_default();
            let root = root(remote);
            let url = index["paths"][&root]["serverRelativeURL"].as_str().unwrap_or_default();
            let own = format!("{V3_PATH}/{root}");
            let is_own = url.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('?'));
            known.v3_url = if is_own { url.to_owned() } else { String::new() };
        }
        known
    }
}

/// Keeps the documents current until the server stops.
pub(crate) async fn run(state: Arc<State>) {
    loop {
        let aggregation = &state.aggregation;
        let fetched = tokio::select! {
            () = state.stop.cancelled() => return,
            fetched = aggregation.refresh_documents() => fetched,
        };
        if fetched {
            state.openapi.forget_whole();
        }
        let has_remotes = !aggregation.remotes().is_empty();
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = aggregation.documents.news.notified() => {}
            () = tokio::time::sleep(PERIOD), if has_remotes => {}
        }
    }
}
