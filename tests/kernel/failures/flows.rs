//! Flows of datagrams at a steady rate, every one of which is numbered and looked for.
//!
//! What the network loses is told apart from what this program could not carry: datagrams that a socket refused, that a full
//! socket dropped (SO_MEMINFO) or a full backlog of a processor (softnet_stat), and senders that fell behind. Any of them makes a
//! measurement void: the test fails, and says so.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::netns::NetNs;

/// Between two datagrams of a flow: 1,000 each second.
const INTERVAL: Duration = Duration::from_millis(1);
/// A sender that is later than this skips what it missed: a burst would measure queues.
const LATENESS_MAX: Duration = Duration::from_millis(20);
/// Less of what was due than this is no flow of 1,000 datagrams each second.
const SHARE_MIN: f64 = 0.8;
const PORT: u16 = 7;
const LENGTH: usize = 64;
/// Of queues of sockets: seconds of all flows.
const QUEUE: libc::c_int = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// Where flows begin and end.
pub struct End {
    pub name: String,
    pub netns: NetNs,
    pub address: String,
}

impl End {
    fn again(&self) -> End {
        End { name: self.name.clone(), netns: self.netns.without_cgroup(), address: self.address.clone() }
    }
}

type Arrived = Arc<Mutex<BTreeMap<u32, Vec<bool>>>>;

struct Sender {
    flow: u32,
    from: String,
    to: String,
    /// When each datagram was sent, in microseconds since the beginning, and how many the socket refused.
    thread: JoinHandle<(Vec<u32>, u64)>,
    stop: Arc<AtomicBool>,
}

/// Flows that are under way.
pub struct Flows {
    began: Instant,
    backlog_drops: u64,
    next: u32,
    ends: Vec<End>,
    senders: Vec<Sender>,
    /// Those that have ended: who, when each datagram was sent, how many were refused.
    sent: BTreeMap<u32, (String, Vec<u32>, u64)>,
    arrived: Arrived,
    /// Each tells how many datagrams its socket dropped.
    receivers: Vec<JoinHandle<u64>>,
    stop: Arc<AtomicBool>,
    /// Receivers answer, and only senders' own answers count as arrived.
    echoes: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    pub flows: usize,
    pub sent: u64,
    pub lost: u64,
    /// The longest time, by the sender's clock, from a datagram that arrived to the next one that did, where some between them
    /// were lost.
    pub longest_gap: Duration,
    /// Flows that lost something.
    pub losers: Vec<String>,
}

