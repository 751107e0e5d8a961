//! What connections without TLS may go over beside this machine's TCP: a simulated network.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

/// One end of a connection.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;

/// Makes connections.
pub trait Transport: Debug + Send + Sync {
    /// Connects to a host by its name or address, once.
    fn connect(&self, host: &str, port: u16) -> Connecting;
}

/// A [`Transport`] to one host.
#[derive(Debug, Clone)]
pub(super) struct Carrier {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) transport: Arc<dyn Transport>,
}

impl Service<Uri> for Carrier {
    type Response = TokioIo<Box<dyn Wire>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.transport.connect(&self.host, self.port);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}
