//! Clients that ask all the time, over connections and sockets that stay open and over new ones, and backends that say who
//! they are. Each request has to be answered; none is sent twice.
//!
//! A backend that is leaving says so in its answers, as a server does that drains: who hears it opens a new connection or
//! socket for the next request. Of all others an open flow stays where it is.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::netns::{NetNs, eventually};

/// Between two requests of an open flow, and of who connects anew for each.
const PERIOD: Duration = Duration::from_millis(200);
const NEW_PERIOD: Duration = Duration::from_millis(100);
/// An answer that takes longer has failed. Connections may send again meanwhile, datagrams are not repeated.
const PATIENCE: Duration = Duration::from_secs(5);
const LENGTH: usize = 10;

/// What came of all requests so far.
#[derive(Debug, Default)]
pub struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    reset: AtomicU64,
    /// Open flows that got an answer from another backend than before.
    moved: AtomicU64,
    words: Mutex<Vec<String>>,
}

impl Tally {
    fn fault(&self, count: &AtomicU64, words: String) {
        count.fetch_add(1, Ordering::Relaxed);
        let mut all = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < 10 {
            all.push(words);
        }
    }

    fn failed(&self, name: &str, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let is_reset =
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        let count = if is_reset { &self.reset } else { &self.failed };
        self.fault(count, format!("{name}: {error}"));
    }
}

/// One backend, of both protocols.
#[derive(Clone, Debug)]
pub struct Backend {
    pub number: u8,
    pub address: SocketAddr,
    began: Instant,
    leaving: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    /// Milliseconds from its beginning to the last datagram.
    last_datagram: Arc<AtomicU64>,
    end: CancellationToken,
}

impl Backend {
    /// From now on it tells who asks to go elsewhere.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether it told all.
    pub fn is_left(&self) -> bool {
        let since = self.began.elapsed().as_millis() as u64 - self.last_datagram.load(Ordering::Relaxed);
        self.connections.load(Ordering::Relaxed) == 0 && since > 3 * PERIOD.as_millis() as u64
    }

    pub fn end(&self) {
        self.end.cancel();
    }

    fn answer(&self, asked: [u8; 8]) -> [u8; LENGTH] {
        let mut answer = [0; LENGTH];
        answer[0] = self.number;
        answer[1] = u8::from(self.leaving.load(Ordering::Relaxed));
        answer[2..].copy_from_slice(&asked);
        answer
    }

    async fn serve(self, ready: std::sync::mpsc::Sender<()>) {
        let listener = TcpListener::bind(self.address).await.expect("a listener");
        let socket = UdpSocket::bind(self.address).await.expect("a socket");
        ready.send(()).expect("somebody waits");
        let mut asked = [0; 8];
        loop {
            tokio::select! {
                () = self.end.cancelled() => return,
                accepted = listener.accept() => {
                    let stream = accepted.expect("a connection").0;
                    self.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(self.clone().answer_all(stream));
                }
                received = socket.recv_from(&mut asked) => {
                    let from = received.expect("a datagram").1;
                    let now = self.began.elapsed().as_millis() as u64;
                    self.last_datagram.store(now, Ordering::Relaxed);
                    socket.send_to(&self.answer(asked), from).await.expect("an answer");
                }
            }
        }
    }

