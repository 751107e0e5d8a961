//! What people see of a run from beside it: the status as it goes on, other runs, a dry run, and the shell's help.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::unistd::Pid;
use relabel_tests::{Running, Scratch, metrics, program, run, sorted, start};
use serde_json::Value;

/// What the log says of a dashboard that others can read.
const OPEN: &str = "every user of this machine can read the dashboard";

/// Standard output of a program that has to succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

/// Where a coordinator says that it serves its dashboard.
fn dashboard(running: &mut Running) -> String {
    running.wait_for("the dashboard", |text| {
        Some(text.split("dashboard and metrics: http://").nth(1)?.split('/').next()?.to_owned())
    })
}

#[test]
fn a_run_is_watched_to_its_end_and_leaves_pictures_and_event_files() {
    let scratch = Scratch::with_data(64, 8);
    let mut command = scratch.local("runs/first", 2);
    command.args(["--http", "127.0.0.1:0", "--util.log_images", "2"]);
    let mut running = start(command);
    let port = running.port();
    let address = dashboard(&mut running);
    let mut watch = Command::new(program("coordinator"));
    let url = format!("http://127.0.0.1:{port}");
    watch.args(["status", "--watch", "0.2", "--json", "--coordinator", &url]);
    let watching = std::thread::spawn(move || watch.output().unwrap());

    running.wait_for("a first epoch", |text| text.contains("epoch 1/3  train loss").then_some(()));
    let scraped = get(&address, "/metrics");
    if let Some(answer) = asked_by_another_user(&address, "/metrics") {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let view: Value = serde_json::from_str(&get(&address, "/api/view")).unwrap();
    let sample = |name: &str| {
        let line = scraped.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {scraped}")).parse::<f64>().unwrap()
    };
    assert_eq!((sample("relabel_workers_training"), sample("relabel_run_epochs")), (2.0, 3.0));
    assert!(sample("relabel_images_total") >= 64.0 && view["totals"]["images"].as_f64() >= Some(64.0));
    // Both ranks say where their time goes.
    for worker in view["workers"].as_array().unwrap() {
        assert!(worker["compute_seconds"].as_f64() > Some(0.0), "{worker}");
    }
    let listed =
        output(Command::new(program("coordinator")).arg("runs").arg(scratch.path("runs")).arg("--json"));
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()[0]["state"], "running");

    let ended = running.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(
        ended.stderr.matches(OPEN).count(),
        1,
        "what was opened to others is said once: {}",
        ended.stderr
    );
    let watched = watching.join().unwrap();
    assert!(watched.status.success());
    assert!(String::from_utf8_lossy(&watched.stderr).contains("the run is finished"), "{watched:?}");
    let views: Vec<Value> = String::from_utf8(watched.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let epochs: Vec<_> = views.iter().filter_map(|view| view["position"]["epoch"].as_u64()).collect();
    assert!(epochs.is_sorted() && epochs.last() >= Some(&1), "{epochs:?}");
    assert!(views.iter().any(|view| view["eta_seconds"].as_f64() > Some(0.0)));
    // The number in the view is the one in the file.
    let last = metrics(&scratch.path("runs/first"), "epoch");
    let shown = views.iter().filter_map(|view| view["last_epoch"]["top1"].as_f64()).next_back().unwrap();
    assert!(last.iter().any(|epoch| (epoch["top1"].as_f64().unwrap() - 100.0 * shown).abs() < 1e-9));

    let pictures: Vec<_> = sorted(&scratch.path("runs/first/images"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(pictures.len(), 3 * 2, "{pictures:?}");
    assert!(pictures[0].starts_with("e0000-00-") && pictures[5].starts_with("e0002-01-"), "{pictures:?}");
    let bytes: u64 = sorted(&scratch.path("runs/first/tensorboard"))
        .iter()
        .map(|path| std::fs::metadata(path).unwrap().len())
        .sum();
    let drawn: u64 = sorted(&scratch.path("runs/first/images"))
        .iter()
        .map(|path| std::fs::metadata(path).unwrap().len())
        .sum();
    assert!(bytes > drawn, "the pictures are in the event files");
}

/// What another user of this machine is answered; none where this test is not root's, who alone can be another.
fn asked_by_another_user(address: &str, path: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped, for only root can start a process as another user");
        return None;
    }
    let (host, port) = address.split_once(':').unwrap();
    let ask = format!(
        "exec 3<>/dev/tcp/{host}/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
    );
    let mut bash = Command::new("bash");
    Some(output(bash.args(["--norc", "-c", &ask]).uid(65534).gid(65534).current_dir("/")))
}

/// The token that a worker was given by its environment.
fn join_token(worker: Pid) -> String {
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let variables = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let token =
        variables.into_iter().find_map(|one| Some(one.strip_prefix("RELABEL_JOIN_TOKEN=")?.to_owned()));
    token.expect("a local worker has a join token")
}

/// Who reads the dashboard may read the run, and no more than that.
#[test]
fn no_page_tells_a_token() {
    const ADMIN: &str = "a-token-that-only-the-operator-has";
    let scratch = Scratch::with_data(32, 8);
    let mut command = scratch.local("runs/run", 1);
    command.args(["--optim.epochs", "30"]).env("RELABEL_ADMIN_TOKEN", ADMIN);
    let mut running = start(command);
    let port = running.port();
    let address = dashboard(&mut running);
    let worker = running.worker_pids(1)[0];
    let tokens = [ADMIN.to_owned(), join_token(worker)];
    running.wait_for("a step", |text| text.contains("epoch 1/30  step 1/").then_some(()));
    // Somebody guesses, and one shows the token of another role: it stands in the log, and so on the page.
    for token in ["some-guess-or-other", &tokens[1]] {
        let mut stop = Command::new(program("coordinator"));
        stop.args(["stop", "--coordinator", &format!("http://127.0.0.1:{port}")]);
        stop.env("RELABEL_ADMIN_TOKEN", token);
        assert!(run(stop).last_line(1).contains("refused this"));
    }
    let pages = ["/", "/metrics", "/healthz", "/api/view", "/api/runs", "/api/runs/run/curves", "/api/logs"];
    for path in pages.into_iter().chain(["/api/logs/coordinator", "/api/logs/worker-0", "/api/images"]) {
        let page = get(&address, path);
        assert!(!page.is_empty() && tokens.iter().all(|token| !page.contains(token)), "{path}: {page}");
    }
    assert!(get(&address, "/api/logs/coordinator").contains("admin token"), "it tells of the refusals");
    // Nobody has said that others may read.
    for path in ["/", "/metrics", "/api/logs/coordinator"] {
        if let Some(answer) = asked_by_another_user(&address, path) {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 403"), "{path}: {answer}");
            assert!(
                body.starts_with("only the user who started this run") && body.lines().count() == 1,
                "{body}"
            );
        }
    }
    // Nothing there ends a run.
    let mut stop = Command::new(program("coordinator"));
    stop.args(["stop", "--coordinator", &format!("http://127.0.0.1:{port}")])
        .env("RELABEL_ADMIN_TOKEN", ADMIN);
    assert!(stop.output().unwrap().status.success());
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(128 + 15));
    assert!(!ended.stderr.contains(OPEN), "{}", ended.stderr);
}

#[test]
fn a_dry_run_says_what_would_be_and_touches_nothing() {
    let scratch = Scratch::with_data(50, 8);
    let mut command = scratch.coordinator("run");
    let text = output(command.args(["--workers", "2", "--dry-run"]));
    for line in [
        "  batch_size: 16                        # flag --optim.batch_size",
        "# data       50 training and 8 validation images in 4 classes",
        "# steps      12 to do: 3 epochs of 4 steps of 16 images, the last of 2 images",
        "# time       unknown: no run beside it trained this network at this size",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }
    assert!(!scratch.path("run").exists());

    // What it prints is a configuration; from a file each value says so.
    let file = scratch.path("dry.yaml");
    std::fs::write(&file, &text).unwrap();
    let mut again = Command::new(program("coordinator"));
    again.arg("--config").arg(&file).arg("--run-dir").arg(scratch.path("run")).arg("--dry-run=json");
    let json: Value = serde_json::from_str(&output(&mut again)).unwrap();
    assert_eq!(json["options"]["optim.batch_size"]["value"], 16);
    assert_eq!(json["options"]["optim.batch_size"]["from"], file.to_str().unwrap());
    assert_eq!((&json["estimate"]["steps"], &json["estimate"]["classes"]), (&12.into(), &4.into()));

    // What a start would refuse is refused.
    let mut wrong = scratch.coordinator("run");
    wrong.args(["--dry-run", "--optim.batch_sise", "3"]);
    assert!(run(wrong).last_line(2).contains("did you mean --optim.batch_size?"));
    let mut nothing = Command::new(program("coordinator"));
    nothing.args(["--resume", "--dry-run", "--run-dir"]).arg(scratch.path("nowhere"));
    assert!(run(nothing).last_line(2).contains("there is no run to resume"));
}

/// What bash offers for a command line that ends in `word`, by the completions that `program` prints.
fn offered(name: &str, words: &[&str]) -> Vec<String> {
    let script = output(Command::new(program(name)).args(["completions", "bash"]));
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let (line, last) = (quoted.join(" "), words.len());
    let word = words.last().unwrap();
    let before = if last > 1 { words[last - 2] } else { name };
    let ask = format!(
        "{script}\nCOMP_WORDS=({name} {line}); COMP_CWORD={last}; _{name} {name} '{word}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    output(Command::new("bash").args(["--norc", "-c", &ask])).lines().map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_both_programs() {
    assert_eq!(offered("coordinator", &["--optim.lr."]), ["--optim.lr.init", "--optim.lr.decay_type"]);
    assert_eq!(offered("coordinator", &["--optim.optimizer", ""]), ["sgd", "adamp"]);
    assert!(offered("coordinator", &["sta"]).contains(&"status".to_owned()));
    assert!(offered("coordinator", &["status", "--wa"]).contains(&"--watch".to_owned()));
    assert!(offered("worker", &["doc"]).contains(&"doctor".to_owned()));
    assert!(offered("worker", &["doctor", "--im"]).contains(&"--image-size".to_owned()));
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["coordinator", "worker"] {
        output(Command::new(program(name)).arg("man").arg(dir.path()));
    }
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(page("coordinator.1").contains("optim.ema.decay"));
    for name in [
        "coordinator-status",
        "coordinator-runs",
        "worker-train",
        "worker-doctor",
        "worker-inspect-label-map",
    ] {
        assert!(page(&format!("{name}.1")).starts_with(".ie"), "{name}");
    }
}
