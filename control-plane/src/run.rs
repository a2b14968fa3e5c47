//! The processes of the control plane, until SIGTERM or SIGINT.

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use apiserver::{Config, Identity, Server, Store, security::GROUP_MASTERS, server::listen};
use base64::Engine as _;
use controllers::service_account_tokens::{Holder, Issuer};
use controllers::{ADDRESS_REPAIR, Accounts};
use ipnetwork::IpNetwork;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    arguments::{ClientArguments, ServerArguments, StoreKind},
    memory,
};

const DEFAULT_BIND: &str = "0.0.0.0:6443";
const SCHEDULER: &str = "system:kube-scheduler";
const CONTROLLERS: &str = "system:kube-controller-manager";
/// Whom the API records the writes of all controllers under.
const CONTROLLERS_AGENT: &str = "kube-controller-manager";

/// Runs a process on a runtime of its own.
pub fn block_on(process: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(process)
}

/// A token that SIGTERM and SIGINT cancel; a second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopped = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if stopped.is_cancelled() {
                std::process::exit(1);
            }
            info!(signal = name, "stopping");
            stopped.cancel();
        }
    });
    Ok(stop)
}

/// The apiserver, with scheduler and controllers beside it where `with_all`.
pub async fn server(arguments: ServerArguments, with_all: bool) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let listeners = listeners(&arguments).await?;
    let config = config(&arguments, &listeners)?;
    let ca = config.data_dir.join("pki/ca.crt");
    info!(advertise = %config.address(), store = ?config.store, "starting");
    let server = Arc::new(Server::start(config, stop.clone()).await?);
    for listener in &listeners {
        let address = listener.local_addr()?;
        info!(%address, "ready");
        println!("ready: https://{address}");
    }
    tokio::spawn(memory::after_start(stop.clone()));
    let mut parts = JoinSet::new();
    if with_all {
        parts.spawn(scheduler::run(client(&server, SCHEDULER, &[]), stop.child_token()));
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let root_ca_pem = read(&ca)?;
        let config = controllers::Config {
            root_ca_pem,
            token_issuer: Some(token_issuer(Arc::clone(&server))),
            accounts: Some(accounts(Arc::clone(&server))),
            ca_key_pem: read(&ca.with_extension("key"))?,
            node_monitor_grace_period: Duration::from_secs(arguments.node_monitor_grace_period),
            block_grace: Duration::from_secs(arguments.block_grace_period),
            ..controllers::Config::default()
        };
        parts.spawn(controllers::run_with(client(&server, CONTROLLERS, &[]), config, stop.child_token()));
    }
    let ended = watch_parts(&mut parts, stop.clone());
    let ((), ended) = tokio::join!(server.serve(listeners), ended);
    info!("stopped");
    ended
}

fn client(server: &Server, user: &str, groups: &[&str]) -> kube::Client {
    kube::Client::new(server.service(Identity::internal(user, groups)), "default")
}

/// Each controller with no more than its own role.
fn accounts(server: Arc<Server>) -> Accounts {
    Accounts::new(move |account| {
        if account == ADDRESS_REPAIR {
            return client(&server, "system:apiserver", &[GROUP_MASTERS]);
        }
        let identity = Identity::service_account("kube-system", account, "");
        kube::Client::new(server.service(identity).called(CONTROLLERS_AGENT), "default")
    })
}

fn token_issuer(server: Arc<Server>) -> Issuer {
    Issuer::new(move |Holder { namespace, account, uid, secret }| {
        server.legacy_token(namespace, account, uid, secret).map_err(|error| format!("{error:#}"))
    })
}

/// Waits for the parts; one that ends before the stop takes the server with it, so that whoever watches the process
/// starts it anew.
async fn watch_parts(parts: &mut JoinSet<anyhow::Result<()>>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut first = Ok(());
    while let Some(ended) = parts.join_next().await {
        let result = ended.context("a part of the control plane panicked").and_then(|result| result);
        if !stop.is_cancelled() && first.is_ok() {
            first = result.and_then(|()| anyhow::bail!("a part of the control plane ended by itself"));
        }
        stop.cancel();
    }
    first
}

async fn listeners(arguments: &ServerArguments) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in &arguments.bind {
        listeners.push(listen::bind(*address).await?);
    }
    listeners.extend(listen::inherited()?);
    if listeners.is_empty() {
        listeners.push(listen::bind(DEFAULT_BIND.parse()?).await?);
    }
    Ok(listeners)
}

