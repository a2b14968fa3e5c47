use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, jwk};

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const NOW: i64 = 1_800_000_000;

fn tokens() -> Tokens {
    Tokens::new(ISSUER, &rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
}

/// Live objects by plural and name.
#[derive(Default)]
struct Objects(HashMap<(&'static str, String), Live>);

impl Objects {
    fn with(mut self, plural: &'static str, name: &str) -> Self {
        self.0.insert((plural, name.to_owned()), Live { uid: format!("uid-{name}"), deletion: None });
        self
    }
}

impl BoundObjects for Objects {
    fn find(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Live> {
        assert_eq!(namespace, if plural == "nodes" { None } else { Some("ns") });
        let found = self.0.iter().find(|((kind, known), _)| *kind == plural && known == name);
        found.map(|(_, live)| live.clone())
    }
}

fn reference(name: &str) -> Option<Reference> {
    Some(Reference { name: name.to_owned(), uid: format!("uid-{name}") })
}

fn spec() -> TokenSpec {
    TokenSpec {
        namespace: "ns".to_owned(),
        service_account: reference("robot"),
        expiration_seconds: 3600,
        ..TokenSpec::default()
    }
}

fn objects() -> Objects {
    Objects::default().with("serviceaccounts", "robot").with("pods", "web").with("nodes", "n1")
}

#[test]
fn a_token_tells_who_it_is_for_and_what_it_is_bound_to() {
    let tokens = tokens();
    let bound = TokenSpec { pod: reference("web"), node: reference("n1"), ..spec() };
    let issued = tokens.issue(&bound, NOW).unwrap();
    assert_eq!(issued.expires, NOW + 3600);
    let verified = tokens.verify(&issued.token, &[], &objects(), NOW + 10).unwrap();
    assert_eq!(verified.audiences, [ISSUER]);
    let identity = verified.identity;
    assert_eq!(
        (identity.name.as_str(), identity.uid.as_str()),
        ("system:serviceaccount:ns:robot", "uid-robot")
    );
    assert_eq!(
        identity.groups,
        ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
    );
    assert_eq!(identity.extra[POD_NAME], ["web"]);
    assert_eq!(identity.extra[NODE_UID], ["uid-n1"]);
    assert!(identity.extra[CREDENTIAL_ID][0].starts_with("JTI="));
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(issued.token.split('.').nth(1).unwrap()).unwrap())
            .unwrap();
    assert_eq!(claims["sub"], "system:serviceaccount:ns:robot");
    assert_eq!(claims["kubernetes.io"]["pod"], json!({ "name": "web", "uid": "uid-web" }));
    assert_eq!(claims["aud"], json!([ISSUER]));
}

#[test]
fn time_is_judged() {
    let tokens = tokens();
    let token = tokens.issue(&spec(), NOW).unwrap().token;
    let at = |now| tokens.verify(&token, &[], &objects(), now);
    assert!(at(NOW).is_ok() && at(NOW + 3660).is_ok());
    assert_eq!(at(NOW + 3700), Err(TokenError::Expired));
    assert_eq!(at(NOW - 3600), Err(TokenError::NotYet));
}

#[test]
fn audiences_are_judged() {
    let tokens = tokens();
    let audiences = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let vault = TokenSpec { audiences: audiences(&["vault", "other"]), ..spec() };
    let token = tokens.issue(&vault, NOW).unwrap().token;
    assert!(matches!(tokens.verify(&token, &[], &objects(), NOW), Err(TokenError::Audience { .. })));
    let verified = tokens.verify(&token, &audiences(&["x", "vault"]), &objects(), NOW).unwrap();
    assert_eq!(verified.audiences, ["vault"]);
    let own = tokens.issue(&spec(), NOW).unwrap().token;
    let refused = tokens.verify(&own, &audiences(&["vault"]), &objects(), NOW);
    assert!(matches!(refused, Err(TokenError::Audience { .. })));
}

#[test]
fn foreign_and_forged_tokens_are_refused() {
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let tokens = Tokens::new(ISSUER, &key).unwrap();
    let good = tokens.issue(&spec(), NOW).unwrap().token;
    let stranger = Tokens::new(ISSUER, &rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let elsewhere = Tokens::new("https://elsewhere", &key).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
    let claims = String::from_utf8(claims).unwrap().replace("robot", "admin");
    let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims), parts[2]);
    let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), parts[1]);
    let hmac = {
        // The public key as an HMAC secret: the mistake of verifiers that trust the token's own algorithm.
        let secret = EncodingKey::from_secret(tokens.signing.id.as_bytes());
        jsonwebtoken::encode(
            &Header { kid: Some(tokens.signing.id.clone()), ..Header::new(Algorithm::HS256) },
            &json!({ "iss": ISSUER }),
            &secret,
        )
        .unwrap()
    };
    let no_id = {
        let header = Header { kid: None, ..Header::new(Algorithm::ES256) };
        let key = EncodingKey::from_ec_pem(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes());
        jsonwebtoken::encode(&header, &json!({ "iss": ISSUER }), &key.unwrap()).unwrap()
    };
    let cases = [
        ("another key", stranger.issue(&spec(), NOW).unwrap().token, TokenError::UnknownKey),
        ("another key that is not named", no_id, TokenError::Signature),
        ("another issuer", elsewhere.issue(&spec(), NOW).unwrap().token, TokenError::Foreign),
        ("changed claims", forged, TokenError::Signature),
        ("no algorithm", none, TokenError::Foreign),
        ("another algorithm", hmac, TokenError::Signature),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
        ("cut", good[..good.len() - 4].to_owned(), TokenError::Signature),
        ("garbage", "garbage".to_owned(), TokenError::Foreign),
        ("empty", String::new(), TokenError::Foreign),
    ];
    for (case, token, wanted) in cases {
        assert_eq!(tokens.verify(&token, &[], &objects(), NOW), Err(wanted), "{case}");
    }
    assert!(tokens.verify(&good, &[], &objects(), NOW).is_ok());
}

