use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

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
    assert!(at(NOW).is_ok() && at(NOW + 3600).is_ok());
    assert_eq!(at(NOW + 3700), Err(TokenError::Expired(100)));
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
    let tokens = tokens();
    let good = tokens.issue(&spec(), NOW).unwrap().token;
    let stranger = Tokens::new(ISSUER, &rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let key = &tokens.signing;
    let other_issuer = Tokens {
        issuer: "https://elsewhere".to_owned(),
        signing: key.clone(),
        verifying: tokens.verifying.clone(),
        key: tokens.key.clone(),
    };
    let parts: Vec<&str> = good.split('.').collect();
    let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
    let claims = String::from_utf8(claims).unwrap().replace("robot", "admin");
    let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims), parts[2]);
    let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), parts[1]);
    let hmac = {
        // The public key as an HMAC secret: the mistake of verifiers that trust the token's own algorithm.
        let secret =
            EncodingKey::from_secret(tokens.key.thumbprint(jwk::ThumbprintHash::SHA256).unwrap().as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &json!({ "iss": ISSUER }), &secret).unwrap()
    };
    let cases = [
        ("another key", stranger.issue(&spec(), NOW).unwrap().token),
        ("another issuer", other_issuer.issue(&spec(), NOW).unwrap().token),
        ("changed claims", forged),
        ("no algorithm", none),
        ("another algorithm", hmac),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("cut", good[..good.len() - 4].to_owned()),
        ("garbage", "garbage".to_owned()),
        ("empty", String::new()),
    ];
    for (case, token) in cases {
        let refused = tokens.verify(&token, &[], &objects(), NOW);
        assert!(matches!(refused, Err(TokenError::Foreign(_))), "{case}: {refused:?}");
    }
    assert!(tokens.verify(&good, &[], &objects(), NOW).is_ok());
}

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
        let expected = TokenError::Unbound { what: what.to_owned() };
        assert_eq!(tokens.verify(token, &[], &objects, NOW), Err(expected));
    };
    unbound(&pod, Objects::default().with("pods", "web"), "serviceaccount robot");
    unbound(&pod, Objects::default().with("serviceaccounts", "robot"), "pod web");
    unbound(&secret, objects(), "secret s");
    unbound(&node, Objects::default().with("serviceaccounts", "robot"), "node n1");
    let no_node = Objects::default().with("serviceaccounts", "robot").with("pods", "web");
    assert!(tokens.verify(&pod, &[], &no_node, NOW).is_ok(), "a pod's token does not need the node");
    let mut reborn = objects();
    reborn.0.get_mut(&("pods", "web".to_owned())).unwrap().uid = "another".to_owned();
    unbound(&pod, reborn, "pod web");
    let mut deleted = objects();
    deleted.0.get_mut(&("pods", "web".to_owned())).unwrap().deletion = Some(NOW - 30);
    assert!(tokens.verify(&pod, &[], &deleted, NOW).is_ok(), "while the pod shuts down");
    deleted.0.get_mut(&("pods", "web".to_owned())).unwrap().deletion = Some(NOW - 61);
    unbound(&pod, deleted, "pod web");
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
    assert!(tokens.jwks()["keys"][0].get("d").is_none(), "the private part stays here");
    let discovery = tokens.discovery("https://10.89.0.10:6443");
    assert_eq!(discovery["issuer"], ISSUER);
    assert_eq!(discovery["jwks_uri"], "https://10.89.0.10:6443/openid/v1/jwks");
}
