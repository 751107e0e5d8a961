//! Runs that go to an object store: a real server that speaks S3, started by the test. `make store-test` runs it all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod server;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use relabel_tests::{Scratch, assert_same_curve, losses, metrics, run, sorted, start, wait_for_steps};
use server::{Gate, SECRET, Server, Silence, faulty_way_to};

/// The data of all tests, and in `undisturbed` the run that theirs are compared with.
static SHARED: LazyLock<Scratch> = LazyLock::new(|| {
    let shared = Scratch::with_data(80, 8);
    let ended = run(shared.local("undisturbed", 1));
    assert!(ended.status.success(), "{}", ended.stderr);
    shared
});

/// Options of a run that does not come to its end while a test looks at it, nor saves all the time.
const LONG: [&str; 2] = ["--optim.epochs=2000", "--checkpoint.every_epochs=0"];

/// A run of one local worker in the folder `run_dir` that goes to `s3://runs/<prefix>` on the server at `port`.
fn uploading(run_dir: &str, prefix: &str, port: u16) -> Command {
    let mut command = SHARED.local(run_dir, 1);
    command.arg(format!("--checkpoint.upload=s3://runs/{prefix}")).envs(Server::environment(port));
    command
}

/// The names of the files of checkpoints that a run's journal counts.
fn counted(journal: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for line in std::fs::read_to_string(journal).unwrap().lines() {
        let fact: serde_json::Value = serde_json::from_str(&line[9..]).unwrap();
        let name = |file: &serde_json::Value| file.as_str().unwrap().to_owned();
        if fact["fact"] == "committed" {
            files.insert(name(&fact["written"]["file"]));
        }
        for retired in fact["files"].as_array().into_iter().flatten() {
            files.remove(&name(retired));
        }
    }
    files
}

/// Checks that the store has of the run in `run_dir` what its journal counts, the best, and nothing else.
fn assert_complete(server: &Server, prefix: &str, run_dir: &Path) {
    let at = |name: &str| server.file(&format!("{prefix}/{name}"));
    assert_eq!(
        std::fs::read(at("journal.jsonl")).unwrap(),
        std::fs::read(run_dir.join("journal.jsonl")).unwrap()
    );
    assert_eq!(
        std::fs::read(at("metrics.jsonl")).unwrap(),
        std::fs::read(run_dir.join("metrics.jsonl")).unwrap()
    );
    let mut expected = counted(&run_dir.join("journal.jsonl"));
    assert!(!expected.is_empty());
    expected.insert("resnet18-best.safetensors".into());
    let sums: Vec<_> = expected.iter().map(|file| file.replace(".safetensors", ".b3")).collect();
    expected.extend(sums);
    assert_eq!(
        server.objects(&format!("{prefix}/checkpoints")),
        expected.iter().cloned().collect::<Vec<_>>()
    );
    for file in expected {
        let (here, there) = (run_dir.join("checkpoints").join(&file), at(&format!("checkpoints/{file}")));
        assert!(
            std::fs::read(here).unwrap() == std::fs::read(there).unwrap(),
            "{file} is another on the store"
        );
    }
}

/// Checks that nothing in the folder tells the key.
fn assert_untold(folder: &Path) {
    for path in sorted(folder) {
        match path.is_dir() {
            true => assert_untold(&path),
            false => {
                let bytes = std::fs::read(&path).unwrap();
                let told = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
                assert!(!told, "{} tells the key", path.display());
            }
        }
    }
}

/// Trains some steps onto the store, with a checkpoint every other step, and ends by SIGTERM.
fn interrupted(run_dir: &str, prefix: &str, port: u16) {
    let mut command = uploading(run_dir, prefix, port);
    command.arg("--checkpoint.every_steps=2");
    let running = start(command);
    wait_for_steps(&SHARED.path(run_dir), 7);
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(143), "{}", ended.stderr);
    assert!(losses(&SHARED.path(run_dir)).len() < 15, "it was over before it was stopped");
}

