#![allow(clippy::unwrap_used)]

use std::path::Path;

use clap::Parser;

use super::slurm::{Job, SlurmArgs};
use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: SlurmArgs,
}

fn job(flags: &[&str], options: &[&str]) -> Result<Job, SubmitError> {
    let args = Line::parse_from(["submit"].iter().chain(flags)).args;
    let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
    Job::new(&args, Path::new("/opt/relabel bin"), &options, "resnet50")
}

/// What bash makes of the script up to the job: the settings and the job's arguments, one a line.
fn understood(script: &str) -> String {
    let head = script.split("\n# ---- the job\n").next().unwrap();
    let shown =
        r#"printf '%s\n' "$run_dir" "$bin" "$device" "$min_workers" "$port" "$tls_cert$tls_key$tls_ca" "$@""#;
    let output = std::process::Command::new("bash")
        .args(["-euc", &format!("{head}\n{shown}")])
        .env_clear()
        .env("SLURM_JOB_ID", "31007")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_script_says_what_was_asked_for() {
    let flags = "--nodes 4 --gpus-per-node 8 --cpus-per-worker 12 --time 2-12:00:00 --partition gpu --account vision \
                 --qos long --array 0-3%2 --save-before 120 --sbatch=--exclusive --name curves";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let script = job(&flags, &["--optim.epochs=3"]).unwrap().script();
    let directives: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("#SBATCH ")).collect();
    assert_eq!(
        directives,
        [
            "--job-name=curves",
            "--nodes=4",
            "--ntasks-per-node=8",
            "--gpus-per-node=8",
            "--cpus-per-task=12",
            "--time=2-12:00:00",
            "--partition=gpu",
            "--account=vision",
            "--qos=long",
            "--array=0-3%2",
            "--output=runs/%x-%j.log",
            "--open-mode=append",
            "--signal=B:USR1@120",
            "--requeue",
            "--no-kill",
            "--exclusive",
        ]
    );
    let settings = understood(&script);
    // All nodes but one have to be there, and the port is one of its own.
    assert_eq!(settings, "runs/%x-%j\n/opt/relabel bin\nauto\n24\n21007\n\n--optim.epochs=3\n");
    assert!(script.contains("\nrestarts=3 ") && script.ends_with("exit \"$code\"\n"), "the job is not in it");
}

#[test]
fn options_reach_the_job_as_they_are() {
    let odd = [
        "--data.data_path=/data/it's here",
        "--util.test_weight_file=",
        "--model.arch=script:/n/$HOME`x`\"\\.pt",
    ];
    let script = job(&["--setup", "greeting='module loaded'", "--port", "5000"], &odd).unwrap().script();
    assert!(
        understood(&script).ends_with(&format!("\n1\n5000\n\n{}\n", odd.join("\n"))),
        "{}",
        understood(&script)
    );
    assert!(script.contains("\ngreeting='module loaded'\n"));
}

#[test]
fn certificates_reach_the_job() {
    let flags =
        ["--tls-cert", "/certs/of it.pem", "--tls-key", "/certs/key.pem", "--tls-ca", "/certs/ca.pem"];
    let script = job(&flags, &[]).unwrap().script();
    assert!(understood(&script).contains("\n/certs/of it.pem/certs/key.pem/certs/ca.pem\n"));
    assert!(Line::try_parse_from(["submit", "--tls-cert", "a.pem", "--tls-key", "b.pem"]).is_err());
}

#[test]
fn a_job_is_named_after_its_configuration() {
    let place = |flags: &[&str]| {
        let job = job(flags, &[]).unwrap();
        (job.script_path().display().to_string(), job.run_dir("7"), job.log("7"))
    };
    let of = |script: &str, run_dir: &str, log: &str| (script.to_owned(), run_dir.to_owned(), log.to_owned());
    assert_eq!(place(&[]), of("runs/resnet50.sbatch", "runs/resnet50-7", "runs/resnet50-7.log"));
    assert_eq!(
        place(&["--config", "configs/long.yaml", "--run-dir", "/scratch/%x/%j/"]),
        of("/scratch/long/long.sbatch", "/scratch/long/7", "/scratch/long/7.log")
    );
    assert_eq!(place(&["--run-dir", "here"]), of("./resnet50.sbatch", "here", "here.log"));
}

#[test]
fn what_cannot_be_is_refused_in_a_line() {
    for (flags, says) in [
        (&["--time", "tomorrow"][..], "--time tomorrow: "),
        (&["--time", "5", "--save-before", "300"], "--save-before 300: "),
        (&["--time", "1:00-2"], "--time 1:00-2: "),
        (&["--device", "gpu"], "--device gpu: "),
        (&["--nodes", "2", "--min-workers", "3"], "--min-workers 3: "),
        (&["--name", "two words"], "--name two words: "),
        (&["--run-dir", "$(reboot)"], "--run-dir $(reboot): "),
        (&["--run-dir", "runs/%j/a"], "--run-dir runs/%j/a: "),
        (&["--array", "0\n3"], "--array 0\n3: "),
        (&["--sbatch", "exclusive"], "--sbatch exclusive: "),
    ] {
        let error = job(flags, &[]).unwrap_err();
        assert!(error.is_usage() && error.to_string().starts_with(says), "{flags:?}: {error}");
    }
    for time in ["90", "4:00:00", "0-1", "2-12:30", "infinite", "7:00"] {
        assert!(job(&["--time", time], &[]).is_ok(), "{time}");
    }
    assert!(job(&["--time", "5:00"], &[]).is_err(), "five minutes are not more than 300 seconds");
}

#[test]
fn what_somebody_set_becomes_the_options() {
    let overrides = [("optim.lr.init".to_owned(), "1e-5".to_owned())];
    let env = [("RELABEL__DATA__RELABEL__PATH".to_owned(), "/maps of mine".to_owned())];
    let resolved = config::load(None, None, env.into_iter(), &overrides).unwrap();
    let options = options(&resolved, &BTreeMap::new());
    assert_eq!(options, ["--data.relabel.path=/maps of mine", "--optim.lr.init=1e-5"]);
    let patterns = [("optim.lr.init".to_owned(), "0.%a".to_owned())].into();
    assert_eq!(super::options(&resolved, &patterns)[1], "--optim.lr.init=0.%a");
    // And they are read back as what they were.
    let (back, rest) = config::split_dotted(options.into_iter().map(Into::into)).unwrap();
    assert!(rest.is_empty());
    let again = config::load(None, None, std::iter::empty(), &back).unwrap();
    assert_eq!(again.config, resolved.config);
}
