//! Workers that come when the run has ended, before the coordinator's port is closed.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use coordinator::driver::{Driver, Input, Terms};
use coordinator::journal::Journal;
use coordinator::progress::Screen;
use coordinator::report::Report;
use coordinator::service::services;
use relabel_config::Config;
use relabel_core::{Event, History, Run, Settings, StragglerAction, StragglerPolicy};
use relabel_tests::{Ended, Scratch, run};
use tokio_stream::wrappers::TcpListenerStream;

/// A run that nobody has come to.
fn settings() -> Settings {
    let minute = Duration::from_secs(60);
    Settings {
        run_id: "late".into(),
        workers: 1,
        min_workers: 1,
        spares: 0,
        epochs: 1,
        start_epoch: 0,
        test_only: false,
        global_batch: 1,
        checkpoint_every_steps: 0,
        checkpoint_every_epochs: 1,
        checkpoint_every: None,
        keep_checkpoints: 1,
        dead_after: minute,
        wait_for_workers: minute,
        gather_for: minute,
        admit_after: minute,
        reunite_for: minute,
        stragglers: StragglerPolicy { factor: 2.0, action: StragglerAction::Report },
        stop_deadline: minute,
        secret: [7; 32],
    }
}

/// What a worker says that comes after `event` has ended a coordinator, by its own service.
fn after(event: Event) -> Ended {
    let scratch = Scratch::with_data(4, 4);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let port = runtime.block_on(async {
        let folder = scratch.path("run");
        std::fs::create_dir(&folder).unwrap();
        let (journal, _) = Journal::open(&folder).unwrap();
        let run_dir = folder.display().to_string();
        let terms = Terms { run_id: "late".into(), run_dir: run_dir.clone(), config: "{}".into() };
        let report = Report::new(folder, Config::default(), Screen::new(std::io::sink(), None));
        let core = Run::new(settings(), History::default());
        let (driver, queue) = Driver::new(core, terms, journal, report);
        let (session, _) = services(&queue, "late", &run_dir);
        queue.try_put(Input::Event(event)).unwrap();
        driver.drive().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tonic::transport::Server::builder().add_service(session);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        port
    });
    let mut worker = scratch.worker(port);
    worker.args(["--connect-timeout", "4"]);
    run(worker)
}

#[test]
fn a_worker_that_comes_when_the_run_is_over_has_not_failed() {
    let ended = after(Event::Stop { reason: "asked".into() });
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("the run is over: there is nothing left to do"), "{}", ended.stderr);
}

#[test]
fn a_worker_that_comes_when_the_run_has_failed_says_why() {
    let ended = after(Event::Broken { reason: "the journal cannot be written".into() });
    let line = ended.last_line(1);
    let words = "the coordinator refused this worker: the run has failed: the journal cannot be written";
    assert!(line.contains(words), "{line}");
}

#[test]
fn a_worker_that_comes_between_two_coordinators_waits_for_the_next() {
    let ended = after(Event::HandOver { reason: "SIGTERM".into() });
    assert!(ended.stderr.contains("no seat yet"), "{}", ended.stderr);
    let line = ended.last_line(1);
    assert!(line.contains("has made way for the one that is started next"), "{line}");
}
