//! The agent's side of the CNI contract, on a unix socket.
//!
//! A call is served by one thread from its request to its answer: what it does is system calls, one after another.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use cni::call::{self, AddRequest, Added, Address, Answer, Attachment, PortMapping, Reason, Request};
use dataplane::links;
use ipam::HostPort;
use ipnetwork::IpNetwork;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::network::{AddError, Attached, Network};
use crate::wishes::{self, Wishes};

/// The newest version that containerd 1.6 takes; our plugin's results fit all.
const CONFLIST_VERSION: &str = "1.0.0";
pub const CONFLIST_NAME: &str = "10-seaway.conflist";

/// How long an ADD waits for an address that was asked for. The kubelet tries again.
const ADDRESS_WAIT: Duration = Duration::from_secs(3);

/// How long a plugin may take to say what it wants, and to take the answer.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait where no connection can be taken, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct Server {
    network: Arc<Network>,
    wishes: Arc<Wishes>,
    /// Why pods cannot be served now; empty when they can.
    not_ready: watch::Receiver<String>,
    addresses_taken: Arc<Notify>,
}

/// Why a call is refused.
struct Refusal {
    reason: Reason,
    message: String,
}

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into() }
    }

    fn failed(error: &anyhow::Error) -> Refusal {
        tracing::warn!("CNI: {error:#}");
        Refusal::new(Reason::Failed, format!("{error:#}"))
    }
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

    /// Binds the socket, so that who connects from now on waits instead of failing, and serves until cancelled.
    pub fn start(self, socket: &Path, cancel: CancellationToken) -> anyhow::Result<()> {
        let listener = bind(socket)?;
        let server = Arc::new(self);
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            loop {
                match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
                    Ok(stream) => {
                        let server = server.clone();
                        tokio::task::spawn_blocking(move || server.serve(stream));
                    }
                    Err(error) => {
                        tracing::error!(%error, "the CNI socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }));
        Ok(())
    }

    fn serve(&self, mut stream: UnixStream) {
        let asked = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(MESSAGE_TIMEOUT)))
            .and_then(|()| stream.set_write_timeout(Some(MESSAGE_TIMEOUT)))
            .and_then(|()| call::accept(&mut stream));
        let answered = asked.and_then(|(request, netns)| {
            let refused = |Refusal { reason, message }| Answer::Refused { reason, message };
            let answer = self.call(request, netns).unwrap_or_else(refused);
            call::answer(&mut stream, &answer)?;
            if let Answer::Added(added) = answer {
                let of_pod = |address: &Address| address.address.parse().ok().map(|it: IpNetwork| it.ip());
                let addresses: Vec<IpAddr> = added.addresses.iter().filter_map(of_pod).collect();
                self.network.reach().added(&addresses, Instant::now());
            }
            Ok(())
        });
        if let Err(error) = answered {
            tracing::warn!(%error, "a call over the CNI socket");
        }
    }

    fn call(&self, request: Request, netns: Option<File>) -> Result<Answer, Refusal> {
        match request {
            Request::Add(request) => {
                let missing =
                    || Refusal::new(Reason::InvalidArgument, "the pod's network namespace is missing");
                self.add(request, netns.ok_or_else(missing)?).map(Answer::Added)
            }
            Request::Del(attachment) => {
                let Attachment { container_id, interface } = complete(attachment)?;
                let deleted = self.network.delete(&container_id, &interface);
                deleted.map_err(|error| Refusal::failed(&error))?;
                self.addresses_taken.notify_one();
                Ok(Answer::Done)
            }
            Request::Check { attachment, addresses } => self.check(attachment, &addresses),
            Request::Status => self.status(),
            Request::Gc { valid } => {
                let valid: BTreeSet<(String, String)> =
                    valid.into_iter().map(|a| (a.container_id, a.interface)).collect();
                self.network.collect(&valid).map_err(|error| Refusal::failed(&error))?;
                self.addresses_taken.notify_one();
                Ok(Answer::Done)
            }
        }
    }

    fn add(&self, request: AddRequest, netns: File) -> Result<Added, Refusal> {
        let attachment = complete(request.attachment)?;
        let host_ports = request.port_mappings.iter().map(host_port).collect::<Result<Vec<_>, Refusal>>()?;
        let pod_uid = request.pod_uid;
        let request = ipam::Request {
            container_id: attachment.container_id,
            interface: attachment.interface,
            pod_namespace: request.pod_namespace,
            pod_name: request.pod_name,
            host_ports: host_ports.into_iter().flatten().collect(),
        };
        let started = Instant::now();
        let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
        let of_pod = self.wishes.of(&request.pod_namespace, &request.pod_name, &pod_uid);
        let (facts, of_namespace) = tokio::runtime::Handle::current().block_on(of_pod);
        let wants = wishes::wants(&self.network.supply(), &facts, &of_namespace).map_err(|problem| {
            tracing::warn!(pod, "ADD: {problem}");
            Refusal::new(Reason::NotAsItShouldBe, problem)
        })?;
        let policies = self.network.policies();
        let is_isolated = policies.await_pod(&request.pod_namespace, &request.pod_name, &pod_uid);
        tokio::runtime::Handle::current().block_on(is_isolated).map_err(|obstacle| {
            tracing::warn!(pod, "ADD: {obstacle}");
            Refusal::new(Reason::Unavailable, obstacle)
        })?;
        let attached = self.attach(&request, &wants, &netns)?;
        self.network.reach().await_routes(&attached.addresses);
        let microseconds = started.elapsed().as_micros();
        tracing::info!(pod, addresses = ?attached.addresses, link = attached.host_interface, microseconds, "pod added");
        Ok(added(&attached))
    }

    /// Wires a pod up, waiting a while for an address that may come.
    fn attach(
        &self,
        request: &ipam::Request,
        wants: &[ipam::Want],
        netns: &File,
    ) -> Result<Attached, Refusal> {
        let came = self.network.addresses_came();
        let until = tokio::time::Instant::now() + ADDRESS_WAIT;
        let mut has_waited = false;
        loop {
            let mut coming = std::pin::pin!(came.notified());
            coming.as_mut().enable();
            let attached = self.network.add(request, wants, netns);
            self.addresses_taken.notify_one();
            match attached {
                Ok(attached) => return Ok(attached),
                Err(AddError::NoAddress { message, is_asked_for }) => {
                    let wait = async { tokio::time::timeout_at(until, coming).await };
                    if is_asked_for && !std::mem::replace(&mut has_waited, true) {
                        self.network.reach().waited();
                    }
                    if !is_asked_for || tokio::runtime::Handle::current().block_on(wait).is_err() {
                        return Err(Refusal::new(Reason::NoAddress, message));
                    }
                }
                Err(AddError::Failed(error)) => {
                    let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
                    tracing::warn!(pod, "ADD: {error:#}");
                    return Err(Refusal::new(Reason::Failed, format!("{error:#}")));
                }
            }
        }
    }

    fn check(&self, attachment: Attachment, addresses: &[String]) -> Result<Answer, Refusal> {
        let Attachment { container_id, interface } = complete(attachment)?;
        let parse = |text: &String| {
            let network = text.parse::<IpNetwork>().map(|network| network.ip());
            let wrong = |error| Refusal::new(Reason::InvalidArgument, format!("address {text:?}: {error}"));
            network.map_err(wrong)
        };
        let addresses = addresses.iter().map(parse).collect::<Result<Vec<IpAddr>, Refusal>>()?;
        match self.network.check(&container_id, &interface, &addresses) {
            Ok(()) => Ok(Answer::Done),
            Err(error) => Err(Refusal::new(Reason::NotAsItShouldBe, format!("{error:#}"))),
        }
    }

    fn status(&self) -> Result<Answer, Refusal> {
        let reason = self.not_ready.borrow().clone();
        if !reason.is_empty() {
            return Err(Refusal::new(Reason::Unavailable, reason));
        }
        if !self.network.has_addresses() {
            return Err(Refusal::new(Reason::Unavailable, "no address is free on this node"));
        }
        Ok(Answer::Done)
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

fn complete(attachment: Attachment) -> Result<Attachment, Refusal> {
    if attachment.container_id.is_empty() || attachment.interface.is_empty() {
        return Err(Refusal::new(Reason::InvalidArgument, "container id and interface are required"));
    }
    Ok(attachment)
}

/// `None` for a protocol that is not balanced.
fn host_port(mapping: &PortMapping) -> Result<Option<HostPort>, Refusal> {
    let invalid = |message: String| Refusal::new(Reason::InvalidArgument, message);
    if mapping.host_port == 0 || mapping.container_port == 0 {
        return Err(invalid("a port is from 1 to 65535".to_owned()));
    }
    let protocol = match mapping.protocol.as_str() {
        "tcp" => ebpf_common::Protocol::TCP,
        "udp" => ebpf_common::Protocol::UDP,
        "sctp" => ebpf_common::Protocol::SCTP,
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
            Some(parsed.map_err(|_| invalid(format!("host IP {text:?} is no address")))?)
        }
    };
    Ok(Some(HostPort {
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        protocol: protocol.0,
    }))
}

fn added(attached: &Attached) -> Added {
    let mac = |octets: [u8; 6]| octets.map(|octet| format!("{octet:02x}")).join(":");
    let address = |address: &IpAddr| Address {
        address: IpNetwork::from(*address).to_string(),
        gateway: match address {
            IpAddr::V4(_) => links::GATEWAY_V4.to_string(),
            IpAddr::V6(_) => links::GATEWAY_V6.to_string(),
        },
    };
    Added {
        host_interface: attached.host_interface.clone(),
        host_mac: mac(links::HOST_MAC),
        pod_mac: mac(attached.link.pod_mac),
        mtu: attached.mtu,
        addresses: attached.addresses.iter().map(address).collect(),
    }
}
