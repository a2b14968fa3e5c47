use std::collections::BTreeSet;

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::security::{
    pki::{Ca, CertificateSpec},
    tls,
};

/// A socket that counts what is written to it in one call.
struct Counting<T> {
    io: T,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counting<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counting<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let whole: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
        let count = ready!(Pin::new(&mut self.io).poll_write(context, &whole))?;
        self.writes.lock().unwrap().push(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

type Client = tokio_rustls::client::TlsStream<DuplexStream>;

/// A client and a server end after their handshake, over memory that holds so many bytes.
async fn pair(capacity: usize) -> (Client, Wire<Counting<DuplexStream>>, Arc<Mutex<Vec<usize>>>) {
    let made = Ca::generate("kubernetes").unwrap();
    let ca = Ca::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
    let spec = CertificateSpec {
        common_name: "server".into(),
        sans: BTreeSet::from(["localhost".to_owned()]),
        server: true,
        ..CertificateSpec::default()
    };
    let server = tls::server_config(tls::Live::new(&ca.issue(&spec).unwrap()).unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.certificate_pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(capacity);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connect = connector.connect("localhost".try_into().unwrap(), near);
    let (client, accepted) = tokio::join!(connect, tokio_rustls::TlsAcceptor::from(server).accept(far));
    let (io, session) = accepted.unwrap().into_inner();
    let writes = Arc::new(Mutex::new(Vec::new()));
    (client.unwrap(), Wire::new(Counting { io, writes: Arc::clone(&writes) }, session), writes)
}

#[tokio::test]
async fn what_was_written_while_corked_leaves_in_one_write() {
    let (mut client, mut wire, writes) = pair(1 << 20).await;
    wire.cork();
    for line in ["one ", "two ", "three"] {
        wire.write_all(line.as_bytes()).await.unwrap();
        wire.flush().await.unwrap();
    }
    // The handshake's last messages of the server may have been waiting.
    assert_eq!(writes.lock().unwrap().len(), 0);
    std::future::poll_fn(|context| wire.send(context)).await.unwrap();
    assert_eq!(writes.lock().unwrap().len(), 1);
    let mut seen = [0; 13];
    client.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"one two three");

    wire.write_all(b"at once").await.unwrap();
    assert_eq!(writes.lock().unwrap().len(), 2, "a wire that is not corked sends each write");
}

#[tokio::test]
async fn a_corked_wire_holds_no_more_than_its_limit() {
    let (mut client, mut wire, writes) = pair(64 * 1024).await;
    let whole: Vec<u8> = (0..4 * QUEUED_BYTES_MAX).map(|at| (at / 251) as u8).collect();
    let expected = whole.clone();
    let reader = tokio::spawn(async move {
        let mut seen = vec![0; expected.len()];
        client.read_exact(&mut seen).await.unwrap();
        assert!(seen == expected);
    });
    wire.cork();
    for piece in whole.chunks(16 * 1024) {
        wire.write_all(piece).await.unwrap();
        assert!(wire.lock().queued <= QUEUED_BYTES_MAX + 16 * 1024);
    }
    std::future::poll_fn(|context| wire.send(context)).await.unwrap();
    reader.await.unwrap();
    assert!(writes.lock().unwrap().iter().all(|count| *count <= 64 * 1024));
}

#[tokio::test]
async fn an_end_is_told_from_a_broken_connection() {
    let (mut client, mut wire, _) = pair(1 << 20).await;
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    let mut seen = Vec::new();
    wire.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, b"bye");
    wire.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);

    let (client, mut wire, _) = pair(1 << 20).await;
    drop(client);
    let error = wire.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