/// The command of [`interrupted`] in another folder, to the run's end; what it said.
fn gone_on(run_dir: &str, prefix: &str, port: u16) -> String {
    let mut command = uploading(run_dir, prefix, port);
    command.arg("--checkpoint.every_steps=2");
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_same_curve(&losses(&SHARED.path("undisturbed")), &losses(&SHARED.path(run_dir)), 1e-4);
    ended.stderr
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn a_run_goes_on_in_an_empty_folder() {
    let server = Server::start();
    interrupted("first", "moved", server.port());
    assert_complete(&server, "moved", &SHARED.path("first"));
    assert_untold(&SHARED.path("first"));
    std::fs::remove_dir_all(SHARED.path("first")).unwrap();

    let said = gone_on("second", "moved", server.port());
    assert!(said.contains("fetched the run's journal from s3://runs/moved/"), "{said}");
    assert!(server.file("moved/checkpoints/resnet18-best.safetensors").is_file());
    let journal = SHARED.path("second").join("journal.jsonl");
    for file in counted(&journal) {
        assert!(
            server.file(&format!("moved/checkpoints/{file}")).is_file(),
            "{file} counts and is not there"
        );
    }
    assert_eq!(
        std::fs::read(&journal).unwrap(),
        std::fs::read(server.file("moved/journal.jsonl")).unwrap(),
        "the store has another journal"
    );

    // Another run in its place would take its end away.
    let mut other = uploading("third", "moved", server.port());
    other.arg("--optim.epochs=1");
    let ended = run(other);
    let line = ended.last_line(2);
    assert!(line.contains("holds a run that began with other options"), "{line}");
    let mut unnamed = Command::new(relabel_tests::program("coordinator"));
    unnamed.current_dir(SHARED.path("")).args(SHARED.options()).envs(Server::environment(server.port()));
    let ended = run({
        unnamed.args(["--listen=127.0.0.1:0", "--checkpoint.upload=s3://runs/moved"]);
        unnamed
    });
    assert!(ended.last_line(2).contains("--run-dir"), "{}", ended.stderr);
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn a_damaged_object_is_not_gone_on_from() {
    let server = Server::start();
    interrupted("before", "damaged", server.port());
    let files = counted(&SHARED.path("before").join("journal.jsonl"));
    assert!(files.len() >= 2, "{files:?}");
    let newest = files.last().unwrap();
    let object = server.file(&format!("damaged/checkpoints/{newest}"));
    let mut bytes = std::fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&object, bytes).unwrap();

    let said = gone_on("after", "damaged", server.port());
    assert!(said.contains(&format!("s3://runs/damaged/checkpoints/{newest} is damaged")), "{said}");
    assert!(said.contains("falling back to the one before"), "{said}");
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn a_store_that_goes_away_and_comes_back_costs_checkpoints_only() {
    let mut server = Server::start();
    let mut command = uploading("away", "away", server.port());
    command.args(LONG).arg("--checkpoint.every_steps=1");
    let mut running = start(command);
    let committed = |text: &str| text.matches("checkpoint resnet18-").count();
    running.wait_for("two checkpoints", |text| (committed(text) >= 2).then_some(()));
    server.kill();
    running.wait_for("a failed checkpoint", |text| {
        (text.contains("could not write a checkpoint: cannot ") && text.contains("training goes on"))
            .then_some(())
    });
    let without = metrics(&SHARED.path("away"), "step").len();
    wait_for_steps(&SHARED.path("away"), without + 5);
    let before = committed(&running.stderr());
    server.come_back();
    running.wait_for("another checkpoint", |text| (committed(text) > before).then_some(()));
    running.wait_for("the journal", |text| text.contains("the object store has the run again").then_some(()));
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(143), "{}", ended.stderr);
    assert_complete(&server, "away", &SHARED.path("away"));
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn an_upload_that_comes_out_another_does_not_count() {
    let server = Server::start();
    let (port, turned) = faulty_way_to(server.port());
    let mut command = uploading("turned", "turned", port);
    command.arg("--optim.epochs=1");
    let ended = run(command);
    let line = ended.last_line(1);
    assert!(line.contains("a checkpoint could not be written: s3://runs/turned/checkpoints/"), "{line}");
    assert!(line.contains("is damaged"), "{line}");
    assert!(turned.load(Ordering::Relaxed) >= 1);
    assert_eq!(counted(&SHARED.path("turned").join("journal.jsonl")), BTreeSet::new());
    assert_eq!(server.objects("turned/checkpoints"), Vec::<String>::new());
    // What was written here is whole, and is left to whoever wants it.
    let here: Vec<_> = sorted(&SHARED.path("turned/checkpoints"))
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(here, ["resnet18-unsent.b3", "resnet18-unsent.safetensors"]);
    let mut inspect = Command::new(relabel_tests::program("worker"));
    inspect
        .args(["inspect", "checkpoint"])
        .arg(SHARED.path("turned/checkpoints/resnet18-unsent.safetensors"));
    let inspected = run(inspect);
    assert!(inspected.status.success(), "{}", inspected.stderr);
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn who_may_not_write_there_is_told_before_anything_is_trained() {
    let server = Server::start();
    let mut command = uploading("stranger", "stranger", server.port());
    command.env("AWS_SECRET_ACCESS_KEY", "another");
    let ended = run(command);
    let line = ended.last_line(1);
    assert!(line.contains("cannot read s3://runs/stranger/journal.jsonl"), "{line}");
    assert!(!ended.stderr.contains("another"), "{}", ended.stderr);
    assert!(!SHARED.path("stranger").exists());
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn a_store_that_never_answers_holds_nobody_up() {
    let silence = Silence::begin();
    // The folder holds a run, so that it goes on without the store's answer.
    let mut first = SHARED.local("silent", 1);
    first.args(LONG);
    let running = start(first);
    wait_for_steps(&SHARED.path("silent"), 5);
    kill(running.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().status.code(), Some(143));
    let before = metrics(&SHARED.path("silent"), "step").len();

    let mut command = uploading("silent", "silent", silence.port());
    command.args(LONG).args(["--resume", "--checkpoint.every_steps=2"]);
    command.args(["--cluster.stop_deadline=4", "--cluster.drain_deadline=4"]);
    let running = start(command);
    wait_for_steps(&SHARED.path("silent"), before + 30);
    let stopped = Instant::now();
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let ended = running.wait();
    assert!(!ended.status.success(), "{}", ended.stderr);
    let took = stopped.elapsed();
    // The deadline, a farewell to the workers and one to the store.
    assert!(took < Duration::from_secs(60), "it took {took:?}: {}", ended.stderr);
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn a_store_that_knows_no_conditions_is_written_to_without() {
    let server = Server::start();
    let mut command = uploading("unconditional", "unconditional", server.port());
    command.arg("--optim.epochs=1").env("AWS_CONDITIONAL_PUT", "disabled");
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_complete(&server, "unconditional", &SHARED.path("unconditional"));
}

#[test]
#[ignore = "needs a server that speaks S3: make store-test"]
fn a_run_that_has_gone_on_elsewhere_ends_here() {
    let server = Server::start();
    let gate = Gate::default();
    let way = gate.before(server.port(), "PUT /runs/moved_on/journal.jsonl ".into());
    let mut here = uploading("here", "moved_on", way);
    here.args(LONG).arg("--checkpoint.every_steps=2");
    let mut here = start(here);
    here.wait_for("a checkpoint", |text| text.contains("checkpoint resnet18-").then_some(()));
    // As one whose host is cut off, just when it has found the store's journal to be its own, and writes more of it.
    gate.shut();
    kill(here.pid(), Signal::SIGSTOP).unwrap();
    std::fs::create_dir(SHARED.path("there")).unwrap();
    let mut there = uploading("there", "moved_on", server.port());
    there.args(LONG).args(["--resume", "--checkpoint.every_steps=2"]);
    let mut there = start(there);
    there.wait_for("a checkpoint", |text| text.contains("checkpoint resnet18-").then_some(()));
    let held = std::fs::read(server.file("moved_on/journal.jsonl")).unwrap();
    gate.open();
    kill(here.pid(), Signal::SIGCONT).unwrap();
    let ended = here.wait();
    let now = std::fs::read(server.file("moved_on/journal.jsonl")).unwrap();
    assert!(now.starts_with(&held), "the journal of the run that went on was overwritten");
    let line = ended.last_line(1);
    assert!(line.contains("s3://runs/moved_on/ holds a run that goes another way"), "{line}");
    kill(there.pid(), Signal::SIGTERM).unwrap();
    let ended = there.wait();
    assert_eq!(ended.status.code(), Some(143), "{}", ended.stderr);
    assert_complete(&server, "moved_on", &SHARED.path("there"));

    // Its own folder, brought back to an earlier state, with no word of the store: the run's options say where it is.
    let journal = SHARED.path("there").join("journal.jsonl");
    let whole = std::fs::read_to_string(&journal).unwrap();
    let lines = whole.lines().count();
    let part: String = whole.split_inclusive('\n').take(lines - 2).collect();
    std::fs::write(&journal, part).unwrap();
    let mut back = Command::new(relabel_tests::program("coordinator"));
    back.args(["--resume", "--run-dir"]).arg(SHARED.path("there")).args([
        "--workers=1",
        "--local",
        "--threads=1",
    ]);
    let mut back = start({
        back.envs(Server::environment(server.port()));
        back
    });
    back.wait_for("the journal", |text| text.contains("fetched the run's journal").then_some(()));
    back.wait_for("a checkpoint", |text| text.contains("checkpoint resnet18-").then_some(()));
    kill(back.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(back.wait().status.code(), Some(143));
    assert_complete(&server, "moved_on", &SHARED.path("there"));
}
