//! Server-sent events: what happens, as it happens. A reader that comes first asks for the events, then for the
//! curves so far, and so misses nothing.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use super::api::Refusal;
use crate::progress::Line;
use crate::view::{self, Board, DecisionView, Histogram, News, View, standing_out};

/// Events that may wait for a reader.
const WAITING: usize = 256;

/// How soon a reader is told of a decision.
const SOON: Duration = Duration::from_millis(100);

/// Most workers that a reader is told of: of more, those who stand out.
const WORKERS: usize = 256;

/// Workers whose state is looked at every second; with more it is looked at less often, but before the page thinks that
/// the connection is lost.
const WORKERS_A_SECOND: u64 = 1000;
const RARELY: Duration = Duration::from_secs(10);

pub(super) async fn events(State(app): State<App>) -> Result<impl IntoResponse, Refusal> {
    let Ok(place) = app.streams.clone().try_acquire_owned() else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "too many are watching: try again later\n".to_owned()));
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(tell(app, sender, place));
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()))
}

/// The reader is gone.
struct Gone;

struct Reader(mpsc::Sender<Result<Event, Infallible>>);

impl Reader {
    async fn send(&self, kind: &str, data: &impl Serialize) -> Result<(), Gone> {
        // All that is sent can be written as JSON.
        let event = Event::default().event(kind).json_data(data).map_err(|_| Gone)?;
        self.0.send(Ok(event)).await.map_err(|_| Gone)
    }
}

/// Tells one reader until it is gone or the run is over.
async fn tell(app: App, sender: mpsc::Sender<Result<Event, Infallible>>, place: OwnedSemaphorePermit) {
    // Whichever of the two it was that ended it.
    let _ = tell_all(&app, &Reader(sender)).await;
    drop(place);
}

async fn tell_all(app: &App, reader: &Reader) -> Result<(), Gone> {
    let board = app.queue.board();
    let (mut news, mut lines) = (board.news(), board.tail().follow());
    let mut told = Told::default();
    for line in board.tail().lines() {
        told.line(reader, &line).await?;
    }
    loop {
        // Now, and then again after a while.
        let Ok(view) = app.queue.view().await else {
            return over(board, reader).await;
        };
        let pause = Duration::from_secs(1 + u64::from(view.seated) / WORKERS_A_SECOND).min(RARELY);
        told.view(reader, view).await?;
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                fresh = news.recv() => match fresh {
                    Ok(News::Started { at, .. }) => reader.send("started", &at).await?,
                    // What is decided is told soon, with what it changes; often it is not one thing alone.
                    Ok(News::Decided(_) | News::Saved(_)) => {
                        let soon = tokio::time::Instant::now() + SOON;
                        let due = pause.deadline().min(soon);
                        pause.as_mut().reset(due);
                    }
                    Ok(News::Ended(words)) => return reader.send("over", &words).await,
                    Ok(fresh) => if let Some(record) = fresh.record() {
                        reader.send("point", &record).await?;
                    },
                    // It has missed some: it is to ask for the curves again.
                    Err(RecvError::Lagged(_)) => reader.send("missed", &()).await?,
                    Err(RecvError::Closed) => return over(board, reader).await,
                },
                line = lines.recv() => if let Ok(line) = line {
                    told.line(reader, &line).await?;
                },
            }
        }
    }
}

/// Tells how the run ended. Where only its coordinator has, the reader is to come again: its successor knows more.
async fn over(board: &Board, reader: &Reader) -> Result<(), Gone> {
    let outcome = board.outcome().ok_or(Gone)?;
    reader.send("over", &view::words(&outcome)).await
}

/// What a reader knows already.
#[derive(Default)]
struct Told {
    decisions: Option<Vec<DecisionView>>,
    last_line: u64,
}

impl Told {
    /// The view, without the decisions, which are told when there are new ones.
    async fn view(&mut self, reader: &Reader, mut view: View) -> Result<(), Gone> {
        let decisions = std::mem::take(&mut view.decisions);
        if self.decisions.as_ref() != Some(&decisions) {
            reader.send("decisions", &decisions).await?;
            self.decisions = Some(decisions);
        }
        view.totals.step_seconds = Histogram::default();
        if view.workers.len() > WORKERS {
            view.workers = standing_out(&view.workers, WORKERS).into_iter().cloned().collect();
        }
        reader.send("view", &view).await
    }

    async fn line(&mut self, reader: &Reader, line: &Line) -> Result<(), Gone> {
        // The same line may be among those kept and those that come.
        if line.number <= self.last_line {
            return Ok(());
        }
        self.last_line = line.number;
        reader.send("line", line).await
    }
}
