//! ServiceAccount `default` and ConfigMap `kube-root-ca.crt` in every namespace.
//!
//! Two controllers of one shape: an object that each active namespace must have, put back when it is deleted or edited.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::cluster::{Cluster, ROOT_CERTIFICATE};
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result};
use crate::replica_set::in_terminating_namespace;
use crate::store::Key;

const DEFAULT: &str = "default";

/// Makes the ServiceAccount `default` of each namespace.
pub struct ServiceAccounts {
    cluster: Arc<Cluster>,
}

/// Publishes the cluster's CA in each namespace.
pub struct RootCertificates {
    cluster: Arc<Cluster>,
    pem: String,
}

fn enqueue_namespaces(cluster: &Cluster, queue: &Arc<Queue>) {
    let dirty = queue.clone();
    cluster.namespaces.subscribe(move |_, new| {
        if let Some(namespace) = new {
            dirty.add(Key::cluster(namespace.name_any()));
        }
    });
}

fn is_active(cluster: &Cluster, key: &Key) -> bool {
    cluster.namespaces.get(key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

/// Makes the controller of ServiceAccounts and the queue that feeds it.
pub fn service_accounts(cluster: &Arc<Cluster>) -> (Arc<ServiceAccounts>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    enqueue_namespaces(cluster, &queue);
    let dirty = queue.clone();
    cluster.service_accounts.subscribe(move |old, new| {
        if let (Some(gone), None) = (old, new)
            && gone.name_any() == DEFAULT
        {
            dirty.add(Key::cluster(gone.namespace().unwrap_or_default()));
        }
    });
    (Arc::new(ServiceAccounts { cluster: cluster.clone() }), queue)
}

impl Reconcile for ServiceAccounts {
    const NAME: &'static str = "service-account-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let wanted = Key::new(key.name.clone(), DEFAULT);
        if !is_active(&self.cluster, key) || self.cluster.service_accounts.get(&wanted).is_some() {
            return Ok(Next::Change);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT.into()),
                namespace: Some(key.name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.cluster.client.clone(), &key.name);
        match api.create(&PostParams::default(), &account).await {
            Ok(created) => self.cluster.service_accounts.observe(&created),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) if in_terminating_namespace(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Change)
    }
}

/// Makes the publisher of the CA in `pem` and the queue that feeds it.
pub fn root_certificates(cluster: &Arc<Cluster>, pem: String) -> (Arc<RootCertificates>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    enqueue_namespaces(cluster, &queue);
    let dirty = queue.clone();
    cluster.root_certificates.subscribe(move |old, new| {
        if let Some(map) = new.or(old) {
            dirty.add(Key::cluster(map.namespace().unwrap_or_default()));
        }
    });
    (Arc::new(RootCertificates { cluster: cluster.clone(), pem }), queue)
}

/// The ConfigMap to write, or `None` where `actual` is right.
fn certificate(pem: &str, namespace: &str, actual: Option<&ConfigMap>) -> Option<ConfigMap> {
    const DESCRIPTION: &str = "kubernetes.io/description";
    const TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
        such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
        Kubernetes clusters.";
    let data = [("ca.crt".to_owned(), pem.to_owned())].into();
    let described = actual.is_some_and(|actual| actual.annotations().contains_key(DESCRIPTION));
    if described && actual.and_then(|actual| actual.data.as_ref()) == Some(&data) {
        return None;
    }
    let mut map = actual.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CERTIFICATE.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    });
    map.annotations_mut().insert(DESCRIPTION.into(), TEXT.into());
    map.data = Some(data);
    Some(map)
}

impl Reconcile for RootCertificates {
    const NAME: &'static str = "root-ca-certificate-publisher";

    async fn reconcile(&self, key: &Key) -> Result {
        if !is_active(&self.cluster, key) {
            return Ok(Next::Change);
        }
        let actual = self.cluster.root_certificates.get(&Key::new(key.name.clone(), ROOT_CERTIFICATE));
        let Some(map) = certificate(&self.pem, &key.name, actual.as_deref()) else { return Ok(Next::Change) };
        let api = Api::<ConfigMap>::namespaced(self.cluster.client.clone(), &key.name);
        let written = match actual {
            Some(_) => api.replace(ROOT_CERTIFICATE, &PostParams::default(), &map).await,
            None => api.create(&PostParams::default(), &map).await,
        };
        match written {
            Ok(written) => self.cluster.root_certificates.observe(&written),
            Err(error) if in_terminating_namespace(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_certificate_is_put_back_and_a_right_one_is_left_alone() {
        let mut map = certificate("PEM", "ns", None).expect("a missing map is made");
        assert!(certificate("PEM", "ns", Some(&map)).is_none());
        map.data = Some([("ca.crt".to_owned(), "other".to_owned())].into());
        assert_eq!(
            certificate("PEM", "ns", Some(&map)).and_then(|map| map.data).expect("data")["ca.crt"],
            "PEM"
        );
    }
}
