//! Conversion webhooks of CustomResourceDefinitions: ConversionReview (`apiextensions.k8s.io/v1`), and what a webhook may not
//! change: order, kind, name, namespace, uid, and all metadata but labels and annotations.

use std::{sync::Arc, time::Duration};

use api::{meta, status::Status};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Callout, Destination};
use crate::{context, conversion::Webhook, registry::fields::*};

const GROUP: &str = "apiextensions.k8s.io";
const TIME_MAX: Duration = Duration::from_secs(30);

/// Asks conversion webhooks over HTTPS.
pub struct ConversionWebhooks(pub Arc<Callout>);

#[async_trait]
impl Webhook for ConversionWebhooks {
    async fn convert(
        &self,
        definition: &Value,
        version: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, Status> {
        let Some(first) = objects.first() else { return Ok(objects) };
        let webhook = at(definition, "/spec/conversion/webhook");
        let subject = subject(first);
        let failed = |why: String| failure(format!("conversion webhook for {subject} failed: {why}"));
        let review_version = items(webhook, "/conversionReviewVersions")
            .iter()
            .filter_map(Value::as_str)
            .find(|version| matches!(*version, "v1" | "v1beta1"))
            .ok_or_else(|| failure("no supported conversion review versions".to_owned()))?;
        let destination = Destination::of_client_config(at(webhook, "/clientConfig")).map_err(failed)?;
        let uid = uuid::Uuid::new_v4().to_string();
        let question = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("{GROUP}/{review_version}"),
            "request": {"uid": uid, "desiredAPIVersion": version, "objects": objects},
        });
        let timeout = TIME_MAX.min(context::remaining());
        let body = self.0.post(&destination, question.to_string().into(), timeout).await;
        let body = body.map_err(|error| failed(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))?;
        let converted = converted_objects(answer, &uid, review_version).map_err(failed)?;
        if converted.len() != objects.len() {
            return Err(failure(format!(
                "conversion webhook for {subject} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            )));
        }
        let pairs = objects.iter().zip(converted).enumerate();
        pairs.map(|(index, (original, converted))| accept(index, original, converted, version)).collect()
    }
}

/// Upstream's 500 of a conversion, which says nothing before its text.
fn failure(text: String) -> Status {
    let mut status = Status::internal("");
    status.message = text;
    status
}

fn subject(object: &Value) -> String {
    format!("{}, Kind={}", meta::api_version(object), meta::kind(object))
}

fn converted_objects(mut review: Value, uid: &str, version: &str) -> Result<Vec<Value>, String> {
    let (api_version, kind) = (meta::api_version(&review).to_owned(), meta::kind(&review).to_owned());
    let expected = format!("{GROUP}/{version}");
    if (api_version.as_str(), kind.as_str()) != (expected.as_str(), "ConversionReview") {
        return Err(format!(
            "expected webhook response of {expected}, Kind=ConversionReview, got {api_version}, Kind={kind}"
        ));
    }
    let response = &mut review["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    let said = text(response, "/uid");
    if version == "v1" && said != uid {
        return Err(format!("expected response.uid={uid:?}, got {said:?}"));
    }
    let (status, message) = (text(response, "/result/status"), text(response, "/result/message"));
    if status != "Success" {
        return Err(match message {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// Checks one object and gives it back its own metadata.
fn accept(index: usize, original: &Value, mut converted: Value, version: &str) -> Result<Value, Status> {
    let invalid = |what: &str, why: String| {
        let subject = subject(original);
        failure(format!("conversion webhook for {subject} returned invalid {what} at index {index}: {why}"))
    };
    let object = |why: String| invalid("converted object", why);
    let got = meta::api_version(&converted);
    if got != version {
        return Err(object(format!("invalid groupVersion (expected {version}, received {got})")));
    }
    let (kind, got) = (meta::kind(original), meta::kind(&converted));
    if got != kind {
        return Err(object(format!("invalid kind (expected {kind}, received {got})")));
    }
    let same = |what: &str, a: &str, b: &str| {
        if a == b { Ok(()) } else { Err(object(format!("must have the same {what}: {a} != {b}"))) }
    };
    same("name", meta::name(original), meta::name(&converted))?;
    same("namespace", meta::namespace(original), meta::namespace(&converted))?;
    same("UID", meta::uid(original), meta::uid(&converted))?;
    let metadata = |why: String| invalid("metadata in object", why);
    let Some(answered) = converted.get("metadata") else {
        return Err(metadata("missing metadata in converted object".to_owned()));
    };
    if !answered.is_object() {
        return Err(metadata("invalid metadata in converted object".to_owned()));
    }
    let mut restored = at(original, "/metadata").clone();
    for field in ["labels", "annotations"] {
        let given = at(answered, &format!("/{field}"));
        let is_map = given.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !given.is_null() && !is_map {
            return Err(metadata(format!("invalid {field}: it is no map of strings")));
        }
        if field == "labels" {
            check_labels(given).map_err(metadata)?;
        }
        remove(&mut restored, field);
        if given.as_object().is_some_and(|map| !map.is_empty()) {
            set(&mut restored, field, given.clone());
        }
    }
    converted["metadata"] = restored;
    Ok(converted)
}

fn check_labels(labels: &Value) -> Result<(), String> {
    for (key, value) in labels.as_object().into_iter().flatten() {
        let wrong = api::names::qualified_name(key);
        let wrong = wrong.into_iter().chain(api::names::label_value(value.as_str().unwrap_or_default()));
        if let Some(wrong) = wrong.into_iter().next() {
            return Err(format!("invalid label {key:?}: {wrong}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Value {
        json!({
            "apiVersion": "e.com/v1", "kind": "Foo",
            "metadata": {"name": "a", "uid": "u", "generation": 3, "labels": {"x": "1"}, "finalizers": ["f"]},
        })
    }

    #[test]
    fn only_labels_and_annotations_of_the_metadata_come_from_the_webhook() {
        let mut converted = original();
        converted["apiVersion"] = json!("e.com/v2");
        converted["metadata"] = json!({"name": "a", "uid": "u", "generation": 9, "annotations": {"n": "1"}});
        let accepted = accept(0, &original(), converted, "e.com/v2").unwrap();
        assert_eq!(
            accepted["metadata"],
            json!({"name": "a", "uid": "u", "generation": 3, "finalizers": ["f"], "annotations": {"n": "1"}})
        );
    }

    #[test]
    fn an_object_that_is_another_one_is_refused_by_its_index() {
        let refused = |change: fn(&mut Value)| {
            let mut converted = original();
            converted["apiVersion"] = json!("e.com/v2");
            change(&mut converted);
            accept(4, &original(), converted, "e.com/v2").unwrap_err().message
        };
        let begin = "conversion webhook for e.com/v1, Kind=Foo returned invalid ";
        assert_eq!(
            refused(|object| object["metadata"]["uid"] = json!("w")),
            format!("{begin}converted object at index 4: must have the same UID: u != w")
        );
        assert_eq!(
            refused(|object| object["apiVersion"] = json!("e.com/v1")),
            format!(
                "{begin}converted object at index 4: invalid groupVersion (expected e.com/v2, received e.com/v1)"
            )
        );
        assert!(
            refused(|object| object["metadata"]["labels"] = json!({"-": "x"})).contains("metadata in object")
        );
    }

    #[test]
    fn a_review_without_success_is_told_in_the_webhooks_words() {
        let review = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        let error = |response: Value| converted_objects(review(response), "u", "v1").unwrap_err();
        assert_eq!(error(json!({"uid": "u", "result": {"status": "Failed", "message": "cannot"}})), "cannot");
        assert_eq!(error(json!({"uid": "u"})), "response.result.status was '', not 'Success'");
        assert_eq!(error(json!({"uid": "v"})), "expected response.uid=\"u\", got \"v\"");
    }
}
