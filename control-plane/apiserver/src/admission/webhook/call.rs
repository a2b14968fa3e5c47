//! One AdmissionReview: the question, the answer, and the patch that comes with it.

use std::borrow::Cow;

use api::{patch::json_patch, status::Status};
use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::hook::Hook;
use crate::{
    admission::{GroupVersionKind, Request, rules::Matched},
    callout::Callout,
    context,
};

/// Why a webhook did not simply say yes.
pub(super) enum Failure {
    /// It could not be asked, or what it said makes no sense: `failurePolicy` decides.
    Calling(String),
    /// It refuses, or the server must.
    Status(Box<Status>),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// The question, for the form of the object that the webhook's rule matched.
pub(super) struct Review<'a> {
    request: &'a Request<'a>,
    matched: &'a Matched,
    /// Whether the object is converted for this webhook.
    is_converted: bool,
    object: Cow<'a, Value>,
    content: Map<String, Value>,
}

/// What a webhook answered, checked.
pub(super) struct Answer {
    allowed: bool,
    patch: Option<Vec<u8>>,
    patch_type: String,
    result: Value,
    pub(super) warnings: Vec<String>,
}

impl<'a> Review<'a> {
    pub(super) async fn new(
        request: &'a Request<'a>,
        object: &'a Value,
        matched: &'a Matched,
    ) -> Result<Self, Status> {
        let own = request.target;
        let carried = request.kind(object);
        let is_own_kind = carried.kind == own.resource.kind && carried.group == own.resource.group;
        let is_converted =
            is_own_kind && own.resource.group_version() != matched.target.resource.group_version();
        let mut content = request.to_review(object, matched);
        let mut shown = Cow::Borrowed(object);
        let mut old = request.old.cloned().unwrap_or_default();
        if is_converted {
            if object.is_object() {
                shown = Cow::Owned(own.convert(&matched.target, object.clone()).await?);
            }
            if old.is_object() {
                old = own.convert(&matched.target, old).await?;
            }
        }
        content.insert("object".to_owned(), shown.clone().into_owned());
        content.insert("oldObject".to_owned(), old);
        Ok(Self { request, matched, is_converted, object: shown, content })
    }

    /// Asks; `mutates` says whether the answer may hold a patch.
    pub(super) async fn ask(&self, hook: &Hook, callout: &Callout, mutates: bool) -> Result<Answer, Failure> {
        if self.request.dry_run {
            match hook.has_side_effects {
                None => return Err(Failure::Calling("Webhook SideEffects is nil".to_owned())),
                Some(true) => {
                    let why = format!("admission webhook {:?} does not support dry run", hook.name);
                    return Err(Status::bad_request(why).into());
                }
                Some(false) => {}
            }
        }
        let version = hook.version.ok_or_else(|| {
            Failure::Calling(
                "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"
                    .to_owned(),
            )
        })?;
        let destination = hook
            .destination
            .as_ref()
            .map_err(|why| Failure::Calling(format!("could not get REST client: {why}")))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let mut content = self.content.clone();
        content.insert("uid".to_owned(), json!(uid));
        let api_version = format!("admission.k8s.io/{version}");
        let question = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": content});
        let timeout = hook.timeout.min(context::remaining());
        let body = callout
            .post(destination, question.to_string().into(), timeout)
            .await
            .map_err(|error| Failure::Calling(format!("failed to call webhook: {error}")))?;
        let answer = serde_json::from_slice(&body)
            .map_err(|error| Failure::Calling(format!("failed to call webhook: {error}")))?;
        let answer = Answer::read(&answer, &uid, version, mutates)
            .map_err(|why| Failure::Calling(format!("received invalid webhook response: {why}")))?;
        Ok(answer.annotated(hook, &body))
    }

    /// The object with the webhook's patch; `None` for a patch without operations.
    pub(super) fn patched(&self, hook: &Hook, patch: &Value) -> Result<Option<Value>, Failure> {
        if patch.as_array().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        if !self.object.is_object() {
            return Err(Status::internal(format_args!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            ))
            .into());
        }
        let patched = json_patch(&self.object, patch).map_err(Status::internal)?;
        Ok(Some(patched))
    }

    /// The patched object in the form of the request; `None` where the patch changed nothing.
    pub(super) async fn accepted(&self, mut patched: Value) -> Result<Option<Value>, Failure> {
        let kind = GroupVersionKind::of(&self.object);
        if self.is_converted {
            self.matched.target.normalise(&mut patched)?;
        } else {
            self.request.normalise(&kind, &mut patched)?;
        }
        if patched == *self.object {
            return Ok(None);
        }
        if self.is_converted {
            patched = self.matched.target.convert(self.request.target, patched).await?;
            self.request.target.normalise(&mut patched)?;
        }
        Ok(Some(patched))
    }
}

