//! Keeps a number of operations under way at a time, counts those that ended, and reads what CPU time they took.

use std::{
    io::{self, BufRead as _, Write as _},
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    ClientOptions, Mode, Outcome, monotonic_ns,
    poll::{self, EDGE, Events, IN, OUT, Poll},
};
use crate::process::cpu_of;

/// An operation that took longer has failed.
const CHECK: Duration = Duration::from_secs(1);
const CHECKS_MAX: u32 = 3;
const REQUEST: &[u8] = &[0];
/// A run without an operation, on a machine that does much else, goes on this many times.
const WINDOWS_MAX: u32 = 20;
/// Failures in a row without any success, after which nothing is to be measured.
const FAILURES_MAX: u64 = 10_000;
/// Between two attempts while watching for a change.
const PAUSE: Duration = Duration::from_micros(100);
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(500);

/// Prints an [`Outcome`], or with `--watch` the times that it was asked for.
#[expect(clippy::print_stdout, reason = "the parent reads it")]
pub(crate) fn run(options: &ClientOptions) -> Result<()> {
    if options.watch {
        return watch(options);
    }
    let outcome = Load::new(options)?.run()?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

struct Slot {
    socket: Option<OwnedFd>,
    sent: bool,
    /// Seconds without an event.
    checks: u32,
}

struct Load<'a> {
    options: &'a ClientOptions,
    poll: Poll,
    slots: Vec<Slot>,
    next_target: usize,
    operations: u64,
    failures: u64,
    failures_in_a_row: u64,
    first_error: Option<io::Error>,
    /// Processes whose CPU time counts beside our own.
    others: Vec<i32>,
}

impl<'a> Load<'a> {
    fn new(options: &'a ClientOptions) -> Result<Self> {
        let slots = (0..options.connections).map(|_| Slot { socket: None, sent: false, checks: 0 });
        let mut others = softirq_threads();
        others.extend(options.server);
        Ok(Self {
            options,
            poll: Poll::new().context("making an epoll")?,
            slots: slots.collect(),
            next_target: 0,
            operations: 0,
            failures: 0,
            failures_in_a_row: 0,
            first_error: None,
            others,
        })
    }

    fn run(mut self) -> Result<Outcome> {
        for slot in 0..self.slots.len() {
            self.begin(slot);
        }
        self.turn_until(Instant::now() + Duration::from_secs_f64(self.options.warm))?;
        let (operations, failures, cpu) = (self.operations, self.failures, self.cpu()?);
        let began = Instant::now();
        for _ in 0..WINDOWS_MAX {
            self.turn_until(Instant::now() + Duration::from_secs_f64(self.options.seconds))?;
            if self.operations > operations {
                break;
            }
        }
        let cpu_seconds = self.cpu()? - cpu;
        Ok(Outcome {
            operations: self.operations - operations,
            failures: self.failures - failures,
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds,
        })
    }

    fn cpu(&self) -> Result<f64> {
        let own = std::process::id().cast_signed();
        let sum = self.others.iter().chain([&own]).map(|process| cpu_of(*process)).sum::<io::Result<f64>>();
        sum.context("reading the CPU time of client, server and softirq threads")
    }

