//! Connections from the listener to the server: counted, with TLS where there is any, and closed after a while if they
//! have shown no token.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::server::Connected;

use super::caller;
use super::limits::ADMISSION;
use super::port::{self, Port, Stream};
use super::refusal::{self, Refusals};

/// Connections that are ready for the server and may wait for it.
const READY: usize = 64;

/// Connections beyond the limit that are told so at a time; the others are closed without a word.
const TOLD: usize = 64;

/// After an error of the listener's, such as no file being left.
const PAUSE: Duration = Duration::from_millis(100);

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of TLS: a record of the handshake.
const TLS_HANDSHAKE: u8 = 22;

const SPEAKS_TLS: &str = "it speaks TLS: use https:// and name its certificate's authority with --tls-ca";
const SPEAKS_NO_TLS: &str = "it speaks TLS to a port without: it should use http://";
const SPEAKS_PLAIN: &str = "it speaks no TLS to a port that does";
const SPEAKS_NEITHER: &str = "it speaks no gRPC";
const BAD_TLS: &str = "its TLS handshake failed";
const NOT_ACCEPTED: &str = "it could not be accepted";
const TOO_SLOW: &str = "it has shown no valid token for 10 s";
const TOO_MANY: &str = "there are as many connections as may be (--max-connections)";

/// What a call knows of its connection.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    peer: SocketAddr,
    own: SocketAddr,
    admitted: Arc<AtomicBool>,
}

impl Guest {
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Lets the connection stay.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    /// Whether the other end is a process of this one's user, or of root, on this machine.
    pub(super) fn is_own_user(&self) -> bool {
        caller::is_own_user(self.peer, self.own)
    }
}

/// Lets connections in.
pub(super) struct Reception {
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) refusals: Refusals,
    pub(super) max_connections: usize,
}

