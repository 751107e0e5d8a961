//! The dashboard: one page and its files, which are part of the program. Nothing is built and nothing comes from
//! elsewhere; the page asks `api/` for numbers and draws them itself.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const PAGE: Asset = Asset { name: "", kind: HTML, text: include_str!("page.html") };

const ASSETS: [Asset; 9] = [
    Asset { name: "style.css", kind: CSS, text: include_str!("style.css") },
    Asset { name: "icon.svg", kind: SVG, text: include_str!("icon.svg") },
    Asset { name: "page.js", kind: JS, text: include_str!("page.js") },
    Asset { name: "source.js", kind: JS, text: include_str!("source.js") },
    Asset { name: "format.js", kind: JS, text: include_str!("format.js") },
    Asset { name: "charts.js", kind: JS, text: include_str!("charts.js") },
    Asset { name: "tables.js", kind: JS, text: include_str!("tables.js") },
    Asset { name: "runs.js", kind: JS, text: include_str!("runs.js") },
    Asset { name: "log.js", kind: JS, text: include_str!("log.js") },
];

/// `GET /`.
pub(crate) async fn page(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| tag(&PAGE));
    answer(&PAGE, &TAG, &headers)
}

/// `GET /assets/FILE`.
pub(crate) async fn asset(Path(file): Path<String>, headers: HeaderMap) -> Response {
    static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| ASSETS.iter().map(tag).collect());
    match ASSETS.iter().zip(TAGS.iter()).find(|(asset, _)| asset.name == file) {
        Some((asset, tag)) => answer(asset, tag, &headers),
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}

/// What a browser keeps is asked for again each time, and answered without a body while it is the same.
fn answer(asset: &Asset, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let same = known.flat_map(|tags| tags.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    });
    let both = [(header::ETAG, tag), (header::CACHE_CONTROL, "no-cache")];
    match same {
        true => (StatusCode::NOT_MODIFIED, both).into_response(),
        false => (both, [(header::CONTENT_TYPE, asset.kind)], asset.text).into_response(),
    }
}

fn tag(asset: &Asset) -> String {
    format!("\"{}\"", &blake3::hash(asset.text.as_bytes()).to_hex()[..16])
}
