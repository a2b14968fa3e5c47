//! The kinds that are served: the built-in ones, which are part of the binary, and those of CustomResourceDefinitions,
//! which come and go. A request takes its kind once, in a [`Target`], and keeps it whatever is published meanwhile.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use api::{
    schema::{Resource, Schema},
    shared::Shared,
    status::Status,
};
use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::{
    conversion::{Form, Webhook},
    handlers::Target,
    registry::Strategy,
    request::RequestInfo,
};

/// A served kind that is not built in: one version of a CustomResourceDefinition.
#[derive(Clone)]
pub struct Custom {
    /// Holds the types of this kind, and those of the metadata.
    pub schema: Shared<Schema>,
    pub resource: Arc<Resource>,
    pub strategy: Arc<dyn Strategy>,
    pub form: Form,
    /// The warning of a version that is deprecated.
    pub deprecation: Option<String>,
    /// Changes whenever the definition does.
    pub revision: String,
    /// Cancelled when the definition is gone or another one, and with the server: watches end then.
    pub ended: CancellationToken,
}

/// Group, version and plural name.
type Key = (String, String, String);

/// See the module's documentation.
pub struct Kinds {
    builtin: &'static Schema,
    custom: ArcSwap<HashMap<Key, Arc<Custom>>>,
    webhook: OnceLock<Arc<dyn Webhook>>,
}

impl Kinds {
    pub fn new(builtin: &'static Schema) -> Self {
        Self { builtin, custom: ArcSwap::default(), webhook: OnceLock::new() }
    }

    /// The kind behind a path.
    ///
    /// # Errors
    /// 404 where there is none.
    pub fn target(&self, info: &RequestInfo) -> Result<Target, Status> {
        self.find(&info.group, &info.version, &info.resource).ok_or_else(Status::resource_not_found)
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Target> {
        if let Some(resource) = self.builtin.resource(group, version, plural) {
            return Some(Target::new(resource));
        }
        let custom = self.custom.load();
        if custom.is_empty() {
            return None;
        }
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        custom.get(&key).map(|kind| Target::custom(kind))
    }

    /// The other versions that a resource is served in: those stored under the same keys.
    pub fn equivalents(&self, target: &Target) -> Vec<Target> {
        let own = &target.resource;
        let is_other = |other: &Resource| {
            other.plural == own.plural && (&other.group, &other.version) != (&own.group, &own.version)
        };
        let builtin = self.builtin.resources().iter().filter(|other| is_other(other)).map(Target::new);
        let custom = self.custom.load();
        let custom = custom.values().filter(|kind| is_other(&kind.resource)).map(|kind| Target::custom(kind));
        builtin.chain(custom).filter(|other| other.is_equivalent(target)).collect()
    }

    /// The kind of an object by its own words.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<Target> {
        if let Some(resource) = self.builtin.kind(group, version, kind) {
            return Some(Target::new(resource));
        }
        let custom = self.custom.load();
        let of_kind = |found: &&Arc<Custom>| {
            let resource = &found.resource;
            resource.group == group && resource.version == version && resource.kind == kind
        };
        custom.values().find(of_kind).map(|kind| Target::custom(kind))
    }

    /// Every resource, built-in ones first.
    pub fn resources(&self) -> Vec<Shared<Resource>> {
        let builtin = self.builtin.resources().iter().map(Shared::Static);
        let custom = self.custom.load();
        let mut of_customs: Vec<_> =
            custom.values().map(|kind| Shared::Counted(Arc::clone(&kind.resource))).collect();
        of_customs.sort_by(|a, b| (&a.group, &a.version, &a.plural).cmp(&(&b.group, &b.version, &b.plural)));
        builtin.chain(of_customs).collect()
    }

    /// The kinds that are not built in, in no order.
    pub fn customs(&self) -> Vec<Arc<Custom>> {
        self.custom.load().values().cloned().collect()
    }

    /// Replaces all kinds that are not built in; a built-in resource cannot be shadowed.
    pub fn publish(&self, kinds: impl IntoIterator<Item = Arc<Custom>>) {
        let key = |kind: &Custom| {
            let resource = &kind.resource;
            (resource.group.clone(), resource.version.clone(), resource.plural.clone())
        };
        self.custom.store(Arc::new(kinds.into_iter().map(|kind| (key(&kind), kind)).collect()));
    }

    /// Who calls conversion webhooks; set once, when the server starts.
    pub fn set_webhook(&self, webhook: Arc<dyn Webhook>) {
        // The first stays: there is one server in a process, and it sets this once.
        let _ = self.webhook.set(webhook);
    }

    pub fn webhook(&self) -> Option<&Arc<dyn Webhook>> {
        self.webhook.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoRules;
    impl Strategy for NoRules {}

    fn custom(plural: &str) -> Arc<Custom> {
        let builtin = api::schema::builtin();
        let mut resource = builtin.resource("", "v1", "configmaps").unwrap().clone();
        resource.group = "example.com".to_owned();
        resource.plural = plural.to_owned();
        resource.kind = "Widget".to_owned();
        Arc::new(Custom {
            schema: builtin.into(),
            resource: Arc::new(resource),
            strategy: Arc::new(NoRules),
            form: Form::Stored,
            deprecation: None,
            revision: String::new(),
            ended: CancellationToken::new(),
        })
    }

    #[test]
    fn a_published_kind_is_found_until_it_is_withdrawn() {
        let kinds = Kinds::new(api::schema::builtin());
        assert!(kinds.find("", "v1", "pods").is_some());
        assert!(kinds.find("example.com", "v1", "widgets").is_none());
        kinds.publish([custom("widgets")]);
        let target = kinds.find("example.com", "v1", "widgets").unwrap();
        assert!(kinds.of_kind("example.com", "v1", "Widget").is_some());
        assert_eq!(kinds.resources().last().unwrap().plural, "widgets");
        kinds.publish([]);
        assert!(kinds.find("example.com", "v1", "widgets").is_none());
        assert_eq!(target.resource.plural, "widgets", "who has it keeps it");
    }
}
