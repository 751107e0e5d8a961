#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args as _, FromArgMatches as _};
use relabel_config::{Config, Decay, OptimizerKind, schema};

use super::*;

/// The published code's base.yaml as it stands there.
const REFERENCE: &str = "
model:
  arch: 'resnet50'
data:
  dataset: 'imagenet'
  data_path: '/data/ILSVRC2015/'
  image_size: 224
  rrc_minimum: 0.08
  crop_ratio: 0.875
optim:
  optimizer: 'sgd'
  epochs: 100
  start_epoch: 0
  bn:
    momentum: 0.9
    eps: 1.e-5
  batch_size: 512
  lr:
    init: 0.5
    decay_type: 'cos'
  warmup:
    lr: 0.0
    epochs: 5
  nesterov: True
  momentum: 0.9
  wd:
    base: 1.e-5
  label_smoothing: 0.0
compute:
  seed: -1
  gpu: -1
  opt_level: 'O1'
  num_workers: 32
  distributed:
    use: True
    num_processes_per_node: 1
    url: 'tcp://127.0.0.1:6946'
    backend: 'nccl'
util:
  print_freq: 250
  val_batch_size: 512";

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yaml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// Loads with a data path, so that what is wrong is what the test made wrong.
fn load_with(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Resolved, String> {
    let (_dir, path) = written(text);
    let mut flags = pairs(flags);
    flags.insert(0, ("data.data_path".into(), "data".into()));
    load(None, Some(&path), pairs(env).into_iter(), &flags).map_err(|error| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "more than one line: {line}");
        line.replace(path.to_str().unwrap(), "FILE")
    })
}

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

#[test]
fn the_built_in_file_is_the_default_configuration() {
    let resolved = merge(None, None, std::iter::empty(), &[]).unwrap();
    assert_eq!(resolved.config, Config::default());
    // And it leaves no key out.
    assert_eq!(resolved.origins.len(), schema().len());
    assert!(resolved.origins.values().all(|origin| *origin == Origin::BuiltIn));
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let file = "optim: {epochs: 11, batch_size: 12, lr: {init: 0.13}}";
    let env = [("RELABEL__OPTIM__BATCH_SIZE", "22"), ("RELABEL__OPTIM__LR__INIT", "0.23"), ("HOME", "/")];
    let resolved = load_with(file, &env, &[("optim.lr.init", "0.32"), ("optim.lr.init", "0.33")]).unwrap();
    let optim = &resolved.config.optim;
    assert_eq!((optim.momentum, optim.epochs, optim.batch_size, optim.lr.init), (0.9, 11, 22, 0.33));
    let origin = |key: &str| resolved.origins[key].clone();
    assert_eq!(origin("optim.momentum"), Origin::BuiltIn);
    assert!(matches!(origin("optim.epochs"), Origin::File(_)));
    assert_eq!(origin("optim.batch_size"), Origin::Environment("RELABEL__OPTIM__BATCH_SIZE".into()));
    assert_eq!(origin("optim.lr.init"), Origin::Flag("--optim.lr.init".into()));
    assert_eq!(optim.wd, Config::default().optim.wd, "a section that a layer names keeps its other keys");
}

#[test]
fn the_references_file_is_accepted_unchanged() {
    let (_dir, path) = written(REFERENCE);
    let resolved = load(None, Some(&path), std::iter::empty(), &[]).unwrap();
    let mut expected = Config::default();
    expected.data.data_path = "/data/ILSVRC2015/".into();
    assert_eq!(resolved.config, expected);
    assert_eq!(resolved.notes.len(), 4, "{:?}", resolved.notes);
    assert!(resolved.notes[0].contains("compute.distributed.backend has no effect"));
}

