//! Questions to the authenticator and the authorizer: the kinds of `authentication.k8s.io` and `authorization.k8s.io`
//! that are created to be answered and never stored.

use std::collections::BTreeMap;

use api::{field::FieldError, schema::Resource, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{admit, token::strings};
use crate::{
    decode::Expected,
    handlers::{Call, Target},
    negotiate,
    query::WriteOptions,
    respond,
    security::{Attributes, Identity},
    server::body::Body,
};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

pub fn is_review(group: &str, plural: &str) -> bool {
    matches!(
        (group, plural),
        (AUTHENTICATION, "tokenreviews" | "selfsubjectreviews")
            | (
                AUTHORIZATION,
                "subjectaccessreviews"
                    | "selfsubjectaccessreviews"
                    | "localsubjectaccessreviews"
                    | "selfsubjectrulesreviews"
            )
    )
}

pub async fn handle(call: &mut Call, resource: &'static Resource) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accepted(&call.headers, &[])?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let group_version = resource.group_version();
    let expected = Expected { group_version: &group_version, kind: &resource.kind, ty: resource.ty };
    let mut review = call.decode_body(expected, options.field_validation).await?;
    admit(call, &Target::new(resource), &options, &mut review).await?;
    let status = match resource.plural.as_str() {
        "tokenreviews" => token_review(call, &review)?,
        "selfsubjectreviews" => json!({"userInfo": user_info(&call.user)}),
        "selfsubjectrulesreviews" => rules_review(call, resource, &review)?,
        "selfsubjectaccessreviews" => access_review(call, resource, &review, &call.user)?,
        plural => {
            if plural == "localsubjectaccessreviews" {
                check_local(call, resource, &review)?;
            }
            let user = subject(resource, &review)?;
            access_review(call, resource, &review, &user)?
        }
    };
    review["status"] = status;
    review["metadata"] = match resource.plural.as_str() {
        "selfsubjectreviews" => json!({"creationTimestamp": crate::handlers::now()}),
        _ => review.get("metadata").filter(|metadata| metadata.is_object()).cloned().unwrap_or(json!({})),
    };
    Ok(respond::value(StatusCode::CREATED, accepted, &review))
}

fn user_info(user: &Identity) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn token_review(call: &Call, review: &Value) -> Result<Value, Status> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = strings(&review["spec"]["audiences"]);
    Ok(match call.state.authenticator.authenticate_token(token, &audiences) {
        Ok(verified) => {
            let mut status = json!({"authenticated": true, "user": user_info(&verified.identity)});
            if !verified.audiences.is_empty() {
                status["audiences"] = json!(verified.audiences);
            }
            status
        }
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    })
}

fn invalid(resource: &Resource, errors: Vec<FieldError>) -> Status {
    Status::invalid(&resource.group, &resource.kind, "", errors)
}

fn subject(resource: &Resource, review: &Value) -> Result<Identity, Status> {
    let spec = &review["spec"];
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let user = Identity {
        name: text("user"),
        uid: text("uid"),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.to_ascii_lowercase(), strings(values)))
            .collect::<BTreeMap<_, _>>(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let error = FieldError::invalid("spec.user", "", "at least one of user or group must be specified");
        return Err(invalid(resource, vec![error]));
    }
    Ok(user)
}

fn check_local(call: &Call, resource: &Resource, review: &Value) -> Result<(), Status> {
    let namespace = review["spec"]["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
    if namespace == call.info.namespace {
        return Ok(());
    }
    let error =
        FieldError::invalid("spec.resourceAttributes.namespace", namespace, "must match metadata.namespace");
    Err(invalid(resource, vec![error]))
}

fn access_review(call: &Call, resource: &Resource, review: &Value, user: &Identity) -> Result<Value, Status> {
    let spec = &review["spec"];
    let (object, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let why = match (object.is_object(), path.is_object()) {
        (true, true) => "cannot be specified in combination with resourceAttributes",
        (false, false) => "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        _ => "",
    };
    if !why.is_empty() {
        let error = FieldError::invalid("spec.nonResourceAttributes", path.clone(), why);
        return Err(invalid(resource, vec![error]));
    }
    let text = |from: &Value, field: &str| from[field].as_str().unwrap_or_default().to_owned();
    let attributes = if object.is_object() {
        Attributes {
            verb: text(object, "verb"),
            group: text(object, "group"),
            version: text(object, "version"),
            resource: text(object, "resource"),
            subresource: text(object, "subresource"),
            namespace: text(object, "namespace"),
            name: text(object, "name"),
            path: String::new(),
            is_resource: true,
        }
    } else {
        Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() }
    };
    let decision = call.state.authorizer.authorize(user, &attributes);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    Ok(status)
}

fn rules_review(call: &Call, resource: &Resource, review: &Value) -> Result<Value, Status> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(invalid(resource, vec![FieldError::required("spec.namespace", "")]));
    }
    let rules = call.state.authorizer.rules_for(&call.user, namespace);
    let (paths, objects): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.is_for_paths());
    let values = |rules: Vec<&crate::security::rbac::Rule>| -> Vec<Value> {
        rules.into_iter().map(crate::security::rbac::Rule::to_value).collect()
    };
    Ok(json!({"resourceRules": values(objects), "nonResourceRules": values(paths), "incomplete": false}))
}
