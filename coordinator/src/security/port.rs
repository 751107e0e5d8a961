//! What connections come by: this machine's TCP, or a simulated network.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// An open port.
pub trait Port: Send + 'static {
    type Stream: Stream;

    /// Waits for the next connection; its other end's address with it.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

/// A connection as it came.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Has what is written go out at once.
    fn send_at_once(&self) -> io::Result<()>;

    /// Looks at what has come, and leaves it to be read; 0 bytes at its end.
    fn poll_peek(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<usize>>;
}

impl Port for TcpListener {
    type Stream = TcpStream;

    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        TcpListener::accept(self)
    }
}

impl Stream for TcpStream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }

    fn send_at_once(&self) -> io::Result<()> {
        self.set_nodelay(true)
    }

    fn poll_peek(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        TcpStream::poll_peek(self, context, into)
    }
}

/// Waits for something to have come, and looks at it.
pub(super) async fn peek(stream: &mut impl Stream, into: &mut [u8]) -> io::Result<usize> {
    let mut into = ReadBuf::new(into);
    poll_fn(|context| stream.poll_peek(context, &mut into)).await
}
