#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use relabel_config::Config;
use relabel_core::{
    Event, Fact, Hello, History, Rank, Run, Settings, StragglerAction, StragglerPolicy, WorkerId,
};
use relabel_proto::MOST_WORKERS;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::*;
use crate::driver::{Driver, Input, Terms};
use crate::journal::Journal;
use crate::progress::Screen;
use crate::report::Report;

/// A run as [`driven`] has it, with two seats, and its server's address.
async fn served(dir: &Path) -> (Queue, Http, SocketAddr) {
    served_to(2, dir).await
}

async fn served_to(workers: u32, dir: &Path) -> (Queue, Http, SocketAddr) {
    let (queue, run_dir) = driven(workers, dir);
    let bound = bind(Address::At("127.0.0.1:0".parse().unwrap())).await.unwrap().unwrap();
    let address = bound.address();
    let http = bound.serve(queue.clone(), run_dir);
    (queue, http, address)
}

/// A run named `run-1` in `dir/run`, driven, without workers.
pub(super) fn driven(workers: u32, dir: &Path) -> (Queue, PathBuf) {
    let run_dir = dir.join("run");
    let config = Config::default();
    let (mut journal, _) = Journal::open(&run_dir).unwrap();
    began(&mut journal, &config);
    let settings = Settings {
        run_id: "run-1".into(),
        workers,
        min_workers: 1,
        spares: 0,
        epochs: 4,
        start_epoch: 0,
        test_only: false,
        global_batch: 8,
        checkpoint_every_steps: 0,
        checkpoint_every: None,
        checkpoint_every_epochs: 1,
        keep_checkpoints: 3,
        dead_after: Duration::from_secs(4),
        wait_for_workers: Duration::from_secs(60),
        gather_for: Duration::from_secs(1),
        admit_after: Duration::from_secs(1),
        reunite_for: Duration::from_secs(1),
        stragglers: StragglerPolicy { factor: 1.5, action: StragglerAction::Report },
        stop_deadline: Duration::from_secs(1),
        secret: [0; 32],
    };
    let terms =
        Terms { run_id: "run-1".into(), run_dir: run_dir.display().to_string(), config: String::new() };
    let report = Report::new(run_dir.clone(), config, Screen::stderr());
    let (driver, queue) = Driver::new(Run::new(settings, History::default()), terms, journal, report);
    tokio::spawn(driver.drive());
    (queue, run_dir)
}

fn began(journal: &mut Journal<Fact>, config: &Config) {
    let config = serde_json::to_string(config).unwrap();
    journal.append(&Fact::Started { run_id: "x".into(), version: "1".into(), seed: 1, config }).unwrap();
}

/// What a server answers to `request`, as far as it comes before `until` or its end.
async fn ask(address: SocketAddr, request: &str, until: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&answer).contains(until)
            && stream.read_buf(&mut answer).await.unwrap() > 0
        {}
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

pub(super) async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    let answer = ask(address, &request, "\0").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

async fn json(address: SocketAddr, path: &str) -> Value {
    let (code, _, body) = get(address, path, "").await;
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn the_view_and_the_metrics_are_those_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (_queue, http, address) = served(dir.path()).await;
    let view = json(address, "/api/view").await;
    assert_eq!(
        (&view["run_id"], &view["phase"], &view["world"]),
        (&"run-1".into(), &"gathering".into(), &2.into())
    );
    let (code, head, body) = get(address, "/metrics", "").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(
        body.contains("relabel_run_info{run_id=\"run-1\"") && body.contains("relabel_workers_wanted 2\n"),
        "{body}"
    );
    assert_eq!(get(address, "/healthz", "").await.2, "ok\n");
    http.stop().await;
}

