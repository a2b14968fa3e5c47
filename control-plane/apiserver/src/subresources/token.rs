//! `serviceaccounts/NAME/token`: a TokenRequest is answered with a signed token, bound to what it names.

use api::{field::FieldError, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::admit;
use crate::{
    decode::Expected,
    handlers::{Call, Target, target::read, update::check_name},
    negotiate,
    query::WriteOptions,
    respond,
    security::tokens::{Reference, TokenSpec},
    server::body::Body,
};

const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accepted(&call.headers, &[])?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let schema = call.state.schema;
    let ty = schema
        .type_of("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| Status::internal("no type TokenRequest"))?;
    let expected = Expected { group_version: "authentication.k8s.io/v1", kind: "TokenRequest", ty };
    let mut request = call.decode_body(expected, options.field_validation).await?;
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let account = read(&call.state.cache, &target.key(&namespace, &name), false)
        .await?
        .ok_or_else(|| target.not_found(&name))?;
    check_name(&name, &mut request)?;
    admit(call, target, &options, &mut request).await?;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
    check_seconds(&name, seconds)?;
    let mut spec = TokenSpec {
        namespace: namespace.clone(),
        service_account: Some(Reference { name: name.clone(), uid: account.meta().uid.clone() }),
        audiences: strings(&request["spec"]["audiences"]),
        expiration_seconds: seconds,
        ..TokenSpec::default()
    };
    if spec.audiences.is_empty() {
        spec.audiences = vec![call.state.tokens.issuer().to_owned()];
    }
    if request["spec"]["boundObjectRef"].is_object() {
        bind(call, &request["spec"]["boundObjectRef"], &name, &mut spec).await?;
    }
    let now = jiff::Timestamp::now().as_second();
    let issued = call.state.tokens.issue(&spec, now).map_err(Status::internal)?;
    let expires = jiff::Timestamp::from_second(issued.expires).unwrap_or(jiff::Timestamp::MAX);
    request["metadata"] = json!({
        "name": name,
        "namespace": namespace,
        "creationTimestamp": crate::handlers::now(),
    });
    request["spec"]["audiences"] = json!(spec.audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] =
        json!({"token": issued.token, "expirationTimestamp": api::time::format_seconds(expires)});
    Ok(respond::value(StatusCode::CREATED, accepted, &request))
}

fn check_seconds(name: &str, seconds: i64) -> Result<(), Status> {
    let why = if seconds < SECONDS_MIN {
        "may not specify a duration less than 10 minutes"
    } else if seconds > SECONDS_MAX {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", name, vec![error]))
}

pub fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Ties the token to the life of a Pod, a Secret or a Node.
async fn bind(call: &Call, bound: &Value, account: &str, spec: &mut TokenSpec) -> Result<(), Status> {
    let text = |field: &str| bound[field].as_str().unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match kind.as_str() {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token for ServiceAccount {account:?} to object of type {kind:?}"
            )));
        }
    };
    let resource =
        call.state.schema.resource("", "v1", plural).ok_or_else(|| Status::internal("no such resource"))?;
    let target = Target::new(resource);
    let key = target.key(&spec.namespace, &name);
    let object = read(&call.state.cache, &key, false).await?.ok_or_else(|| target.not_found(&name))?;
    let live = &object.meta().uid;
    if !uid.is_empty() && uid != *live {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record ({live})"
        );
        return Err(target.conflict(&name, &why));
    }
    let reference = Reference { name, uid: live.clone() };
    match plural {
        "secrets" => spec.secret = Some(reference),
        "nodes" => spec.node = Some(reference),
        _ => {
            let pod = object.value();
            if pod["spec"]["serviceAccountName"] != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for ServiceAccount {account:?} to pod running with different ServiceAccount name"
                )));
            }
            spec.node = node_of(call, &pod);
            spec.pod = Some(reference);
        }
    }
    Ok(())
}

fn node_of(call: &Call, pod: &Value) -> Option<Reference> {
    let name = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty())?;
    let key = crate::storage::keys::object_key("", "nodes", None, name);
    let uid = call.state.cache.get(&key)?.meta().uid.clone();
    Some(Reference { name: name.to_owned(), uid })
}
