//! How those are refused who cannot be let in: with words where they can understand any, and a line in the log that a
//! crowd of them cannot fill.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Server;

use super::guests::Connection;
use super::port::Stream;

/// Between two lines about the same kind of refusal.
const PAUSE: Duration = Duration::from_secs(10);

/// How long one who is refused may take to hear it.
const HEARING: Duration = Duration::from_secs(2);

/// The log of refusals: the first of a kind at once, then a line every [`PAUSE`] with the number of those between.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals(Arc<Mutex<BTreeMap<&'static str, Kind>>>);

#[derive(Debug)]
struct Kind {
    shown: Instant,
    /// Not shown since.
    more: u64,
}

impl Refusals {
    /// Notes that `peer` was refused for `reason`, which is the kind of refusal too; `detail` may be empty.
    pub(super) fn note(&self, peer: Option<SocketAddr>, reason: &'static str, detail: &dyn Display) {
        let Some(more) = self.due(reason, Instant::now()) else { return };
        let peer = peer.map_or_else(|| "a connection".into(), |peer| format!("the connection from {peer}"));
        let detail = match relabel_proto::sentence(&detail.to_string()) {
            detail if detail.is_empty() => detail,
            detail => format!(" ({detail})"),
        };
        let more = if more == 0 { String::new() } else { format!("; {more} more since the last such line") };
        tracing::warn!("refused {peer}: {reason}{detail}{more}");
    }

    /// How many of this kind were not shown, if it is time for a line.
    fn due(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(reason) {
            Some(kind) if now.saturating_duration_since(kind.shown) < PAUSE => {
                kind.more += 1;
                None
            }
            Some(kind) => {
                kind.shown = now;
                Some(std::mem::take(&mut kind.more))
            }
            None => {
                kinds.insert(reason, Kind { shown: now, more: 0 });
                Some(0)
            }
        }
    }
}

/// A service that answers every call with one status.
#[derive(Clone)]
struct Refuse(Status);

impl Service<http::Request<Body>> for Refuse {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        ready(Ok(self.0.clone().into_http()))
    }
}

/// Answers every call on `connection`, which speaks HTTP/2, with `status`, for as long as the connection may last.
pub(super) async fn by_status(connection: Connection<impl Stream>, status: Status) {
    let one = tokio_stream::once(Ok::<_, std::io::Error>(connection));
    // Nobody is left to hear of an error.
    let _ = Server::builder().max_concurrent_streams(1).serve_with_incoming(Refuse(status), one).await;
}

/// Tells one who speaks HTTP/1, or TLS to a port without: that one finds no TLS in the answer, which says enough.
pub(super) async fn in_words(mut stream: impl Stream, words: &str) {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{words}\n",
        words.len() + 1
    );
    let tell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed before it has read, the other end would lose what it was told.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // It hears it or it does not.
    let _ = tokio::time::timeout(HEARING, tell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_one_line() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.due("it knocks", began), Some(0));
        for _ in 0..1000 {
            assert_eq!(refusals.due("it knocks", began + PAUSE / 2), None);
        }
        assert_eq!(refusals.due("it rings", began + PAUSE / 2), Some(0), "another kind has its own line");
        assert_eq!(refusals.due("it knocks", began + PAUSE), Some(1000));
        assert_eq!(refusals.due("it knocks", began + 2 * PAUSE), Some(0));
    }
}