impl Flows {
    /// One from each of these to each other.
    pub fn between<'a>(ends: impl IntoIterator<Item = &'a End>) -> Flows {
        let mut flows = Flows::new(false);
        ends.into_iter().for_each(|end| flows.add(end));
        flows
    }

    /// As many from a client to an address of a Service, each from a port of its own, and answered by these.
    pub fn asking(client: &End, service: &str, count: u32, servers: &[&End]) -> Flows {
        let mut flows = Flows::new(true);
        servers.iter().for_each(|server| flows.receive(server));
        for _ in 0..count {
            flows.send(client, "the Service", service);
        }
        flows
    }

    fn new(echoes: bool) -> Flows {
        Flows {
            began: Instant::now(),
            backlog_drops: backlog_drops(),
            next: 0,
            ends: Vec::new(),
            senders: Vec::new(),
            sent: BTreeMap::new(),
            arrived: Arc::default(),
            receivers: Vec::new(),
            stop: Arc::default(),
            echoes,
        }
    }

    /// Flows between this one and all that there are already.
    pub fn add(&mut self, end: &End) {
        self.receive(end);
        let others: Vec<End> = self.ends.iter().map(End::again).collect();
        for other in others {
            self.send(end, &other.name, &other.address);
            self.send(&other, &end.name, &end.address);
        }
        self.ends.push(end.again());
    }

    /// Ends the flows from and to this one, and waits for what is under way.
    pub fn remove(&mut self, name: &str) {
        self.ends.retain(|end| end.name != name);
        self.stop_senders(|sender| sender.from == name || sender.to == name);
    }

    /// Ends all flows.
    ///
    /// # Panics
    /// Where something but the network may have lost datagrams.
    pub fn finish(mut self) -> Report {
        self.stop_senders(|_| true);
        self.stop.store(true, Ordering::Relaxed);
        let full: u64 = self.receivers.drain(..).map(|thread| thread.join().expect("a receiver")).sum();
        let backlog = backlog_drops() - self.backlog_drops;
        let refused: u64 = self.sent.values().map(|(_, _, refused)| refused).sum();
        assert_eq!(
            (refused, full, backlog),
            (0, 0, 0),
            "void: datagrams that sockets refused, full sockets and full backlogs dropped"
        );
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = Report {
            flows: self.sent.len(),
            sent: 0,
            lost: 0,
            longest_gap: Duration::ZERO,
            losers: Vec::new(),
        };
        for (flow, (name, sent, _)) in &self.sent {
            assert_rate(name, sent);
            let (lost, gap) = holes(sent, arrived.get(flow).map_or(&[], Vec::as_slice));
            report.sent += sent.len() as u64;
            report.lost += lost;
            report.longest_gap = report.longest_gap.max(gap);
            if lost > 0 {
                let first = arrived.get(flow).and_then(|of| of.iter().position(|it| !it)).unwrap_or(0);
                let at = sent.get(first).map_or(0, |at| at / 1000);
                report.losers.push(format!("{name}: {lost}, {gap:?}, the first one after {at} ms"));
            }
        }
        report
    }

    fn receive(&mut self, end: &End) {
        let (netns, arrived) = (end.netns.without_cgroup(), self.arrived.clone());
        let (stop, echoes) = (self.stop.clone(), self.echoes);
        let (sender, ready) = std::sync::mpsc::channel();
        self.receivers.push(std::thread::spawn(move || {
            netns.run(|| {
                let socket = socket(&format!("0.0.0.0:{PORT}"));
                sender.send(()).expect("somebody waits");
                receive(&socket, &stop, |datagram, from| {
                    if echoes {
                        // Counted where the answer does not come.
                        let _ = socket.send_to(datagram, from);
                    } else {
                        note(&arrived, datagram);
                    }
                });
                dropped(&socket)
            })
        }));
        ready.recv().expect("the receiver is ready");
    }

    fn send(&mut self, from: &End, name: &str, address: &str) {
        let (flow, netns, began) = (self.next, from.netns.without_cgroup(), self.began);
        let to: SocketAddr = format!("{address}:{PORT}").parse().expect("an address");
        self.next += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let answers = self.echoes.then(|| (self.arrived.clone(), self.stop.clone()));
        let source = format!("{}:0", from.address);
        let (sender, receivers) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            netns.run(|| {
                let socket = socket(&source);
                let other = socket.try_clone().expect("a second descriptor");
                let receiver = answers.map(|(arrived, stop)| {
                    std::thread::spawn(move || {
                        receive(&other, &stop, |datagram, _| note(&arrived, datagram));
                        dropped(&other)
                    })
                });
                sender.send(receiver).expect("somebody waits");
                send(&socket, to, flow, began, &is_over)
            })
        });
        self.receivers.extend(receivers.recv().expect("the sender begins"));
        self.senders.push(Sender { flow, from: from.name.clone(), to: name.to_owned(), thread, stop });
    }

    fn stop_senders(&mut self, which: impl Fn(&Sender) -> bool) {
        let (stopping, rest) =
            std::mem::take(&mut self.senders).into_iter().partition(|sender| which(sender));
        self.senders = rest;
        let stopping: Vec<Sender> = stopping;
        stopping.iter().for_each(|sender| sender.stop.store(true, Ordering::Relaxed));
        let mut flows = Vec::new();
        for Sender { flow, from, to, thread, .. } in stopping {
            let (sent, refused) = thread.join().expect("a sender");
            flows.push((flow, sent.len()));
            self.sent.insert(flow, (format!("{from} to {to}"), sent, refused));
        }
        let deadline = Instant::now() + PATIENCE;
        let all_arrived = || {
            let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            let count = |flow: &u32| arrived.get(flow).map_or(0, |of| of.iter().filter(|it| **it).count());
            flows.iter().all(|(flow, sent)| count(flow) == *sent)
        };
        while !all_arrived() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Report {
    /// A line of a table, past the capture of the test's output: what was measured is worth reading where all is well.
    pub fn show(&self, scenario: &str) {
        let gap = self.longest_gap.as_secs_f64() * 1e3;
        let line = format!(
            "{scenario:<58} {:>3} flows {:>9} sent {:>6} lost, longest gap {gap:>6.1} ms\n",
            self.flows, self.sent, self.lost
        );
        // A closed stderr is no failure of the network.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Shows it, and insists that nothing was lost.
    pub fn must_be_whole(&self, scenario: &str) {
        self.show(scenario);
        assert_eq!(self.lost, 0, "{scenario}: {:?}", self.losers);
    }
}

fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    let length = QUEUE;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the descriptor is open, and the value is an int for as long as the call takes.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const length).cast(),
                size_of_val(&length) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "a long queue");
    }
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    socket
}