#[test]
fn the_recipes_have_the_published_values() {
    let resnet50 =
        merge(None, Some(&recipe("relabel_train_resnet50.yaml")), std::iter::empty(), &[]).unwrap().config;
    let mut expected = Config::default();
    expected.data.relabel.enabled = true;
    expected.optim.epochs = 300;
    expected.optim.batch_size = 1024;
    expected.optim.lr.init = 0.1;
    expected.optim.wd.base = 1e-4;
    assert_eq!(resnet50, expected);

    let cutmix = recipe("relabel_train_resnet50_cutmix.yaml");
    (expected.data.cutmix.prob, expected.data.cutmix.beta) = (1.0, 1.0);
    expected.optim.optimizer = OptimizerKind::AdamP;
    expected.optim.lr.init = 2e-3;
    expected.optim.wd.base = 1e-2;
    assert_eq!(merge(None, Some(&cutmix), std::iter::empty(), &[]).unwrap().config, expected);
    // They run as they stand, once they have been told where the label maps are.
    for recipe in [recipe("relabel_train_resnet50.yaml"), cutmix] {
        load(None, Some(&recipe), std::iter::empty(), &pairs(&[("data.relabel.path", "maps")])).unwrap();
    }

    let demo = load(None, Some(&recipe("demo.yaml")), std::iter::empty(), &[]).unwrap().config;
    assert_eq!(demo.model.arch, "resnet18");
    assert!(demo.data.relabel.enabled);
}

#[test]
fn flags_and_variables_are_typed_by_their_key() {
    let flags = [
        ("data.relabel.use", "yes"),
        ("data.relabel.path", "2012"),
        ("optim.nesterov", "False"),
        ("optim.wd.base", "1e-3"),
        ("optim.lr.decay_type", "linear"),
        ("optim.batch_size", "1_024"),
        ("model.num_classes", "10"),
    ];
    let config = load_with("optim:\ncheckpoint: {keep: 5}\n", &[], &flags).unwrap().config;
    assert!(config.data.relabel.enabled && !config.optim.nesterov);
    assert_eq!(config.data.relabel.path, "2012");
    assert_eq!((config.optim.wd.base, config.optim.lr.decay_type), (1e-3, Decay::Linear));
    assert_eq!((config.optim.batch_size, config.model.num_classes), (1024, Some(10)));
    assert_eq!(config.checkpoint.keep, 5);
    let back = load_with("model: {num_classes: 7}", &[], &[("model.num_classes", "none")]).unwrap();
    assert_eq!(back.config.model.num_classes, None);
}

#[test]
fn yaml_spellings_of_one_one_are_read() {
    let text = "data:\n  relabel: {use: yes, path: 2012}\noptim:\n  nesterov: off\n  lr: {init: 1e-3}\n  \
                wd: {base: '1e-4'}\n  bn: {eps: 1.e-6}\nutil.print_freq: 7\n";
    let config = load_with(text, &[], &[]).unwrap().config;
    assert!(config.data.relabel.enabled && !config.optim.nesterov);
    assert_eq!(config.data.relabel.path, "2012");
    assert_eq!((config.optim.lr.init, config.optim.wd.base, config.optim.bn.eps), (1e-3, 1e-4, 1e-6));
    assert_eq!(config.util.print_freq, 7);
    for nothing in ["", "# only a comment\n", "optim:\n"] {
        load_with(nothing, &[], &[]).unwrap();
    }
}

