//! The run as JSON and as Prometheus reads it.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use relabel_core::Rank;
use serde::{Deserialize, Serialize};

use super::App;
use crate::metrics::prometheus;
use crate::runs::{self, Curves, Difference, RunSummary};
use crate::view::View;

/// Points of a curve unless the reader asks for another number, and at most.
const POINTS: usize = 1000;
const MOST_POINTS: usize = 20_000;

/// Why there is no answer; a line of text.
pub(super) type Refusal = (StatusCode, String);

pub(super) async fn nothing() -> Refusal {
    (StatusCode::NOT_FOUND, "there is nothing here; / is the dashboard\n".to_owned())
}

pub(super) fn not_found(what: &str) -> Refusal {
    (StatusCode::NOT_FOUND, format!("there is no {what}\n"))
}

async fn current(app: &App) -> Result<View, Refusal> {
    app.queue.view().await.map_err(|_| over())
}

fn over() -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, "the run is over\n".to_owned())
}

pub(super) async fn view(State(app): State<App>) -> Result<Json<View>, Refusal> {
    current(&app).await.map(Json)
}

/// For probes: the driver answers, so the run is driven.
pub(super) async fn health(State(app): State<App>) -> Result<&'static str, Refusal> {
    app.queue.status(Rank(0), 0).await.map(|_| "ok\n").map_err(|_| over())
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, Refusal> {
    let text = prometheus::text(&current(&app).await?);
    Ok(([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text).into_response())
}

/// The runs in the folder that this one is in.
#[derive(Serialize)]
pub(super) struct Runs {
    /// The name of this one.
    here: Option<String>,
    runs: Vec<Beside>,
    /// Folders that hold runs which cannot be read, and why.
    unreadable: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Beside {
    #[serde(flatten)]
    run: RunSummary,
    /// Options in which it differs from this run; none where they cannot be read.
    differences: Option<Vec<Difference>>,
}

pub(super) async fn runs(State(app): State<App>) -> Result<Json<Runs>, Refusal> {
    let here = app.run_dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let config = app.queue.board().config().clone();
    let listed = blocking(move || runs::list(&app.parent)).await?;
    let (runs, unreadable) = listed.map_err(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("the folder of this run cannot be listed: {error}\n"))
    })?;
    let runs = runs.into_iter().map(|run| Beside {
        differences: run.config.as_ref().map(|there| runs::differences(&config, there)),
        run,
    });
    let unreadable = unreadable.into_iter().map(|(path, why)| (path.display().to_string(), why.to_string()));
    Ok(Json(Runs { here, runs: runs.collect(), unreadable: unreadable.collect() }))
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    points: Option<usize>,
}

pub(super) async fn curves(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Curves>, Refusal> {
    // A folder of the parent, and not a way out of it.
    let is_name = std::path::Path::new(&name).file_name().is_some_and(|own| own == name.as_str());
    let dir = app.parent.join(&name);
    if !is_name || !dir.join("journal.jsonl").is_file() {
        return Err(not_found("run of this name beside this one"));
    }
    let points = wanted.points.unwrap_or(POINTS).clamp(1, MOST_POINTS);
    blocking(move || Curves::read(&dir, points)).await.map(Json)
}

/// Does what waits for the disk where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
}
