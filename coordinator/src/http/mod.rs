//! The read-only HTTP server: the dashboard, `/metrics` for Prometheus, JSON, and a stream of what happens. It takes
//! GET and HEAD and changes nothing; what a reader could do to the run is gRPC's ([`crate::security`]).
//!
//! It asks for no token. Unless `--http` names an address it is on this machine's loopback interface, for the user who
//! runs it and for root ([`crate::security::Readers`]); a port of that interface answers to this machine's names alone.
//! Nothing that it shows holds a token: no log line and no option does.
//!
//! | path | |
//! |---|---|
//! | `/` | the dashboard (`crate::dashboard`) |
//! | `/metrics` | Prometheus's text format ([`crate::metrics::prometheus`]) |
//! | `/healthz` | `ok` while the run is driven |
//! | `/api/view` | the run now, as [`crate::view::View`] |
//! | `/api/events` | server-sent events: `view` every second, `point`, `started`, `decisions`, `line`, `over` |
//! | `/api/runs` | the runs beside this one, and the options in which they differ from it |
//! | `/api/runs/NAME/curves` | points of one of them, `?points=N` at most |
//! | `/api/logs`, `/api/logs/NAME` | whose logs there are, and the newest lines of one |
//! | `/api/images`, `/images/FILE` | pictures of label maps, where the run draws them |

mod api;
mod connections;
mod events;
mod files;
mod guard;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::dashboard;
use crate::driver::Queue;
use crate::security::Readers;

use connections::{Patience, Reception};

/// Where the dashboard is unless told otherwise.
pub const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4748);

/// Streams of events at a time; what comes beyond is told to come again.
const STREAMS: usize = 64;

/// Connections of readers at a time: a browser keeps some six, and one more for its stream of events.
const CONNECTIONS: usize = 256;

const TOO_MANY: &str = "there are as many connections as may be: try again later\n";

/// How long open streams may take to say farewell.
const FAREWELL: Duration = Duration::from_secs(1);

/// What `--http` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// [`DEFAULT`], or a free port where that is taken, for this user and root.
    Default,
    /// This one and no other, for whoever reaches it.
    At(SocketAddr),
    Off,
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" | "off" => Ok(Self::Off),
            _ => match text.parse() {
                Ok(address) => Ok(Self::At(address)),
                Err(_) => Err("it takes an address and port, such as 127.0.0.1:4748, or none".to_owned()),
            },
        }
    }
}

/// Why there is no server. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(
        "cannot serve the dashboard on {address}: {source}; choose another address with --http, or --http none"
    )]
    Bind { address: SocketAddr, source: std::io::Error },
}

/// A port that is open and not yet served.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    readers: Readers,
}

/// Opens the port; None where none is wanted.
///
/// # Errors
/// The address that was asked for cannot be had.
pub async fn bind(address: Address) -> Result<Option<Bound>, HttpError> {
    let bind = async |address: SocketAddr, readers| {
        let failed = |source| HttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Bound { listener, address, readers })
    };
    match address {
        Address::Off => Ok(None),
        Address::At(address) => bind(address, Readers::Everybody).await.map(Some),
        Address::Default => match bind(DEFAULT, Readers::OwnUser).await {
            Err(HttpError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                let bound = bind(SocketAddr::new(DEFAULT.ip(), 0), Readers::OwnUser).await?;
                tracing::info!("{DEFAULT} is taken: the dashboard takes port {}", bound.address.port());
                Ok(Some(bound))
            }
            bound => bound.map(Some),
        },
    }
}

/// A server at work.
pub struct Http {
    over: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// What every request may look at.
#[derive(Clone)]
struct App {
    queue: Queue,
    /// Folders of this run and of all runs beside it.
    run_dir: PathBuf,
    parent: PathBuf,
    streams: Arc<Semaphore>,
}

impl Bound {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the run behind `queue`, whose folder is `run_dir`, as an absolute path.
    pub fn serve(self, queue: Queue, run_dir: PathBuf) -> Http {
        self.serve_with(queue, run_dir, CONNECTIONS, Patience::default())
    }

    fn serve_with(self, queue: Queue, run_dir: PathBuf, places: usize, patience: Patience) -> Http {
        let Self { listener, address, readers } = self;
        let shown = match address.ip().is_unspecified() {
            true => format!("port {} of this host", address.port()),
            false => format!("http://{address}/"),
        };
        tracing::info!("dashboard and metrics: {shown}");
        if let Some(line) = readers.warning(address) {
            tracing::warn!("{line}");
        }
        let parent = run_dir.parent().unwrap_or(&run_dir).to_owned();
        let app = App { queue, run_dir, parent, streams: Arc::new(Semaphore::new(STREAMS)) };
        let reception = Reception {
            readers,
            open: guarded(router(app), address),
            refused: guarded(refusing(StatusCode::FORBIDDEN, Readers::refusal(address)), address),
            full: guarded(refusing(StatusCode::SERVICE_UNAVAILABLE, TOO_MANY.to_owned()), address),
            places,
            patience,
        };
        let (over, until_over) = oneshot::channel();
        let task = tokio::spawn(reception.serve(listener, async {
            // Dropped or sent, it is over.
            let _ = until_over.await;
        }));
        Http { over, task }
    }
}

impl Http {
    /// Closes the port once what is being answered is answered, and streams have told their readers that the run is
    /// over; streams that hang are cut.
    pub async fn stop(self) {
        drop(self.over);
        let abort = self.task.abort_handle();
        if tokio::time::timeout(FAREWELL, self.task).await.is_err() {
            abort.abort();
        }
    }
}

fn router(app: App) -> Router {
    Router::new()
        .route("/", get(dashboard::page))
        .route("/assets/{file}", get(dashboard::asset))
        .route("/metrics", get(api::metrics))
        .route("/healthz", get(api::health))
        .route("/api/view", get(api::view))
        .route("/api/events", get(events::events))
        .route("/api/runs", get(api::runs))
        .route("/api/runs/{name}/curves", get(api::curves))
        .route("/api/logs", get(files::logs))
        .route("/api/logs/{name}", get(files::log))
        .route("/api/images", get(files::images))
        .route("/images/{file}", get(files::image))
        .fallback(api::nothing)
        .with_state(app)
}

/// What answers the same to everything, and then wants to hear no more.
fn refusing(code: StatusCode, words: String) -> Router {
    Router::new().fallback((code, [(header::CONNECTION, "close")], words))
}

fn guarded(router: Router, address: SocketAddr) -> Router {
    router.layer(axum::middleware::from_fn_with_state(guard::Guard::new(address), guard::guard))
}
