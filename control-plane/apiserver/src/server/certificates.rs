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
        pki::{KeyedCertificate, Pki, ServerNames},
        tls::{Live, client_verifier},
    },
    state::State,
};

/// Between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is in use, and how it is replaced.
pub(super) struct Certificates {
    names: ServerNames,
    serving: Arc<Live>,
    kubelet_client: Arc<Live>,
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
    pub(super) fn new(
        pki: Pki,
        names: ServerNames,
        serving: Arc<Live>,
        kubelet_client: Arc<Live>,
        state: Arc<State>,
    ) -> Self {
        let client_cas = client_cas(&pki, &state.config.security).ok();
        let current = Mutex::new(Current { pki, client_cas });
        Self { names, serving, kubelet_client, state, current }
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
        replace(&self.serving, &current.pki.serving, &pki.serving, "serving certificate")?;
        let (old, new) = (&current.pki.kubelet_client, &pki.kubelet_client);
        replace(&self.kubelet_client, old, new, "kubelet client certificate")?;
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

fn replace(live: &Live, old: &KeyedCertificate, new: &KeyedCertificate, what: &str) -> anyhow::Result<()> {
    if old != new {
        live.replace(new).with_context(|| format!("the {what}"))?;
        info!("{what} is replaced");
    }
    Ok(())
}