const GONE: &str = "service account token has been invalidated";

#[test]
fn a_token_ends_with_what_it_is_bound_to() {
    let tokens = tokens();
    let pod = tokens
        .issue(&TokenSpec { pod: reference("web"), node: reference("n1"), ..spec() }, NOW)
        .unwrap()
        .token;
    let node = tokens.issue(&TokenSpec { node: reference("n1"), ..spec() }, NOW).unwrap().token;
    let secret = tokens.issue(&TokenSpec { secret: reference("s"), ..spec() }, NOW).unwrap().token;
    let unbound = |token: &str, objects: Objects, what: &str| {
        let expected = TokenError::Unbound(what.to_owned());
        assert_eq!(tokens.verify(token, &[], &objects, NOW), Err(expected));
    };
    unbound(&pod, Objects::default().with("pods", "web"), "serviceaccounts \"robot\" not found");
    unbound(&pod, Objects::default().with("serviceaccounts", "robot"), GONE);
    unbound(&secret, objects(), GONE);
    unbound(&node, Objects::default().with("serviceaccounts", "robot"), GONE);
    let no_node = Objects::default().with("serviceaccounts", "robot").with("pods", "web");
    assert!(tokens.verify(&pod, &[], &no_node, NOW).is_ok(), "a pod's token does not need the node");
    let mut reborn = objects();
    reborn.0.get_mut(&("pods", "web".to_owned())).unwrap().uid = "another".to_owned();
    unbound(&pod, reborn, "pod UID (another) does not match service account pod ref claim (uid-web)");
    let mut deleted = objects();
    deleted.0.get_mut(&("pods", "web".to_owned())).unwrap().deletion = Some(NOW - 30);
    assert!(tokens.verify(&pod, &[], &deleted, NOW).is_ok(), "while the pod shuts down");
    deleted.0.get_mut(&("pods", "web".to_owned())).unwrap().deletion = Some(NOW - 61);
    unbound(&pod, deleted, GONE);
}

