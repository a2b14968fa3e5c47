//! The ports where the node's health is asked for: kube-proxy's own, and one for each Service that wants it.
//!
//! One task opens and closes them as is wanted. A port that somebody else has is told once, by an Event of its Service,
//! and tried again until it is free or no longer wanted: nothing else depends on it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use proxy::{HealthCheck, ObjectName};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::health::{Family, Health};

const RETRY: Duration = Duration::from_secs(2);
/// After a refusal to accept, as when there is no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// For the next request on a connection, its headers included.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Over all ports: they are open to anybody who reaches the node.
const CONNECTIONS_MAX: usize = 256;
/// The least that hyper takes; requests here have no body.
const BUFFER_BYTES: usize = 8 << 10;
const BACKLOG: i32 = 128;

type Checks = Arc<BTreeMap<ObjectName, HealthCheck>>;

/// What a port is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Subject {
    Node,
    Service(ObjectName),
}

/// A port to be open on all of the node's addresses of a family.
type Key = (Subject, Family);

pub struct Config {
    pub node_name: String,
    /// Of the node itself; 0 for none.
    pub node_port: u16,
    /// The families that the node has, and the address to listen on in each.
    pub addresses: BTreeMap<Family, IpAddr>,
}

impl Config {
    /// All addresses that the node has in these families.
    pub fn new(node_name: String, node_port: u16, node_ips: &[IpAddr]) -> Config {
        let any = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => (Family::V4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (Family::V6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        Config { node_name, node_port, addresses: node_ips.iter().map(any).collect() }
    }
}

/// Where Events about ports go.
pub trait Report: Send + Sync + 'static {
    fn failed(&self, service: &ObjectName, message: String);
}

/// To the API server.
pub struct Events {
    recorder: Recorder,
}

impl Events {
    pub fn new(client: kube::Client, node_name: String) -> Events {
        let reporter = Reporter { controller: "seaway-agent".to_owned(), instance: Some(node_name) };
        Events { recorder: Recorder::new(client, reporter) }
    }
}

impl Report for Events {
    fn failed(&self, service: &ObjectName, message: String) {
        let recorder = self.recorder.clone();
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "FailedToStartServiceHealthcheck".to_owned(),
            note: Some(message),
            action: "Listen".to_owned(),
            secondary: None,
        };
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &about).await {
                tracing::warn!(%error, "writing an event about a health check");
            }
        });
    }
}

