//! A control plane as a process, in a namespace of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use calico::IpPool;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use super::agent::binary;
use super::peers::Process;
use crate::netns::{NetNs, attempts, eventually};

/// A control plane at 192.0.2.2.
pub struct Server {
    host: NetNs,
    folder: TempDir,
    arguments: Vec<String>,
    process: Process,
}

impl Server {
    pub fn start(host: &NetNs) -> Server {
        Server::with(host, &[])
    }

    /// One with these arguments besides.
    pub fn with(host: &NetNs, arguments: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let process = run(host, &folder, &arguments);
        let server = Server { host: host.without_cgroup(), folder, arguments, process };
        eventually("the server has signed its own", || {
            server.data().join("admin.kubeconfig").exists().then_some(())
        });
        server.await_ready();
        server
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the process again over what it wrote.
    pub fn run(&mut self) {
        self.process = run(&self.host, &self.folder, &self.arguments);
        self.await_ready();
    }

    fn await_ready(&self) {
        eventually("the server serves pools", || {
            self.ask(async |client| Api::<IpPool>::all(client).list(&ListParams::default()).await.ok())
        });
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Credentials of a node.
    pub fn kubeconfig(&self, node: &str, file: &std::path::Path) {
        let mut command = Command::new(binary("seaway-server"));
        command.arg("kubeconfig").arg("--data-dir").arg(self.data()).arg("--out").arg(file);
        command.args(["--org", "system:nodes", "--server", "https://192.0.2.2:6443", "--cn"]);
        harness::run(command.arg(format!("system:node:{node}")), "").ok();
    }

    /// Asks as an administrator.
    pub fn ask<T: Send>(&self, ask: impl AsyncFnOnce(Client) -> T + Send) -> T {
        self.ask_as(&self.data().join("admin.kubeconfig"), ask)
    }

    /// Asks with these credentials.
    pub fn ask_as<T: Send>(
        &self,
        kubeconfig: &std::path::Path,
        ask: impl AsyncFnOnce(Client) -> T + Send,
    ) -> T {
        self.host.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let read = kube::config::Kubeconfig::read_from(kubeconfig).expect("the kubeconfig");
                let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await;
                ask(Client::try_from(config.expect("credentials")).expect("a client")).await
            })
        })
    }

    pub fn create<K>(&self, api: fn(Client) -> Api<K>, object: Value)
    where
        K: Resource + Clone + std::fmt::Debug + serde::Serialize + DeserializeOwned + Send + Sync,
    {
        let object: K = serde_json::from_value(object).expect("the object fits its type");
        let mut refusal = String::new();
        let create = || {
            let made = self.ask(async |client| api(client).create(&PostParams::default(), &object).await);
            made.map_err(|error| refusal = error.to_string()).ok()
        };
        // The default ServiceAccount and definitions are made by controllers.
        let made = attempts(create);
        assert!(made.is_some(), "the object is made: {refusal}");
    }

    /// Changes a part of an object, or of its status.
    pub fn patch<K>(&self, api: fn(Client) -> Api<K>, name: &str, change: Value)
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send,
    {
        self.ask(async |client| {
            let (api, settings) = (api(client), PatchParams::default());
            let patch = Patch::Merge(&change);
            let patched = if change.get("status").is_some() {
                api.patch_status(name, &settings, &patch).await
            } else {
                api.patch(name, &settings, &patch).await
            };
            patched.unwrap_or_else(|error| panic!("{name}: {error}"))
        });
    }

    pub fn names<K>(&self, api: fn(Client) -> Api<K>, labels: &str) -> BTreeSet<String>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let listed = self.ask(async |client| {
            let listed = api(client).list(&ListParams::default().labels(labels)).await.expect("a list");
            listed.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        });
        listed.into_iter().collect()
    }
}

fn run(host: &NetNs, folder: &TempDir, arguments: &[String]) -> Process {
    let mut command = Command::new(binary("seaway-server"));
    command.args(["all", "--bind", "192.0.2.2:6443", "--advertise-address", "192.0.2.2", "--data-dir"]);
    command.arg(folder.path().join("data")).args(arguments);
    Process::start(host, &mut command, &folder.path().join("log"))
}
