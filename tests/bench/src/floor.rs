//! What is left of an event when nothing is decided: a TLS record of its length and its send, to each watcher on a
//! connection of its own. One thread of a process without anything else does it, so that no server can be below this on the
//! same machine; the watchers and their TLS are those of [`crate::watchers`].

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::Notify, task::JoinSet};
use tokio_rustls::client::TlsStream;

use crate::{Options, client::Client, peer::Keys, process::Process, report::Figures};

const EVENTS: u32 = 1500;
/// Between two events: about what a write to a disk takes, in which all sleep and forget.
const PAUSE: Duration = Duration::from_micros(1500);
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct ServerOptions {
    /// PEM
    #[arg(long)]
    certificate: PathBuf,
    /// PEM
    #[arg(long)]
    key: PathBuf,
    #[arg(long)]
    watchers: u32,
    /// Of each record, before encryption
    #[arg(long)]
    octets: u32,
}

/// Prints its port, takes the connections, then sends one record to each of them per line on stdin.
#[expect(clippy::print_stdout, reason = "the port is for who started it")]
pub(crate) fn serve(options: &ServerOptions) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(&options.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&options.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let mut connections = Vec::new();
    for _ in 0..options.watchers {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut tls = ServerConnection::new(Arc::clone(&config))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        connections.push((tls, stream));
    }
    let event = vec![b'x'; options.octets as usize];
    for line in std::io::stdin().lines() {
        line?;
        for (tls, stream) in &mut connections {
            tls.writer().write_all(&event)?;
            while tls.wants_write() {
                tls.write_tls(stream)?;
            }
        }
    }
    Ok(())
}

/// CPU time of an event to a watcher, with the kernel's part of it.
pub(crate) async fn measure(options: &Options, octets: u32, figures: &mut Figures) -> Result<()> {
    let folder = TempDir::new()?;
    let keys = Keys::new(folder.path())?;
    let mut server = start(&keys, options.watchers, octets, folder.path())?;
    let (mut lines, output) = server.pipes().context("the server's input and output are pipes")?;
    let mut port = String::new();
    BufReader::new(output).read_line(&mut port)?;
    let port = port.trim().parse().context("the server of records did not begin")?;
    let client = Client::new(port, &keys.ca, &keys.client_certificate, &keys.client_key, options.http)?;
    let delivered = Arc::new(Delivered::default());
    let mut watchers = JoinSet::new();
    for _ in 0..options.watchers {
        watchers.spawn(follow(client.stream().await?, Arc::clone(&delivered)));
    }
    let of_all = u64::from(octets) * u64::from(options.watchers);
    let mut before = (0.0, 0.0);
    for event in 0..=EVENTS {
        lines.write_all(b"\n")?;
        let wanted = of_all * u64::from(event + 1);
        let all = async {
            while delivered.octets.load(Ordering::Acquire) < wanted {
                delivered.more.notified().await;
            }
        };
        tokio::time::timeout(DELIVERY_TIME_MAX, all).await.context("a record did not reach every watcher")?;
        if event == 0 {
            // The first one waited for the last connections.
            before = (server.cpu()?, server.cpu_of_kernel()?);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let events = f64::from(EVENTS) * f64::from(options.watchers);
    figures.put(NAME, "octets", f64::from(octets));
    figures.put(NAME, "us CPU", (server.cpu()? - before.0) / events * 1e6);
    figures.put(NAME, "us CPU in the kernel", (server.cpu_of_kernel()? - before.1) / events * 1e6);
    Ok(())
}

const NAME: &str = "a TLS record and its send, each awaited";

#[derive(Default)]
struct Delivered {
    octets: AtomicU64,
    more: Notify,
}

fn start(keys: &Keys, watchers: u32, octets: u32, folder: &Path) -> Result<Process> {
    let log = folder.join("records.log");
    let log = std::fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("record-server").arg("--certificate").arg(&keys.serving_path);
    command.arg("--key").arg(&keys.serving_key_path);
    command.args([format!("--watchers={watchers}"), format!("--octets={octets}")]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    Process::spawn(command)
}

async fn follow(mut stream: TlsStream<TcpStream>, delivered: Arc<Delivered>) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer).await? as u64;
        if read == 0 {
            return Ok(());
        }
        delivered.octets.fetch_add(read, Ordering::AcqRel);
        delivered.more.notify_one();
    }
}
