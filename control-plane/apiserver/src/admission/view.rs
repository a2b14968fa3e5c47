//! What plugins see of the cluster that serves: its objects and its rules.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;

use super::Lookup;
use crate::{
    security::{Attributes, Authorizer, Identity},
    storage::cache::Cache,
};

/// The cache, and the authorizer on it.
pub struct View {
    pub cache: Arc<Cache>,
    pub authorizer: Arc<Authorizer>,
}

impl Lookup for View {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        Lookup::get(&*self.cache, group, plural, namespace, name)
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        Lookup::list(&*self.cache, group, plural, namespace)
    }

    fn namespace_labels(&self, name: &str) -> Option<Value> {
        self.cache.namespace_labels(name)
    }

    fn fresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.cache.fresh().await {
                tracing::debug!(%error, "the cache is not known to be fresh");
            }
        })
    }

    fn allows(&self, user: &Identity, attributes: &Attributes) -> bool {
        self.authorizer.authorize(user, attributes).allowed
    }
}
