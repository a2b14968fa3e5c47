//! Passwords of peers, from Secrets in kube-system that the nodes may read.
//!
//! Looked at when another one is needed and from time to time; what was found last is kept, on disk too, while the API server
//! cannot be asked. A Secret that the server says is not there, or not for us, is none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch as signal;

use crate::persist;

/// Where the Secrets are.
pub const NAMESPACE: &str = "kube-system";
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PasswordKey {
    pub secret: String,
    pub key: String,
}

/// What is known of passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Passwords(BTreeMap<PasswordKey, Result<Vec<u8>, String>>);

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Passwords {
    /// # Errors
    /// Why it is not known.
    pub fn get(&self, key: &PasswordKey) -> Result<&[u8], String> {
        match self.0.get(key) {
            Some(Ok(octets)) => Ok(octets),
            Some(Err(why)) => Err(why.clone()),
            None => Err(format!("Secret {NAMESPACE}/{} was not read yet", key.secret)),
        }
    }

    pub fn keys(&self) -> BTreeSet<PasswordKey> {
        self.0.keys().cloned().collect()
    }

    #[cfg(test)]
    pub fn with(key: PasswordKey, octets: &[u8]) -> Passwords {
        Passwords(BTreeMap::from([(key, Ok(octets.to_vec()))]))
    }
}

/// Looks after passwords for ever.
pub struct Reader {
    pub client: Client,
    /// For root alone.
    pub file: PathBuf,
    pub wanted: signal::Receiver<BTreeSet<PasswordKey>>,
    pub found: signal::Sender<Passwords>,
}

/// What an earlier run found.
pub fn load(file: &std::path::Path) -> anyhow::Result<Passwords> {
    let saved: Vec<(String, String, String)> = persist::read(file)?.unwrap_or_default();
    let octets = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
    let known = saved.into_iter().map(|(secret, key, text)| (PasswordKey { secret, key }, octets(&text)));
    Ok(Passwords(known.collect()))
}

impl Reader {
    pub async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let mut found = self.found.borrow().clone();
            found.0.retain(|key, _| wanted.contains(key));
            for key in wanted {
                if let Some(answer) = self.read(&key).await {
                    found.0.insert(key, answer);
                }
            }
            if *self.found.borrow() != found {
                if let Err(error) = self.save(&found) {
                    tracing::warn!("{error:#}");
                }
                self.found.send_replace(found);
            }
            let is_any = !self.wanted.borrow().is_empty();
            let again = async {
                if is_any { tokio::time::sleep(INTERVAL).await } else { std::future::pending().await }
            };
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    /// `None` where nobody answers.
    async fn read(&self, key: &PasswordKey) -> Option<Result<Vec<u8>, String>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let named = format!("Secret {NAMESPACE}/{}", key.secret);
        match api.get_opt(&key.secret).await {
            Ok(None) => Some(Err(format!("{named} is not there"))),
            Ok(Some(secret)) => {
                let value = secret.data.and_then(|mut data| data.remove(&key.key)).map(|value| value.0);
                let value = value.ok_or_else(|| format!("{named} has no key {}", key.key));
                Some(value.and_then(|value| match value.len() {
                    1..=80 => Ok(value),
                    length => Err(format!("{named}: a BGP password has 1 to 80 octets, not {length}")),
                }))
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                Some(Err(format!("{named} may not be read by the group system:nodes")))
            }
            Err(_) => None,
        }
    }

    fn save(&self, passwords: &Passwords) -> anyhow::Result<()> {
        let known = passwords.0.iter().filter_map(|(key, value)| Some((key, value.as_ref().ok()?)));
        let saved: Vec<(&str, &str, String)> =
            known.map(|(key, value)| (&*key.secret, &*key.key, STANDARD.encode(value))).collect();
        persist::write_private(&self.file, &saved)
    }
}
