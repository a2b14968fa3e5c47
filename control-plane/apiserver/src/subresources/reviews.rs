//! Questions to the authenticator and the authorizer: the kinds of `authentication.k8s.io` and `authorization.k8s.io`
//! that are created to be answered and never stored.

use api::{schema::Resource, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{access_review, admit, token::strings};
use crate::{
    context,
    decode::Expected,
    handlers::{Call, Target},
    negotiate,
    query::WriteOptions,
    respond,
    security::{Identity, rbac::Rule, tokens::Notes},
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
        "selfsubjectrulesreviews" => rules_review(call, &review)?,
        _ => access_review::answer(
            &call.state.authorizer,
            &resource.kind,
            &review,
            &call.user,
            &call.info.namespace,
        )?,
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

fn token_review(call: &mut Call, review: &Value) -> Result<Value, Status> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = strings(&review["spec"]["audiences"]);
    let mut notes = Notes::default();
    let judged = call.state.authenticator.authenticate_token(token, &audiences, &mut notes);
    for (key, value) in notes.annotations {
        context::annotate(key, || value);
    }
    call.warnings.append(&mut notes.warnings);
    Ok(match judged {
        Ok(verified) => json!({
            "authenticated": true,
            "user": user_info(&verified.identity),
            "audiences": verified.audiences,
        }),
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    })
}

fn rules_review(call: &Call, review: &Value) -> Result<Value, Status> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let rules = call.state.authorizer.rules_for(&call.user, namespace);
    let of = |is_wanted: fn(&Rule) -> bool| -> Vec<Value> {
        rules.iter().filter(|rule| is_wanted(rule)).map(Rule::to_value).collect()
    };
    let mut status = json!({
        "resourceRules": of(|rule| !rule.resources.is_empty()),
        "nonResourceRules": of(Rule::is_for_paths),
        "incomplete": false,
    });
    if call.user.node().is_some() {
        status["incomplete"] = json!(true);
        status["evaluationError"] = json!("node authorizer does not support user rule resolution");
    }
    Ok(status)
}
