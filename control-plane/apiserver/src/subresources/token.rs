//! `serviceaccounts/NAME/token`: a TokenRequest is answered with a signed token, bound to what it names.

use api::{field::FieldError, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::admit;
use crate::{
    context,
    decode::Expected,
    handlers::{Call, Target, target::read},
    negotiate,
    query::WriteOptions,
    respond,
    security::tokens::{EXTENDED_EXPIRATION_SECONDS, Reference, TokenSpec, WARN_ONLY_EXPIRATION_SECONDS},
    server::body::Body,
};

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";
const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accepted(&call.headers, &[])?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let schema = call.state.schema;
    let ty = schema.type_of(GROUP, "v1", KIND).ok_or_else(|| Status::internal("no type TokenRequest"))?;
    let expected = Expected { group_version: "authentication.k8s.io/v1", kind: KIND, ty };
    let mut request = call.decode_body(expected, options.field_validation).await?;
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    check_names(&request, &namespace, &name)?;
    let account = read(&call.state.cache, &target.key(&namespace, &name), false)
        .await?
        .ok_or_else(|| target.not_found(&name))?;
    let uid = account.meta().uid.clone();
    let asked_uid = api::meta::uid(&request);
    if !asked_uid.is_empty() && asked_uid != uid {
        return Err(Status::conflict(
            GROUP,
            KIND,
            &name,
            format!(
                "the UID in the token request ({asked_uid}) does not match the UID of the service account ({uid})"
            ),
        ));
    }
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
    check_seconds(seconds)?;
    admit(call, target, &options, &mut request).await?;
    let tokens = &call.state.tokens;
    let mut spec = TokenSpec {
        namespace: namespace.clone(),
        service_account: Some(Reference { name: name.clone(), uid: uid.clone() }),
        audiences: strings(&request["spec"]["audiences"]),
        expiration_seconds: seconds,
        ..TokenSpec::default()
    };
    if spec.audiences.is_empty() {
        spec.audiences = tokens.audiences().to_vec();
    }
    let now = jiff::Timestamp::now().as_second();
    request["metadata"] = json!({
        "name": name,
        "namespace": namespace,
        "uid": uid,
        "creationTimestamp": crate::handlers::now(),
    });
    request["spec"]["audiences"] = json!(spec.audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    if request["spec"]["boundObjectRef"].is_object() {
        bind(call, &request["spec"]["boundObjectRef"], &name, &mut spec).await?;
    }
    let expires = extend(&mut spec, seconds, tokens.audiences(), now);
    let issued = tokens.issue(&spec, now).map_err(Status::internal)?;
    context::annotate("authentication.kubernetes.io/issued-credential-id", || issued.credential_id.clone());
    let expires = jiff::Timestamp::from_second(expires).unwrap_or(jiff::Timestamp::MAX);
    request["status"] =
        json!({"token": issued.token, "expirationTimestamp": api::time::format_seconds(expires)});
    Ok(respond::value(StatusCode::CREATED, accepted, &request))
}

/// The body need not say where it is posted to; where it does, it must be right.
fn check_names(request: &Value, namespace: &str, name: &str) -> Result<(), Status> {
    for (field, said, wanted, word) in [
        ("metadata.name", api::meta::name(request), name, "name"),
        ("metadata.namespace", api::meta::namespace(request), namespace, "namespace"),
    ] {
        if !said.is_empty() && said != wanted {
            let why = format!("must match the service account {word} if specified");
            return Err(Status::invalid(GROUP, KIND, name, vec![FieldError::invalid(field, said, why)]));
        }
    }
    Ok(())
}

/// A pod's token for the API server that is asked for with the length of projected volumes lives longer, for clients that
/// read it once. Returns when the client is to think that it ends.
fn extend(spec: &mut TokenSpec, seconds: i64, own: &[String], now: i64) -> i64 {
    let for_server = spec.audiences.iter().all(|audience| own.contains(audience));
    if spec.pod.is_some() && seconds == WARN_ONLY_EXPIRATION_SECONDS && for_server {
        spec.warn_after_seconds = seconds;
        spec.expiration_seconds = EXTENDED_EXPIRATION_SECONDS;
    }
    now + seconds
}

fn check_seconds(seconds: i64) -> Result<(), Status> {
    let why = if seconds < SECONDS_MIN {
        "may not specify a duration less than 10 minutes"
    } else if seconds > SECONDS_MAX {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
    Err(Status::invalid(GROUP, KIND, "", vec![error]))
}

pub fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Ties the token to the life of a Pod, a Secret or a Node.
async fn bind(call: &Call, bound: &Value, account: &str, spec: &mut TokenSpec) -> Result<(), Status> {
    let text = |field: &str| bound[field].as_str().unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let api_version = text("apiVersion");
    let (group, version) = api::meta::group_and_version(&api_version);
    let plural = match (group, kind.as_str()) {
        ("", "Pod") => "pods",
        ("", "Secret") => "secrets",
        ("", "Node") => "nodes",
        _ => {
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Status::bad_request(why));
        }
    };
    let resource =
        call.state.schema.resource("", "v1", plural).ok_or_else(|| Status::internal("no such resource"))?;
    let target = Target::new(resource);
    let key = target.key(&spec.namespace, &name);
    let object = read(&call.state.cache, &key, false).await?.ok_or_else(|| target.not_found(&name))?;
    let live = &object.meta().uid;
    if plural == "pods" && object.value()["spec"]["serviceAccountName"] != account {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    if !uid.is_empty() && uid != *live {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        );
        return Err(Status::conflict(group, &kind, &name, why));
    }
    let reference = Reference { name, uid: live.clone() };
    match plural {
        "secrets" => spec.secret = Some(reference),
        "nodes" => spec.node = Some(reference),
        _ => {
            spec.node = node_of(call, &object.value());
            spec.pod = Some(reference);
        }
    }
    Ok(())
}

/// The node that a pod runs on; only its name where it is gone.
fn node_of(call: &Call, pod: &Value) -> Option<Reference> {
    let name = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty())?;
    let key = crate::storage::keys::object_key("", "nodes", None, name);
    let uid = call.state.cache.get(&key).map(|node| node.meta().uid.clone()).unwrap_or_default();
    Some(Reference { name: name.to_owned(), uid })
}
