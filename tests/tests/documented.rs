//! Runs the commands of the documentation as they stand there, on small data. Each is looked up in its page first, so
//! that a page that comes to say something else fails; and a page may say no command that is not tried here or elsewhere.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use relabel_tests::{Ended, Running, Scratch, program, run, sorted, start};

/// Commands that other tests run, or that need what is not here, by what they begin with.
const ELSEWHERE: [(&str, &str); 11] = [
    ("make ", "the Makefile's own, looked up in it"),
    (".ci/run", "what runs this"),
    ("python main.py", "the published code's"),
    ("sbatch ", "make slurm-test"),
    ("RELABEL_RUN_DIR=", "make slurm-test"),
    ("coordinator submit slurm", "make slurm-test, and here with --dry-run"),
    ("coordinator submit k8s", "make k8s-test, and here with --dry-run"),
    ("kubectl ", "a cluster's; what it applies is tried by make k8s-test"),
    ("host0$ ", "as the commands without the host's name"),
    ("host1$ ", "as the commands without the host's name"),
    ("cargo ", "the build's own"),
];

/// What makes a recipe small.
const SMALL: &str = "--model.arch resnet18 --optim.epochs 1 --optim.lr.init 1e-4 --optim.warmup.epochs 0 --optim.batch_size 16 \
                     --data.image_size 32 --util.val_batch_size 16 --http none";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A page's text, with what continues on the next line on one.
fn page(name: &str) -> String {
    let text = std::fs::read_to_string(root().join(name)).unwrap();
    let mut joined = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(begun) => joined.push_str(begun),
            None => {
                joined.push_str(line);
                joined.push('\n');
            }
        }
    }
    // Within a command one space is as good as several.
    joined.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// A folder in which the documentation's names are there: configs/, IMAGENET with label maps, W.pth.
struct Desk(Scratch);

impl Desk {
    fn new() -> Self {
        let scratch = Scratch::with_data(48, 16);
        std::fs::rename(scratch.path("data"), scratch.path("IMAGENET")).unwrap();
        std::os::unix::fs::symlink(root().join("configs"), scratch.path("configs")).unwrap();
        Self(scratch)
    }

    /// `written`, which `page` has to say, with other names in it and `more` behind it.
    fn command(&self, page_name: &str, written: &str, names: &[(&str, &str)], more: &str) -> Command {
        assert!(page(page_name).contains(written), "{page_name} does not say: {written}");
        let line = names.iter().fold(written.to_owned(), |line, (name, here)| line.replace(name, here));
        let mut command = Command::new("bash");
        let programs = program("worker").parent().unwrap().to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        command.args(["-c", &format!("exec {line} {more}")]).current_dir(self.0.path("")).env("PATH", path);
        command
    }

    fn run(&self, page: &str, written: &str, names: &[(&str, &str)], more: &str) -> Ended {
        let ended = run(self.command(page, written, names, more));
        assert!(ended.status.success(), "{written} {more}: {}", ended.stderr);
        ended
    }

    /// The first file of the first class folder in `folder`.
    fn first(&self, folder: &str) -> PathBuf {
        let folders = sorted(&self.0.path(folder));
        let class = folders.iter().find(|path| path.is_dir() && !path.ends_with(".label"));
        sorted(class.unwrap()).swap_remove(0)
    }

    fn start(&self, page: &str, written: &str, names: &[(&str, &str)], more: &str) -> Running {
        start(self.command(page, written, names, more))
    }
}

const README: &str = "README.md";
const RECIPES: &str = "configs/README.md";
const PYTHON: &str = "configs/from-python.md";
const OPERATIONS: &str = "deploy/README.md";

