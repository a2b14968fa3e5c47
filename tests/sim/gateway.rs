//! The way to a server that may die: its clients outlive it, as they would outlive a server behind an address.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use apiserver::{Identity, Server, server::body};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Service;

/// A server that runs, and the token that cuts every connection to it.
pub struct Incarnation {
    pub server: Server,
    pub dead: CancellationToken,
}

/// Where the clients find the server; empty while there is none.
pub type Address = Arc<ArcSwapOption<Incarnation>>;

/// A client's connection as somebody.
#[derive(Clone)]
pub struct Gateway {
    pub address: Address,
    pub identity: Identity,
}

impl Gateway {
    pub fn client(self) -> kube::Client {
        kube::Client::new(self, "default")
    }
}

impl Service<Request<kube::client::Body>> for Gateway {
    type Response = Response<Severable>;
    type Error = body::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let Some(current) = self.address.load_full() else {
            return Box::pin(std::future::ready(Err("connection refused".into())));
        };
        let dead = current.dead.clone();
        let answer = current.server.service(self.identity.clone()).call(request);
        drop(current);
        Box::pin(async move {
            tokio::select! {
                () = dead.cancelled() => Err("connection reset by peer".into()),
                response = answer => {
                    let response = response.unwrap_or_else(|never| match never {});
                    Ok(response.map(|body| Severable { body: Some(body), dead: Box::pin(dead.cancelled_owned()) }))
                }
            }
        })
    }
}

/// A response body that breaks off when its server dies.
pub struct Severable {
    body: Option<body::JoinedBody>,
    dead: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Body for Severable {
    type Data = Bytes;
    type Error = body::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.body.is_some() && self.dead.as_mut().poll(context).is_ready() {
            self.body = None;
            return Poll::Ready(Some(Err("connection reset by peer".into())));
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}