/// Keeps the wanted ports open until cancelled. Panics outside a tokio runtime.
pub fn start(
    config: Config,
    health: Arc<Health>,
    report: impl Report,
    checks: watch::Receiver<Checks>,
    cancel: CancellationToken,
) {
    let ports = Ports {
        config,
        health,
        report: Box::new(report),
        limit: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        open: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    tokio::spawn(ports.run(checks, cancel));
}

struct Ports {
    config: Config,
    health: Arc<Health>,
    report: Box<dyn Report>,
    limit: Arc<Semaphore>,
    open: BTreeMap<Key, Open>,
    /// Those that were told already.
    failed: BTreeMap<Key, u16>,
}

struct Open {
    port: u16,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Ports {
    async fn run(mut self, mut checks: watch::Receiver<Checks>, cancel: CancellationToken) {
        loop {
            let wanted = checks.borrow_and_update().clone();
            self.set(&wanted).await;
            let failing = !self.failed.is_empty();
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = checks.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if failing => {}
            }
        }
        self.close(|_, _| true).await;
    }

    async fn set(&mut self, checks: &BTreeMap<ObjectName, HealthCheck>) {
        let mut wanted: BTreeMap<Key, u16> = BTreeMap::new();
        let mut endpoints = BTreeMap::new();
        for family in self.config.addresses.keys().copied() {
            if self.config.node_port != 0 {
                wanted.insert((Subject::Node, family), self.config.node_port);
            }
            for (name, check) in checks {
                let count = match family {
                    Family::V4 => check.v4,
                    Family::V6 => check.v6,
                };
                if let Some(count) = count {
                    wanted.insert((Subject::Service(name.clone()), family), check.port);
                    endpoints.insert((name.clone(), family), count);
                }
            }
        }
        self.health.set_endpoints(endpoints);
        self.close(|key, open| wanted.get(key) != Some(&open.port)).await;
        self.failed.retain(|key, port| wanted.get(key) == Some(port));
        for (key, port) in wanted {
            if !self.open.contains_key(&key) {
                self.listen(key, port);
            }
        }
    }

    /// Closes those that are not wanted, so that their ports are free for others.
    async fn close(&mut self, is_unwanted: impl Fn(&Key, &Open) -> bool) {
        let unwanted = self.open.extract_if(.., |key, open| is_unwanted(key, open));
        for ((subject, _), open) in unwanted.collect::<Vec<_>>() {
            open.cancel.cancel();
            if let Err(error) = open.task.await {
                tracing::warn!(%error, ?subject, "a health check has ended");
            }
        }
    }

    fn listen(&mut self, key: Key, port: u16) {
        let (subject, family) = &key;
        let Some(ip) = self.config.addresses.get(family) else { return };
        let address = SocketAddr::new(*ip, port);
        match bind(address) {
            Ok(listener) => {
                let cancel = CancellationToken::new();
                let server = Server {
                    subject: subject.clone(),
                    family: *family,
                    health: self.health.clone(),
                    limit: self.limit.clone(),
                    cancel: cancel.clone(),
                };
                let task = tokio::spawn(server.run(listener));
                self.failed.remove(&key);
                self.open.insert(key, Open { port, cancel, task });
            }
            Err(error) => {
                if self.failed.insert(key.clone(), port) != Some(port) {
                    self.tell(&key.0, address, &error);
                }
            }
        }
    }

    fn tell(&self, subject: &Subject, address: SocketAddr, error: &io::Error) {
        let network = if address.is_ipv4() { "tcp4" } else { "tcp6" };
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => "address already in use".to_owned(),
            _ => error.to_string(),
        };
        let failure = format!("listen {network} {address}: bind: {reason}");
        match subject {
            Subject::Node => tracing::warn!(failure, "the node's /healthz is not answered; trying again"),
            Subject::Service(name) => {
                let message = format!(
                    "node {} failed to start healthcheck \"{}/{}\" on port {}: {failure}",
                    self.config.node_name,
                    name.namespace,
                    name.name,
                    address.port()
                );
                tracing::warn!("{message}; trying again");
                self.report.failed(name, message);
            }
        }
    }
}

/// IPv6 sockets take no IPv4, whose port may be somebody else's and whose answers differ.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A port that was closed a moment ago is free.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Answers on one port.
#[derive(Clone)]
struct Server {
    subject: Subject,
    family: Family,
    health: Arc<Health>,
    limit: Arc<Semaphore>,
    cancel: CancellationToken,
}

