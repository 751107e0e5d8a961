//! What goes wrong for a user gives one clear line that says what to do, and exit code 1 or 2.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use relabel_tests::{
    Running, Scratch, assert_same_curve, consumed, losses, metrics, program, run, sorted, start,
};

/// Runs one local worker into a failure and returns the line that tells it.
fn failure(scratch: &Scratch, name: &str, options: &[&str]) -> String {
    let mut command = scratch.local(name, 1);
    command.args(options);
    let ended = run(command);
    let line = ended.last_line(1).to_string();
    let errors = ended.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "one line, not more:\n{}", ended.stderr);
    line
}

#[track_caller]
fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

#[test]
fn data_that_cannot_be_used() {
    let scratch = Scratch::with_data(8, 4);
    let data = scratch.path("data");
    let line = failure(&scratch, "r1", &["--data.data_path", "/no/such/folder"]);
    assert_says(&line, &["/no/such/folder/train does not exist", "data.data_path"]);

    let line = failure(&scratch, "r2", &["--data.relabel.path", "/no/maps"]);
    assert_says(&line, &["/no/maps does not exist", "relabel.path"]);

    let line = failure(&scratch, "r3", &["--model.num_classes", "3"]);
    assert_says(&line, &["model.num_classes is 3", "4 class folders"]);

    // A class id of the maps that the model has no output for.
    let map = scratch.file_of("labels", 2);
    let good = std::fs::read(&map).unwrap();
    let image = scratch.file_of("train", 2);

    std::fs::remove_file(&map).unwrap();
    let line = failure(&scratch, "r4", &[]);
    assert_says(&line, &[map.to_str().unwrap(), "is missing for image"]);

    std::fs::write(&map, &good[..good.len() / 2]).unwrap();
    let line = failure(&scratch, "r5", &[]);
    assert_says(&line, &[map.to_str().unwrap()]);
    std::fs::write(&map, &good).unwrap();

    let empty = data.join("train/n99999999");
    std::fs::create_dir(&empty).unwrap();
    let line = failure(&scratch, "r6", &[]);
    assert_says(&line, &["n99999999 holds no", "fill or remove it"]);
    std::fs::remove_dir(&empty).unwrap();

    // A truncated image ends the run by name; `skip` counts it and goes on without it.
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    let line = failure(&scratch, "r7", &[]);
    assert_says(&line, &[image.to_str().unwrap(), "truncated", "data.on_error"]);
    let mut command = scratch.local("r8", 2);
    command.args(["--data.on_error", "skip", "--optim.epochs", "1"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(consumed(&scratch.path("r8"))[&0].len(), 7, "all but the truncated one");
    assert_eq!(metrics(&scratch.path("r8"), "epoch")[0]["skipped"], 1);
    assert!(ended.stderr.contains("1 unreadable images were left out of epoch 1"), "{}", ended.stderr);
    let logs: String =
        sorted(&scratch.path("r8/logs")).iter().map(|log| std::fs::read_to_string(log).unwrap()).collect();
    assert!(logs.contains("left out of epoch 1") && logs.contains(image.to_str().unwrap()), "{logs}");
}

#[test]
fn a_fault_in_the_middle_of_an_epoch_loses_nothing() {
    let scratch = Scratch::with_data(80, 8);
    let local = |name: &str| {
        let mut command = scratch.local(name, 1);
        command.args(["--optim.epochs", "1"]);
        command
    };
    assert!(run(local("undisturbed")).status.success());
    // The same seed comes to the same image, in the last of five steps.
    let recorded = &sorted(&scratch.path("undisturbed/samples"))[0];
    let recorded = std::fs::read_to_string(recorded).unwrap();
    let last: usize = recorded.lines().last().unwrap().split(' ').next_back().unwrap().parse().unwrap();
    let classes = sorted(&scratch.path("data/train"));
    let image = &classes.iter().flat_map(|class| sorted(class)).nth(last).unwrap();
    let whole = std::fs::read(image).unwrap();
    std::fs::write(image, &whole[..whole.len() / 2]).unwrap();

    let ended = run(local("run"));
    let line = ended.last_line(1);
    assert_says(line, &[image.to_str().unwrap(), "truncated", "carry on from epoch 1, step 4 with --resume"]);
    std::fs::write(image, whole).unwrap();
    // The run's own options need not be said again.
    let mut command = Command::new(program("coordinator"));
    command.args(["--resume", "--local", "--run-dir"]).arg(scratch.path("run"));
    let resumed = run(command);
    assert!(resumed.status.success(), "{}", resumed.stderr);
    assert_same_curve(&losses(&scratch.path("undisturbed")), &losses(&scratch.path("run")), 1e-5);
    let epoch = |name: &str| metrics(&scratch.path(name), "epoch")[0]["train_loss"].as_f64().unwrap();
    assert!((epoch("run") - epoch("undisturbed")).abs() < 1e-5, "the epoch's mean counts both lives");
}

#[test]
fn a_resume_that_cannot_restore_keeps_its_checkpoints() {
    let scratch = Scratch::with_data(32, 8);
    assert!(run(scratch.local("run", 1)).status.success());
    let resume = |options: &[&str]| {
        let mut command = scratch.local("run", 1);
        command.args(["--resume", "--optim.epochs", "4"]).args(options);
        run(command)
    };
    assert_says(resume(&["--model.num_classes", "7"]).last_line(2), &["model.num_classes is 7", "none"]);
    // The folder of the checkpoints is not where it was.
    let (folder, aside) = (scratch.path("run/checkpoints"), scratch.path("run/aside"));
    std::fs::rename(&folder, &aside).unwrap();
    assert_says(
        resume(&[]).last_line(1),
        &["checkpoints/resnet18-e0003-s000000.safetensors", "No such file"],
    );
    let _ = std::fs::remove_dir(&folder);
    std::fs::rename(&aside, &folder).unwrap();
    let resumed = resume(&[]);
    assert!(resumed.status.success(), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("going on from checkpoint resnet18-e0003"), "{}", resumed.stderr);
    let steps = metrics(&scratch.path("run"), "step");
    let numbers: Vec<_> = steps.iter().map(|step| step["global_step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..8).collect::<Vec<_>>());
}

#[test]
fn label_maps_of_another_shape_or_other_classes() {
    let scratch = Scratch::with_data(8, 4);
    // Maps for eight classes, of which this data has four.
    let other = scratch.path("other");
    let synth = Command::new(program("worker"))
        .arg("synth")
        .arg(&other)
        .args(["--train", "20", "--val", "10"])
        .output();
    assert!(synth.unwrap().status.success());
    let maps = sorted(&other.join("labels/n00000010"));
    let map = scratch.file_of("labels", 1);
    std::fs::copy(&maps[0], &map).unwrap();
    let line = failure(&scratch, "r1", &[]);
    assert_says(&line, &[map.to_str().unwrap(), "class"]);

    // A checkpoint-like file instead of a map: a tensor of another shape.
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/vector.pt"), &map).unwrap();
    let line = failure(&scratch, "r2", &[]);
    assert_says(&line, &[map.to_str().unwrap(), "shape"]);
}

#[test]
fn options_that_cannot_be() {
    let line = |args: &[&str]| {
        let mut command = Command::new(program("coordinator"));
        command.args(args);
        run(command).last_line(2).to_string()
    };
    assert_says(&line(&["--optim.lr.inti", "0.1"]), &["optim.lr.inti", "optim.lr.init"]);
    assert_says(&line(&["--optim.batch_size", "0"]), &["optim.batch_size", "0"]);
    assert_says(&line(&["--data.image_size", "big"]), &["--data.image_size", "big"]);
    assert_says(&line(&["--config", "no/such.yaml"]), &["no/such.yaml"]);
    assert_says(&line(&["--resume", "--run-dir", "/no/such/run"]), &["no run to resume in /no/such/run"]);
}

/// A coordinator for two workers that waits on a free port.
fn waiting(scratch: &Scratch) -> (Running, u16) {
    let mut command = scratch.coordinator("waiting");
    command.args(["--workers", "2", "--listen", "127.0.0.1:0"]);
    let mut coordinator = start(command);
    let port = coordinator.port();
    (coordinator, port)
}

#[test]
fn a_port_and_a_rank_are_taken_once() {
    let scratch = Scratch::with_data(8, 4);
    let (mut coordinator, port) = waiting(&scratch);

    let mut second = scratch.coordinator("second");
    second.args(["--listen", &format!("127.0.0.1:{port}")]);
    assert_says(run(second).last_line(1), &[&format!("port {port} is in use"), "--listen"]);
    assert!(!scratch.path("second").exists(), "a run that cannot begin leaves nothing behind");

    let with_rank = |rank: &str| {
        let mut worker = scratch.worker(port);
        worker.args(["--rank", rank]);
        worker
    };
    let _first = start(with_rank("1"));
    coordinator.wait_for("the first worker", |text| text.contains("joined as rank 1 of 2").then_some(()));
    assert_says(run(with_rank("1")).last_line(1), &["rank 1 is taken by process", "another --rank"]);
    assert_says(run(with_rank("2")).last_line(1), &["rank 2 is outside this run's 0..2"]);
}

#[test]
fn a_coordinator_that_is_not_there() {
    // Nobody listens on the port of a listener that has been dropped.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut worker = Command::new(program("worker"));
    worker.args(["--coordinator", &format!("http://127.0.0.1:{port}"), "--connect-timeout", "2"]);
    let ended = run(worker);
    assert_says(ended.last_line(1), &["no coordinator answered at", "within 2 s", "--connect-timeout"]);
    let retries = ended.stderr.lines().filter(|line| line.contains("trying again in")).count();
    assert!(retries >= 2, "it says that it retries:\n{}", ended.stderr);

    let mut worker = Command::new(program("worker"));
    worker.args(["--coordinator", "not an address"]);
    assert_says(run(worker).last_line(2), &["not an address"]);
}

#[test]
fn workers_that_see_other_data() {
    let scratch = Scratch::with_data(8, 4);
    let (coordinator, port) = waiting(&scratch);
    let first = start(scratch.worker(port));
    // The second one's view of the same path has one image less.
    let mut running = coordinator;
    running.wait_for("the data set", |text| text.contains("8 training and 4 validation").then_some(()));
    std::fs::remove_file(scratch.file_of("train", 0)).unwrap();
    let second = start(scratch.worker(port));
    let ended = running.wait();
    assert_says(
        ended.last_line(1),
        &["sees other training data", "7 images", "instead of 8", "data.data_path"],
    );
    for worker in [first, second] {
        assert_says(worker.wait().last_line(1), &["the run has failed", "sees other training data"]);
    }
}

#[test]
fn a_worker_of_another_version_is_refused() {
    use relabel_proto::v1::session_client::SessionClient;
    use relabel_proto::v1::{Hello, WorkerMessage, worker_message::Message};

    let scratch = Scratch::with_data(8, 4);
    let (_coordinator, port) = waiting(&scratch);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = runtime.block_on(async {
        let mut client = SessionClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
        let hello = Hello {
            version: "0.0.1".into(),
            host: "h".into(),
            ring_address: "h:1".into(),
            ..Default::default()
        };
        let hello = WorkerMessage { message: Some(Message::Hello(hello)) };
        client.join(tokio_stream::once(hello)).await.unwrap_err()
    });
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert_says(status.message(), &["worker is version 0.0.1", relabel_proto::VERSION, "the same build"]);
}

#[test]
fn a_full_disk_at_a_checkpoint_ends_the_run_with_what_was_saved_intact() {
    let scratch = Scratch::with_data(32, 4);
    let first = run({
        let mut command = scratch.local("run", 1);
        command.args(["--optim.epochs", "1"]);
        command
    });
    assert!(first.status.success(), "{}", first.stderr);
    let saved = scratch.path("run/checkpoints/resnet18-e0001-s000000.safetensors");
    let intact = std::fs::read(&saved).unwrap();

    // No file may grow over 20 MB, as if the disk were full; a checkpoint is 90 MB.
    let command = scratch.local("run", 1);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 40000; exec \"$@\"", "sh"]);
    limited.arg(command.get_program()).args(command.get_args()).args(["--resume", "--optim.epochs", "2"]);
    limited.env("XDG_CACHE_HOME", scratch.path("cache"));
    let ended = run(limited);
    let line = ended.last_line(1);
    assert_says(line, &["a checkpoint could not be written", "resnet18-e0001", "is intact", "--resume"]);
    assert_eq!(std::fs::read(&saved).unwrap(), intact);
    let left: Vec<_> = sorted(&scratch.path("run/checkpoints"));
    assert!(left.iter().all(|path| path.extension().is_some_and(|e| e != "tmp")), "{left:?}");

    let mut command = scratch.local("run", 1);
    command.args(["--resume", "--optim.epochs", "2"]);
    let resumed = run(command);
    assert!(resumed.status.success(), "{}", resumed.stderr);
    assert_eq!(metrics(&scratch.path("run"), "epoch").len(), 2);
}
