//! TLS, certificates, tokens, and what each of them opens.

use std::path::Path;
use std::process::Command;

use relabel_tests::{Ended, Scratch, assert_each_sample_once, program, run, start};

use super::certificates::Authority;
use super::client::{access, runtime, status};

pub const JOIN: &str = "the-join-token-of-this-test";
pub const ADMIN: &str = "the-admin-token-of-this-test";

/// The one line that a program ended with, and exit code 1.
#[track_caller]
pub fn assert_refused(ended: &Ended, words: &[&str]) {
    let line = ended.last_line(1);
    assert_eq!(ended.stderr.lines().count(), 1, "one line, not more:\n{}", ended.stderr);
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `flags`, and the join token in `file`.
fn with_token<'a>(flags: &[&'a str], file: &'a Path) -> Vec<&'a str> {
    [flags, &["--join-token-file", text(file)]].concat()
}

/// A worker for the coordinator at `url`.
fn worker(scratch: &Scratch, url: &str, flags: &[&str]) -> Command {
    let mut command = scratch.worker_at(url);
    command.args(["--connect-timeout", "30"]).args(flags);
    command
}

#[test]
fn who_shows_the_right_certificate_and_token_is_let_in_and_nobody_else() {
    let scratch = Scratch::with_data(32, 4);
    let (ours, foreign) =
        (Authority::new(&scratch.path(""), "ours"), Authority::new(&scratch.path(""), "foreign"));
    let (server, own, other) = (ours.sign("localhost"), ours.sign("worker"), foreign.sign("worker"));
    let token = |name: &str, token: &str| {
        let path = scratch.path(name);
        std::fs::write(&path, format!("{token}\n")).unwrap();
        path
    };
    let (join, admin) = (token("join", JOIN), token("admin", ADMIN));

    let mut command = scratch.coordinator("run");
    command.args(["--workers", "2", "--listen", "127.0.0.1:0"]);
    command.args(["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)]);
    command.args(["--tls-client-ca", text(&ours.pem), "--join-token-file", text(&join)]);
    command.env("RELABEL_ADMIN_TOKEN", ADMIN);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let (https, ca) = (format!("https://localhost:{port}"), text(&ours.pem));
    let certificate = ["--tls-ca", ca, "--tls-cert", text(&own.cert), "--tls-key", text(&own.key)];

    let worker = |flags: &[&str]| worker(&scratch, &https, flags);
    let refused = |flags: &[&str], words: &[&str]| assert_refused(&run(worker(flags)), words);
    let elsewhere = |url: &str, flags: &[&str], words: &[&str]| {
        assert_refused(&run(self::worker(&scratch, url, flags)), words);
    };
    elsewhere(&format!("http://localhost:{port}"), &[], &["refused", "it speaks TLS: use https://"]);
    let by_number = format!("https://127.0.0.1:{port}");
    elsewhere(&by_number, &certificate, &["not for the name 127.0.0.1 but for localhost"]);
    refused(&["--tls-ca", text(&foreign.pem)], &["is not signed by the one in --tls-ca"]);
    refused(&["--tls-ca", ca], &["lets in only those who show a certificate", "--tls-cert and --tls-key"]);
    let foreigner = ["--tls-ca", ca, "--tls-cert", text(&other.cert), "--tls-key", text(&other.key)];
    refused(&foreigner, &["does not take the certificate in --tls-cert", "--tls-client-ca"]);
    refused(
        &certificate,
        &["the coordinator refused this worker", "--join-token-file", "RELABEL_JOIN_TOKEN"],
    );
    let wrong = token("wrong", "another-token-than-the-right-one");
    refused(&with_token(&certificate, &wrong), &["this is not its join token"]);
    refused(&with_token(&certificate, &admin), &["this is its admin token: a worker shows the join token"]);

    let operator = |name: &str, flags: &[&str]| {
        let mut command = Command::new(program("coordinator"));
        command.args([name, "--coordinator", &https]).args(flags);
        command
    };
    let not_obeyed =
        |name: &str, flags: &[&str], words: &[&str]| assert_refused(&run(operator(name, flags)), words);
    for name in ["status", "stop", "checkpoint"] {
        not_obeyed(name, &["--tls-ca", ca], &["certificate", "--tls-cert and --tls-key"]);
        not_obeyed(name, &certificate, &["refused this", "--admin-token-file", "RELABEL_ADMIN_TOKEN"]);
        let as_worker = [&certificate[..], &["--admin-token-file", text(&join)]].concat();
        not_obeyed(name, &as_worker, &["refused this: this is a worker's join token"]);
    }

    // All of that has changed nothing.
    let shown = || {
        let mut command = operator("status", &["--json", "--admin-token-file", text(&admin)]);
        let output = command.args(certificate).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    assert_eq!(
        (shown()["phase"].as_str(), shown()["workers"].as_array().map(Vec::len)),
        (Some("gathering"), Some(0))
    );

    let mut by_variable = worker(&certificate);
    by_variable.env("RELABEL_JOIN_TOKEN", JOIN);
    for running in [start(worker(&with_token(&certificate, &join))), start(by_variable), coordinator] {
        let ended = running.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    assert_each_sample_once(&scratch.path("run"), 3, 32);
}

/// Every file under `folder`, and what is in it.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in relabel_tests::sorted(&next) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push((path.display().to_string(), std::fs::read(&path).unwrap())),
            }
        }
    }
    found
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

#[test]
fn local_workers_have_a_token_that_nobody_else_gets_to_see() {
    let scratch = Scratch::with_data(64, 4);
    let authority = Authority::new(&scratch.path(""), "ours");
    let server = authority.sign("localhost");
    let mut command = scratch.local("run", 2);
    command.args(["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)]);
    // What is logged at this level has every frame of HTTP/2 in it.
    command.env("RELABEL_ADMIN_TOKEN", ADMIN).env("RUST_LOG", "trace");
    let mut coordinator = start(command);
    let port = coordinator.port();
    let workers = coordinator.worker_pids(2);

    let read = |name: &str| -> Vec<Vec<u8>> {
        workers.iter().map(|pid| std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).collect()
    };
    let mut tokens = read("environ").into_iter().map(|bytes| {
        assert!(!holds(&bytes, "RELABEL_ADMIN_TOKEN"), "workers are no operators");
        let variables = String::from_utf8_lossy(&bytes).into_owned();
        let token = variables.split('\0').find_map(|variable| variable.strip_prefix("RELABEL_JOIN_TOKEN="));
        token.expect("a token in the environment").to_owned()
    });
    let token = tokens.next().unwrap();
    assert_eq!((token.len(), tokens.next().unwrap() == token), (64, true), "256 bits, the same for both");
    assert!(read("cmdline").iter().all(|bytes| !holds(bytes, &token)), "everybody can read a command line");

    let url = format!("https://localhost:{port}");
    let stranger = run(worker(&scratch, &url, &["--tls-ca", text(&authority.pem)]));
    assert_refused(&stranger, &["runs with --local", "--join-token-file"]);

    let ended = coordinator.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_each_sample_once(&scratch.path("run"), 3, 64);
    let traced = files(&scratch.path("run/logs")).iter().all(|(_, log)| holds(log, "send frame="));
    assert!(traced && ended.stderr.contains("send frame="), "it was not logged what was sent");
    for secret in [token.as_str(), ADMIN] {
        assert!(!ended.stderr.contains(secret), "{secret} is in what the coordinator logs");
        for (path, bytes) in files(&scratch.path("run")) {
            assert!(!holds(&bytes, secret), "{secret} is in {path}");
        }
    }
}

#[test]
fn without_an_admin_token_only_its_own_user_gives_it_orders() {
    let scratch = Scratch::with_data(8, 4);
    let mut command = scratch.coordinator("run");
    command.args(["--workers", "2", "--listen", "127.0.0.1:0"]).env("RELABEL_JOIN_TOKEN", JOIN);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let code = |token: Option<&'static str>, user: Option<u32>| {
        let calling = std::thread::spawn(move || {
            if let Some(user) = user {
                // Of this thread alone: what it opens is that user's.
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(user));
            }
            runtime().block_on(status(&access(port, token))).err().map(|status| status.code())
        });
        calling.join().unwrap()
    };
    use tonic::Code::PermissionDenied;
    assert_eq!(code(None, None), None);
    assert_eq!(code(Some(JOIN), None), Some(PermissionDenied), "a worker is no operator");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(code(None, Some(65534)), Some(PermissionDenied));
    } else {
        eprintln!("not root, so that no other user's call could be tried");
    }
}

