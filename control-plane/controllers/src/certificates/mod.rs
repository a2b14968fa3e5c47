//! CertificateSigningRequests: approves those of kubelets that may have what they ask for, signs what is approved for the
//! signers of Kubernetes, and cleans up old requests.
//!
//! ```text
//! pending -> approved (here for kubelets, else by a person) -> signed (status.certificate) -> cleaned up
//! ```

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::queue::Queue;
use crate::reconcile::{Error, Next, Reconcile, Result, elapsed, found, now};
use crate::store::Key;

mod request;
mod sign;
#[cfg(test)]
mod tests;

use request::{KUBELET_CLIENT, Request};
pub use sign::Signer;

const DECIDED_LIFE: Duration = Duration::from_secs(3600);
const PENDING_LIFE: Duration = Duration::from_secs(24 * 3600);

fn enqueue(cluster: &Cluster) -> Arc<Queue> {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.certificate_requests.subscribe(move |_, new| {
        if let Some(request) = new {
            dirty.add(Key::of(&**request));
        }
    });
    queue
}

fn is(request: &CertificateSigningRequest, kind: &str) -> bool {
    condition(request, kind).is_some()
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = request.status.as_ref()?.certificate.as_ref()?;
    Some(certificate.0.as_slice()).filter(|certificate| !certificate.is_empty())
}

fn with_condition(
    request: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> CertificateSigningRequest {
    let mut request = request.clone();
    let status = request.status.get_or_insert_default();
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now()),
        last_transition_time: Some(now()),
    });
    request
}

/// Approves what kubelets may have.
pub struct Approver {
    cluster: Arc<Cluster>,
}

/// Makes the approver and the queue that feeds it.
pub fn approver(cluster: &Arc<Cluster>) -> (Arc<Approver>, Arc<Queue>) {
    (Arc::new(Approver { cluster: cluster.clone() }), enqueue(cluster))
}

/// The permissions that let a request for a kubelet's client certificate be approved, as subresource and what is said.
const KUBELET_PERMISSIONS: [(&str, &str); 2] = [
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
];

impl Approver {
    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool> {
        let spec = &request.spec;
        let attributes = ResourceAttributes {
            group: Some("certificates.k8s.io".to_owned()),
            resource: Some("certificatesigningrequests".to_owned()),
            verb: Some("create".to_owned()),
            subresource: Some(subresource.to_owned()),
            version: Some("*".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.cluster.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

impl Reconcile for Approver {
    const NAME: &'static str = "certificate-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(request) = self.cluster.certificate_requests.get(key) else { return Ok(Next::Change) };
        let decided = is(&request, "Approved") || is(&request, "Denied") || certificate(&request).is_some();
        if decided || request.spec.signer_name != KUBELET_CLIENT {
            return Ok(Next::Change);
        }
        let Ok(asked) = Request::parse(&request.spec.request.0) else { return Ok(Next::Change) };
        let usages = request.spec.usages.clone().unwrap_or_default();
        if asked.is_kubelet_client(&usages).is_err() {
            return Ok(Next::Change);
        }
        for (subresource, message) in KUBELET_PERMISSIONS {
            let is_self = request.spec.username.as_deref() == Some(asked.common_name.as_str());
            if subresource == "selfnodeclient" && !is_self || !self.may(&request, subresource).await? {
                continue;
            }
            let approved = with_condition(&request, "Approved", "AutoApproved", message);
            let api = Api::<CertificateSigningRequest>::all(self.cluster.client.clone());
            let params = PostParams::default();
            let written = found(api.replace_subresource("approval", &key.name, &params, &approved).await)?;
            if let Some(written) = written {
                self.cluster.certificate_requests.observe(&written);
            }
            return Ok(Next::Change);
        }
        Err(Error::Waiting(format!(
            "{key} asks for a kubelet's certificate without the permission to have it"
        )))
    }
}

/// Signs what is approved.
pub struct SigningController {
    cluster: Arc<Cluster>,
    signer: Signer,
}

/// Makes the signer and the queue that feeds it.
pub fn signing(cluster: &Arc<Cluster>, signer: Signer) -> (Arc<SigningController>, Arc<Queue>) {
    (Arc::new(SigningController { cluster: cluster.clone(), signer }), enqueue(cluster))
}

impl Reconcile for SigningController {
    const NAME: &'static str = "certificate-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(request) = self.cluster.certificate_requests.get(key) else { return Ok(Next::Change) };
        let open = is(&request, "Approved") && !is(&request, "Denied") && !is(&request, "Failed");
        if !open || certificate(&request).is_some() || !request.spec.signer_name.starts_with("kubernetes.io/")
        {
            return Ok(Next::Change);
        }
        let usages = request.spec.usages.clone().unwrap_or_default();
        let Ok(asked) = Request::parse(&request.spec.request.0) else { return Ok(Next::Change) };
        let answer = match request::is_for(&request.spec.signer_name, &asked, &usages) {
            None => return Ok(Next::Change),
            Some(Err(why)) => with_condition(&request, "Failed", "SignerValidationFailure", &why),
            Some(Ok(())) => {
                let life = Signer::life(request.spec.expiration_seconds);
                let signed = self.signer.sign(&asked, &usages, life, rand::random(), now().0);
                let mut issued = (*request).clone();
                let pem = signed.map_err(|error| Error::Invalid(format!("{key}: {error}")))?;
                issued.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
                issued
            }
        };
        let api = Api::<CertificateSigningRequest>::all(self.cluster.client.clone());
        if let Some(written) = found(api.replace_status(&key.name, &PostParams::default(), &answer).await)? {
            self.cluster.certificate_requests.observe(&written);
        }
        Ok(Next::Change)
    }
}

/// Deletes requests that nobody needs any more.
pub struct Cleaner {
    cluster: Arc<Cluster>,
}

/// Makes the cleaner and the queue that feeds it.
pub fn cleaner(cluster: &Arc<Cluster>) -> (Arc<Cleaner>, Arc<Queue>) {
    (Arc::new(Cleaner { cluster: cluster.clone() }), enqueue(cluster))
}

/// How long a request has left; zero if it is to be deleted.
fn left(request: &CertificateSigningRequest, now: k8s_openapi::jiff::Timestamp) -> Duration {
    let decided = ["Approved", "Denied", "Failed"].into_iter().filter_map(|kind| condition(request, kind));
    let (mut left, mut any) = (Duration::MAX, false);
    for condition in decided {
        any = true;
        if condition.type_ == "Approved" && certificate(request).is_none() {
            continue;
        }
        if let Some(at) = condition.last_update_time.as_ref().or(condition.last_transition_time.as_ref()) {
            left = left.min(DECIDED_LIFE.saturating_sub(elapsed(at.0, now)));
        }
    }
    if !any && let Some(at) = &request.metadata.creation_timestamp {
        left = left.min(PENDING_LIFE.saturating_sub(elapsed(at.0, now)));
    }
    match certificate(request).and_then(sign::not_after) {
        Some(end) => left.min(elapsed(now, end)),
        None => left,
    }
}

impl Reconcile for Cleaner {
    const NAME: &'static str = "certificate-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(request) = self.cluster.certificate_requests.get(key) else { return Ok(Next::Change) };
        match left(&request, now().0) {
            Duration::ZERO => {
                let api = Api::<CertificateSigningRequest>::all(self.cluster.client.clone());
                let version = request.resource_version();
                let preconditions = Preconditions { uid: request.uid(), resource_version: version };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                found(api.delete(&key.name, &params).await)?;
                Ok(Next::Change)
            }
            Duration::MAX => Ok(Next::Change),
            left => Ok(Next::After(left)),
        }
    }
}