#[test]
fn the_published_key_verifies_tokens() {
    let tokens = tokens();
    let token = tokens.issue(&spec(), NOW).unwrap().token;
    let set: jwk::JwkSet = serde_json::from_value(tokens.jwks()).unwrap();
    let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(set.find(&kid).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[ISSUER]);
    validation.validate_exp = false;
    assert!(jsonwebtoken::decode::<Value>(&token, &key, &validation).is_ok());
    assert_eq!(tokens.jwks()["keys"][0]["use"], "sig");
    assert!(tokens.jwks()["keys"][0].get("d").is_none(), "the private part stays here");
    let discovery = tokens.discovery("https://10.89.0.10:6443");
    assert_eq!(discovery["issuer"], ISSUER);
    assert_eq!(discovery["jwks_uri"], "https://10.89.0.10:6443/openid/v1/jwks");
}

#[test]
fn a_replaced_key_still_verifies() {
    let old_key = rcgen::KeyPair::generate().unwrap();
    let old = Tokens::new(ISSUER, &old_key.serialize_pem()).unwrap();
    let token = old.issue(&spec(), NOW).unwrap().token;
    let new = tokens();
    assert_eq!(new.verify(&token, &[], &objects(), NOW), Err(TokenError::UnknownKey));
    let both = tokens().with_keys(&[old_key.public_key_pem()]).unwrap();
    assert!(both.verify(&token, &[], &objects(), NOW).is_ok());
    assert_eq!(both.jwks()["keys"].as_array().unwrap().len(), 2);
    assert!(tokens().with_keys(&["nothing".to_owned()]).is_err());
}

#[test]
fn several_issuers_are_known_and_the_first_signs() {
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let old = Tokens::new("https://old", &key).unwrap().with_audiences(&[ISSUER.to_owned()]);
    let new =
        Tokens::new(ISSUER, &key).unwrap().with_issuers(&["https://old".to_owned()]).with_audiences(&[]);
    let token = old.issue(&spec(), NOW).unwrap().token;
    assert_eq!(new.verify(&token, &[], &objects(), NOW).unwrap().audiences, [ISSUER]);
    assert_eq!(new.audiences(), [ISSUER, "https://old"]);
}

/// A Secret that holds a token.
struct WithSecret(Objects, Value);