/// Held while the port is open: when it is dropped, connections that were not admitted are closed.
pub(super) struct Closing(#[expect(dead_code, reason = "held for its drop")] watch::Sender<()>);

impl Reception {
    /// Takes connections from `port`, and from `children` past TLS, until the stream is dropped.
    pub(super) fn open<P: Port>(
        self,
        port: P,
        children: Option<P>,
    ) -> (ReceiverStream<io::Result<Connection<P::Stream>>>, Closing) {
        let (closing, closed) = watch::channel(());
        let (ready, incoming) = mpsc::channel(READY);
        let desk = Arc::new(Desk {
            seats: Arc::new(Semaphore::new(self.max_connections)),
            told: Arc::new(Semaphore::new(TOLD)),
            refusals: self.refusals,
            ready,
            closed,
        });
        if let Some(children) = children {
            tokio::spawn(desk.clone().accept(children, None));
        }
        tokio::spawn(desk.accept(port, self.tls));
        (ReceiverStream::new(incoming), Closing(closing))
    }
}

/// What all connections pass.
struct Desk<S> {
    seats: Arc<Semaphore>,
    told: Arc<Semaphore>,
    refusals: Refusals,
    ready: mpsc::Sender<io::Result<Connection<S>>>,
    closed: watch::Receiver<()>,
}

impl<S: Stream> Desk<S> {
    async fn accept(self: Arc<Self>, port: impl Port<Stream = S>, tls: Option<TlsAcceptor>) {
        loop {
            let accepted = tokio::select! {
                accepted = port.accept() => accepted,
                () = self.ready.closed() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.clone().receive(stream, peer, tls.clone()),
                // The peer was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.refusals.note(None, NOT_ACCEPTED, &error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Sees one connection in, on a task of its own, so that none waits for another.
    fn receive(self: Arc<Self>, stream: S, peer: SocketAddr, tls: Option<TlsAcceptor>) {
        let (seat, refused) = match self.seats.clone().try_acquire_owned() {
            Ok(seat) => (seat, None),
            Err(_) => {
                self.refusals.note(Some(peer), TOO_MANY, &"");
                match self.told.clone().try_acquire_owned() {
                    Ok(seat) => (seat, Some(Status::resource_exhausted(TOO_MANY))),
                    Err(_) => return,
                }
            }
        };
        tokio::spawn(async move {
            let until = Instant::now() + ADMISSION;
            let (connection, misled) =
                match timeout_at(until, self.see_in(stream, peer, tls, seat, until)).await {
                    Ok(Some(seen)) => seen,
                    Ok(None) => return,
                    Err(_) => return self.refusals.note(Some(peer), TOO_SLOW, &""),
                };
            match refused.or(misled) {
                Some(status) => refusal::by_status(connection, status).await,
                // The server is gone when the run is over.
                None => drop(self.ready.send(Ok(connection)).await),
            }
        });
    }

    /// Finds out what the connection speaks and makes of it what HTTP/2 can go over; with a status where it is to be
    /// told that it is wrong here.
    async fn see_in(
        &self,
        mut stream: S,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        seat: OwnedSemaphorePermit,
        until: Instant,
    ) -> Option<(Connection<S>, Option<Status>)> {
        let own = stream.local_addr().ok()?;
        stream.send_at_once().ok()?;
        let mut first = [0; PREFACE.len()];
        let seen = port::peek(&mut stream, &mut first).await.ok()?;
        let (speaks_tls, speaks_h2) = match &first[..seen] {
            // It came to see whether the port is open, as health checks do.
            [] => return None,
            [byte, ..] => (*byte == TLS_HANDSHAKE, PREFACE.starts_with(&first[..seen.min(PREFACE.len())])),
        };
        let (io, misled) = match (tls, speaks_tls) {
            (Some(acceptor), true) => match acceptor.accept(stream).await {
                Ok(stream) => (Io::Tls(Box::new(stream)), None),
                Err(error) => {
                    self.refusals.note(Some(peer), BAD_TLS, &error);
                    return None;
                }
            },
            (None, false) if speaks_h2 => (Io::Plain(stream), None),
            (Some(_), false) if speaks_h2 => {
                self.refusals.note(Some(peer), SPEAKS_PLAIN, &"");
                (Io::Plain(stream), Some(Status::failed_precondition(SPEAKS_TLS)))
            }
            (None, true) => {
                self.refusals.note(Some(peer), SPEAKS_NO_TLS, &"");
                refusal::in_words(stream, "this port speaks no TLS: use http://").await;
                return None;
            }
            (_, false) => {
                self.refusals.note(Some(peer), SPEAKS_NEITHER, &"");
                refusal::in_words(stream, "this is the gRPC port of a coordinator").await;
                return None;
            }
        };
        let guest = Guest { peer, own, admitted: Arc::default() };
        let mut closed = self.closed.clone();
        // The channel is closed when the run is over: then it is time too.
        let patience = Box::pin(async move { timeout_at(until, closed.changed()).await.is_err() });
        let refusals = self.refusals.clone();
        Some((Connection { io, guest, patience: Some(patience), refusals, _seat: seat }, misled))
    }
}

enum Io<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

/// A connection that HTTP/2 can go over. Whatever is done with it fails once its time is up and nobody has admitted it.
pub(super) struct Connection<S> {
    io: Io<S>,
    guest: Guest,
    /// Ends with true when its time is up, with false when the run is over; none once it was admitted.
    patience: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    refusals: Refusals,
    _seat: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(patience) = &mut self.patience else { return Ok(()) };
        if self.guest.admitted.load(Ordering::Relaxed) {
            self.patience = None;
            return Ok(());
        }
        let Poll::Ready(slow) = patience.as_mut().poll(context) else { return Ok(()) };
        if slow {
            self.refusals.note(Some(self.guest.peer), TOO_SLOW, &"");
        }
        // It was told where it asked; what is to be said beyond that would wait for it.
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Guest;

    fn connect_info(&self) -> Guest {
        self.guest.clone()
    }
}

impl<S: Stream> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl<S: Stream> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, from),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, from),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, from),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
