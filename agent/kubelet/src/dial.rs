//! HTTP, TCP and gRPC health requests to containers, for probes and lifecycle hooks. No proxy, no certificate check:
//! the target is an address of a pod of this node, and the question is only whether it answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const REDIRECTS_MAX: usize = 10;

/// What an HTTP server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
}

/// The number behind a port that may be a name of the container's port list.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            match container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name)) {
                Some(found) => found.container_port,
                None => name
                    .parse()
                    .map_err(|_| format!("couldn't find port: {name} in container {}", container.name))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Connects and closes again.
pub async fn tcp(host: &str, port: u16, limit: Duration) -> Result<(), String> {
    let connect = TcpStream::connect((host, port));
    match tokio::time::timeout(limit, connect).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("dial tcp {}: connect: {error}", authority(host, port))),
        Err(_) => Err(format!("dial tcp {}: i/o timeout", authority(host, port))),
    }
}

fn authority(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(ip)) => SocketAddr::from((ip, port)).to_string(),
        _ => format!("{host}:{port}"),
    }
}

/// Sends the GET of a probe or hook. `pod_ip` is dialled unless the action names a host.
pub async fn http_get(
    container: &Container,
    action: &HTTPGetAction,
    pod_ip: &str,
    agent: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
    let number = port(container, &action.port)?;
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{scheme}://{}{path}", authority(host, number));
    let work = async {
        let mut uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        for _ in 0..REDIRECTS_MAX {
            let (answer, location) = get_once(&uri, action, agent).await?;
            match location.and_then(|location| same_host(&uri, &location)) {
                Some(next) if (300..400).contains(&answer.status) => uri = next,
                _ => return Ok(answer),
            }
        }
        Err(format!("stopped after {REDIRECTS_MAX} redirects"))
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(|why| format!("Get \"{url}\": {why}")),
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// A redirect is followed only on the same host; any other counts as an answer.
fn same_host(from: &Uri, location: &str) -> Option<Uri> {
    let to: Uri = if location.starts_with('/') {
        format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok()?
    } else {
        location.parse().ok()?
    };
    (to.host() == from.host()).then_some(to)
}

async fn get_once(
    uri: &Uri,
    action: &HTTPGetAction,
    agent: &str,
) -> Result<(Answer, Option<String>), String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let tls = uri.scheme_str() == Some("https");
    let number = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), number)).await;
    let stream =
        stream.map_err(|error| format!("dial tcp {}: connect: {error}", authority(&host, number)))?;
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()));
    let mut given = (false, false, false);
    for header in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(header.name.as_str()).map_err(|error| error.to_string())?;
        let value = HeaderValue::try_from(header.value.as_str()).map_err(|error| error.to_string())?;
        given.0 |= name == http::header::HOST;
        given.1 |= name == http::header::USER_AGENT;
        given.2 |= name == http::header::ACCEPT;
        request = request.header(name, value);
    }
    if !given.0 {
        request = request.header(http::header::HOST, uri.authority().map_or("", |a| a.as_str()));
    }
    if !given.1 {
        request = request.header(http::header::USER_AGENT, agent);
    }
    if !given.2 {
        request = request.header(http::header::ACCEPT, "*/*");
    }
    let request = request.header(http::header::CONNECTION, "close").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    if tls {
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let stream = connector().connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(Answer, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let response = match response {
        Ok(response) => response,
        Err(error) => {
            connection.abort();
            return Err(error.to_string());
        }
    };
    let status = response.status().as_u16();
    let location = response.headers().get(http::header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
    connection.abort();
    Ok((Answer { status }, location))
}

fn connector() -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A probe asks whether the server answers, not who it is.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// `grpc.health.v1.Health/Check`; an answer other than SERVING is an error.
pub async fn grpc_health(host: &str, port: u16, service: &str, limit: Duration) -> Result<(), String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct CheckRequest {
        #[prost(string, tag = "1")]
        service: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct CheckResponse {
        #[prost(int32, tag = "1")]
        status: i32,
    }
    const SERVING: i32 = 1;
    let target = authority(host, port);
    let work = async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{target}"))
            .map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| format!("failed to connect: {error}"))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let codec = tonic_prost::ProstCodec::<CheckRequest, CheckResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = tonic::Request::new(CheckRequest { service: service.to_owned() });
        let answer = client.unary(request, path, codec).await.map_err(|status| {
            if status.code() == tonic::Code::Unimplemented {
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned()
            } else {
                status.to_string()
            }
        })?;
        match answer.into_inner().status {
            SERVING => Ok(()),
            other => Err(format!("service unhealthy (responded with status {other})")),
        }
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout: failed to connect service \"{target}\" within {limit:?}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve_once(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut seen = vec![];
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let count = stream.read(&mut buffer).await.unwrap();
                seen.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        (port, task)
    }

    fn action(port: u16) -> HTTPGetAction {
        HTTPGetAction {
            port: IntOrString::Int(i32::from(port)),
            path: Some("/a?b=1".into()),
            ..Default::default()
        }
    }

    async fn get(port: u16) -> Result<Answer, String> {
        let limit = Duration::from_secs(5);
        http_get(&Container::default(), &action(port), "127.0.0.1", "kube-probe/1.36", limit).await
    }

    #[tokio::test]
    async fn a_get_carries_path_and_agent_and_returns_the_status() {
        let (port, server) = serve_once(vec!["HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy"]).await;
        let answer = get(port).await.unwrap();
        assert_eq!(answer.status, 503);
        let request = &server.await.unwrap()[0];
        assert!(request.starts_with("GET /a?b=1 HTTP/1.1"), "{request}");
        assert!(request.to_lowercase().contains("user-agent: kube-probe/1.36"), "{request}");
    }

    #[tokio::test]
    async fn a_redirect_on_the_same_host_is_followed_and_elsewhere_is_an_answer() {
        let same = "HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n";
        let (port, server) = serve_once(vec![same, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(get(port).await.unwrap().status, 200);
        assert!(server.await.unwrap()[1].starts_with("GET /next "));
        let away = "HTTP/1.1 302 Found\r\nLocation: http://other.invalid/\r\nContent-Length: 0\r\n\r\n";
        let (port, _server) = serve_once(vec![away]).await;
        assert_eq!(get(port).await.unwrap().status, 302);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tcp("127.0.0.1", port, Duration::from_secs(5)).await.unwrap();
        drop(listener);
        let error = tcp("127.0.0.1", port, Duration::from_secs(5)).await.unwrap_err();
        assert!(error.contains("refused"), "{error}");
        assert!(get(port).await.unwrap_err().contains("refused"));
    }

    #[test]
    fn ports_are_found_by_name_or_number() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}]
        }))
        .unwrap();
        assert_eq!(port(&container, &IntOrString::String("web".into())), Ok(8080));
        assert_eq!(port(&container, &IntOrString::String("81".into())), Ok(81));
        assert!(port(&container, &IntOrString::String("no".into())).is_err());
        assert!(port(&container, &IntOrString::Int(0)).is_err());
    }
}
