//! One server with its store, on loopback, in a folder that goes with it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::{
    Options, Store,
    client::{Client, Request},
    peer::{self, Keys},
    process::{Process, free_port},
};

/// A peer on a machine that does much else takes more than a minute.
const READY_TIME_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(2);

pub(crate) struct Subject {
    // Processes are ended before the folder goes.
    server: Option<Process>,
    etcd: Option<Process>,
    kind: Kind,
    port: u16,
    etcd_url: String,
    folder: TempDir,
    options: Options,
}

enum Kind {
    Seaway,
    Peer(Keys),
}

impl Subject {
    /// Prepares a subject; its etcd, where it has one, runs when this returns.
    pub(crate) fn new(name: &str, options: &Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("seaway-bench-").tempdir()?;
        let kind = if name == "seaway" { Kind::Seaway } else { Kind::Peer(Keys::new(folder.path())?) };
        let needs_etcd = matches!(kind, Kind::Peer(_)) || options.store == Store::Etcd;
        let mut etcd_url = String::new();
        let etcd = needs_etcd.then(|| start_etcd(options, folder.path(), &mut etcd_url)).transpose()?;
        Ok(Self { server: None, etcd, kind, port: free_port()?, etcd_url, folder, options: options.clone() })
    }

    /// Starts the server; how long it took from there to the first good answer of /readyz.
    pub(crate) async fn start(&mut self) -> Result<(Client, Duration)> {
        let log = self.folder.path().join("server.log");
        let (program, arguments) = match &self.kind {
            Kind::Seaway => (self.options.server.clone(), self.seaway_arguments()),
            Kind::Peer(keys) => (
                self.options.peer.clone().context("a peer without a path")?,
                peer::arguments(keys, &self.etcd_url, self.port),
            ),
        };
        let began = Instant::now();
        self.server = Some(Process::start(&program, &arguments, &log)?);
        let ready = self.wait_ready(began).await;
        if ready.is_err() || self.options.verbose {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            crate::say(&lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        ready
    }

    fn seaway_arguments(&self) -> Vec<String> {
        let data = self.folder.path().join("data").display().to_string();
        let bind = format!("127.0.0.1:{}", self.port);
        let mut arguments: Vec<String> =
            ["apiserver", "--data-dir", &data, "--bind", &bind].map(str::to_owned).into();
        if self.options.store == Store::Etcd {
            arguments.extend(["--store", "etcd", "--etcd-endpoint", &self.etcd_url].map(str::to_owned));
        }
        arguments
    }

    async fn wait_ready(&mut self, began: Instant) -> Result<(Client, Duration)> {
        loop {
            if began.elapsed() > READY_TIME_MAX {
                bail!("not ready after {} s", READY_TIME_MAX.as_secs());
            }
            self.server.as_mut().context("the server was started")?.check()?;
            if let Ok(client) = self.client()
                && let Ok(mut connection) = client.connect().await
                && connection.send(Request::get("/readyz")).await.is_ok_and(|answer| answer.status == 200)
            {
                return Ok((client, began.elapsed()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn client(&self) -> Result<Client> {
        match &self.kind {
            Kind::Peer(keys) => Client::new(
                self.port,
                &keys.ca,
                &keys.client_certificate,
                &keys.client_key,
                self.options.http,
            ),
            Kind::Seaway => Client::of_kubeconfig(
                &self.folder.path().join("data/admin.kubeconfig"),
                self.port,
                self.options.http,
            ),
        }
    }

    /// Ends the server; its store stays.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), Process::stop)
    }

    fn server(&self) -> Result<&Process> {
        self.server.as_ref().context("the server does not run")
    }

    /// CPU time of server and store, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let store = self.etcd.as_ref().map_or(Ok(0.0), Process::cpu)?;
        Ok(self.server()?.cpu()? + store)
    }

    /// What of [`Subject::cpu`] was spent in the kernel, in seconds.
    pub(crate) fn cpu_of_kernel(&self) -> Result<f64> {
        let store = self.etcd.as_ref().map_or(Ok(0.0), Process::cpu_of_kernel)?;
        Ok(self.server()?.cpu_of_kernel()? + store)
    }

    /// Resident memory of the server and of its store where that is a process, in MB.
    pub(crate) fn memory(&self) -> Result<(f64, Option<f64>)> {
        let store = self.etcd.as_ref().map(|etcd| etcd.memory().map(|(now, _)| now)).transpose()?;
        Ok((self.server()?.memory()?.0, store))
    }

    pub(crate) fn forget_highest_memory(&self) -> Result<f64> {
        let server = self.server()?;
        server.forget_highest()?;
        Ok(server.memory()?.0)
    }

    /// The highest resident memory of the server since [`Subject::forget_highest_memory`], in MB.
    pub(crate) fn highest_memory(&self) -> Result<f64> {
        Ok(self.server()?.memory()?.1)
    }
}

fn start_etcd(options: &Options, folder: &Path, url: &mut String) -> Result<Process> {
    let (client, peer) = (free_port()?, free_port()?);
    *url = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let data = folder.join("etcd").display().to_string();
    let arguments = [
        ("data-dir", data.as_str()),
        ("listen-client-urls", url),
        ("advertise-client-urls", url),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &format!("default={peer}")),
        ("quota-backend-bytes", "8589934592"),
        ("log-level", "error"),
    ]
    .map(|(name, value)| format!("--{name}={value}"));
    let mut process = Process::start(&options.etcd, &arguments, &folder.join("etcd.log"))?;
    let deadline = Instant::now() + READY_TIME_MAX;
    while std::net::TcpStream::connect(("127.0.0.1", client)).is_err() {
        process.check()?;
        if Instant::now() > deadline {
            bail!("etcd does not listen after {} s", READY_TIME_MAX.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}