/// What is written wrong, and the line that says so.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn every_mistake_is_one_line_that_names_key_value_and_place() {
    let cases: &[Case] = &[
        (
            "optim: {lr: {initt: 0.1}}",
            &[],
            &[],
            "FILE: unknown key optim.lr.initt (its value: 0.1); did you mean optim.lr.init?",
        ),
        (
            "zzz: {qqq: [1]}",
            &[],
            &[],
            "FILE: unknown key zzz (its value: 'a section'); coordinator --help lists the keys",
        ),
        (
            "",
            &[("RELABEL__OPTIM__LR__INTI", "1")],
            &[],
            "environment variable RELABEL__OPTIM__LR__INTI: unknown key optim.lr.inti (its value: 1); did you mean RELABEL__OPTIM__LR__INIT?",
        ),
        (
            "",
            &[],
            &[("optim.epoch", "3")],
            "flag --optim.epoch: unknown key optim.epoch (its value: 3); did you mean --optim.epochs?",
        ),
        (
            "optim: {epochs: many}",
            &[],
            &[],
            "FILE: optim.epochs is many, but it takes a whole number of at least 1",
        ),
        (
            "optim: {epochs: 1.5}",
            &[],
            &[("optim.epochs", "2")],
            "FILE: optim.epochs is 1.5, but it takes a whole number of at least 1",
        ),
        (
            "optim: {epochs: }",
            &[],
            &[],
            "FILE: optim.epochs is '', but it takes a whole number of at least 1",
        ),
        (
            "optim: {epochs: [1, 2]}",
            &[],
            &[],
            "FILE: optim.epochs is a list, but it takes a whole number of at least 1",
        ),
        (
            "optim: {epochs: {a: 1}}",
            &[],
            &[],
            "FILE: optim.epochs is a section, but it takes a whole number of at least 1",
        ),
        (
            "optim: {lr: 0.1}",
            &[],
            &[],
            "FILE: optim.lr is 0.1, but it is a section of keys such as optim.lr.init",
        ),
        ("optim: 3", &[], &[], "FILE: optim is 3, but it is a section of keys such as optim.optimizer"),
        (
            "",
            &[("RELABEL__DATA__CUTMIX__PROB", "1.5")],
            &[],
            "environment variable RELABEL__DATA__CUTMIX__PROB: data.cutmix.prob is 1.5, but it takes a number of at least 0 and at most 1",
        ),
        (
            "",
            &[],
            &[("data.image_size", "4")],
            "flag --data.image_size: data.image_size is 4, but it takes a whole number from 8 to 1024",
        ),
        (
            "",
            &[],
            &[("data.relabel.use", "not sure")],
            "flag --data.relabel.use: data.relabel.use is 'not sure', but it takes True or False",
        ),
        (
            "compute: {opt_level: O4}",
            &[],
            &[],
            "FILE: compute.opt_level is O4, but it takes O0, O1, O2 or O3",
        ),
        (
            "data: {relabel: {use: True}}",
            &[],
            &[],
            "data.relabel.use is True but data.relabel.path is not set: name the folder of label maps, as in --data.relabel.path FOLDER, or train on class labels with --data.relabel.use False [data.relabel.use from FILE]",
        ),
        (
            "cluster: {dead_after: 1}",
            &[],
            &[("cluster.heartbeat", "0.6")],
            "cluster.dead_after 1 is too short for cluster.heartbeat 0.6: it has to be more than twice as long, or one late heartbeat loses a worker [cluster.dead_after from FILE; cluster.heartbeat from flag --cluster.heartbeat]",
        ),
    ];
    for (file, env, flags, line) in cases {
        assert_eq!(load_with(file, env, flags).unwrap_err(), *line);
    }
}

#[test]
fn a_file_that_is_no_yaml_says_where() {
    let line = load_with("optim:\n  lr: {init: 0.1\nutil: 3\n", &[], &[]).unwrap_err();
    assert!(
        line.starts_with("FILE: not a YAML file of keys and values: ") && line.contains("line "),
        "{line}"
    );
    for text in ["- 1\n- 2\n", "just words", "a: 1\n---\nb: 2\n", "optim: {epochs: 1, epochs: 2}"] {
        let line = load_with(text, &[], &[]).unwrap_err();
        assert!(line.starts_with("FILE: not a YAML file of keys and values: "), "{line}");
    }
    let missing =
        load(None, Some(Path::new("no/such.yaml")), std::iter::empty(), &[]).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read the configuration file no/such.yaml: "), "{missing}");
}

#[test]
fn the_default_run_is_valid() {
    let resolved = load(None, None, std::iter::empty(), &[]).unwrap();
    assert_eq!(resolved.config, Config::default());
    let empty = pairs(&[("RELABEL__DATA__DATA_PATH", "")]);
    let line = load(None, None, empty.into_iter(), &[]).unwrap_err().to_string();
    assert!(
        line.starts_with("data.data_path is empty: ") && line.contains("RELABEL__DATA__DATA_PATH"),
        "{line}"
    );
}

