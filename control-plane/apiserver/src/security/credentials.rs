//! Tokens that are no ServiceAccount's: those of a file that the server is started with, and bootstrap tokens, which new
//! nodes join with and which are Secrets of `kube-system`.

use std::{collections::HashMap, sync::LazyLock};

use api::meta;
use regex::Regex;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Identity, decode_base64, equal_in_constant_time, tokens::BoundObjects};

const SYSTEM_NAMESPACE: &str = "kube-system";
const BOOTSTRAP_USER_PREFIX: &str = "system:bootstrap:";
const BOOTSTRAP_GROUP: &str = "system:bootstrappers";
const BOOTSTRAP_SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const BOOTSTRAP_SECRET_PREFIX: &str = "bootstrap-token-";

/// Tokens of `--token-auth-file`, by their hash, so that looking one up tells nothing of the others.
#[derive(Default)]
pub struct StaticTokens(HashMap<[u8; 32], Identity>);

impl StaticTokens {
    /// Reads lines of `token,user,uid[,"group1,group2"]`.
    ///
    /// # Errors
    /// The number of the line that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = csv_fields(line);
            let [token, name, uid, rest @ ..] = fields.as_slice() else {
                return Err(format!(
                    "line {}: token file must have at least 3 columns (token, user name, user uid), found {}",
                    index + 1,
                    fields.len()
                ));
            };
            if token.is_empty() {
                return Err(format!("line {}: empty token found in token file", index + 1));
            }
            let groups = rest.first().into_iter().flat_map(|groups| groups.split(','));
            let identity = Identity {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups
                    .map(|group| group.trim().to_owned())
                    .filter(|group| !group.is_empty())
                    .collect(),
                ..Identity::default()
            };
            tokens.insert(Sha256::digest(token).into(), identity);
        }
        Ok(Self(tokens))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn find(&self, token: &str) -> Option<Identity> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        self.0.get(&hash).cloned()
    }
}

/// The fields of one line of RFC 4180, trimmed.
fn csv_fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                field.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field).trim().to_owned()),
            c => field.push(c),
        }
    }
    fields.push(field.trim().to_owned());
    fields
}

static BOOTSTRAP_TOKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^([a-z0-9]{6})\\.([a-z0-9]{16})$").expect("the expression is valid"));
static EXTRA_GROUP: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("^system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]$").expect("the expression is valid")
});

/// Who holds a bootstrap token; `now` in seconds since the epoch.
pub(super) fn bootstrap_identity(token: &str, objects: &dyn BoundObjects, now: i64) -> Option<Identity> {
    let parts = BOOTSTRAP_TOKEN.captures(token)?;
    let (id, secret_part) = (&parts[1], &parts[2]);
    let secret = objects.secret(SYSTEM_NAMESPACE, &format!("{BOOTSTRAP_SECRET_PREFIX}{id}"))?;
    let data = |key: &str| text(&secret, key);
    let good = meta::deletion_timestamp(&secret).is_none()
        && secret["type"] == BOOTSTRAP_SECRET_TYPE
        && equal_in_constant_time(data("token-secret").as_bytes(), secret_part.as_bytes())
        && data("token-id") == id
        && !has_expired(&data("expiration"), now)
        && data("usage-bootstrap-authentication") == "true";
    if !good {
        return None;
    }
    let extra = data("auth-extra-groups");
    let mut groups = vec![BOOTSTRAP_GROUP.to_owned()];
    for group in extra.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !EXTRA_GROUP.is_match(group) {
            tracing::debug!(
                secret = meta::name(&secret),
                group,
                "not a group that bootstrap tokens can have"
            );
            return None;
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Some(Identity { name: format!("{BOOTSTRAP_USER_PREFIX}{id}"), groups, ..Identity::default() })
}

fn text(secret: &Value, key: &str) -> String {
    let encoded = secret["data"][key].as_str().unwrap_or_default();
    decode_base64(encoded).and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

/// A time that cannot be read has passed.
fn has_expired(expiration: &str, now: i64) -> bool {
    if expiration.is_empty() {
        return false;
    }
    expiration.parse::<jiff::Timestamp>().map_or(true, |time| time.as_second() < now)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::json;

    use super::*;
    use crate::security::tokens::Live;

    struct One(Value);

    impl BoundObjects for One {
        fn find(&self, _plural: &str, _namespace: Option<&str>, _name: &str) -> Option<Live> {
            None
        }

        fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
            ((namespace, name) == ("kube-system", "bootstrap-token-abcdef")).then(|| self.0.clone())
        }
    }

    fn secret(change: impl FnOnce(&mut Value)) -> One {
        let mut plain = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:worker",
            "expiration": "2030-01-01T00:00:00Z"});
        change(&mut plain);
        let encode =
            |value: &Value| base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap());
        let data: serde_json::Map<_, _> = plain
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (key.clone(), json!(encode(value))))
            .collect();
        One(
            json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": BOOTSTRAP_SECRET_TYPE, "data": data}),
        )
    }

    const TOKEN: &str = "abcdef.0123456789abcdef";
    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_bootstrap_token_is_a_secret_that_says_so() {
        let identity = bootstrap_identity(TOKEN, &secret(|_| {}), NOW).unwrap();
        assert_eq!(identity.name, "system:bootstrap:abcdef");
        assert_eq!(identity.groups, ["system:bootstrappers", "system:bootstrappers:worker"]);
        let refused = [
            secret(|data| data["token-secret"] = json!("0123456789abcdee")),
            secret(|data| data["token-id"] = json!("other1")),
            secret(|data| data["expiration"] = json!("2020-01-01T00:00:00Z")),
            secret(|data| data["expiration"] = json!("soon")),
            secret(|data| data["usage-bootstrap-authentication"] = json!("false")),
            secret(|data| data["auth-extra-groups"] = json!("system:masters")),
            One(json!({"type": "Opaque", "data": secret(|_| {}).0["data"]})),
        ];
        for objects in refused {
            assert_eq!(bootstrap_identity(TOKEN, &objects, NOW), None, "{}", objects.0);
        }
        assert_eq!(bootstrap_identity("ABCDEF.0123456789abcdef", &secret(|_| {}), NOW), None);
    }

    #[test]
    fn a_token_file_has_users_and_groups() {
        let tokens =
            StaticTokens::parse("# people\nsecret1,alice,1,\"admins, devs\"\n\nsecret2,bob,2\n").unwrap();
        let alice = tokens.find("secret1").unwrap();
        assert_eq!((alice.name.as_str(), alice.uid.as_str()), ("alice", "1"));
        assert_eq!(alice.groups, ["admins", "devs"]);
        assert!(tokens.find("secret2").unwrap().groups.is_empty());
        assert_eq!(tokens.find("secret"), None);
        assert!(StaticTokens::parse("a,b").is_err_and(|error| error.starts_with("line 1:")));
        assert!(StaticTokens::parse("\n,b,c").is_err_and(|error| error.starts_with("line 2:")));
    }
}
