#![allow(clippy::unwrap_used)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;

use relabel_proto::security::AccessToken;

use super::*;

/// A folder with a worker program in it that is this shell script. `$@` are the worker's arguments.
fn script(body: &str) -> (tempfile::TempDir, LocalOptions) {
    let dir = tempfile::tempdir().unwrap();
    let worker = dir.path().join("worker");
    std::fs::write(&worker, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&worker, Permissions::from_mode(0o755)).unwrap();
    let options = LocalOptions {
        task: Task::Train,
        n: 2,
        worker,
        home: LocalAccess {
            url: "http://127.0.0.1:7000".into(),
            token: AccessToken::new("the-token-of-workers", String::new).unwrap(),
        },
        run_dir: dir.path().join("run"),
        threads: None,
        extra: vec!["--cpu".into()],
    };
    (dir, options)
}

/// Starts the workers behind a shell, in place of the program that asks for the parent-death signal: that is
/// tested with the real coordinator, in `coordinator/tests`. (Nor would a script do as the program: a test beside
/// this one that forks while the script is being written makes it "busy".)
async fn start(options: &LocalOptions) -> LocalWorkers {
    LocalWorkers::start_behind(options.clone(), vec!["/bin/sh".into()]).await.unwrap()
}

fn log(options: &LocalOptions, rank: u32) -> String {
    std::fs::read_to_string(options.run_dir.join(format!("logs/worker-{rank}.log"))).unwrap()
}

/// Waits until `rank` has written `text` to its log.
async fn wrote(options: &LocalOptions, rank: u32, text: &str) {
    while !log(options, rank).contains(text) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn workers_get_their_rank_and_write_to_their_log() {
    let (_dir, options) = script("echo \"args $*\"; echo trouble >&2; exit $((3 + $2))");
    let mut workers = start(&options).await;
    assert_eq!(workers.ranks().collect::<Vec<_>>(), [0, 1]);
    let mut exits = [workers.next_exit().await, workers.next_exit().await];
    exits.sort_by_key(|exit| exit.rank);
    let cores = std::thread::available_parallelism().unwrap().get();
    for (rank, exit) in exits.iter().enumerate() {
        assert_eq!((exit.rank, exit.status.code()), (rank as u32, Some(3 + rank as i32)));
        let args = format!(
            "--rank {rank} --coordinator http://127.0.0.1:7000 --threads {} --cpu",
            (cores / 2).max(1)
        );
        assert_eq!(exit.last_lines, [format!("args {args}"), "trouble".into()]);
        assert_eq!(
            log(&options, exit.rank).lines().next().unwrap(),
            format!("==== {} {args}", options.worker.display())
        );
        assert!(exit.log.ends_with(format!("logs/worker-{rank}.log")));
    }
    assert_eq!(workers.ranks().count(), 0);
    // With nobody left there is nothing to wait for, and so it waits.
    assert!(tokio::time::timeout(Duration::from_millis(20), workers.next_exit()).await.is_err());
}

#[tokio::test]
async fn a_worker_that_is_started_again_appends_and_shows_only_its_new_lines() {
    let (_dir, mut options) = script("for n in 1 2 3 4 5 6 7; do echo \"$$ line $n\"; done; exit 1");
    options.n = 1;
    let mut workers = start(&options).await;
    let first = workers.next_exit().await;
    assert_eq!(first.last_lines.len(), TAIL);
    assert!(first.last_lines[TAIL - 1].ends_with("line 7"));
    workers.respawn(0).await.unwrap();
    let second = workers.next_exit().await;
    assert_ne!(first.last_lines, second.last_lines);
    assert_eq!(log(&options, 0).matches("line 7").count(), 2);
    assert_eq!(log(&options, 0).matches("==== ").count(), 2);

    std::fs::write(&options.worker, "#!/bin/sh\nexit 1\n").unwrap();
    workers.respawn(0).await.unwrap();
    assert!(workers.next_exit().await.last_lines.is_empty());
}

#[tokio::test]
async fn an_exit_is_not_lost_with_the_wait_for_it() {
    let (_dir, options) = script("[ $2 = 0 ] || exec sleep 1000; exit 7");
    let mut workers = start(&options).await;
    // As a select does it: the wait is begun, dropped and begun again.
    let exit = loop {
        if let Ok(exit) = tokio::time::timeout(Duration::from_micros(50), workers.next_exit()).await {
            break exit;
        }
    };
    assert_eq!((exit.rank, exit.status.code()), (0, Some(7)));
    assert_eq!(workers.ranks().collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn stopping_asks_first() {
    let (_dir, options) = script("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    let mut workers = start(&options).await;
    wrote(&options, 0, "ready").await;
    wrote(&options, 1, "ready").await;
    let exits = workers.terminate(Duration::from_secs(600)).await;
    assert_eq!(exits.len(), 2);
    for exit in exits {
        assert_eq!((exit.status.code(), exit.last_lines.last().unwrap().as_str()), (Some(0), "bye"));
    }
    assert!(workers.terminate(Duration::ZERO).await.is_empty());
}

#[tokio::test]
async fn stopping_kills_what_does_not_listen() {
    let (_dir, options) = script("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let mut workers = start(&options).await;
    wrote(&options, 0, "ready").await;
    wrote(&options, 1, "ready").await;
    let exits = workers.terminate(Duration::from_millis(50)).await;
    assert_eq!(exits.len(), 2);
    assert!(exits.iter().all(|exit| exit.status.signal() == Some(9)));
}

#[tokio::test]
async fn a_worker_has_a_process_group_of_its_own() {
    let (_dir, mut options) = script("ps -o pgid= -p $$; echo $$");
    options.n = 1;
    let exit = start(&options).await.next_exit().await;
    assert_eq!(exit.last_lines[0].trim(), exit.last_lines[1]);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let (dir, mut options) = script("exit 0");
    options.worker = dir.path().join("no/worker");
    let error = LocalWorkers::start(options.clone()).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("there is no worker program at {}", options.worker.display())),
        "{error}"
    );

    let (_dir, options) = script("exit 0");
    std::fs::set_permissions(&options.worker, Permissions::from_mode(0o644)).unwrap();
    let error = LocalWorkers::start_behind(options.clone(), Vec::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot start worker 0 ("), "{error}");

    std::fs::remove_dir_all(options.run_dir.join("logs")).unwrap();
    std::fs::write(options.run_dir.join("logs"), "a file where a folder should be").unwrap();
    let error = LocalWorkers::start_behind(options, Vec::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot open the log ") && !error.contains('\n'), "{error}");
}