fn config(arguments: &ServerArguments, listeners: &[TcpListener]) -> anyhow::Result<Config> {
    let bound: Vec<SocketAddr> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    let first = bound[0];
    let advertise_address = match arguments.advertise_address {
        Some(address) => address,
        None => bound.iter().map(SocketAddr::ip).find(|ip| !ip.is_unspecified()).context(
            "--advertise-address is needed: only wildcard addresses are bound, so nodes would not know where to connect",
        )?,
    };
    let advertise_port =
        bound.iter().find(|address| address.ip() == advertise_address).unwrap_or(&first).port();
    let store = match arguments.store {
        StoreKind::Embedded => Store::Embedded,
        StoreKind::Etcd if arguments.etcd_endpoint.is_empty() => {
            anyhow::bail!("--store etcd needs at least one --etcd-endpoint URL")
        }
        StoreKind::Etcd => Store::Etcd { endpoints: arguments.etcd_endpoint.clone() },
    };
    Ok(Config {
        data_dir: arguments.data_dir.clone(),
        store,
        bind: bound,
        advertise_address,
        advertise_port,
        service_cidrs: families("--service-cidr", &arguments.service_cidrs)?,
        cluster_cidrs: families("--cluster-cidr", &arguments.cluster_cidrs)?,
        cluster_domain: arguments.cluster_domain.clone(),
        compaction_interval: Duration::from_secs(arguments.compaction_interval),
        sans: arguments.san.clone(),
        security: arguments.security.config()?,
    })
}

/// At most one range of each IP family.
fn families(flag: &str, ranges: &[IpNetwork]) -> anyhow::Result<Vec<IpNetwork>> {
    match ranges {
        [_] => {}
        [first, second] if first.is_ipv4() != second.is_ipv4() => {}
        [first, second] => {
            anyhow::bail!("{flag} {first},{second}: two ranges must be of different IP families")
        }
        _ => anyhow::bail!("{flag} takes one range, or one of each IP family, not {}", ranges.len()),
    }
    Ok(ranges.to_vec())
}

/// `name` is what the API records the client's writes under.
async fn remote_client(
    arguments: &ClientArguments,
    name: &'static str,
) -> anyhow::Result<(kube::Client, kube::config::Kubeconfig)> {
    let path = &arguments.kubeconfig;
    let named = || format!("cannot use the kubeconfig {}", path.display());
    let kubeconfig = kube::config::Kubeconfig::read_from(path).with_context(named)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &Default::default())
        .await
        .with_context(named)?;
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(name)));
    Ok((kube::Client::try_from(config).with_context(named)?, kubeconfig))
}

pub async fn scheduler(arguments: ClientArguments) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    scheduler::run(remote_client(&arguments, "kube-scheduler").await?.0, stop).await
}

pub async fn controllers(server: ServerArguments, arguments: ClientArguments) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let (client, kubeconfig) = remote_client(&arguments, CONTROLLERS_AGENT).await?;
    let config = controllers::Config {
        root_ca_pem: authority(&kubeconfig)
            .with_context(|| {
                format!("cannot read the CA of the kubeconfig {}", arguments.kubeconfig.display())
            })?
            .context("the kubeconfig names no CA, which pods would need to trust the API server")?,
        node_monitor_grace_period: Duration::from_secs(server.node_monitor_grace_period),
        block_grace: Duration::from_secs(server.block_grace_period),
        ..controllers::Config::default()
    };
    controllers::run_with(client, config, stop).await
}

/// The CA that the kubeconfig's current cluster is trusted by, in PEM: pods are given the same.
fn authority(kubeconfig: &kube::config::Kubeconfig) -> anyhow::Result<Option<String>> {
    let current = kubeconfig.current_context.as_deref().unwrap_or_default();
    let context = kubeconfig.contexts.iter().find(|context| context.name == current);
    let name = context.and_then(|context| context.context.as_ref()).map(|context| context.cluster.as_str());
    let cluster = kubeconfig.clusters.iter().find(|cluster| Some(cluster.name.as_str()) == name);
    let Some(cluster) = cluster.and_then(|cluster| cluster.cluster.as_ref()) else { return Ok(None) };
    if let Some(data) = &cluster.certificate_authority_data {
        let pem =
            base64::engine::general_purpose::STANDARD.decode(data).context("certificate-authority-data")?;
        return Ok(Some(String::from_utf8(pem).context("certificate-authority-data")?));
    }
    let Some(file) = &cluster.certificate_authority else { return Ok(None) };
    std::fs::read_to_string(file).with_context(|| format!("reading {file}")).map(Some)
}