    fn turn_until(&mut self, end: Instant) -> Result<()> {
        let mut events = Events::new();
        let mut check = Instant::now() + CHECK;
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            if now >= check {
                check = now + CHECK;
                self.give_up_on_the_silent();
            }
            let wait = end.min(check).saturating_duration_since(now).as_millis() as i32 + 1;
            self.poll.wait(&mut events, wait).context("waiting for answers")?;
            for (slot, flags) in &events {
                self.event(*slot as usize, *flags);
            }
            if self.failures_in_a_row > FAILURES_MAX {
                let error = self.first_error.take().map_or_else(|| "no answer".to_owned(), |e| e.to_string());
                bail!("every operation fails: {error}");
            }
        }
    }

    fn event(&mut self, number: usize, flags: u32) {
        let Some(slot) = self.slots.get_mut(number) else { return };
        let Some(fd) = slot.socket.as_ref().map(OwnedFd::as_raw_fd) else { return };
        slot.checks = 0;
        if !slot.sent && flags & OUT != 0 {
            match poll::send(fd, REQUEST) {
                Ok(_) => slot.sent = true,
                Err(error) => return self.fail(number, error),
            }
        }
        if flags & IN == 0 {
            if flags & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0 {
                self.fail(number, io::ErrorKind::ConnectionReset.into());
            }
            return;
        }
        let mut buffer = [0; 8];
        match poll::receive(fd, &mut buffer) {
            Ok(0) => self.fail(number, io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => self.done(number),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.fail(number, error),
        }
    }

    fn done(&mut self, number: usize) {
        self.operations += 1;
        self.failures_in_a_row = 0;
        if self.options.mode.connects() {
            self.begin(number);
            return;
        }
        let fd = self.slots[number].socket.as_ref().map_or(-1, OwnedFd::as_raw_fd);
        if let Err(error) = poll::send(fd, REQUEST) {
            self.fail(number, error);
        }
    }

    fn fail(&mut self, number: usize, error: io::Error) {
        self.failures += 1;
        self.failures_in_a_row += 1;
        self.first_error.get_or_insert(error);
        self.begin(number);
    }

    /// A fresh socket for the slot. Where even that fails, the next check tries again.
    fn begin(&mut self, number: usize) {
        let target = self.options.target[self.next_target % self.options.target.len()];
        self.next_target += 1;
        let is_tcp = self.options.mode.is_tcp();
        let slot = &mut self.slots[number];
        slot.socket = None;
        slot.sent = false;
        let opened = poll::connect(target, is_tcp).and_then(|socket| {
            self.poll.add(socket.as_raw_fd(), IN | OUT | EDGE, number as u64)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => slot.socket = Some(socket),
            Err(error) => {
                self.failures += 1;
                self.failures_in_a_row += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn give_up_on_the_silent(&mut self) {
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            slot.checks += 1;
            if slot.socket.is_none() {
                self.begin(number);
            } else if slot.checks > CHECKS_MAX {
                slot.checks = 0;
                self.fail(number, io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// The kernel's threads that take over packets where a process would get too many of them: work for packets counts
/// where it is done, mostly in the process that sends.
fn softirq_threads() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|id| {
            std::fs::read_to_string(format!("/proc/{id}/comm"))
                .is_ok_and(|name| name.starts_with("ksoftirqd/"))
        })
        .collect()
}

/// For each line `NUMBER`, asks until the pod of that number has answered, then prints the time of CLOCK_MONOTONIC.
#[expect(clippy::print_stdout, reason = "the parent reads it")]
fn watch(options: &ClientOptions) -> Result<()> {
    // SAFETY: a call without pointers; where it fails, pauses are a little longer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let target = options.target[0];
    for line in io::stdin().lock().lines() {
        let line = line.context("reading which pod to wait for")?;
        let wanted: u8 = line.trim().parse().with_context(|| format!("{line:?} is no pod's number"))?;
        while ask(target, options.mode) != Some(wanted) {
            std::thread::sleep(PAUSE);
        }
        println!("{}", monotonic_ns());
        io::stdout().flush().context("saying when")?;
    }
    Ok(())
}

/// The number of the pod that answers one request.
fn ask(target: SocketAddr, mode: Mode) -> Option<u8> {
    use std::io::Read as _;
    let mut answer = [0];
    if mode.is_tcp() {
        let mut stream = std::net::TcpStream::connect_timeout(&target, ATTEMPT_TIME_MAX).ok()?;
        stream.set_read_timeout(Some(ATTEMPT_TIME_MAX)).ok()?;
        stream.write_all(REQUEST).ok()?;
        stream.read_exact(&mut answer).ok()?;
    } else {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.set_read_timeout(Some(ATTEMPT_TIME_MAX)).ok()?;
        socket.connect(target).ok()?;
        socket.send(REQUEST).ok()?;
        socket.recv(&mut answer).ok()?;
    }
    Some(answer[0])
}
