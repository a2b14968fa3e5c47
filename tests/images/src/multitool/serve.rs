//! Servers: HTTP answers a JSON object, TCP a first line with the pod's name and then an echo, UDP name and echo.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Args)]
pub(crate) struct Arguments {
    /// HTTP port
    #[arg(long, default_value_t = 8080)]
    http: u16,
    /// TCP port
    #[arg(long, default_value_t = 8081)]
    tcp: u16,
    /// UDP port
    #[arg(long, default_value_t = 8082)]
    udp: u16,
}

/// The pod's name, which is its host name.
fn pod() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned()))
        .unwrap_or_default()
}

pub(crate) async fn serve(arguments: Arguments) -> Result<()> {
    let http = listen(arguments.http).await?;
    let tcp = listen(arguments.tcp).await?;
    let udp = UdpSocket::bind(("::", arguments.udp))
        .await
        .with_context(|| format!("UDP port {}", arguments.udp))?;
    println!("serving as {}", pod());
    tokio::select! {
        result = serve_http(http) => result,
        result = serve_tcp(tcp) => result,
        result = serve_udp(udp) => result,
        result = until_term() => result,
    }
}

async fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind(("::", port)).await.with_context(|| format!("TCP port {port}"))
}

pub(crate) async fn until_term() -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn serve_http(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, client) = listener.accept().await.context("accepting")?;
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(request, client));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            // A client that goes away is no error of the server's.
            let _ = connection.await;
        });
    }
}

async fn answer(request: Request<Incoming>, client: SocketAddr) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let status = match path.strip_prefix("/status/") {
        Some(code) => code.parse().unwrap_or(StatusCode::BAD_REQUEST),
        None => StatusCode::OK,
    };
    if path == "/exit" {
        std::process::exit(1);
    }
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let body = serde_json::json!({
        "pod": pod(),
        "node": std::env::var("NODE_NAME").unwrap_or_default(),
        "client": client.ip().to_canonical().to_string(),
        "method": request.method().as_str(),
        "path": path,
        "host": host,
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    Ok(response)
}

async fn serve_tcp(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await.context("accepting")?;
        tokio::spawn(async move {
            if stream.write_all(format!("{}\n", pod()).as_bytes()).await.is_err() {
                return;
            }
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn serve_udp(socket: UdpSocket) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.context("receiving")?;
        let text = format!("{}: {}", pod(), String::from_utf8_lossy(&buffer[..length]));
        // A client that is gone answers with ICMP; the next receive would report it.
        let _ = socket.send_to(text.as_bytes(), client).await;
    }
}
