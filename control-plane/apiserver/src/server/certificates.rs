//! Certificates change while the server runs: its own are issued anew before they expire, and files that somebody else
//! replaced are read again. New connections see what is new; those that are open stay.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tracing::{info, warn};

use crate::{
    config,
    security::{
        pki::{KeyedCertificate, Pki, PkiError, ServerNames},
        tls::{Live, client_verifier},
    },
    state::State,
};

/// Between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(60);

/// What connections show.
#[derive(Clone)]
pub(super) struct Shown {
    /// To clients.
    pub serving: Arc<Live>,
    /// To kubelets.
    pub kubelet_client: Arc<Live>,
    /// To aggregated servers.
    pub front_proxy: Arc<Live>,
}

impl Shown {
    pub(super) fn new(pki: &Pki) -> Result<Self, PkiError> {
        Ok(Self {
            serving: Live::new(&pki.serving)?,
            kubelet_client: Live::new(&pki.kubelet_client)?,
            front_proxy: Live::new(&pki.front_proxy_client)?,
        })
    }
}

/// What is in use, and how it is replaced.
pub(super) struct Certificates {
    names: ServerNames,
    shown: Shown,
    state: Arc<State>,
    current: Mutex<Current>,
}

struct Current {
    pki: Pki,
    client_cas: Option<String>,
}

/// The CAs that client certificates may be of.
pub(super) fn client_cas(pki: &Pki, config: &config::Security) -> anyhow::Result<String> {
    let mut pem = pki.ca.certificate_pem().to_owned();
    if let Some(path) = &config.client_ca_file {
        pem.push('\n');
        pem += &std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(pem)
}

impl Certificates {
    pub(super) fn new(pki: Pki, names: ServerNames, shown: Shown, state: Arc<State>) -> Self {
        let client_cas = client_cas(&pki, &state.config.security).ok();
        let current = Mutex::new(Current { pki, client_cas });
        Self { names, shown, state, current }
    }

    /// Looks at the files every minute, until the server stops.
    pub(super) async fn run(self: Arc<Self>) {
        let mut timer = tokio::time::interval(INTERVAL);
        timer.tick().await;
        loop {
            tokio::select! {
                () = self.state.stop.cancelled() => return,
                _ = timer.tick() => {}
            }
            let certificates = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || certificates.reload()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(error = format!("{error:#}"), "certificates stay as they are"),
                Err(error) => warn!(%error, "certificates stay as they are"),
            }
        }
    }

    pub(super) fn reload(&self) -> anyhow::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let pki = current.pki.reload(&self.names)?;
        replace(&self.shown.serving, &current.pki.serving, &pki.serving, "serving certificate")?;
        let (old, new) = (&current.pki.kubelet_client, &pki.kubelet_client);
        replace(&self.shown.kubelet_client, old, new, "kubelet client certificate")?;
        let (old, new) = (&current.pki.front_proxy_client, &pki.front_proxy_client);
        if replace(&self.shown.front_proxy, old, new, "front proxy client certificate")? {
            self.state.callout.forget_connections();
        }
        let cas = client_cas(&pki, &self.state.config.security)?;
        if current.client_cas.as_ref() != Some(&cas) {
            self.state.authenticator.replace_client_ca(client_verifier(&cas)?);
            info!("client CAs are replaced");
            current.client_cas = Some(cas);
        }
        current.pki = pki;
        Ok(())
    }
}

/// Whether it is another one.
fn replace(live: &Live, old: &KeyedCertificate, new: &KeyedCertificate, what: &str) -> anyhow::Result<bool> {
    if old == new {
        return Ok(false);
    }
    live.replace(new).with_context(|| format!("the {what}"))?;
    info!("{what} is replaced");
    Ok(true)
}