#[test]
fn the_readme_trains_and_what_comes_of_it_can_be_used() {
    let desk = Desk::new();
    desk.run(README, "worker synth OUT", &[("OUT", "OUT")], "--train 8 --val 4 --classes 4 --size 48x48");
    let data = [("/data/imagenet", "IMAGENET"), ("/data/relabel_imagenet", "IMAGENET/labels")];
    desk.run(
        README,
        "coordinator --workers 2 --local --config configs/relabel_train_resnet50.yaml \
         --data.data_path /data/imagenet --data.relabel.path /data/relabel_imagenet",
        &data,
        &format!("--run-dir RUN --threads 1 {SMALL}"),
    );
    desk.run(
        README,
        "coordinator --resume --run-dir DIR",
        &[("DIR", "RUN")],
        "--local --workers 1 --threads 1 --optim.epochs 2 --http none",
    );
    let best = sorted(&desk.0.path("RUN/checkpoints"))
        .into_iter()
        .find(|file| file.to_string_lossy().ends_with("best.safetensors"))
        .unwrap();
    let best = best.to_str().unwrap();
    desk.run(README, "worker export CHECKPOINT OUT.pth", &[("CHECKPOINT", best), ("OUT.pth", "W.pth")], "");
    desk.run(
        README,
        "worker inspect {packed,weights,checkpoint} FILE",
        &[("{packed,weights,checkpoint} FILE", "weights W.pth")],
        "",
    );
    desk.run(
        README,
        "worker inspect {packed,weights,checkpoint} FILE",
        &[("{packed,weights,checkpoint} FILE", &format!("checkpoint {best}"))],
        "",
    );

    let network = [("--arch A", "--arch resnet18"), ("--weights W", "--weights W.pth")];
    let with = |more: &[(&'static str, &'static str)]| [&network[..], more].concat();
    let picture = "IMAGENET/val/*/*";
    let said =
        desk.run(README, "worker predict IMG... --weights W --arch A", &with(&[("IMG...", picture)]), "");
    assert!(said.stdout.contains("percent"), "{}", said.stdout);
    desk.run(
        README,
        "worker label --data DIR --out MAPS --arch A --weights W",
        &with(&[("DIR", "IMAGENET/train")]),
        "--threads 1",
    );
    desk.run(README, "worker pack MAPS FILE", &[("FILE", "maps.pack")], "");
    desk.run(
        README,
        "worker inspect {packed,weights,checkpoint} FILE",
        &[("{packed,weights,checkpoint} FILE", "packed maps.pack")],
        "",
    );
    let map = desk.first("MAPS");
    let map = [("FILE", map.to_str().unwrap())];
    desk.run(README, "worker inspect label-map FILE --crop 0,0,0.5,1", &map, "");
    desk.run(
        README,
        "worker eval --weights W --data DIR...",
        &with(&[("DIR...", "IMAGENET/val")]),
        "--arch resnet18",
    );
    desk.run(
        README,
        "coordinator eval --weights W --data DIR... [--workers N --local]",
        &with(&[("DIR...", "IMAGENET/val"), ("[--workers N --local]", "--workers 2 --local")]),
        "--arch resnet18",
    );
    desk.run(
        README,
        "worker doctor --data DIR [--labels MAPS]",
        &[("DIR [--labels MAPS]", "IMAGENET --labels MAPS")],
        "",
    );
    desk.run(README, "worker doctor [--json]", &[("[--json]", "--json")], "");
    let runs = desk.run(README, "coordinator runs [DIR] [--json]", &[("[DIR] [--json]", ". --json")], "");
    assert!(runs.stdout.contains("RUN"), "{}", runs.stdout);
}

#[test]
fn a_run_on_several_hosts_is_asked_saved_and_stopped_as_written() {
    let desk = Desk::new();
    let mut coordinator = desk.start(
        README,
        "coordinator --workers 2 --config configs/relabel_train_resnet50.yaml --run-dir /shared/run",
        &[("/shared/run", "RUN")],
        &format!(
            "--listen 127.0.0.1:0 --data.data_path IMAGENET --data.relabel.path IMAGENET/labels {} --optim.epochs 500",
            SMALL.replace("--optim.epochs 1 ", "")
        ),
    );
    let url = format!("http://127.0.0.1:{}", coordinator.port());
    let here = [("http://host0:4747", url.as_str())];
    let _workers = [
        "worker --rank 0 --coordinator http://host0:4747",
        "worker --rank 1 --coordinator http://host0:4747",
    ]
    .map(|written| desk.start(README, written, &here, "--cpu --threads 1"));
    relabel_tests::wait_for_steps(&desk.0.path("RUN"), 2);
    let there = format!("--coordinator {url}");
    let there = there.as_str();
    let status =
        desk.run(README, "coordinator status [--watch] [--json]", &[("[--watch] [--json]", "--json")], there);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["workers"].as_array().unwrap().len(), 2, "{status}");
    desk.run(README, "coordinator checkpoint", &[], there);
    desk.run(README, "coordinator stop", &[], there);
    let ended = coordinator.wait();
    // Interrupted, after a checkpoint.
    assert_eq!(ended.status.code(), Some(143), "{}", ended.stderr);
}