impl Answer {
    fn read(review: &Value, uid: &str, version: &str, mutates: bool) -> Result<Self, String> {
        let response = review.get("response").filter(|response| response.is_object());
        let response = response.ok_or("webhook response was absent")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if version == "v1" {
            let said = text(&response["uid"]);
            if said != uid {
                return Err(format!("expected response.uid={uid:?}, got {said:?}"));
            }
            let (api_version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
            if (api_version.as_str(), kind.as_str()) != ("admission.k8s.io/v1", "AdmissionReview") {
                return Err(format!(
                    "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
                ));
            }
        }
        let encoded = text(&response["patch"]);
        let patch = base64::engine::general_purpose::STANDARD
            .decode(&encoded)
            .map_err(|error| format!("response.patch is not base64: {error}"))?;
        let has_type = response["patchType"].is_string();
        let patch_type = text(&response["patchType"]);
        match (mutates, patch.is_empty(), has_type) {
            (false, false, _) => return Err("validating webhook may not return response.patch".to_owned()),
            (false, true, true) => {
                return Err("validating webhook may not return response.patchType".to_owned());
            }
            (true, false, false) if version == "v1" => {
                return Err("webhook returned response.patch but not response.patchType".to_owned());
            }
            (true, true, true) => {
                return Err("webhook returned response.patchType but not response.patch".to_owned());
            }
            (true, false, true) if patch_type.is_empty() => {
                return Err("webhook returned invalid response.patchType of \"\"".to_owned());
            }
            _ => {}
        }
        let warnings = response["warnings"].as_array().into_iter().flatten();
        Ok(Self {
            allowed: response["allowed"].as_bool().unwrap_or(false),
            patch: (!patch.is_empty()).then_some(patch),
            patch_type: if has_type { patch_type } else { "JSONPatch".to_owned() },
            result: response["status"].clone(),
            warnings: warnings.filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    }

    fn annotated(self, hook: &Hook, body: &[u8]) -> Self {
        // Parsed once more, and only where there are any: audit is off in most clusters.
        if body.windows(16).any(|window| window == b"auditAnnotations")
            && let Ok(review) = serde_json::from_slice::<Value>(body)
        {
            for (key, value) in review["response"]["auditAnnotations"].as_object().into_iter().flatten() {
                context::annotate(&format!("{}/{key}", hook.name), || {
                    value.as_str().unwrap_or_default().to_owned()
                });
            }
        }
        self
    }

    /// The patch of an answer that allows; the refusal of one that does not.
    pub(super) fn allowed_patch(&self, hook: &Hook) -> Result<Option<Value>, Failure> {
        if !self.allowed {
            return Err(denial(&hook.name, &self.result).into());
        }
        let Some(patch) = &self.patch else { return Ok(None) };
        let undecodable =
            |why: String| Failure::Calling(format!("received undecodable patch in webhook response: {why}"));
        let patch: Value = serde_json::from_slice(patch).map_err(|error| undecodable(error.to_string()))?;
        if !patch.is_array() {
            return Err(undecodable("it is no array of operations".to_owned()));
        }
        if self.patch_type != "JSONPatch" {
            return Err(Failure::Calling(format!("unsupported patch type {:?}", self.patch_type)));
        }
        Ok(Some(patch))
    }
}

/// The status that a webhook refuses with, in upstream's words.
fn denial(webhook: &str, result: &Value) -> Status {
    let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
    let denied = format!("admission webhook {webhook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        (message, _) if !message.is_empty() => format!("{denied}: {message}"),
        (_, reason) if !reason.is_empty() => format!("{denied}: {reason}"),
        _ => format!("{denied} without explanation"),
    };
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
    let details = Some(&result["details"]).filter(|details| details.is_object()).cloned();
    Status { code: code.clamp(400, 599), reason: text("reason").into(), message, details }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_says_who_refused_and_is_never_a_success() {
        let status = denial("a.b.c", &json!({"message": "no", "reason": "Because", "code": 200}));
        assert_eq!((status.code, status.reason.as_ref()), (400, "Because"));
        assert_eq!(status.message, "admission webhook \"a.b.c\" denied the request: no");
        let status = denial("a.b.c", &json!({"reason": "Because", "code": 403}));
        assert_eq!(
            (status.code, status.message.as_str()),
            (403, "admission webhook \"a.b.c\" denied the request: Because")
        );
        assert!(denial("a.b.c", &Value::Null).message.ends_with("denied the request without explanation"));
    }

    #[test]
    fn an_answer_must_fit_its_question() {
        let good = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let error = |review: Value, mutates: bool| {
            Answer::read(&review, "u", "v1", mutates).err().unwrap_or_default()
        };
        assert!(Answer::read(&good(json!({"uid": "u", "allowed": true})), "u", "v1", true).is_ok());
        assert_eq!(error(json!({}), true), "webhook response was absent");
        assert_eq!(error(good(json!({"uid": "x"})), true), "expected response.uid=\"u\", got \"x\"");
        assert!(
            error(json!({"response": {"uid": "u"}}), true)
                .starts_with("expected webhook response of admission")
        );
        let patch = json!({"uid": "u", "patch": "W10="});
        assert_eq!(
            error(good(patch.clone()), true),
            "webhook returned response.patch but not response.patchType"
        );
        assert_eq!(error(good(patch), false), "validating webhook may not return response.patch");
        let only_type = json!({"uid": "u", "patchType": "JSONPatch"});
        assert_eq!(
            error(good(only_type), true),
            "webhook returned response.patchType but not response.patch"
        );
    }
}
