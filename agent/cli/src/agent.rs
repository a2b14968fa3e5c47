//! The conversation with an agent: HTTP over its unix socket, or by way of the API server and the kubelet of its node.

use std::{fmt, io::ErrorKind, ops::ControlFlow, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

/// How long the agent gets for an answer.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Clone)]
pub enum Agent {
    /// Of this node.
    Here { socket: PathBuf },
    /// Of any node, for who may use its proxy subresource.
    Of { node: String, client: Client },
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here { socket } => write!(f, "the agent at {}", socket.display()),
            Self::Of { node, .. } => write!(f, "the agent of {node}"),
        }
    }
}

impl Agent {
    /// What the agent says at `path`.
    ///
    /// # Errors
    /// Names the socket where nobody answers there, and the path where the answer is no success or no JSON.
    pub async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, self.exchange(path));
        let Ok(answer) = answer.await else {
            bail!("{self} took the question {path} and did not answer in {} s", ANSWER_TIME_MAX.as_secs())
        };
        let (status, body) = answer?;
        if status != StatusCode::OK {
            bail!("{}", self.refusal(status, path, &body));
        }
        serde_json::from_slice(&body).with_context(|| format!("the agent's answer to {path} is not JSON"))
    }

    /// Hands the answer at `path` on line by line, while `each` wants more. Between two lines the agent gets `patience`.
    ///
    /// # Errors
    /// As [`Self::ask`], what the agent says in place of a line, and what `each` fails with.
    pub async fn lines(
        &self,
        path: &str,
        patience: Duration,
        mut each: impl FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let broke = || format!("the agent broke off its answer to {path}");
        let slow = || anyhow!("{self} did not go on answering {path}");
        let in_time = tokio::time::timeout(ANSWER_TIME_MAX, self.send(path));
        let (response, _connection) = in_time.await.map_err(|_| slow())??;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let said =
                body.collect().await.map_err(anyhow::Error::from_boxed).with_context(broke)?.to_bytes();
            bail!("{}", self.refusal(status, path, &said));
        }
        let mut pending = Vec::new();
        while let Some(frame) = tokio::time::timeout(patience, body.frame()).await.map_err(|_| slow())? {
            let Ok(data) = frame.map_err(anyhow::Error::from_boxed).with_context(broke)?.into_data() else {
                continue;
            };
            pending.extend_from_slice(&data);
            let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else { continue };
            let rest = pending.split_off(end + 1);
            let text = String::from_utf8(std::mem::replace(&mut pending, rest))
                .with_context(|| format!("the agent's answer to {path} is no text"))?;
            for line in text.lines() {
                if let Some(error) = error_of(line) {
                    bail!("the agent cannot go on: {error}");
                }
                if each(line)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn exchange(&self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let (response, _connection) = self.send(path).await?;
        let status = response.status();
        let broke = || format!("the agent broke off its answer to {path}");
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(anyhow::Error::from_boxed)
            .with_context(broke)?
            .to_bytes();
        Ok((status, body))
    }

    async fn send(&self, path: &str) -> anyhow::Result<(Response<Body>, Option<Connection>)> {
        match self {
            Self::Here { socket } => {
                let stream = connect(socket).await?;
                let broke = || format!("the agent broke off its answer to {path}");
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(broke)?;
                let connection = Connection(tokio::spawn(connection));
                let request = Request::get(path).header(http::header::HOST, "agent");
                let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await;
                let response =
                    response.with_context(broke)?.map(|body| body.map_err(Into::into).boxed_unsync());
                Ok((response, Some(connection)))
            }
            Self::Of { node, client } => {
                let request = Request::get(format!("/api/v1/nodes/{node}/proxy/seaway{path}"));
                let response = client.send(request.body(kube::client::Body::empty())?).await;
                let response = response.context("asking by way of the API server")?;
                Ok((response.map(|body| body.map_err(Into::into).boxed_unsync()), None))
            }
        }
    }

    /// What an answer that is none says, be it the agent's or that of somebody on the way.
    fn refusal(&self, status: StatusCode, path: &str, body: &[u8]) -> String {
        let said = String::from_utf8_lossy(body);
        match (self, serde_json::from_slice::<Value>(body)) {
            (Self::Of { node, .. }, Ok(object)) if object["kind"] == "Status" => {
                let message = object["message"].as_str().unwrap_or_default();
                format!("the API server does not ask the agent of {node}: {status}: {message}")
            }
            (Self::Of { node, .. }, _) => format!("{node} answered {status} to {path}: {}", said.trim()),
            (Self::Here { .. }, _) => format!("the agent answered {status} to {path}: {}", said.trim()),
        }
    }
}

async fn connect(path: &std::path::Path) -> anyhow::Result<UnixStream> {
    let socket = path.display();
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(stream),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => bail!(
                "there is no socket at {socket}: the agent does not run on this node, or keeps its socket elsewhere \
                 (--socket); that of another node is asked by --node"
            ),
            ErrorKind::ConnectionRefused => {
                bail!("nobody answers at {socket}: the agent that made the socket has stopped")
            }
            ErrorKind::PermissionDenied => bail!("no permission to use {socket}: run seaway as root"),
            _ => Err(error).with_context(|| format!("cannot connect to the agent at {socket}")),
        },
    }
}

