//! What expressions see of a request: the objects in the version that a rule names, `request`, `namespaceObject` and the
//! authorizer.

use std::borrow::Cow;

use api::status::Status;
use cel::{
    Bindings, Val,
    authorizer::{Answer, AuthorizerVal, Question, Subject},
};
use serde_json::{Value, json};

use crate::{
    admission::{Lookup, Request, rules::Matched},
    security::{Attributes, Authorizer, Identity},
};

/// The documents of one request, for one version of its resource.
pub struct Documents {
    pub(super) object: Value,
    old: Value,
    review: Value,
    namespace: Value,
}

/// Parts of a Namespace's metadata that expressions see.
const NAMESPACE_METADATA: [&str; 12] = [
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "finalizers",
];

impl Documents {
    /// Converts the objects where the rule names another version than the request. Without the namespace: match
    /// conditions do not see it.
    ///
    /// # Errors
    /// A conversion that fails.
    pub async fn new(request: &Request<'_>, object: &Value, matched: &Matched) -> Result<Self, Status> {
        let object = Self::shown(request, Cow::Borrowed(object), matched).await?;
        let old = match request.old {
            Some(old) => Self::shown(request, Cow::Borrowed(old), matched).await?,
            None => Value::Null,
        };
        let review = Value::Object(request.to_review(&object, matched));
        Ok(Self { object, old, review, namespace: Value::Null })
    }

    /// Adds the request's namespace, where it has one.
    ///
    /// # Errors
    /// 404 for a namespace that is gone.
    pub(super) fn with_namespace(self, request: &Request<'_>, lookup: &dyn Lookup) -> Result<Self, Status> {
        Ok(Self { namespace: namespace_of(request, lookup)?, ..self })
    }

    async fn shown(
        request: &Request<'_>,
        object: Cow<'_, Value>,
        matched: &Matched,
    ) -> Result<Value, Status> {
        if is_converted(request, &object, matched) {
            request.target.convert(&matched.target, object.into_owned()).await
        } else {
            Ok(object.into_owned())
        }
    }

    /// The variables of expressions, but for `variables`. `params` may be null.
    pub(super) fn bindings<'a>(
        &'a self,
        request: &Request<'_>,
        params: &'a Value,
        authorizer: &'a RequestAuthorizer<'a>,
    ) -> Bindings<'a> {
        self.bindings_with(request, params, authorizer, Val::json(&self.namespace))
    }

    /// As match conditions see it.
    pub(super) fn bindings_without_namespace<'a>(
        &'a self,
        request: &Request<'_>,
        params: &'a Value,
        authorizer: &'a RequestAuthorizer<'a>,
    ) -> Bindings<'a> {
        self.bindings_with(request, params, authorizer, Val::Null)
    }

    fn bindings_with<'a>(
        &'a self,
        request: &Request<'_>,
        params: &'a Value,
        authorizer: &'a RequestAuthorizer<'a>,
        namespace: Val<'a>,
    ) -> Bindings<'a> {
        let resource = &request.target.resource;
        let own = AuthorizerVal::for_resource(
            authorizer,
            &resource.group,
            &resource.plural,
            request.subresource,
            request.review_namespace(),
            request.name,
        );
        Bindings::new()
            .with("object", Val::json(&self.object))
            .with("oldObject", Val::json(&self.old))
            .with("request", Val::json(&self.review))
            .with("namespaceObject", namespace)
            .with("params", Val::json(params))
            .with("authorizer", Val::Authorizer(AuthorizerVal::new(authorizer).into()))
            .with("authorizer.requestResource", Val::Authorizer(own.into()))
    }

    pub(super) fn authorizer<'a>(
        &self,
        request: &'a Request<'_>,
        authorizer: &'a Authorizer,
    ) -> RequestAuthorizer<'a> {
        RequestAuthorizer { authorizer, user: request.user }
    }
}

/// Whether a rule names another version of the object's own kind.
pub(super) fn is_converted(request: &Request<'_>, object: &Value, matched: &Matched) -> bool {
    let own = &request.target.resource;
    let carried = request.kind(object);
    object.is_object()
        && carried.kind == own.kind
        && carried.group == own.group
        && own.group_version() != matched.target.resource.group_version()
}

fn namespace_of(request: &Request<'_>, lookup: &dyn Lookup) -> Result<Value, Status> {
    let resource = &request.target.resource;
    let about_namespaces = resource.plural == "namespaces" && resource.group.is_empty();
    if request.namespace.is_empty() || about_namespaces {
        return Ok(Value::Null);
    }
    let mut namespace = lookup
        .get("", "namespaces", "", request.namespace)
        .ok_or_else(|| Status::not_found("", "namespaces", request.namespace))?;
    let mut metadata = namespace["metadata"].take();
    if let Some(fields) = metadata.as_object_mut() {
        fields.retain(|name, _| NAMESPACE_METADATA.contains(&name.as_str()));
    }
    Ok(json!({
        "metadata": metadata,
        "spec": if namespace["spec"].is_null() { json!({}) } else { namespace["spec"].take() },
        "status": if namespace["status"].is_null() { json!({}) } else { namespace["status"].take() },
    }))
}

/// Answers for the user of a request, and for ServiceAccounts that expressions name.
pub(super) struct RequestAuthorizer<'a> {
    authorizer: &'a Authorizer,
    user: &'a Identity,
}

impl cel::authorizer::Authorizer for RequestAuthorizer<'_> {
    fn authorize(&self, question: &Question) -> Answer {
        let account;
        let user = match &question.subject {
            Subject::Requester => self.user,
            Subject::ServiceAccount { namespace, name } => {
                account = Identity::service_account(namespace, name, "");
                &account
            }
        };
        let attributes = Attributes {
            verb: question.verb.clone(),
            group: question.group.clone(),
            version: "*".to_owned(),
            resource: question.resource.clone(),
            subresource: question.subresource.clone(),
            namespace: question.namespace.clone(),
            name: question.name.clone(),
            path: question.path.clone().unwrap_or_default(),
            is_resource: question.path.is_none(),
            field_selector: question.field_selector.clone(),
            label_selector: question.label_selector.clone(),
        };
        let decision = self.authorizer.authorize(user, &attributes);
        Answer { allowed: decision.allowed, reason: decision.reason, error: None }
    }
}