impl BoundObjects for WithSecret {
    fn find(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Live> {
        self.0.find(plural, namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        ((namespace, name) == ("ns", "robot-token")).then(|| self.1.clone())
    }
}

#[test]
fn a_token_in_a_secret_lives_as_long_as_the_secret_holds_it() {
    let tokens = tokens();
    let token = tokens.issue_legacy("ns", &reference("robot").unwrap(), "robot-token").unwrap();
    let secret = |token: &str, labels: Value| {
        let kept = base64::engine::general_purpose::STANDARD.encode(token);
        WithSecret(objects(), json!({"metadata": {"labels": labels}, "data": {"token": kept}}))
    };
    let verify = |objects: &dyn BoundObjects| tokens.verify(&token, &[], objects, NOW);
    let verified = verify(&secret(&token, json!({}))).unwrap();
    assert_eq!(verified.identity.name, "system:serviceaccount:ns:robot");
    assert_eq!(verified.audiences, [ISSUER]);
    let refused = |objects: &dyn BoundObjects| verify(objects).unwrap_err().to_string();
    assert_eq!(refused(&objects()), "Token has been invalidated");
    assert_eq!(refused(&secret("other", json!({}))), "Token does not match server's copy");
    let marked = refused(&secret(&token, json!({"kubernetes.io/legacy-token-invalid-since": "2026-01-01"})));
    assert!(marked.contains("has been marked invalid"), "{marked}");
    let mut reborn = secret(&token, json!({}));
    reborn.0.0.get_mut(&("serviceaccounts", "robot".to_owned())).unwrap().uid = "another".to_owned();
    assert_eq!(refused(&reborn), "service account UID (another) does not match claim (uid-robot)");
}

/// As [`WithSecret`], and the ServiceAccount lists it.
struct Listed(WithSecret);

impl BoundObjects for Listed {
    fn find(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Live> {
        self.0.find(plural, namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        self.0.secret(namespace, name)
    }

    fn lists_secret(&self, namespace: &str, account: &str, secret: &str) -> bool {
        (namespace, account, secret) == ("ns", "robot", "robot-token")
    }
}

#[test]
fn the_use_of_a_token_in_a_secret_is_annotated_and_warned_of_in_upstreams_words() {
    let tokens = tokens();
    let token = tokens.issue_legacy("ns", &reference("robot").unwrap(), "robot-token").unwrap();
    let kept = base64::engine::general_purpose::STANDARD.encode(&token);
    let secret = |labels: Value| {
        WithSecret(objects(), json!({"metadata": {"labels": labels}, "data": {"token": kept}}))
    };
    let notes = |objects: &dyn BoundObjects, now: i64| {
        let mut notes = Notes::default();
        let _ = tokens.verify_with(&token, &[], objects, now, &mut notes);
        notes
    };
    let used = ("authentication.k8s.io/legacy-token", "system:serviceaccount:ns:robot".to_owned());
    let manual = notes(&secret(json!({})), NOW);
    let name = || "robot-token".to_owned();
    assert_eq!(
        manual.annotations,
        [used.clone(), ("authentication.k8s.io/legacy-token-manual-secret", name())]
    );
    assert_eq!(manual.warnings, [""; 0]);
    let made = notes(&Listed(secret(json!({}))), NOW);
    assert_eq!(
        made.annotations,
        [used.clone(), ("authentication.k8s.io/legacy-token-autogenerated-secret", name())]
    );
    assert_eq!(
        made.warnings,
        [
            "Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated \
          secret-based tokens."
        ]
    );
    let gone = notes(&secret(json!({INVALID_SINCE: "2026-01-01"})), NOW);
    let invalidated = ("authentication.k8s.io/legacy-token-invalidated", "robot-token/ns".to_owned());
    assert_eq!(gone.annotations, [used, invalidated]);
}

#[test]
fn a_token_that_outlived_its_time_is_annotated_as_stale() {
    let tokens = tokens();
    let spec = TokenSpec {
        namespace: "ns".to_owned(),
        service_account: reference("robot"),
        expiration_seconds: EXTENDED_EXPIRATION_SECONDS,
        warn_after_seconds: WARN_ONLY_EXPIRATION_SECONDS,
        ..TokenSpec::default()
    };
    let token = tokens.issue(&spec, NOW).unwrap().token;
    let notes = |now: i64| {
        let mut notes = Notes::default();
        tokens.verify_with(&token, &[], &objects(), now, &mut notes).unwrap();
        notes
    };
    assert_eq!(notes(NOW + WARN_ONLY_EXPIRATION_SECONDS), Notes::default());
    let told = "subject: system:serviceaccount:ns:robot, seconds after warning threshold: 5".to_owned();
    assert_eq!(
        notes(NOW + WARN_ONLY_EXPIRATION_SECONDS + 5),
        Notes { annotations: vec![("authentication.k8s.io/stale-token", told)], warnings: Vec::new() }
    );
}

#[tokio::test]
async fn the_first_use_of_a_day_is_noted_for_the_label_of_the_secret() {
    let tokens = tokens();
    let token = tokens.issue_legacy("ns", &reference("robot").unwrap(), "robot-token").unwrap();
    let kept = base64::engine::general_purpose::STANDARD.encode(&token);
    let verify = |last_used: &str| {
        let labels = json!({ LAST_USED: last_used });
        let secret = json!({"metadata": {"labels": labels}, "data": {"token": kept}});
        tokens.verify(&token, &[], &WithSecret(objects(), secret), NOW).unwrap();
    };
    let noted = async || tokio::time::timeout(std::time::Duration::ZERO, tokens.uses().take()).await.ok();
    for known in [date(NOW), date(NOW + DAY_SECONDS)] {
        verify(&known);
        assert_eq!(noted().await, None, "{known}");
    }
    verify(&date(NOW - DAY_SECONDS));
    verify("");
    assert_eq!(noted().await, Some([("ns".to_owned(), "robot-token".to_owned())].into()));
    assert_eq!(noted().await, None);
    assert_eq!(date(1_769_817_600), "2026-01-31");
}
