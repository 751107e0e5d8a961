//! The simulated network, as the coordinator's port and the worker's link take it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use coordinator::security::{Port, Stream};
use relabel_proto::security::{Connecting, Transport, Wire};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// The way of a worker or an operator.
#[derive(Debug)]
pub struct Network;

impl Transport for Network {
    fn connect(&self, host: &str, port: u16) -> Connecting {
        let host = host.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    }
}

/// The coordinator's port.
pub struct SimulatedPort(pub TcpListener);

/// A connection that came to it.
pub struct SimulatedStream(TcpStream);

impl Port for SimulatedPort {
    type Stream = SimulatedStream;

    async fn accept(&self) -> io::Result<(SimulatedStream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((SimulatedStream(stream), peer))
    }
}

impl Stream for SimulatedStream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn send_at_once(&self) -> io::Result<()> {
        self.0.set_nodelay(true)
    }

    fn poll_peek(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.0.poll_peek(context, into)
    }
}

impl AsyncRead for SimulatedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for SimulatedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