/// With more workers than one answer of the driver holds.
#[tokio::test]
async fn all_workers_of_a_large_run_are_there() {
    const WORKERS: u32 = 2 * MOST_WORKERS + 1;
    let dir = tempfile::tempdir().unwrap();
    let (queue, http, address) = served_to(WORKERS + 1, dir.path()).await;
    let mut orders = Vec::new();
    // One seat is left free, in the middle of a page.
    for rank in (0..=WORKERS).filter(|rank| *rank != 7).map(Rank) {
        let (outbox, theirs) = mpsc::channel(16);
        let (seated, seat) = oneshot::channel();
        let hello = Hello {
            rank: Some(rank),
            host: "node".into(),
            pid: rank.0,
            device: "cpu".into(),
            nccl: None,
            ring_address: "node:1".into(),
            instance: rank.0.into(),
            standing: None,
        };
        let worker = WorkerId(rank.0.into());
        queue.put(Input::Join { worker, hello, outbox, seated }).await.unwrap();
        seat.await.unwrap().unwrap();
        orders.push(theirs);
    }
    let view = json(address, "/api/view").await;
    let ranks: Vec<_> =
        view["workers"].as_array().unwrap().iter().map(|worker| worker["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks, (0..=u64::from(WORKERS)).filter(|rank| *rank != 7).collect::<Vec<_>>());
    let (_, _, metrics) = get(address, "/metrics", "").await;
    assert!(metrics.contains(&format!("rank=\"{WORKERS}\"")), "{}", &metrics[metrics.len() - 500..]);
    // A page is told of those who stand out.
    let request = "GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let events = ask(address, request, "\"totals\"").await;
    let told = events.lines().find_map(|line| line.strip_prefix("data: {\"run_id\"")).unwrap();
    assert!(told.contains(&format!("\"seated\":{WORKERS}")), "{told}");
    assert_eq!(told.matches("\"rank\":").count(), 256);
    http.stop().await;
}

#[tokio::test]
async fn a_browser_is_told_to_trust_nothing_else_and_keeps_what_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (_queue, http, address) = served(dir.path()).await;
    let (code, head, page) = get(address, "/", "").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    let of = |head: &str| head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let tag = of(&head);
    for known in [tag.clone(), format!("W/{tag}, \"other\""), "*".to_owned()] {
        let (code, again, body) = get(address, "/", &format!("If-None-Match: {known}\r\n")).await;
        assert_eq!((code, body.as_str(), of(&again)), (304, "", tag.clone()), "{known}");
    }
    assert_eq!(get(address, "/", "If-None-Match: \"other\"\r\n").await.0, 200);

    // Every file that the page names is there, and none comes from elsewhere.
    let mut files: Vec<&str> = page.split(['"', '\'']).filter(|word| word.starts_with("assets/")).collect();
    assert!(files.len() >= 3, "{page}");
    files.extend(["assets/source.js", "assets/charts.js"]);
    for file in files {
        let (code, head, body) = get(address, &format!("/{file}"), "").await;
        assert!(code == 200 && !body.is_empty() && head.contains("etag: "), "{file}");
    }
    for elsewhere in ["src=\"http", "href=\"http", "src=\"//", "<script>", " style=\"", " onclick="] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    http.stop().await;
}

