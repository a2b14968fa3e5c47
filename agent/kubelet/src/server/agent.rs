//! `/seaway/...`: what the agent of the node says on its own socket, for those who may use the kubelet's API.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{Answer, Refusal, State};

/// Under which path of the kubelet the agent's paths are.
pub const PREFIX: &str = "/seaway";

/// Hands the question on, and the answer back as it comes.
pub async fn serve(state: &Arc<State>, request: &Request<Incoming>) -> Answer {
    let Some(socket) = &state.context.config.agent_socket else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "this kubelet knows of no agent"));
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path = path.strip_prefix(PREFIX).filter(|path| path.starts_with('/')).unwrap_or("/");
    let silent = |error: &dyn std::fmt::Display| {
        let message = format!("the agent at {} does not answer: {error}", socket.display());
        Refusal::new(StatusCode::BAD_GATEWAY, message)
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| silent(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| silent(&error))?;
    // It ends with the answer, or once nobody reads that any more.
    tokio::spawn(connection);
    let question = Request::builder().method(Method::GET).uri(path).header(http::header::HOST, "agent");
    let question = question.body(Empty::<Bytes>::new()).map_err(Refusal::bad_request)?;
    let answer = sender.send_request(question).await.map_err(|error| silent(&error))?;
    Ok(answer.map(|body| body.map_err(std::io::Error::other).boxed()))
}
