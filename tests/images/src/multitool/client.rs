//! One exchange each over HTTP, TCP and UDP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::names;

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses of HOST:PORT, where HOST may be a name that the pod's resolv.conf completes.
pub(crate) async fn resolve(address: &str) -> Result<Vec<SocketAddr>> {
    let (host, port) = address.rsplit_once(':').with_context(|| format!("{address} is not HOST:PORT"))?;
    let port: u16 = port.parse().with_context(|| format!("port of {address}"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<IpAddr> = match host.parse() {
        Ok(address) => vec![address],
        Err(_) => names::addresses(host).await?,
    };
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// One GET over a connection of its own; returns status and body.
pub(crate) async fn request(address: SocketAddr, uri: &Uri) -> Result<(u16, Bytes)> {
    let stream = TcpStream::connect(address).await.context("connecting")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .context("handshake")?;
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header("host", uri.authority().map_or("", |authority| authority.as_str()))
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .context("building the request")?;
    let exchange = async {
        let response = sender.send_request(request).await.context("sending")?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.context("receiving")?.to_bytes();
        Ok((status, body))
    };
    let (result, _) = tokio::join!(exchange, connection);
    result
}

/// HOST:PORT of an http URL.
pub(crate) fn authority(uri: &Uri) -> Result<String> {
    let host = uri.host().context("the URL has no host")?;
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(80)))
}

pub(crate) async fn get(url: &str) -> Result<()> {
    let uri: Uri = url.parse().with_context(|| format!("URL {url}"))?;
    let addresses = resolve(&authority(&uri)?).await?;
    let address = *addresses.first().context("the name has no address")?;
    let (status, body) = timeout(PATIENCE, request(address, &uri)).await.context("no answer in 5 s")??;
    print!("{}", String::from_utf8_lossy(&body));
    if status >= 400 {
        bail!("{url} answered {status}");
    }
    Ok(())
}

pub(crate) async fn tcp(address: &str, line: &str) -> Result<()> {
    let address = *resolve(address).await?.first().context("the name has no address")?;
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.context("connecting")?;
        println!("peer {}", stream.peer_addr().context("getpeername")?);
        stream.write_all(format!("{line}\n").as_bytes()).await.context("sending")?;
        stream.shutdown().await.context("shutting down")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.context("receiving")?;
        print!("{text}");
        Ok(())
    };
    timeout(PATIENCE, exchange).await.context("no answer in 5 s")?
}

/// Fails where the socket is not ended in time.
pub(crate) async fn hold(address: &str) -> Result<()> {
    const HELD_MAX: Duration = Duration::from_secs(120);
    let address = *resolve(address).await?.first().context("the name has no address")?;
    let local: SocketAddr = if address.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(local).await.context("binding")?;
    socket.connect(address).await.context("connecting")?;
    let mut buffer = vec![0; 64 * 1024];
    let exchange = async {
        socket.send(b"hold").await.context("sending")?;
        socket.recv(&mut buffer).await.context("receiving")
    };
    let length = timeout(PATIENCE, exchange).await.context("no answer in 5 s")??;
    println!("holding {}", String::from_utf8_lossy(&buffer[..length]));
    match timeout(HELD_MAX, socket.recv(&mut buffer)).await.context("the socket was not ended")? {
        Ok(length) => bail!("{length} octets that nobody asked for"),
        Err(error) => println!("ended: {:?}", error.kind()),
    }
    Ok(())
}

pub(crate) async fn udp(address: &str, text: &str, unconnected: bool) -> Result<()> {
    let address = *resolve(address).await?.first().context("the name has no address")?;
    let local: SocketAddr = if address.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(local).await.context("binding")?;
    let mut buffer = vec![0; 64 * 1024];
    let exchange = async {
        if unconnected {
            socket.send_to(text.as_bytes(), address).await.context("sending")?;
        } else {
            socket.connect(address).await.context("connecting")?;
            println!("peer {}", socket.peer_addr().context("getpeername")?);
            socket.send(text.as_bytes()).await.context("sending")?;
        }
        socket.recv_from(&mut buffer).await.context("receiving")
    };
    let (length, from) = timeout(PATIENCE, exchange).await.context("no answer in 5 s")??;
    println!("from {from}");
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