#[tokio::test]
async fn nothing_but_reading_is_offered_and_names_lead_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (_queue, http, address) = served(dir.path()).await;
    std::fs::create_dir(dir.path().join("run/logs")).unwrap();
    std::fs::write(dir.path().join("run/logs/worker-0.log"), "one\n\x1b[31mtwo\x1b[0m\n").unwrap();
    std::fs::write(dir.path().join("secret.log"), "secret").unwrap();
    assert_eq!(json(address, "/api/logs").await, serde_json::json!(["coordinator", "worker-0"]));
    assert_eq!(json(address, "/api/logs/worker-0").await, serde_json::json!(["one", "two"]));
    for path in [
        "/api/logs/..%2F..%2Fsecret",
        "/api/logs/secret",
        "/api/runs/..%2Frun/curves",
        "/api/runs/../curves",
        "/api/runs/%2E%2E/curves",
        "/api/runs/nothing/curves",
        "/images/..%2Fjournal.jsonl",
        "/images/journal.jsonl",
        "/assets/..%2Fmod.rs",
        "/elsewhere",
    ] {
        assert_eq!(get(address, path, "").await.0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        let request = format!("{method} /api/view HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert!(ask(address, &request, "\0").await.starts_with("HTTP/1.1 405"), "{method}");
    }
    // Another site that has its name point here.
    let request = "GET /api/view HTTP/1.1\r\nHost: evil.example:4748\r\nConnection: close\r\n\r\n";
    assert!(ask(address, request, "\0").await.starts_with("HTTP/1.1 421"));
    http.stop().await;
}

#[tokio::test]
async fn runs_beside_this_one_are_compared_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    let mut config = Config::default();
    config.optim.lr.init = 0.25;
    let (mut journal, _) = Journal::open(&other).unwrap();
    began(&mut journal, &config);
    drop(journal);
    let line = |step: u64| {
        serde_json::json!({
            "kind": "step", "epoch": 0, "step": step, "global_step": step, "loss": step, "lr": 0.1,
            "images_per_second": 10.0, "data_wait": 0.0, "skipped": 1, "time": 1.0,
        })
    };
    let lines: String = (0..10).map(|step| format!("{}\n", line(step))).collect();
    std::fs::write(other.join("metrics.jsonl"), lines + "{\"torn").unwrap();
    std::fs::create_dir(dir.path().join("no run")).unwrap();

    let (_queue, http, address) = served(dir.path()).await;
    let runs = json(address, "/api/runs").await;
    assert_eq!(runs["here"], "run");
    let names: Vec<_> =
        runs["runs"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["other", "run"]);
    let [there, here] = [0, 1].map(|index: usize| &runs["runs"][index]);
    assert_eq!((&there["state"], &here["state"]), (&"stopped".into(), &"running".into()));
    let difference = serde_json::json!([{ "key": "optim.lr.init", "here": "0.5", "there": "0.25" }]);
    assert_eq!((&there["differences"], &here["differences"]), (&difference, &serde_json::json!([])));

    let curves = json(address, "/api/runs/other/curves").await;
    assert_eq!(curves["steps"].as_array().unwrap().len(), 10);
    let few = json(address, "/api/runs/other/curves?points=4").await;
    let losses: Vec<_> =
        few["steps"].as_array().unwrap().iter().map(|point| point["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses, [1.0, 4.0, 7.0, 9.0], "means of neighbours");
    assert_eq!(few["steps"][0]["skipped"], 3);
    http.stop().await;
}

#[tokio::test]
async fn readers_are_told_what_happens_and_that_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, http, address) = served(dir.path()).await;
    let request = "GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let stopped = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let _ = queue.put(Input::Event(Event::Stop { reason: "enough".into() })).await;
    };
    let (events, ()) = tokio::join!(ask(address, request, "event: over"), stopped);
    assert!(events.contains("content-type: text/event-stream"), "{events}");
    let at = |words: &str| events.find(words).unwrap_or_else(|| panic!("{words}: {events}"));
    assert!(at("event: decisions") < at("event: view") && at("event: view") < at("event: over"), "{events}");
    let words = ask(address, request, "enough").await;
    assert!(words.contains("data: \"stopped (enough), nothing saved\""), "{words}");
    assert_eq!(get(address, "/healthz", "").await.0, 503);
    http.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_taken_default_gives_way_and_a_taken_wish_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let wish = Address::At(taken.local_addr().unwrap());
    let error = bind(wish).await.err().unwrap().to_string();
    assert!(error.contains("choose another address with --http"), "{error}");
    // Whether or not somebody has it already.
    let default = TcpListener::bind(DEFAULT).await;
    let bound = bind(Address::Default).await.unwrap().unwrap();
    assert!(bound.address() != DEFAULT && bound.address().ip().is_loopback());
    drop(default);
    assert!(bind(Address::Off).await.unwrap().is_none());
    assert_eq!(["none", "off"].map(str::parse), [Ok(Address::Off), Ok(Address::Off)]);
    assert!("4748".parse::<Address>().is_err());
}