impl Server {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // One too many is closed at once.
                    let Ok(permit) = self.limit.clone().try_acquire_owned() else { continue };
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.serve(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting a question for health");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream) {
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(self.answer(request.uri().path()))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_MAX)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            // A client that went away is its own business.
            _ = connection => {}
            () = self.cancel.cancelled() => {}
        }
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        match &self.subject {
            Subject::Node => self.health.of_node(path, Instant::now(), Timestamp::now()),
            Subject::Service(name) => self.health.of_service(name, self.family, Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Report for Told {
        fn failed(&self, _service: &ObjectName, message: String) {
            self.0.lock().expect("the messages").push(message);
        }
    }

    struct Fixture {
        checks: watch::Sender<Checks>,
        health: Arc<Health>,
        told: Told,
        _cancel: tokio_util::sync::DropGuard,
    }

    /// On loopback only.
    fn fixture(node_port: u16) -> Fixture {
        let addresses = [
            (Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST)),
            (Family::V6, IpAddr::from(Ipv6Addr::LOCALHOST)),
        ];
        let config = Config { node_name: "node1".into(), node_port, addresses: addresses.into() };
        let (sender, checks) = watch::channel(Checks::default());
        let (told, cancel) = (Told::default(), CancellationToken::new());
        let health = Arc::new(Health::default());
        start(config, health.clone(), told.clone(), checks, cancel.clone());
        Fixture { checks: sender, health, told, _cancel: cancel.drop_guard() }
    }

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "default".into(), name: name.into() }
    }

    /// A port that is free on loopback in both families, as far as anybody can know.
    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("its address").port()
    }

    async fn get(ip: IpAddr, port: u16, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect((ip, port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn eventually(ip: IpAddr, port: u16, path: &str, start: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = get(ip, port, path).await;
            match &answer {
                Ok(text) if text.starts_with(start) => return text.clone(),
                _ => assert!(Instant::now() < deadline, "{ip} {port} {path}: {answer:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn each_family_of_a_service_is_answered_by_its_own_count() {
        let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        let (fixture, port) = (fixture(0), free_port());
        let check = HealthCheck { port, v4: Some(3), v6: Some(0) };
        fixture.checks.send_replace(Arc::new([(name("web"), check)].into()));
        let answer = eventually(v4, port, "/any", "HTTP/1.1 200 OK").await;
        assert!(answer.contains("x-load-balancing-endpoint-weight: 3\r\n"), "{answer}");
        let answer = eventually(v6, port, "/", "HTTP/1.1 503").await;
        assert!(answer.ends_with("\t\"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true\n}"), "{answer}");

        // Another Service takes the port over.
        let only_v4 = HealthCheck { port, v4: Some(1), v6: None };
        fixture.checks.send_replace(Arc::new([(name("other"), only_v4)].into()));
        let deadline = Instant::now() + DEADLINE;
        while !get(v4, port, "/").await.is_ok_and(|answer| answer.contains("\"other\"")) {
            assert!(Instant::now() < deadline, "the port still answers for the first Service");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = get(v6, port, "/").await.expect_err("nobody listens there");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(fixture.told.0.lock().expect("the messages").is_empty());
    }

    #[tokio::test]
    async fn a_port_that_somebody_else_has_is_told_once_and_taken_when_it_is_free() {
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = taken.local_addr().expect("its address").port();
        let fixture = fixture(0);
        let check = |count| HealthCheck { port, v4: Some(count), v6: None };
        let message = format!(
            "node node1 failed to start healthcheck \"default/web\" on port {port}: \
             listen tcp4 127.0.0.1:{port}: bind: address already in use"
        );
        for count in 1..4 {
            fixture.checks.send_replace(Arc::new([(name("web"), check(count))].into()));
            let deadline = Instant::now() + DEADLINE;
            let seen = || fixture.health.of_service(&name("web"), Family::V4, Instant::now());
            while seen().headers()["x-load-balancing-endpoint-weight"] != count.to_string() {
                assert!(Instant::now() < deadline, "change {count} is not seen");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(*fixture.told.0.lock().expect("the messages"), [message.as_str()]);
        }
        drop(taken);
        eventually(v4, port, "/", "HTTP/1.1 200 OK").await;
        assert_eq!(fixture.told.0.lock().expect("the messages").len(), 1);
    }

    #[tokio::test]
    async fn the_nodes_own_port_is_answered_in_both_families() {
        let port = free_port();
        let _fixture = fixture(port);
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            eventually(ip, port, "/livez", "HTTP/1.1 200 OK").await;
            // No Node object is known.
            eventually(ip, port, "/healthz", "HTTP/1.1 503").await;
            eventually(ip, port, "/", "HTTP/1.1 404").await;
        }
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_port() {
        let (fixture, port) = (fixture(0), free_port());
        let check = HealthCheck { port, v4: Some(1), v6: None };
        fixture.checks.send_replace(Arc::new([(name("web"), check)].into()));
        eventually(Ipv4Addr::LOCALHOST.into(), port, "/", "HTTP/1.1 200 OK").await;
        let mut idle = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("a connection");
        fixture.checks.send_replace(Checks::default());
        let read = tokio::time::timeout(DEADLINE, idle.read(&mut [0; 8])).await.expect("an end in time");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}