#[test]
fn what_is_written_is_read_back() {
    let flags = [("optim.lr.init", "0.1"), ("data.relabel.path", "a: b # c"), ("model.num_classes", "10")];
    let first = load_with("", &[], &flags).unwrap();
    let again = load_with(&first.to_yaml().unwrap(), &[], &[]).unwrap();
    assert_eq!(first.config, again.config);
}

type Taken = (Vec<(String, String)>, Vec<String>);

fn split(args: &[&str]) -> Result<Taken, String> {
    let (overrides, rest) =
        split_dotted(args.iter().map(OsString::from)).map_err(|error| error.to_string())?;
    Ok((overrides, rest.into_iter().map(|arg| arg.into_string().unwrap()).collect()))
}

#[test]
fn dotted_flags_are_taken_out_and_the_rest_keeps_its_order() {
    let args = [
        "coordinator",
        "--workers",
        "2",
        "--optim.lr.init",
        "0.1",
        "--config",
        "configs/a.b.yaml",
        "--compute.seed",
        "-1",
        "--optim.wd.base=1e-4",
        "--optim.nesterov",
        "--auto-batch",
        "--data.relabel.path=a=b",
        "--local",
        "--data.relabel.use",
        "True",
        "--listen=1.2.3.4:5",
        "--",
        "--optim.epochs",
        "3",
    ];
    let (overrides, rest) = split(&args).unwrap();
    let expected = [
        ("optim.lr.init", "0.1"),
        ("compute.seed", "-1"),
        ("optim.wd.base", "1e-4"),
        ("optim.nesterov", "True"),
        ("compute.micro_batch", "-1"),
        ("data.relabel.path", "a=b"),
        ("data.relabel.use", "True"),
    ];
    assert_eq!(overrides, pairs(&expected));
    let left =
        ["coordinator", "--workers", "2", "--config", "configs/a.b.yaml", "--local", "--listen=1.2.3.4:5"];
    assert_eq!(rest, [&left[..], &["--", "--optim.epochs", "3"]].concat());

    assert_eq!(
        split(&["--optim.epochs", "--local"]).unwrap_err(),
        "flag --optim.epochs has no value; it takes a whole number of at least 1"
    );
    assert_eq!(split(&["--no.such"]).unwrap_err(), "flag --no.such has no value; it takes a value");
    assert_eq!(split(&["--optim.nesterov", "-h"]).unwrap().1, ["-h"]);
}

#[test]
fn the_references_name_of_the_file_flag_is_an_alias() {
    for flag in ["--config", "--config-file-path"] {
        let command = ConfigFile::augment_args(clap::Command::new("coordinator"));
        let matches = command.try_get_matches_from(["coordinator", flag, "a.yaml"]).unwrap();
        assert_eq!(ConfigFile::from_arg_matches(&matches).unwrap().config, Some("a.yaml".into()));
    }
}

#[test]
fn help_lists_every_key_with_its_default() {
    let text = help();
    let listed = text.lines().filter(|line| line.starts_with("  --")).count();
    assert_eq!(listed, schema().len());
    assert!(text.contains(
        "  --optim.lr.init [default: 0.5]\n      Learning rate after the warmup: a number of at least 0\n"
    ));
    assert!(text.contains("  --optim.bn.eps [default: 1e-5]"));
    assert!(text.contains(" rexnet_300") && text.contains(" script:FILE\n"));
    assert!(text.lines().all(|line| line.len() <= 140), "{text}");
}

#[test]
fn a_resumed_run_goes_on_with_its_own_options_unless_told_otherwise() {
    let mut began = Config::default();
    began.model.arch = "resnet18".into();
    began.optim.lr.init = 0.25;
    began.optim.epochs = 7;
    let flags = [("optim.epochs".to_owned(), "9".to_owned())];
    let dir = Path::new("some/run");
    let resolved = load(Some((dir, &began)), None, std::iter::empty(), &flags).unwrap();
    began.optim.epochs = 9;
    assert_eq!(resolved.config, began);
    assert_eq!(resolved.origins["optim.lr.init"].to_string(), "the run in some/run");
    assert_eq!(resolved.origins["optim.epochs"].to_string(), "flag --optim.epochs");
}