    async fn answer_all(self, mut stream: TcpStream) {
        let mut asked = [0; 8];
        while stream.read_exact(&mut asked).await.is_ok() {
            let answer = self.answer(asked);
            if stream.write_all(&answer).await.is_err() {
                break;
            }
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Backends in one namespace.
pub struct Place {
    start: Option<mpsc::UnboundedSender<(Backend, std::sync::mpsc::Sender<()>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Place {
    pub fn new(netns: &NetNs) -> Place {
        let (start, mut starts) = mpsc::unbounded_channel::<(Backend, std::sync::mpsc::Sender<()>)>();
        let thread = inside(netns, async move {
            while let Some((backend, ready)) = starts.recv().await {
                tokio::spawn(backend.serve(ready));
            }
        });
        Place { start: Some(start), thread: Some(thread) }
    }

    /// One that serves when this returns.
    pub fn start(&self, number: u8, address: SocketAddr) -> Backend {
        let backend = Backend {
            number,
            address,
            began: Instant::now(),
            leaving: Arc::default(),
            connections: Arc::default(),
            last_datagram: Arc::default(),
            end: CancellationToken::new(),
        };
        let (ready, is_ready) = std::sync::mpsc::channel();
        let start = self.start.as_ref().expect("it is not dropped");
        start.send((backend.clone(), ready)).expect("the place is there");
        is_ready.recv().expect("the backend serves");
        backend
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.start.take());
        // Its panic was seen by the clients.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Where clients are and what they ask.
pub struct Way {
    pub name: &'static str,
    pub netns: NetNs,
    pub frontend: SocketAddr,
    pub connections: usize,
    pub datagrams: usize,
}

/// Clients under way.
pub struct Load {
    tally: Arc<Tally>,
    /// Requests of each open flow that were answered.
    rounds: Arc<Vec<AtomicU64>>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(ways: Vec<Way>) -> Load {
        let flows = ways.iter().map(|way| way.connections + way.datagrams + 1).sum();
        let tally = Arc::<Tally>::default();
        let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..flows).map(|_| AtomicU64::new(0)).collect());
        let stop = CancellationToken::new();
        let mut first = 0;
        let mut threads = Vec::new();
        for way in ways {
            let client = |flow: usize, kind: &str| Client {
                name: format!("{} {kind} {}", way.name, way.frontend),
                frontend: way.frontend,
                tally: Arc::clone(&tally),
                rounds: Arc::clone(&rounds),
                flow,
                stop: stop.clone(),
            };
            let last = first + way.connections + way.datagrams;
            let connections: Vec<Client> =
                (first..first + way.connections).map(|flow| client(flow, "over a connection to")).collect();
            let datagrams: Vec<Client> =
                (first + way.connections..last).map(|flow| client(flow, "in datagrams to")).collect();
            let anew = client(last, "over new connections to");
            first = last + 1;
            threads.push(inside(&way.netns, async move {
                let mut tasks = tokio::task::JoinSet::new();
                connections.into_iter().for_each(|client| drop(tasks.spawn(client.ask_by_connection())));
                datagrams.into_iter().for_each(|client| drop(tasks.spawn(client.ask_by_datagrams())));
                tasks.spawn(anew.connect_for_each());
                while tasks.join_next().await.is_some() {}
            }));
        }
        Load { tally, rounds, stop, threads }
    }

    pub fn flows(&self) -> usize {
        self.rounds.len()
    }

    /// Waits until every flow has had two more answers: what was begun before this is over then.
    pub fn settle(&self) {
        let before: Vec<u64> = self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).collect();
        let is_on =
            || self.rounds.iter().zip(&before).all(|(now, then)| now.load(Ordering::Relaxed) >= then + 2);
        eventually("every flow goes on", || (is_on() || self.faults() != (0, 0, 0)).then_some(()));
    }

    /// Requests that failed, flows that were reset, and flows that another backend answered.
    fn faults(&self) -> (u64, u64, u64) {
        let [failed, reset, moved] = [&self.tally.failed, &self.tally.reset, &self.tally.moved]
            .map(|count| count.load(Ordering::Relaxed));
        (failed, reset, moved)
    }

    /// Runs `disturb`, and tells what it took.
    ///
    /// # Panics
    /// Where one request fails.
    pub fn must_not_notice<T>(&self, what: &str, disturb: impl FnOnce() -> T) -> T {
        let (answered, began) = (self.tally.answered.load(Ordering::Relaxed), Instant::now());
        let result = disturb();
        self.settle();
        let requests = self.tally.answered.load(Ordering::Relaxed) - answered;
        let (failed, reset, moved) = self.faults();
        println!(
            "{what}: {} flows, {requests} requests in {:.1} s, {failed} failed, {reset} reset, {moved} moved",
            self.flows(),
            began.elapsed().as_secs_f64()
        );
        let words = self.tally.words.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((failed, reset, moved), (0, 0, 0), "{what}: failed, reset, moved; {words:#?}");
        result
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
        self.threads.drain(..).for_each(|thread| {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a client panicked");
        });
    }
}

struct Client {
    name: String,
    frontend: SocketAddr,
    tally: Arc<Tally>,
    rounds: Arc<Vec<AtomicU64>>,
    flow: usize,
    stop: CancellationToken,
}

impl Client {
    /// False at the end.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = sleep(time) => true,
        }
    }

    /// Clients do not all ask at once.
    async fn begin(&self) -> bool {
        self.pause(PERIOD.mul_f64(self.flow as f64 * 0.618 % 1.0)).await
    }

    fn question(&self, round: u64) -> [u8; 8] {
        ((self.flow as u64) << 32 | round).to_be_bytes()
    }

    /// Who answered, and whether that is leaving; the right answer counts.
    fn judge(&self, asked: [u8; 8], answer: io::Result<[u8; LENGTH]>) -> Option<(u8, bool)> {
        match answer {
            Ok(answer) if answer[2..] == asked => {
                self.tally.answered.fetch_add(1, Ordering::Relaxed);
                self.rounds[self.flow].fetch_add(1, Ordering::Relaxed);
                Some((answer[0], answer[1] != 0))
            }
            Ok(_) => {
                self.tally.fault(&self.tally.failed, format!("{}: another's answer", self.name));
                None
            }
            Err(error) => {
                self.tally.failed(&self.name, &error);
                None
            }
        }
    }

    fn must_be(&self, before: Option<u8>, number: u8) {
        if let Some(before) = before
            && before != number
        {
            self.tally.fault(&self.tally.moved, format!("{}: from {before} to {number}", self.name));
        }
    }

    async fn ask_by_connection(self) {
        let mut open: Option<(TcpStream, Option<u8>)> = None;
        let mut goes_on = self.begin().await;
        for round in 0.. {
            if !goes_on {
                return;
            }
            let asked = self.question(round);
            let (mut stream, before) = match open.take() {
                Some(open) => open,
                None => match in_time(TcpStream::connect(self.frontend)).await {
                    Ok(stream) => (stream, None),
                    Err(error) => {
                        self.tally.failed(&self.name, &error);
                        goes_on = self.pause(PERIOD).await;
                        continue;
                    }
                },
            };
            let answer = in_time(ask(&mut stream, asked)).await;
            if let Some((number, leaving)) = self.judge(asked, answer) {
                self.must_be(before, number);
                open = (!leaving).then_some((stream, Some(number)));
            }
            goes_on = self.pause(PERIOD).await;
        }
    }

    async fn connect_for_each(self) {
        for round in 0.. {
            let asked = self.question(round);
            let answer = in_time(async {
                let mut stream = TcpStream::connect(self.frontend).await?;
                ask(&mut stream, asked).await
            });
            self.judge(asked, answer.await);
            if !self.pause(NEW_PERIOD).await {
                return;
            }
        }
    }

    async fn ask_by_datagrams(self) {
        let mut open: Option<(UdpSocket, Option<u8>)> = None;
        let mut goes_on = self.begin().await;
        for round in 0.. {
            if !goes_on {
                return;
            }
            let asked = self.question(round);
            let (socket, before) = match open.take() {
                Some(open) => open,
                None => match self.new_socket().await {
                    Ok(socket) => (socket, None),
                    Err(error) => {
                        self.tally.failed(&self.name, &error);
                        goes_on = self.pause(PERIOD).await;
                        continue;
                    }
                },
            };
            let answer = in_time(async {
                socket.send(&asked).await?;
                let mut answer = [0; LENGTH];
                socket.recv(&mut answer).await.map(|_| answer)
            });
            if let Some((number, leaving)) = self.judge(asked, answer.await) {
                self.must_be(before, number);
                open = (!leaving).then_some((socket, Some(number)));
            }
            goes_on = self.pause(PERIOD).await;
        }
    }

    async fn new_socket(&self) -> io::Result<UdpSocket> {
        let any = if self.frontend.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.frontend).await?;
        Ok(socket)
    }
}

async fn ask(stream: &mut TcpStream, asked: [u8; 8]) -> io::Result<[u8; LENGTH]> {
    stream.write_all(&asked).await?;
    let mut answer = [0; LENGTH];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A thread of its own in a namespace, with all that is spawned there.
fn inside(netns: &NetNs, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let netns = netns.again();
    std::thread::spawn(move || {
        netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work);
        });
    })
}
