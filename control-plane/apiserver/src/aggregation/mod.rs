//! Aggregation: API groups that another server answers for, behind a Service that an APIService (`apiregistration.k8s.io/v1`)
//! names. Requests for such a group and version are passed on with the caller's identity in headers and our front-proxy
//! certificate; discovery shows them beside our own.
//!
//! ```text
//! request -> route -> proxy -> Service's endpoint
//! registration: an APIService for every group and version that we serve ourselves
//! availability: asks every remote one, writes the condition Available, fetches what it serves
//! ```

mod availability;
mod discover;
mod documents;
mod proxy;
pub mod registration;

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::{
    callout::{Callout, Destination, ServicePort, ca_bundle},
    registry::fields::*,
    storage::{Revision, cache::Cache, keys},
};

pub(crate) use self::{
    availability::run as watch_availability, discover::merge_openapi_index, documents::run as watch_documents,
};

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";

/// An APIService whose API another server answers.
#[derive(Debug)]
pub struct Remote {
    pub name: String,
    pub group: String,
    pub version: String,
    pub service: ServicePort,
    /// An error where its CA bundle cannot be read.
    pub destination: Result<Destination, String>,
    pub available: bool,
    pub group_priority: i64,
    pub version_priority: i64,
}

impl Remote {
    /// `None` for an APIService of our own.
    fn parse(api_service: &Value) -> Option<Self> {
        let spec = at(api_service, "/spec");
        let reference = Some(at(spec, "/service")).filter(|service| service.is_object())?;
        let service = ServicePort::parse(reference);
        let destination = ca_bundle(at(spec, "/caBundle")).map(|ca_bundle| Destination {
            authority: service.authority(),
            path: String::new(),
            service: Some(service.clone()),
            ca_bundle,
            skip_verify: flag(spec, "/insecureSkipTLSVerify"),
            as_proxy: true,
        });
        let conditions = items(api_service, "/status/conditions");
        Some(Self {
            name: text(api_service, "/metadata/name").to_owned(),
            group: text(spec, "/group").to_owned(),
            version: text(spec, "/version").to_owned(),
            service,
            destination,
            available: conditions.iter().any(|condition| {
                text(condition, "/type") == "Available" && text(condition, "/status") == "True"
            }),
            group_priority: int(spec, "/groupPriorityMinimum"),
            version_priority: int(spec, "/versionPriority"),
        })
    }
}

/// The remote APIServices by group and version.
pub type Remotes = HashMap<(String, String), Arc<Remote>>;

/// See the module's documentation.
pub struct Aggregation {
    cache: Arc<Cache>,
    callout: Arc<Callout>,
    prefix: String,
    parsed: ArcSwap<(Revision, Arc<Remotes>)>,
    documents: documents::Documents,
}

impl Aggregation {
    pub fn new(cache: Arc<Cache>, callout: Arc<Callout>) -> Self {
        let parsed = ArcSwap::from_pointee((Revision(u64::MAX), Arc::default()));
        let prefix = keys::resource_prefix(GROUP, PLURAL);
        Self { cache, callout, prefix, parsed, documents: documents::Documents::default() }
    }

    /// As the cache shows them now.
    pub fn remotes(&self) -> Arc<Remotes> {
        // Read before the list: a write between the two is seen as news by the next call.
        let newest = self.cache.newest(&self.prefix);
        let parsed = self.parsed.load();
        if parsed.0 == newest {
            return Arc::clone(&parsed.1);
        }
        let remotes: Remotes = self
            .cache
            .list(&self.prefix)
            .iter()
            .filter_map(|object| Remote::parse(&object.value()))
            .map(|remote| ((remote.group.clone(), remote.version.clone()), Arc::new(remote)))
            .collect();
        let remotes = Arc::new(remotes);
        self.parsed.store(Arc::new((newest, Arc::clone(&remotes))));
        remotes
    }

    /// Who answers a path instead of us: `/apis/GROUP/VERSION` and all below, and its OpenAPI document.
    pub fn route(&self, path: &str) -> Option<Arc<Remote>> {
        let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        let remotes = self.remotes();
        if remotes.is_empty() {
            return None;
        }
        remotes.get(&(group.to_owned(), version.to_owned())).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_api_service_with_a_service_is_remote() {
        let local = json!({"metadata": {"name": "v1.apps"}, "spec": {"group": "apps", "version": "v1"}});
        assert!(Remote::parse(&local).is_none());
        let mut remote = local;
        remote["spec"]["service"] = json!({"name": "api", "namespace": "wardle", "port": 7443});
        remote["status"]["conditions"] = json!([{"type": "Available", "status": "True"}]);
        let parsed = Remote::parse(&remote).unwrap();
        assert_eq!(parsed.destination.unwrap().url(), "https://api.wardle.svc:7443");
        assert!(parsed.available);
        remote["status"]["conditions"][0]["status"] = json!("False");
        assert!(!Remote::parse(&remote).unwrap().available);
    }
}
