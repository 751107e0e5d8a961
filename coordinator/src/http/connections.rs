//! Connections of the HTTP port, from the listener to their end: who they are of, how many there may be, and how long
//! each may keep the server waiting.
//!
//! One that no reader is behind gets a refusal and takes none of the readers' places. Whoever sends no request, sends
//! one byte by byte, or does not take what he asked for is cut off after [`Patience`]: a page that is open in a browser
//! has its stream of events, which says something every second.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use crate::security::Readers;

/// Connections that are told that they are refused, or that there are too many, at a time; the others are closed
/// without a word.
const TOLD: usize = 16;

/// After an error of the listener's, such as no file being left.
const PAUSE: Duration = Duration::from_secs(1);

/// Most bytes of a request's head, which is all that a request is here.
const HEAD_BYTES: usize = 64 * 1024;

/// How long a connection may keep the server waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the whole head of a request, from the connection's begin or the answer before it on. Longer than Prometheus
    /// pauses between two scrapes, mostly.
    pub(super) request: Duration,
    /// For the other end to take anything of what is sent.
    pub(super) taking: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { request: Duration::from_secs(30), taking: Duration::from_secs(30) }
    }
}

/// What a port does with those who come.
pub(super) struct Reception {
    pub(super) readers: Readers,
    /// For readers.
    pub(super) open: Router,
    /// For all others.
    pub(super) refused: Router,
    /// For readers beyond `places`.
    pub(super) full: Router,
    /// Connections of readers at a time.
    pub(super) places: usize,
    pub(super) patience: Patience,
}

impl Reception {
    /// Serves until `over`, and then until what is being answered is answered. Dropped, it cuts all connections.
    pub(super) async fn serve(self, listener: TcpListener, over: impl Future<Output = ()>) {
        let (places, told) = (Arc::new(Semaphore::new(self.places)), Arc::new(Semaphore::new(TOLD)));
        let (closing, mut connections) = (GracefulShutdown::new(), JoinSet::new());
        tokio::pin!(over);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    // The peer was gone before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => {
                        tracing::warn!("the dashboard could not take a connection: {error}");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next() => continue,
                () = &mut over => break,
            };
            let (router, place) = match self.reads(&stream, peer).await {
                true => match places.clone().try_acquire_owned() {
                    Ok(place) => (&self.open, Ok(place)),
                    Err(_) => (&self.full, told.clone().try_acquire_owned()),
                },
                false => (&self.refused, told.clone().try_acquire_owned()),
            };
            let Ok(place) = place else { continue };
            let stream = TokioIo::new(Impatient::new(stream, self.patience.taking));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.patience.request)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(stream, TowerToHyperService::new(router.clone()));
            let connection = closing.watch(connection);
            connections.spawn(async move {
                // A reader who has gone, or was too slow, has nothing to be told.
                let _ = connection.await;
                drop(place);
            });
        }
        drop(listener);
        closing.shutdown().await;
    }

    async fn reads(&self, stream: &TcpStream, peer: SocketAddr) -> bool {
        match stream.local_addr() {
            Ok(own) => self.readers.admit(peer, own).await,
            Err(_) => false,
        }
    }
}

/// A connection that fails once the other end has taken nothing for a while of what there was to be sent.
struct Impatient {
    stream: TcpStream,
    taking: Duration,
    /// While it takes nothing: when that is too long.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, taking: Duration) -> Self {
        Self { stream, taking, waiting: None }
    }

    /// Has what was tried stand, or fail where it has waited for too long.
    fn bounded<T>(&mut self, tried: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if tried.is_ready() {
            self.waiting = None;
            return tried;
        }
        let until = Instant::now() + self.taking;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(context, from);
        self.bounded(tried, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(context, from);
        self.bounded(tried, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