#[test]
fn what_is_left_open_to_a_network_is_said_once() {
    let scratch = Scratch::with_data(8, 4);
    let authority = Authority::new(&scratch.path(""), "ours");
    let server = authority.sign("localhost");
    let warnings = |name: &str, listen: &str, flags: &[&str], token: bool| {
        let mut command = scratch.coordinator(name);
        command.args(["--listen", listen]).args(flags);
        if token {
            command.env("RELABEL_JOIN_TOKEN", JOIN);
        }
        let mut coordinator = start(command);
        coordinator.port();
        let lines: Vec<_> = coordinator.stderr().lines().map(str::to_owned).collect();
        coordinator.kill();
        lines.into_iter().filter(|line| line.contains("WARN")).collect::<Vec<_>>()
    };
    let tls = ["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)];
    let certificates = [&tls[..], &["--tls-client-ca", text(&authority.pem)]].concat();
    for (name, listen, flags, token, expected) in [
        ("a", "127.0.0.1:0", &[][..], false, None),
        ("b", "0.0.0.0:0", &[][..], false, Some("anybody who reaches port")),
        ("c", "0.0.0.0:0", &[][..], true, Some("in the clear")),
        ("d", "0.0.0.0:0", &tls[..], false, Some("anybody who reaches port")),
        ("e", "0.0.0.0:0", &tls[..], true, None),
        ("f", "0.0.0.0:0", &certificates[..], false, None),
    ] {
        let lines = warnings(name, listen, flags, token);
        assert_eq!(lines.len(), usize::from(expected.is_some()), "{name}: {lines:?}");
        assert!(expected.is_none_or(|words| lines[0].contains(words)), "{name}: {lines:?}");
    }
}
