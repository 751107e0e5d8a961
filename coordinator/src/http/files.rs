//! Files of the run's folder that people look at: logs and pictures. A name is one of a listing, never a path.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path as FilePath, PathBuf};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use relabel_config::{PICTURES, Picture};
use serde::Serialize;

use super::App;
use super::api::{Refusal, blocking, not_found};
use crate::progress::Line;

/// Bytes of a log's end that are sent.
const LOG_WINDOW: u64 = 64 * 1024;
/// The largest picture that is sent.
pub(super) const LARGEST: u64 = 16 << 20;

/// Names of the logs: the coordinator's, and those in the run's `logs` folder without their ending.
pub(super) async fn logs(State(app): State<App>) -> Result<Json<Vec<String>>, Refusal> {
    let local = blocking(move || listed(&app.run_dir.join("logs"), "log")).await?;
    let workers = local.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    Ok(Json(std::iter::once("coordinator".to_owned()).chain(workers).collect()))
}

/// The newest lines of a log.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Log {
    Lines(Vec<Line>),
    Text(Vec<String>),
}

pub(super) async fn log(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Log>, Refusal> {
    if name == "coordinator" {
        return Ok(Json(Log::Lines(app.queue.board().tail().lines())));
    }
    let found = blocking(move || {
        let logs = listed(&app.run_dir.join("logs"), "log");
        let path =
            logs.into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == name.as_str()))?;
        Some(last_lines(&path))
    });
    found.await?.map(|lines| Json(Log::Text(lines))).ok_or_else(|| not_found("log of this name"))
}

/// A picture in the run's folder.
#[derive(Serialize)]
pub(super) struct Image {
    file: String,
    /// From 0; none where the name does not tell.
    epoch: Option<u32>,
    /// What it is of.
    title: String,
}

pub(super) async fn images(State(app): State<App>) -> Result<Json<Vec<Image>>, Refusal> {
    let files = blocking(move || listed(&app.run_dir.join(PICTURES), "png")).await?;
    let images = files.iter().filter_map(|path| {
        let file = path.file_name()?.to_str()?.to_owned();
        let picture = Picture::named(&file);
        let (epoch, title) = match &picture {
            Some(picture) => (Some(picture.epoch), picture.key.clone()),
            None => (None, file.clone()),
        };
        Some(Image { file, epoch, title })
    });
    Ok(Json(images.collect()))
}

pub(super) async fn image(State(app): State<App>, Path(file): Path<String>) -> Result<Response, Refusal> {
    let found = blocking(move || {
        let files = listed(&app.run_dir.join(PICTURES), "png");
        let path =
            files.into_iter().find(|path| path.file_name().is_some_and(|name| name == file.as_str()))?;
        let small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= LARGEST);
        small.then(|| std::fs::read(path).ok()).flatten()
    });
    let bytes = found.await?.ok_or_else(|| not_found("picture of this name"))?;
    // A picture is written once.
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=86400")];
    Ok((headers, bytes).into_response())
}

/// The files of `folder` with this ending, by name; none where there is no such folder.
fn listed(folder: &FilePath, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut paths: Vec<_> = files.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == ending));
    paths.sort();
    paths
}

/// Whole lines from a file's end; none of a file that cannot be read.
fn last_lines(path: &FilePath) -> Vec<String> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(LOG_WINDOW);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_WINDOW).read_to_end(&mut bytes)?;
        std::io::Result::Ok((from, bytes))
    };
    let Ok((from, bytes)) = read() else { return Vec::new() };
    let text = String::from_utf8_lossy(&bytes);
    let torn = usize::from(from > 0);
    text.lines().skip(torn).map(console::strip_ansi_codes).map(|line| line.into_owned()).collect()
}