/// The task that moves the bytes; it ends with this.
struct Connection(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What failed, where the line is an object with nothing else.
fn error_of(line: &str) -> Option<String> {
    if !line.starts_with("{\"error\":") {
        return None;
    }
    let line: Value = serde_json::from_str(line).ok()?;
    let error = line["error"].as_str().filter(|_| line.as_object().is_some_and(|object| object.len() == 1));
    error.map(str::to_owned)
}

/// The answer in the form that a table needs.
pub fn read<T: DeserializeOwned>(answer: &Value) -> anyhow::Result<T> {
    T::deserialize(answer).context("the agent's answer has not the form that this version of seaway knows")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    async fn complaint(agent: Agent) -> String {
        format!("{:#}", agent.ask("/v1/peers").await.unwrap_err())
    }

    #[tokio::test]
    async fn an_absent_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let complaint = complaint(Agent::Here { socket: path.clone() }).await;
        assert!(complaint.contains(&format!("no socket at {}", path.display())), "{complaint}");
        assert!(complaint.contains("the agent does not run"), "{complaint}");
    }

    #[tokio::test]
    async fn a_socket_left_behind_says_that_the_agent_has_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(UnixListener::bind(&path).unwrap());
        let complaint = complaint(Agent::Here { socket: path }).await;
        assert!(complaint.contains("has stopped"), "{complaint}");
    }

    /// An agent that reads one request and answers this.
    fn answering(answer: &'static str) -> (tempfile::TempDir, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /v1/peers HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        (folder, Agent::Here { socket: path })
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let (_folder, agent) = answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[7]");
        assert_eq!(agent.ask("/v1/peers").await.unwrap(), serde_json::json!([7]));
    }

    async fn lines(agent: &Agent, wanted: usize) -> (Vec<String>, anyhow::Result<()>) {
        let mut lines = Vec::new();
        let read = agent.lines("/v1/peers", ANSWER_TIME_MAX, |line| {
            lines.push(line.to_owned());
            Ok(if lines.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        let read = read.await;
        (lines, read)
    }

    #[tokio::test]
    async fn lines_come_whole_however_they_were_cut_and_only_as_many_as_are_wanted() {
        let answer =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}\n{}\r\n4\r\n\n{}\n\r\n0\r\n\r\n";
        let (_folder, agent) = answering(answer);
        let (found, read) = lines(&agent, 9).await;
        assert_eq!((found.join(","), read.is_ok()), ("{},{},{}".to_owned(), true));
        let (_folder, agent) = answering(answer);
        let (found, read) = lines(&agent, 2).await;
        assert_eq!((found.len(), read.is_ok()), (2, true));
    }

    #[tokio::test]
    async fn what_fails_on_the_way_is_told_and_a_refusal_says_why() {
        let (_folder, agent) =
            answering("HTTP/1.1 200 OK\r\ncontent-length: 25\r\n\r\n{\"a\":1}\n{\"error\":\"lost\"}\n");
        let (found, read) = lines(&agent, 9).await;
        assert_eq!(found, ["{\"a\":1}"]);
        assert_eq!(read.unwrap_err().to_string(), "the agent cannot go on: lost");
        let (_folder, agent) = answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\nnone");
        let (_, read) = lines(&agent, 9).await;
        assert_eq!(read.unwrap_err().to_string(), "the agent answered 400 Bad Request to /v1/peers: none");
    }

    #[tokio::test]
    async fn a_refusal_an_answer_cut_short_and_one_that_is_no_json_are_told_apart() {
        let (_folder, agent) = answering("HTTP/1.1 404 Not Found\r\ncontent-length: 8\r\n\r\nno page\n");
        assert_eq!(complaint(agent).await, "the agent answered 404 Not Found to /v1/peers: no page");
        let (_folder, agent) = answering("HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n[7");
        assert!(complaint(agent).await.starts_with("the agent broke off its answer to /v1/peers"));
        let (_folder, agent) = answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\noops");
        assert!(complaint(agent).await.starts_with("the agent's answer to /v1/peers is not JSON"));
    }
}
