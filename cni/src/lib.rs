//! The contract between the CNI plugin and the agent of its node: gRPC over a unix socket.
//!
//! The plugin is a new process for each call and does nothing itself but check its input and shape the result;
//! the agent, which stays, does the work.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub mod config;
pub mod error;

/// Messages, client and server generated from `proto/cni.proto`.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("seaway.cni.v1");
}

/// Where the agent listens if not told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/seaway/cni.sock";

/// The plugin's `type` in a network configuration, and the name of its binary.
pub const PLUGIN_TYPE: &str = "seaway-cni";

/// Connects to the agent; fails at once where nobody listens.
pub async fn connect(socket: &Path) -> Result<v1::cni_client::CniClient<Channel>, tonic::transport::Error> {
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never used: the connector knows where to go.
    let channel = Endpoint::from_static("http://agent.invalid").connect_with_connector(connector).await?;
    Ok(v1::cni_client::CniClient::new(channel))
}
