//! `/exec` and `/attach`: from the client's WebSocket or SPDY to the runtime's streaming server, which speaks SPDY.
//!
//! ```text
//!   kubectl --WebSocket v5/v4 or SPDY v4--> here --SPDY v4--> containerd
//!            channels 0 stdin 1 stdout 2 stderr 3 error 4 resize, 255 closes a channel (v5)
//! ```
//! SPDY on the far side, since its WebSocket form cannot close stdin.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::upgrade::{self, Pending, Socket, Wanted};
use super::{Answer, Query, Refusal, State};
use crate::cri::LABEL_CONTAINER_NAME;
use crate::pod;
use crate::spdy::{self, Mux, Side, StreamReader, StreamWriter};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const WEBSOCKET_PROTOCOLS: [&str; 5] =
    [V5, V4, "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
const SPDY_PROTOCOLS: [&str; 1] = [V4];
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
const STREAMS_LIMIT: Duration = Duration::from_secs(30);
const QUEUE: usize = 16;

/// Which streams the client asked for.
#[derive(Clone, Copy, Debug)]
struct Wishes {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wishes {
    fn of(query: &Query) -> Self {
        // The kubelet's own words first, then those of the apiserver's path.
        let flag = |own: &str, other: &str| query.flag(own) || query.flag(other);
        let tty = query.flag("tty");
        Self {
            stdin: flag("input", "stdin"),
            stdout: flag("output", "stdout"),
            // A terminal has one output.
            stderr: flag("error", "stderr") && !tty,
            tty,
        }
    }
}

pub async fn serve(
    state: Arc<State>,
    mut request: Request<Incoming>,
    pod: &Pod,
    container: &str,
    attach: bool,
) -> Answer {
    let query = Query::of(&request);
    let wishes = Wishes::of(&query);
    if !(wishes.stdin || wishes.stdout || wishes.stderr) {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let wanted = upgrade::wanted(request.headers())?;
    let id = running(&state, pod, container).await?;
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    let url = prepare(&state, id, command, wishes, attach).await?;
    let far = Far::connect(&url, wishes).await.map_err(Refusal::internal)?;
    let accepted = match wanted {
        Wanted::WebSocket => upgrade::websocket(&mut request, &WEBSOCKET_PROTOCOLS)?,
        Wanted::Spdy => upgrade::spdy(&mut request, &SPDY_PROTOCOLS)?,
    };
    let protocol = accepted.protocol.unwrap_or("channel.k8s.io");
    let (response, pending) = accepted.into_parts();
    tokio::spawn(async move {
        let result = match wanted {
            Wanted::WebSocket => bridge_websocket(pending, far, protocol, wishes).await,
            Wanted::Spdy => bridge_spdy(pending, far, wishes).await,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "exec or attach broke off");
        }
    });
    Ok(response)
}

async fn running(state: &State, pod: &Pod, name: &str) -> Result<String, Refusal> {
    let listed =
        state.context.runtime.list_containers(Some(pod::uid(pod))).await.map_err(Refusal::internal)?;
    let found = listed.into_iter().find(|container| {
        container.state == cri::ContainerState::ContainerRunning as i32
            && container.labels.get(LABEL_CONTAINER_NAME).is_some_and(|label| label == name)
    });
    found.map(|container| container.id).ok_or_else(|| {
        let message = format!("container not found (\"{name}\")");
        Refusal::new(StatusCode::NOT_FOUND, message)
    })
}

async fn prepare(
    state: &State,
    container_id: String,
    cmd: Vec<String>,
    wishes: Wishes,
    attach: bool,
) -> Result<String, Refusal> {
    let Wishes { stdin, stdout, stderr, tty } = wishes;
    let runtime = &state.context.runtime;
    let url = if attach {
        // The terminal is the container's own.
        runtime.attach(cri::AttachRequest { container_id, stdin, tty, stdout, stderr }).await
    } else {
        if cmd.is_empty() {
            return Err(Refusal::bad_request("you must specify at least one command for the container"));
        }
        runtime.exec(cri::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).await
    };
    url.map_err(Refusal::internal)
}

/// The runtime's side of the streams.
struct Far {
    mux: Mux,
    stdin: Option<StreamWriter>,
    resize: Option<StreamWriter>,
    stdout: Option<StreamReader>,
    stderr: Option<StreamReader>,
    error: StreamReader,
}

impl Far {
    async fn connect(url: &str, wishes: Wishes) -> anyhow::Result<Self> {
        let connection = tokio::time::timeout(CONNECT_LIMIT, spdy_client(url)).await??;
        let mux = Mux::start(Side::Client, connection);
        let open = |kind: &str| mux.open(&vec![("streamtype".to_owned(), kind.to_owned())]);
        // The order in which upstream's client opens them.
        let spdy::Stream { reader: error, writer: error_writer } = open("error");
        drop(error_writer);
        let stdin = wishes.stdin.then(|| open("stdin").writer);
        let output = |kind: &str| {
            let spdy::Stream { reader, writer } = open(kind);
            drop(writer);
            reader
        };
        let stdout = wishes.stdout.then(|| output("stdout"));
        let stderr = wishes.stderr.then(|| output("stderr"));
        let resize = wishes.tty.then(|| open("resize").writer);
        Ok(Self { stdin, resize, stdout, stderr, error, mux })
    }
}

async fn spdy_client(url: &str) -> anyhow::Result<TokioIo<Upgraded>> {
    let uri: Uri = url.parse()?;
    let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
    anyhow::ensure!(
        uri.scheme_str() != Some("https"),
        "the runtime's streaming server uses TLS: not supported"
    );
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", V4)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    anyhow::ensure!(status == StatusCode::SWITCHING_PROTOCOLS, "the runtime answered {status} to an upgrade");
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}

/// What came from the client.
enum Input {
    Bytes(u8, Bytes),
    Closed(u8),
}

/// Understands one WebSocket message; `None` for what carries nothing.
fn read_message(message: Message, protocol: &str) -> Option<Input> {
    let frame = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) if protocol.contains("base64") => {
            let (channel, rest) = text.as_bytes().split_first()?;
            let channel = channel.checked_sub(b'0').filter(|channel| *channel < 10)?;
            let bytes = STANDARD.decode(rest).ok()?;
            return Some(Input::Bytes(channel, bytes.into()));
        }
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return None,
    };
    match *frame.first()? {
        CLOSE if protocol == V5 => Some(Input::Closed(*frame.get(1)?)),
        channel => Some(Input::Bytes(channel, frame.slice(1..))),
    }
}

