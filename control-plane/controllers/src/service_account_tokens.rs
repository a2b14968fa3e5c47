//! ServiceAccount tokens in Secrets of type `kubernetes.io/service-account-token`: filled when somebody makes one, deleted
//! with their account, and taken off the account's list when they go.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::queue::Queue;
use crate::reconcile::{Error, Next, Reconcile, Result, found};
use crate::store::Key;

/// The type of the Secrets that carry tokens.
pub const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Whom a token is for.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// The namespace of the account and its Secret.
    pub namespace: &'a str,
    /// The account's name.
    pub account: &'a str,
    /// The account's uid.
    pub uid: &'a str,
    /// The Secret's name.
    pub secret: &'a str,
}

/// Makes tokens without an end, which are valid while their Secret holds them.
#[derive(Clone)]
pub struct Issuer(Arc<Issue>);

type Issue = dyn Fn(Holder<'_>) -> Result<String, String> + Send + Sync;

impl Issuer {
    /// An issuer that asks `issue`.
    pub fn new(issue: impl Fn(Holder<'_>) -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(issue))
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issuer")
    }
}

/// The controller.
pub struct Controller {
    cluster: Arc<Cluster>,
    issuer: Option<Issuer>,
    ca_pem: String,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>, issuer: Option<Issuer>, ca_pem: String) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.token_secrets.subscribe(move |old, new| {
        if let Some(secret) = new.or(old) {
            dirty.add(Key::of(&**secret));
        }
    });
    let (dirty, secrets) = (queue.clone(), cluster.token_secrets.clone());
    cluster.service_accounts.subscribe(move |old, new| {
        let changed = old.map(|old| &old.metadata.uid) != new.map(|new| &new.metadata.uid);
        let Some(account) = old.or(new).filter(|_| changed) else { return };
        for secret in secrets.in_namespace(&account.namespace().unwrap_or_default()) {
            if account_of(&secret) == Some(&account.name_any()) {
                dirty.add(Key::of(&*secret));
            }
        }
    });
    (Arc::new(Controller { cluster: cluster.clone(), issuer, ca_pem }), queue)
}

fn account_of(secret: &Secret) -> Option<&String> {
    secret.annotations().get(ACCOUNT_NAME).filter(|name| !name.is_empty())
}

impl Reconcile for Controller {
    const NAME: &'static str = "legacy-serviceaccount-token-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(secret) = self.cluster.token_secrets.get(key) else {
            self.drop_reference(key).await?;
            return Ok(Next::Change);
        };
        let Some(name) = account_of(&secret) else { return Ok(Next::Change) };
        let accounts = Api::<ServiceAccount>::namespaced(self.cluster.client.clone(), &key.namespace);
        // The store may lag behind an account that was just made.
        let account = accounts.get_opt(name).await?.filter(|account| {
            let uid = secret.annotations().get(ACCOUNT_UID);
            uid.is_none_or(|uid| uid.is_empty() || account.uid().as_ref() == Some(uid))
        });
        let api = Api::<Secret>::namespaced(self.cluster.client.clone(), &key.namespace);
        let Some(account) = account else {
            let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            found(api.delete(&key.name, &params).await)?;
            return Ok(Next::Change);
        };
        let Some(filled) = self.fill(&secret, &account)? else { return Ok(Next::Change) };
        if let Some(written) = found(api.replace(&key.name, &PostParams::default(), &filled).await)? {
            self.cluster.token_secrets.observe(&written);
        }
        Ok(Next::Change)
    }
}

impl Controller {
    /// The Secret as it should be; `None` where it is so.
    fn fill(&self, secret: &Secret, account: &ServiceAccount) -> Result<Option<Secret>> {
        let mut filled = secret.clone();
        let (name, uid) = (account.name_any(), account.uid().unwrap_or_default());
        let namespace = secret.namespace().unwrap_or_default();
        let data = filled.data.get_or_insert_default();
        let lacks = |data: &std::collections::BTreeMap<String, ByteString>, key: &str| {
            data.get(key).is_none_or(|value| value.0.is_empty())
        };
        if !self.ca_pem.is_empty() {
            data.insert("ca.crt".to_owned(), ByteString(self.ca_pem.clone().into_bytes()));
        }
        if lacks(data, "namespace") {
            data.insert("namespace".to_owned(), ByteString(namespace.clone().into_bytes()));
        }
        if let Some(issuer) = self.issuer.as_ref().filter(|_| lacks(data, "token")) {
            let holder =
                Holder { namespace: &namespace, account: &name, uid: &uid, secret: &secret.name_any() };
            let token = (issuer.0)(holder).map_err(Error::Invalid)?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        if filled.data == secret.data {
            return Ok(None);
        }
        let annotations = filled.annotations_mut();
        annotations.insert(ACCOUNT_NAME.to_owned(), name);
        annotations.insert(ACCOUNT_UID.to_owned(), uid);
        Ok(Some(filled))
    }

    /// Takes a Secret that is gone off the list of the account that names it.
    async fn drop_reference(&self, key: &Key) -> Result<()> {
        let names = |account: &ServiceAccount| {
            account.secrets.iter().flatten().any(|secret| secret.name.as_ref() == Some(&key.name))
        };
        for account in self.cluster.service_accounts.in_namespace(&key.namespace) {
            if !names(&account) {
                continue;
            }
            // Only a Secret that carried a token is ours to take off, and one of another type may have the name now.
            let secrets = Api::<Secret>::namespaced(self.cluster.client.clone(), &key.namespace);
            if secrets.get_metadata_opt(&key.name).await?.is_some() {
                return Ok(());
            }
            let api = Api::<ServiceAccount>::namespaced(self.cluster.client.clone(), &key.namespace);
            let mut updated = (*account).clone();
            updated.secrets.get_or_insert_default().retain(|secret| secret.name.as_ref() != Some(&key.name));
            let name = account.name_any();
            if let Some(written) = found(api.replace(&name, &PostParams::default(), &updated).await)? {
                self.cluster.service_accounts.observe(&written);
            }
        }
        Ok(())
    }
}
