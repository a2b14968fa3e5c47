//! Answers each octet of a connection, and each datagram, with the number of the pod that was asked.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    net::{TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

use super::{
    ServerOptions, enter,
    poll::{self, EDGE, Events, HANGUP, IN, Poll},
};

enum Socket {
    Listener(TcpListener, u8),
    Datagrams(UdpSocket, u8),
    Connection(OwnedFd, u8),
}

/// Says `ready` on standard output, and answers until it is ended.
pub(crate) fn run(options: &ServerOptions) -> Result<()> {
    let poll = Poll::new().context("making an epoll")?;
    let mut sockets: HashMap<RawFd, Socket> = HashMap::new();
    for (number, listen) in (0u8..).zip(&options.listen) {
        enter(&listen.namespace)?;
        let at = listen.address;
        let listener = TcpListener::bind(at).with_context(|| format!("listening on {at}"))?;
        listener.set_nonblocking(true)?;
        poll.add(listener.as_raw_fd(), IN, listener.as_raw_fd() as u64)?;
        let datagrams = UdpSocket::bind(at).with_context(|| format!("binding UDP {at}"))?;
        datagrams.set_nonblocking(true)?;
        poll.add(datagrams.as_raw_fd(), IN, datagrams.as_raw_fd() as u64)?;
        sockets.insert(listener.as_raw_fd(), Socket::Listener(listener, number));
        sockets.insert(datagrams.as_raw_fd(), Socket::Datagrams(datagrams, number));
    }
    let mut output = io::stdout();
    output.write_all(b"ready\n").and_then(|()| output.flush()).context("saying that it is ready")?;
    let mut events = Events::new();
    loop {
        poll.wait(&mut events, -1).context("waiting for requests")?;
        for (number, flags) in &events {
            let fd = *number as RawFd;
            match sockets.get(&fd).map_or(Step::Keep, |socket| turn(socket, *flags)) {
                Step::Keep => {}
                Step::Close => {
                    sockets.remove(&fd);
                }
                Step::Accepted(connection, pod) => {
                    let fd = connection.as_raw_fd();
                    // What the connection brought with it is told at once.
                    if poll.add(fd, IN | HANGUP | EDGE, fd as u64).is_ok() {
                        sockets.insert(fd, Socket::Connection(connection, pod));
                    }
                }
            }
        }
    }
}

enum Step {
    Keep,
    Close,
    Accepted(OwnedFd, u8),
}

fn turn(socket: &Socket, flags: u32) -> Step {
    match socket {
        Socket::Listener(listener, pod) => {
            accepted(listener).map_or(Step::Keep, |connection| Step::Accepted(connection, *pod))
        }
        Socket::Datagrams(socket, pod) => {
            answer_datagram(socket, *pod);
            Step::Keep
        }
        Socket::Connection(connection, pod) => {
            let goes_on = answer(connection.as_raw_fd(), *pod) && flags & HANGUP == 0;
            if goes_on { Step::Keep } else { Step::Close }
        }
    }
}

/// At most one: the listener is told of again while there are more.
fn accepted(listener: &TcpListener) -> Option<OwnedFd> {
    // SAFETY: no address is asked for.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    // SAFETY: the kernel just gave the descriptor, which nobody else has.
    (fd >= 0).then(|| unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// Whether the connection goes on.
fn answer(fd: RawFd, pod: u8) -> bool {
    let mut buffer = [0; 64];
    loop {
        match poll::receive(fd, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                buffer[..count].fill(pod);
                if poll::send(fd, &buffer[..count]).is_err() {
                    return false;
                }
                if count < buffer.len() {
                    return true;
                }
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn answer_datagram(socket: &UdpSocket, pod: u8) {
    let mut buffer = [0; 64];
    // One at a time, as the others are told of again; a client that is gone is no error of ours.
    if let Ok((count, from)) = socket.recv_from(&mut buffer) {
        buffer[..count].fill(pod);
        let _ = socket.send_to(&buffer[..count], from);
    }
}
