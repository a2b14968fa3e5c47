//! `/portForward`: connections to ports of a pod, made inside its network namespace, over SPDY streams.
//!
//! For each connection the client opens two streams with the same `requestid`: `error`, then `data`. SPDY comes either
//! as it is or, from newer clients, in the messages of a WebSocket.

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::upgrade::{self, Tunnel, Wanted};
use super::{Answer, Refusal, State};
use crate::pod;
use crate::spdy::{self, Mux, Side, Stream};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const DIAL_LIMIT: Duration = Duration::from_secs(30);

pub async fn serve(state: Arc<State>, mut request: Request<Incoming>, pod: &Pod) -> Answer {
    let wanted = upgrade::wanted(request.headers())?;
    let target = target(&state, pod).await?;
    let accepted = match wanted {
        Wanted::WebSocket => upgrade::websocket(&mut request, &[TUNNEL_PROTOCOL])?,
        Wanted::Spdy => upgrade::spdy(&mut request, &[PROTOCOL])?,
    };
    if wanted == Wanted::WebSocket && accepted.protocol.is_none() {
        return Err(Refusal::bad_request(format!("the WebSocket protocol {TUNNEL_PROTOCOL} is required")));
    }
    let (response, pending) = accepted.into_parts();
    tokio::spawn(async move {
        let mux = match wanted {
            Wanted::WebSocket => {
                pending.websocket().await.map(|socket| Mux::start(Side::Server, Tunnel::new(socket)))
            }
            Wanted::Spdy => pending.raw().await.map(|raw| Mux::start(Side::Server, raw)),
        };
        match mux {
            Ok(mux) => forward_all(mux, Arc::new(target)).await,
            Err(error) => tracing::debug!(%error, "port-forward not begun"),
        }
    });
    Ok(response)
}

/// The pod's network namespace, and words for messages.
struct Target {
    namespace: File,
    name: String,
}

async fn target(state: &State, pod: &Pod) -> Result<Target, Refusal> {
    let runtime = &state.context.runtime;
    let sandboxes = runtime.list_pod_sandboxes(Some(pod::uid(pod))).await.map_err(Refusal::internal)?;
    let ready = k8s_cri::v1::PodSandboxState::SandboxReady as i32;
    let sandbox = sandboxes.into_iter().filter(|sandbox| sandbox.state == ready).max_by_key(|s| s.created_at);
    let sandbox = sandbox.ok_or_else(|| {
        Refusal::bad_request(format!("unable to do port forwarding: pod {} is not running", pod::name(pod)))
    })?;
    let status = runtime.pod_sandbox_status(&sandbox.id, true).await.map_err(Refusal::internal)?;
    let info = status.info.get("info").map(String::as_str).unwrap_or_default();
    let info: serde_json::Value = serde_json::from_str(info).unwrap_or_default();
    let pid = info["pid"].as_u64().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| Refusal::internal("the runtime does not tell the sandbox's process"))?;
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(|error| Refusal::internal(format!("{path}: {error}")))?;
    Ok(Target { namespace, name: pod::display(pod) })
}

async fn forward_all(mut mux: Mux, target: Arc<Target>) {
    let mut errors: HashMap<String, Stream> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = mux.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { break };
        let id = incoming.header("requestid").unwrap_or_default().to_owned();
        let port = incoming.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
        match incoming.header("streamtype") {
            Some("error") => drop(errors.insert(id, incoming.stream)),
            Some("data") => {
                let error = errors.remove(&id);
                connections.spawn(forward_one(target.clone(), port, incoming.stream, error));
            }
            _ => {}
        }
    }
    connections.shutdown().await;
}

async fn forward_one(target: Arc<Target>, port: Option<u16>, data: Stream, error: Option<Stream>) {
    let result = match port {
        Some(port) => dial(target.clone(), port)
            .await
            .map_err(|error| format!("error forwarding port {port} to pod {}: {error}", target.name)),
        None => Err("missing or invalid \"port\" header".to_owned()),
    };
    match result {
        Ok(stream) => copy(stream, data).await,
        Err(message) => {
            if let Some(error) = &error {
                error.writer.write(message.as_bytes()).await;
            }
        }
    }
}

/// Connects to `localhost:port` as a process of the pod would.
async fn dial(target: Arc<Target>, port: u16) -> std::io::Result<TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own: it never comes back from the pod's namespace.
    std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        let connect = || -> std::io::Result<std::net::TcpStream> {
            nix::sched::setns(&target.namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let to =
                |ip: IpAddr| std::net::TcpStream::connect_timeout(&SocketAddr::from((ip, port)), DIAL_LIMIT);
            to(Ipv4Addr::LOCALHOST.into()).or_else(|first| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
        };
        let _ = sender.send(connect());
    })?;
    let stream = receiver.await.map_err(std::io::Error::other)??;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream)
}

async fn copy(stream: TcpStream, data: Stream) {
    let spdy::Stream { mut reader, writer } = data;
    let (mut from_pod, mut to_pod) = stream.into_split();
    let out = async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count) = from_pod.read(&mut buffer).await {
            if count == 0 || !writer.write(&buffer[..count]).await {
                return;
            }
        }
    };
    let input = async move {
        while let Some(bytes) = reader.read().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    tokio::join!(out, input);
}