fn write_message(channel: u8, bytes: &[u8], protocol: &str) -> Message {
    if protocol.contains("base64") {
        let text = format!("{}{}", char::from(b'0' + channel), STANDARD.encode(bytes));
        return Message::text(text);
    }
    let mut frame = Vec::with_capacity(bytes.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(bytes);
    Message::binary(frame)
}

async fn pump(channel: u8, mut reader: StreamReader, out: mpsc::Sender<(u8, Bytes)>) {
    while let Some(bytes) = reader.read().await {
        if out.send((channel, bytes)).await.is_err() {
            return;
        }
    }
}

async fn bridge_websocket(pending: Pending, far: Far, protocol: &str, wishes: Wishes) -> anyhow::Result<()> {
    let socket: Socket = pending.websocket().await?;
    let (mut to_client, mut from_client) = socket.split();
    let Far { mux, stdin, resize, stdout, stderr, error } = far;
    let (out, mut outputs) = mpsc::channel::<(u8, Bytes)>(QUEUE);
    let readers = [(STDOUT, stdout), (STDERR, stderr), (ERROR, Some(error))];
    for (channel, reader) in readers {
        if let Some(reader) = reader {
            tokio::spawn(pump(channel, reader, out.clone()));
        }
    }
    drop(out);
    // An empty message tells the client that the streams are there.
    let first = if wishes.stdout { STDOUT } else { ERROR };
    to_client.send(write_message(first, &[], protocol)).await?;
    let output = async {
        while let Some((channel, bytes)) = outputs.recv().await {
            to_client.send(write_message(channel, &bytes, protocol)).await?;
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        to_client.send(Message::Close(Some(normal))).await?;
        anyhow::Ok(())
    };
    let input = async {
        let (mut stdin, mut resize) = (stdin, resize);
        while let Some(message) = from_client.next().await {
            match read_message(message?, protocol) {
                Some(Input::Bytes(STDIN, bytes)) => {
                    if let Some(writer) = &stdin
                        && !bytes.is_empty()
                    {
                        writer.write(&bytes).await;
                    }
                }
                Some(Input::Bytes(RESIZE, bytes)) => {
                    if let Some(writer) = &resize {
                        writer.write(&bytes).await;
                    }
                }
                Some(Input::Closed(STDIN)) => drop(stdin.take()),
                Some(Input::Closed(RESIZE)) => drop(resize.take()),
                Some(Input::Bytes(..) | Input::Closed(_)) | None => {}
            }
        }
        anyhow::Ok(())
    };
    // The client leaving ends it all; the command's end leaves the client to say good-bye.
    let result = tokio::select! {
        result = output => result,
        result = input => result,
    };
    mux.close().await;
    result
}

/// The client's side of the streams, in SPDY.
#[derive(Default)]
struct Near {
    stdin: Option<StreamReader>,
    resize: Option<StreamReader>,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    error: Option<StreamWriter>,
}

impl Near {
    async fn accept(mux: &mut Mux, wishes: Wishes) -> anyhow::Result<Self> {
        let mut near = Self::default();
        let count =
            [true, wishes.stdin, wishes.stdout, wishes.stderr, wishes.tty].iter().filter(|w| **w).count();
        for _ in 0..count {
            let incoming = tokio::time::timeout(STREAMS_LIMIT, mux.accept()).await?;
            let incoming =
                incoming.ok_or_else(|| anyhow::anyhow!("the client left before its streams were there"))?;
            let kind = incoming.header("streamtype").unwrap_or_default().to_owned();
            let spdy::Stream { reader, writer } = incoming.stream;
            match kind.as_str() {
                "stdin" => near.stdin = Some(reader),
                "resize" => near.resize = Some(reader),
                "stdout" => near.stdout = Some(writer),
                "stderr" => near.stderr = Some(writer),
                "error" => near.error = Some(writer),
                other => anyhow::bail!("unknown stream type \"{other}\""),
            }
        }
        Ok(near)
    }
}

async fn copy(reader: Option<StreamReader>, writer: Option<StreamWriter>) {
    if let (Some(mut reader), Some(writer)) = (reader, writer) {
        while let Some(bytes) = reader.read().await {
            if !writer.write(&bytes).await {
                return;
            }
        }
    }
}

async fn bridge_spdy(pending: Pending, far: Far, wishes: Wishes) -> anyhow::Result<()> {
    let mut client = Mux::start(Side::Server, pending.raw().await?);
    let near = Near::accept(&mut client, wishes).await?;
    let Far { mux, stdin, resize, stdout, stderr, error } = far;
    let inputs = tokio::spawn(async move {
        tokio::join!(copy(near.stdin, stdin), copy(near.resize, resize));
    });
    tokio::join!(copy(stdout, near.stdout), copy(stderr, near.stderr), copy(Some(error), near.error));
    inputs.abort();
    mux.close().await;
    client.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(input: Option<Input>) -> Option<(u8, Vec<u8>)> {
        match input {
            Some(Input::Bytes(channel, bytes)) => Some((channel, bytes.to_vec())),
            _ => None,
        }
    }

    #[test]
    fn messages_carry_their_channel_in_both_codings() {
        for protocol in WEBSOCKET_PROTOCOLS {
            let message = write_message(STDIN, b"hi\xff", protocol);
            assert_eq!(
                bytes_of(read_message(message, protocol)),
                Some((STDIN, b"hi\xff".to_vec())),
                "{protocol}"
            );
        }
    }

    #[test]
    fn only_version_5_can_close_a_channel() {
        let close = || Message::binary(vec![CLOSE, STDIN]);
        assert!(matches!(read_message(close(), V5), Some(Input::Closed(STDIN))));
        assert_eq!(bytes_of(read_message(close(), V4)), Some((CLOSE, vec![STDIN])));
        assert!(read_message(Message::binary(vec![CLOSE]), V5).is_none());
        assert!(read_message(Message::binary(vec![]), V5).is_none());
        assert!(read_message(Message::text("x?"), "base64.channel.k8s.io").is_none());
    }

    #[test]
    fn a_terminal_has_no_stderr_of_its_own() {
        let of = |query: &str| Wishes::of(&Query::of(&Request::get(format!("/x?{query}")).body(()).unwrap()));
        let wishes = of("input=1&output=1&error=1&tty=1");
        assert!(wishes.stdin && wishes.stdout && wishes.tty && !wishes.stderr);
        assert!(of("stdout=true&stderr=true").stderr);
    }
}
