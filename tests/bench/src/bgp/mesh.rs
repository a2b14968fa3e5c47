//! One block to all the peers of a mesh: from the external peer's send until every internal peer has it.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bgp::wire;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
};

use super::{
    Options,
    device::{ADDRESS, ASN, Device, Kind, MESH_FIRST, SENDER, Setting},
    report::Figures,
    session::{self, Table},
};
use crate::services::ground::Ground;

const ESTABLISH_TIME_MAX: Duration = Duration::from_secs(60);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// Handshakes at a time.
const AT_ONCE: usize = 50;
const PAUSE: Duration = Duration::from_millis(50);
const READ_SIZE: usize = 16 << 10;

/// What all internal peers share.
struct Mesh {
    /// How many have had the last change.
    told: AtomicU32,
    count: u32,
    answers: mpsc::Sender<Instant>,
    established: AtomicU32,
}

pub(super) fn measure(kind: Kind, options: &Options, ground: &Ground, figures: &mut Figures) -> Result<()> {
    let name = format!("mesh-{kind}");
    let setting = Setting { mesh: true, ..Setting::default() };
    let mut device = Device::start(kind, &options.agent, ground, &name, setting)?;
    let measured = with_device(&device, options, figures).with_context(|| device.said());
    device.process.kill();
    measured
}

fn with_device(device: &Device, options: &Options, figures: &mut Figures) -> Result<()> {
    let peers = session::gateways(MESH_FIRST, options.peers);
    add_addresses(device, &peers)?;
    let mut sender = device.session(SENDER)?;
    let (answers, told) = mpsc::channel();
    let mesh = Arc::new(Mesh {
        told: AtomicU32::new(0),
        count: options.peers,
        answers,
        established: AtomicU32::new(0),
    });
    // The thread stays in the namespace, and all of its sockets with it.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    device.peers.run(move || {
        std::thread::scope(|scope| {
            let of_thread = mesh.clone();
            let receivers = scope.spawn(move || receive(&of_thread, peers, stopped));
            let measured = rounds(&mesh, options, &mut sender, &told, figures);
            drop(stop);
            receivers.join().expect("the thread does not panic").and(measured)
        })
    })
}

fn rounds(
    mesh: &Mesh,
    options: &Options,
    sender: &mut std::net::TcpStream,
    told: &mpsc::Receiver<Instant>,
    figures: &mut Figures,
) -> Result<()> {
    let deadline = Instant::now() + ESTABLISH_TIME_MAX;
    while mesh.established.load(Ordering::Relaxed) < mesh.count {
        let established = mesh.established.load(Ordering::Relaxed);
        ensure!(Instant::now() < deadline, "{established} of {} sessions are established", mesh.count);
        std::thread::sleep(PAUSE);
    }
    let changes = [session::announcements(1, SENDER.1, &[SENDER.0]), session::withdrawals(1)];
    // The first round finds devices that are still busy with their sessions.
    for round in 0..=options.mesh_rounds {
        for (index, octets) in changes.iter().enumerate() {
            let began = Instant::now();
            sender.write_all(octets).context("sending to the device")?;
            let at = told.recv_timeout(ANSWER_TIME_MAX).with_context(|| {
                format!("{} of {} peers are told", mesh.told.load(Ordering::Relaxed), mesh.count)
            })?;
            if round > 0 && index == 0 {
                figures.mesh.push(at.duration_since(began).as_secs_f64());
            }
        }
    }
    Ok(())
}

fn add_addresses(device: &Device, peers: &[Ipv4Addr]) -> Result<()> {
    let lines: String = peers.iter().map(|peer| format!("address add {peer}/16 dev up0\n")).collect();
    let file = tempfile::NamedTempFile::new().context("a file")?;
    std::fs::write(file.path(), lines).context("writing commands of ip")?;
    device.peers.ip(&format!("-batch {}", file.path().display()))
}

fn receive(
    mesh: &Arc<Mesh>,
    peers: Vec<Ipv4Addr>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(async {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        for peer in peers {
            let (mesh, at_once) = (mesh.clone(), at_once.clone());
            tokio::spawn(async move {
                let stream = loop {
                    let _turn = at_once.acquire().await;
                    match tokio::time::timeout(Duration::from_secs(10), greet(peer)).await {
                        Ok(Ok(stream)) => break stream,
                        Ok(Err(_)) | Err(_) => tokio::time::sleep(PAUSE).await,
                    }
                };
                mesh.established.fetch_add(1, Ordering::Relaxed);
                // What is missed then is missed by the count too, which says so.
                let _ = follow(&mesh, stream).await;
            });
        }
        // Ends when the other half is dropped, which says the same.
        let _ = stopped.await;
    });
    Ok(())
}

async fn greet(local: Ipv4Addr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((local, 0).into())?;
    let mut stream = socket.connect((ADDRESS, 179).into()).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&session::open(ASN, local)).await?;
    let mut seen = Vec::new();
    let mut header = [0; wire::HEADER_LENGTH];
    while seen != [1, 4] {
        stream.read_exact(&mut header).await?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length.saturating_sub(header.len())];
        stream.read_exact(&mut body).await?;
        ensure!(matches!(header[18], 1 | 4), "message of type {}", header[18]);
        if header[18] == 1 {
            stream.write_all(&wire::encode_keepalive()).await?;
        }
        seen.push(header[18]);
    }
    Ok(stream)
}

/// Counts a peer in each time that the number of its prefixes changes.
async fn follow(mesh: &Mesh, mut stream: TcpStream) -> Result<()> {
    let mut table = Table::default();
    let mut buffer = vec![0; READ_SIZE];
    let mut filled = 0;
    loop {
        let length = stream.read(&mut buffer[filled..]).await?;
        ensure!(length > 0, "the device has closed a connection");
        filled += length;
        let before = table.held();
        let (consumed, _) = table.take(&buffer[..filled])?;
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
        if table.held() != before && mesh.told.fetch_add(1, Ordering::Relaxed) + 1 == mesh.count {
            mesh.told.store(0, Ordering::Relaxed);
            mesh.answers.send(Instant::now()).ok().context("nobody waits")?;
        }
    }
}