#[test]
fn the_recipe_and_the_way_from_python_run() {
    let desk = Desk::new();
    let python = "coordinator --workers 4 --local --config-file-path configs/relabel_train_resnet50.yaml \
                  --data.data_path IMAGENET --data.relabel.path RELABEL";
    let maps = [("RELABEL", "IMAGENET/labels"), ("--workers 4", "--workers 2")];
    desk.run(PYTHON, python, &maps, &format!("--run-dir RUN --threads 1 {SMALL}"));
    let best = "RUN/checkpoints/resnet18-best.safetensors";
    desk.run(PYTHON, "worker export CHECKPOINT OUT.pth", &[("CHECKPOINT", best), ("OUT.pth", "W.pth")], "");
    desk.run(
        RECIPES,
        "coordinator label --data IMAGENET/train --out MAPS --arch efficientnet_b7 --weights W.pth --workers 8 --local",
        &[("efficientnet_b7", "resnet18"), ("--workers 8", "--workers 2")],
        "",
    );
    desk.run(RECIPES, "worker doctor --data IMAGENET --labels MAPS", &[], "");
    desk.run(RECIPES, "worker pack MAPS maps.pack", &[], "");
    desk.run(
        RECIPES,
        "coordinator --workers 8 --local --config configs/relabel_train_resnet50.yaml --data.data_path IMAGENET \
         --data.relabel.path MAPS",
        &[("--workers 8", "--workers 2"), ("path MAPS", "path maps.pack")],
        &format!("--run-dir SECOND --threads 1 {SMALL}"),
    );
    let tested = "worker eval --weights RUN/checkpoints/resnet50-best.safetensors --data IMAGENET/val";
    desk.run(RECIPES, tested, &[("resnet50", "resnet18")], "");
    let map = desk.first("MAPS");
    let image = desk.first("IMAGENET/train");
    desk.run(
        PYTHON,
        "worker inspect label-map FILE --image IMG --crop 0,0,0.5,1 --out look.png",
        &[("FILE", map.to_str().unwrap()), ("IMG", image.to_str().unwrap())],
        "",
    );
    assert!(desk.0.path("look.png").is_file());
    desk.run(OPERATIONS, "worker doctor", &[], "");
    desk.run(OPERATIONS, "worker inspect checkpoint FILE", &[("FILE", best)], "");
    let dry = "coordinator --config configs/relabel_train_resnet50.yaml --workers 8 --dry-run";
    desk.run(RECIPES, dry, &[], "--data.data_path IMAGENET --data.relabel.path IMAGENET/labels");
    for (page, written) in [
        (
            "deploy/k8s/README.md",
            "coordinator submit k8s --as jobset --workers 4 --data.relabel.use False --data.data_path /data/imagenet --dry-run",
        ),
        (
            "deploy/slurm/README.md",
            "coordinator submit slurm --array 0-4 --run-dir 'runs/seed-%a' --gpus-per-node 4 --data.relabel.use False \
             --data.data_path /data/imagenet --compute.seed %a",
        ),
    ] {
        let more = if written.contains("--dry-run") { "" } else { "--dry-run" };
        assert!(!desk.run(page, written, &[], more).stdout.is_empty());
    }
}

#[test]
fn every_command_of_every_page_is_tried() {
    let tried =
        std::fs::read_to_string(root().join("tests/tests/documented.rs")).unwrap().replace("\\\n", " ");
    let tried = tried.split_whitespace().collect::<Vec<_>>().join(" ");
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let mut found = 0;
    for name in pages(&root()) {
        let text = std::fs::read_to_string(root().join(&name)).unwrap().replace("\\\n", " ");
        for line in text.lines().filter(|line| line.starts_with("    ")) {
            let command = line.split_whitespace().collect::<Vec<_>>().join(" ");
            let command = command.split(" # ").next().unwrap().trim();
            if let Some(target) = command.strip_prefix("make ") {
                let target = target.split(' ').next().unwrap();
                assert!(makefile.contains(&format!("\n{target}: ")), "{name}: there is no make {target}");
            }
            let is_ours = ["coordinator ", "worker "].iter().any(|program| command.starts_with(program));
            let elsewhere = ELSEWHERE.iter().any(|(beginning, _)| command.starts_with(beginning));
            if is_ours && !elsewhere {
                found += 1;
                assert!(tried.contains(command), "{name}: nothing tries: {command}");
            }
        }
    }
    assert!(found >= 6, "{found}");
}

/// Markdown of the repository, from its root.
fn pages(root: &Path) -> Vec<String> {
    let mut folders: Vec<PathBuf> =
        ["coordinator", "worker", "proto", "deploy", "configs", "tests"].map(|name| root.join(name)).into();
    let mut files = sorted(root);
    while let Some(folder) = folders.pop() {
        let (inner, rest): (Vec<_>, Vec<_>) = sorted(&folder).into_iter().partition(|path| path.is_dir());
        folders.extend(inner.into_iter().filter(|path| !path.ends_with("target")));
        files.extend(rest);
    }
    let markdown = files.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    markdown.map(|path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned()).collect()
}
