//! The agent's side of the CNI contract, on a unix socket.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cni::v1::{
    AddRequest, AddResponse, Address, Attachment, CheckRequest, CheckResponse, DelRequest, DelResponse,
    GcRequest, GcResponse, PortMapping, StatusRequest, StatusResponse,
};
use dataplane::links;
use ipam::{HostPort, Want};
use ipnetwork::IpNetwork;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::network::{AddError, Attached, Network};
use crate::wishes::{self, Wishes};

/// The newest version that containerd 1.6 takes; our plugin's results fit all.
const CONFLIST_VERSION: &str = "1.0.0";
pub const CONFLIST_NAME: &str = "10-seaway.conflist";

/// How long an ADD waits for an address that was asked for. The kubelet tries again.
const ADDRESS_WAIT: Duration = Duration::from_secs(3);

pub struct Server {
    network: Arc<Network>,
    wishes: Arc<Wishes>,
    /// Why pods cannot be served now; empty when they can.
    not_ready: watch::Receiver<String>,
    addresses_taken: Arc<Notify>,
}

impl Server {
    pub fn new(
        network: Arc<Network>,
        wishes: Arc<Wishes>,
        not_ready: watch::Receiver<String>,
        addresses_taken: Arc<Notify>,
    ) -> Server {
        Server { network, wishes, not_ready, addresses_taken }
    }

    /// Wires a pod up, waiting a while for an address that may come.
    async fn attach(
        &self,
        request: ipam::Request,
        wants: Vec<Want>,
        netns: File,
    ) -> Result<Attached, Status> {
        let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
        let (request, netns) = (Arc::new((request, wants)), Arc::new(netns));
        let came = self.network.addresses_came();
        let until = tokio::time::Instant::now() + ADDRESS_WAIT;
        loop {
            let mut coming = std::pin::pin!(came.notified());
            coming.as_mut().enable();
            let (network, request, netns) = (self.network.clone(), request.clone(), netns.clone());
            let attached = blocking(move || Ok(network.add(&request.0, &request.1, &netns))).await?;
            self.addresses_taken.notify_one();
            match attached {
                Ok(attached) => return Ok(attached),
                Err(AddError::NoAddress { message, is_asked_for }) => {
                    if !is_asked_for || tokio::time::timeout_at(until, coming).await.is_err() {
                        return Err(Status::resource_exhausted(message));
                    }
                }
                Err(AddError::Failed(error)) => {
                    tracing::warn!(pod, "ADD: {error:#}");
                    return Err(Status::internal(format!("{error:#}")));
                }
            }
        }
    }

    /// Binds the socket, so that who connects from now on waits instead of failing, and serves until cancelled.
    pub fn start(self, socket: &Path, cancel: CancellationToken) -> anyhow::Result<()> {
        let listener = bind(socket)?;
        tokio::spawn(async move {
            let service = cni::v1::cni_server::CniServer::new(self);
            let served = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.cancelled_owned())
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the CNI socket failed");
            }
        });
        Ok(())
    }
}

/// Binds a unix socket that only root may use, over one that an earlier process left.
pub fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    let doing = || format!("listening on {}", socket.display());
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(doing),
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(doing)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).with_context(doing)?;
    Ok(listener)
}

/// Tells the runtime that pods can be served: its sign is this file.
pub fn write_conflist(folder: &Path, socket: &Path) -> anyhow::Result<()> {
    let conflist = serde_json::json!({
        "cniVersion": CONFLIST_VERSION,
        "name": "seaway",
        "plugins": [{
            "type": cni::PLUGIN_TYPE,
            "socket": socket,
            "capabilities": { "portMappings": true },
        }],
    });
    let path = folder.join(CONFLIST_NAME);
    let text = format!("{conflist:#}\n");
    if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    crate::persist::write_text(&path, text.as_bytes())
}

#[tonic::async_trait]
impl cni::v1::cni_server::Cni for Server {
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddResponse>, Status> {
        let request = request.into_inner();
        let attachment = attachment(request.attachment)?;
        let netns = open_netns(&request.netns)?;
        let host_ports = request.port_mappings.iter().map(host_port).collect::<Result<Vec<_>, Status>>()?;
        let pod_uid = request.pod_uid;
        let request = ipam::Request {
            container_id: attachment.container_id,
            interface: attachment.interface,
            pod_namespace: request.pod_namespace,
            pod_name: request.pod_name,
            host_ports: host_ports.into_iter().flatten().collect(),
        };
        let started = std::time::Instant::now();
        let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
        let (facts, of_namespace) = self.wishes.of(&request.pod_namespace, &request.pod_name, &pod_uid).await;
        let wants = wishes::wants(&self.network.supply(), &facts, &of_namespace).map_err(|problem| {
            tracing::warn!(pod, "ADD: {problem}");
            Status::failed_precondition(problem)
        })?;
        let attached = self.attach(request, wants, netns).await?;
        let microseconds = started.elapsed().as_micros();
        tracing::info!(pod, addresses = ?attached.addresses, link = attached.host_interface, microseconds, "pod added");
        Ok(Response::new(response(&attached)))
    }