/// How many datagrams the full queue of a socket did not take.
fn dropped(socket: &UdpSocket) -> u64 {
    const SO_MEMINFO: libc::c_int = 55;
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes `length` octets at most.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!((result, length as usize), (0, size_of_val(&values)), "SO_MEMINFO");
    u64::from(values[DROPS])
}

/// How many packets the backlogs of all processors did not take.
fn backlog_drops() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").expect("softnet_stat");
    let drops = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(drops).sum()
}

fn send(socket: &UdpSocket, to: SocketAddr, flow: u32, began: Instant, stop: &AtomicBool) -> (Vec<u32>, u64) {
    let (mut sent, mut refused) = (Vec::new(), 0);
    let mut datagram = [0_u8; LENGTH];
    datagram[..4].copy_from_slice(&flow.to_be_bytes());
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        datagram[4..8].copy_from_slice(&(sent.len() as u32).to_be_bytes());
        sent.push(began.elapsed().as_micros() as u32);
        refused += u64::from(socket.send_to(&datagram, to).is_err());
        due += INTERVAL;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(early) => std::thread::sleep(early),
            None if now > due + LATENESS_MAX => due = now,
            None => {}
        }
    }
    (sent, refused)
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, mut each: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = [0; LENGTH];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((LENGTH, from)) => each(&buffer, from),
            Ok((length, from)) => panic!("{length} octets from {from}"),
            // Nothing has come for a while.
            Err(_) if stop.load(Ordering::Relaxed) => return,
            Err(_) => {}
        }
    }
}

fn note(arrived: &Arrived, datagram: &[u8]) {
    let number =
        |at: usize| u32::from_be_bytes([datagram[at], datagram[at + 1], datagram[at + 2], datagram[at + 3]]);
    let (flow, index) = (number(0), number(4) as usize);
    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let of_flow = arrived.entry(flow).or_default();
    if of_flow.len() <= index {
        of_flow.resize(index + 1, false);
    }
    of_flow[index] = true;
}

fn assert_rate(name: &str, sent: &[u32]) {
    let (Some(first), Some(last)) = (sent.first(), sent.last()) else {
        panic!("void: {name}: nothing was sent")
    };
    let due = f64::from(last - first) / INTERVAL.as_micros() as f64;
    let share = sent.len() as f64 / due.max(1.0);
    assert!(share > SHARE_MIN, "void: {name}: {} datagrams were sent of {due}", sent.len());
}

/// How many did not arrive, and the longest time without one that did.
fn holes(sent: &[u32], arrived: &[bool]) -> (u64, Duration) {
    let (mut lost, mut longest, mut is_hole) = (0, 0, false);
    let mut last = sent.first().copied().unwrap_or(0);
    for (index, at) in sent.iter().enumerate() {
        let has_arrived = arrived.get(index) == Some(&true);
        if !has_arrived {
            (lost, is_hole) = (lost + 1, true);
        }
        if has_arrived || index + 1 == sent.len() {
            if std::mem::take(&mut is_hole) {
                longest = longest.max(at - last);
            }
            last = *at;
        }
    }
    (lost, Duration::from_micros(u64::from(longest)))
}

#[test]
fn holes_in_a_flow_are_found_and_measured() {
    let sent = [0, 1000, 2000, 3000, 9000];
    let gap = |arrived: &[bool]| {
        let (lost, gap) = holes(&sent, arrived);
        (lost, gap.as_micros())
    };
    assert_eq!(gap(&[true; 5]), (0, 0));
    assert_eq!(gap(&[true, false, true, true, true]), (1, 2000));
    assert_eq!(gap(&[true, false, true, false, true]), (2, 7000), "the longer one");
    assert_eq!(gap(&[true, true, true]), (2, 7000), "until the end");
    assert_eq!(gap(&[false, false, true, true, true]), (2, 2000), "from the beginning");
    assert_eq!(gap(&[]), (5, 9000));
}
