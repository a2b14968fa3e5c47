//! The API server that agents and peers read from: ours, in the laboratory's first namespace.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{
    ground::{Ground, ip},
    lab::Lab,
    objects::{self, CLUSTER_CIDR, NAMESPACE, SERVICE_CIDR},
};
use crate::{
    HttpVersion,
    client::{Client, Connection, Request},
    process::Process,
    say,
};

/// Where nodes reach the server; on no interface but loopback (RFC 5737).
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const PORT: u16 = 6443;
const READY_TIME_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Connections that create at the same time.
const CONNECTIONS: u32 = 8;

pub(crate) struct Api {
    // Ends before its folder does.
    _server: Process,
    program: PathBuf,
    folder: PathBuf,
    runtime: Runtime,
    client: Client,
    writer: Connection,
    services: u32,
    links: u32,
}

impl Api {
    /// One that knows the laboratory's nodes, and the Service whose endpoint changes.
    pub(crate) fn start(ground: &Ground, program: &Path) -> Result<Self> {
        let mut api = Self::bare(ground, program, "apiserver")?;
        api.create_basics()?;
        Ok(api)
    }

    /// One without objects; `role` is what of the control plane runs: apiserver, or all.
    pub(crate) fn bare(ground: &Ground, program: &Path, role: &str) -> Result<Self> {
        ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
        let folder = ground.folder().join("server");
        let data = folder.join("data");
        std::fs::create_dir_all(&folder).context("making the server's folder")?;
        let arguments = [
            role,
            "--data-dir",
            &data.display().to_string(),
            "--bind",
            &format!("0.0.0.0:{PORT}"),
            "--advertise-address",
            &ADDRESS.to_string(),
            "--san",
            "127.0.0.1",
            "--service-cidr",
            SERVICE_CIDR,
            "--cluster-cidr",
            CLUSTER_CIDR,
        ]
        .map(str::to_owned);
        let log = folder.join("server.log");
        let mut server = Process::start(program, &arguments, &log)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let ready = runtime.block_on(ready(&mut server, &data));
        let (client, writer) = ready.with_context(|| last_lines(&log))?;
        Ok(Self {
            _server: server,
            program: program.to_owned(),
            folder,
            runtime,
            client,
            writer,
            services: 0,
            links: 0,
        })
    }

    /// The nodes, and the Service whose endpoint changes.
    fn create_basics(&mut self) -> Result<()> {
        for (index, name) in objects::NODES.iter().enumerate() {
            self.create_node(name, Ipv4Addr::new(10, 89, 0, index as u8 + 11))?;
        }
        let service = serde_json::to_string(&objects::changing_service())?;
        self.send(Request::post(path_of::<Service>(), service))?;
        let slice = serde_json::to_string(&objects::changing_slice(0))?;
        self.send(Request::post(path_of::<EndpointSlice>(), slice))
    }

    pub(crate) fn create_node(&mut self, name: &str, address: Ipv4Addr) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.send(Request::post("/api/v1/nodes", node.to_string()))?;
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        let path = format!("/api/v1/nodes/{name}/status");
        self.send(Request::merge_patch(path, status.to_string()))
    }

    fn send(&mut self, request: Request) -> Result<()> {
        let Self { runtime, writer, .. } = self;
        runtime.block_on(async { writer.send(request).await?.good() }).map(drop)
    }

    /// Makes another pod of the client's node the endpoint of the changing Service.
    pub(crate) fn change_endpoint(&mut self, pod: u32) -> Result<()> {
        let endpoints = objects::changing_slice(pod).endpoints;
        let path = format!("{}/{}-1", path_of::<EndpointSlice>(), objects::CHANGING);
        self.send(Request::merge_patch(path, json!({"endpoints": endpoints}).to_string()))
    }

    /// Creates Services with their slices until there are `services`.
    pub(crate) fn grow(&mut self, services: u32) -> Result<()> {
        if services <= self.services {
            return Ok(());
        }
        let began = Instant::now();
        let next = Arc::new(AtomicU32::new(self.services));
        self.runtime.block_on(async {
            let mut workers = tokio::task::JoinSet::new();
            for _ in 0..CONNECTIONS {
                workers.spawn(create(self.client.connect().await?, Arc::clone(&next), services));
            }
            while let Some(done) = workers.join_next().await {
                done.context("a worker panicked")??;
            }
            anyhow::Ok(())
        })?;
        let created = services - self.services;
        self.services = services;
        say(&format!("    {created} Services with slices created in {:.1} s", began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Gives the nodes of a laboratory a way to the server, by a link of its own.
    pub(crate) fn join(&mut self, lab: &Lab) -> Result<()> {
        for node in &lab.nodes {
            let number = self.links % 200 + 10;
            self.links += 1;
            let at = node.namespace.path();
            ip(&format!("link add api{number} type veth peer name api0 netns {}", at.display()))?;
            ip(&format!("link set api{number} up"))?;
            ip(&format!("route add 198.51.100.{number}/32 dev api{number} src {ADDRESS}"))?;
            node.namespace.ip(&format!("addr add 198.51.100.{number}/32 dev api0"))?;
            node.namespace.ip("link set api0 up")?;
            node.namespace.ip(&format!("route add {ADDRESS}/32 dev api0 src 198.51.100.{number}"))?;
        }
        Ok(())
    }

    /// Credentials of a user, for processes of a laboratory that was joined.
    pub(crate) fn kubeconfig(&self, user: &str, group: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{}.kubeconfig", user.replace(':', "-")));
        let output = Command::new(&self.program)
            .args(["kubeconfig", "--data-dir"])
            .arg(self.folder.join("data"))
            .args(["--cn", user, "--org", group, "--server", &format!("https://{ADDRESS}:{PORT}"), "--out"])
            .arg(&path)
            .output()
            .context("starting seaway-server")?;
        if !output.status.success() {
            bail!("a kubeconfig for {user}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(path)
    }
}

async fn ready(server: &mut Process, data: &Path) -> Result<(Client, Connection)> {
    let deadline = Instant::now() + READY_TIME_MAX;
    loop {
        server.check()?;
        if let Ok(client) = Client::of_kubeconfig(&data.join("admin.kubeconfig"), PORT, HttpVersion::Two)
            && let Ok(mut connection) = client.connect().await
            && connection.send(Request::get("/readyz")).await.is_ok_and(|answer| answer.status == 200)
        {
            return Ok((client, connection));
        }
        if Instant::now() > deadline {
            bail!("not ready after {} s", READY_TIME_MAX.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn create(mut connection: Connection, next: Arc<AtomicU32>, end: u32) -> Result<()> {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= end {
            return Ok(());
        }
        let service = serde_json::to_string(&objects::service(index))?;
        connection.send(Request::post(path_of::<Service>(), service)).await?.good()?;
        let slice = serde_json::to_string(&objects::slice(index))?;
        connection.send(Request::post(path_of::<EndpointSlice>(), slice)).await?.good()?;
    }
}

fn path_of<K: k8s_openapi::Resource>() -> String {
    let plural = K::URL_PATH_SEGMENT;
    match K::GROUP {
        "" => format!("/api/{}/namespaces/{NAMESPACE}/{plural}", K::VERSION),
        group => format!("/apis/{group}/{}/namespaces/{NAMESPACE}/{plural}", K::VERSION),
    }
}

/// What a process said last.
pub(crate) fn last_lines(log: &Path) -> String {
    const LINES: usize = 20;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("it said last:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
}