    async fn del(&self, request: Request<DelRequest>) -> Result<Response<DelResponse>, Status> {
        let attachment = attachment(request.into_inner().attachment)?;
        let network = self.network.clone();
        blocking(move || network.delete(&attachment.container_id, &attachment.interface)).await?;
        self.addresses_taken.notify_one();
        Ok(Response::new(DelResponse {}))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let attachment = attachment(request.attachment)?;
        let addresses = request
            .addresses
            .iter()
            .map(|text| {
                let network = text.parse::<IpNetwork>().map(|network| network.ip());
                network.map_err(|error| Status::invalid_argument(format!("address {text:?}: {error}")))
            })
            .collect::<Result<Vec<IpAddr>, Status>>()?;
        let network = self.network.clone();
        let checked =
            blocking(move || Ok(network.check(&attachment.container_id, &attachment.interface, &addresses)));
        match checked.await? {
            Ok(()) => Ok(Response::new(CheckResponse {})),
            Err(error) => Err(Status::failed_precondition(format!("{error:#}"))),
        }
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let reason = self.not_ready.borrow().clone();
        if !reason.is_empty() {
            return Err(Status::unavailable(reason));
        }
        if !self.network.has_addresses() {
            return Err(Status::unavailable("no address is free on this node"));
        }
        Ok(Response::new(StatusResponse {}))
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        let valid: BTreeSet<(String, String)> =
            request.into_inner().valid.into_iter().map(|a| (a.container_id, a.interface)).collect();
        let network = self.network.clone();
        blocking(move || network.collect(&valid)).await?;
        self.addresses_taken.notify_one();
        Ok(Response::new(GcResponse {}))
    }
}

fn attachment(attachment: Option<Attachment>) -> Result<Attachment, Status> {
    match attachment {
        Some(attachment) if !attachment.container_id.is_empty() && !attachment.interface.is_empty() => {
            Ok(attachment)
        }
        _ => Err(Status::invalid_argument("container id and interface are required")),
    }
}

/// `None` for a protocol that is not balanced.
fn host_port(mapping: &PortMapping) -> Result<Option<HostPort>, Status> {
    let port = |number: u32| {
        let number = u16::try_from(number).ok().filter(|number| *number != 0);
        number.ok_or_else(|| Status::invalid_argument("a port is from 1 to 65535"))
    };
    let protocol = match mapping.protocol.as_str() {
        "tcp" => ebpf_common::Protocol::TCP,
        "udp" => ebpf_common::Protocol::UDP,
        protocol => {
            tracing::warn!(
                protocol,
                port = mapping.host_port,
                "no port of the node can lead to this protocol"
            );
            return Ok(None);
        }
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => {
            let parsed = text.parse::<IpAddr>();
            Some(parsed.map_err(|_| Status::invalid_argument(format!("host IP {text:?} is no address")))?)
        }
    };
    Ok(Some(HostPort {
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        host_port: port(mapping.host_port)?,
        container_port: port(mapping.container_port)?,
        protocol: protocol.0,
    }))
}

fn open_netns(path: &str) -> Result<File, Status> {
    File::open(path).map_err(|error| {
        Status::invalid_argument(format!("opening the pod's network namespace {path}: {error}"))
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::warn!("CNI: {error:#}");
            Err(Status::internal(format!("{error:#}")))
        }
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

fn response(attached: &Attached) -> AddResponse {
    let mac = |octets: [u8; 6]| octets.map(|octet| format!("{octet:02x}")).join(":");
    let address = |address: &IpAddr| Address {
        address: IpNetwork::from(*address).to_string(),
        gateway: match address {
            IpAddr::V4(_) => links::GATEWAY_V4.to_string(),
            IpAddr::V6(_) => links::GATEWAY_V6.to_string(),
        },
    };
    AddResponse {
        host_interface: attached.host_interface.clone(),
        host_mac: mac(links::HOST_MAC),
        pod_mac: mac(attached.link.pod_mac),
        mtu: attached.mtu,
        addresses: attached.addresses.iter().map(address).collect(),
    }
}
