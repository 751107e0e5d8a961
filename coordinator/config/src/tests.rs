#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde_yaml_ng::Value as Yaml;

use crate::{Config, Kind, Mode, OptimizerKind, Value, nearest, s3_folder, schema, validate};

/// A configuration that has nothing wrong with it.
fn good() -> Config {
    let mut config = Config::default();
    config.data.data_path = "data".into();
    config
}

fn leaves(prefix: &str, yaml: &Yaml, into: &mut BTreeMap<String, String>) {
    match yaml {
        Yaml::Mapping(map) => {
            for (key, value) in map {
                let key = key.as_str().unwrap();
                leaves(&if prefix.is_empty() { key.into() } else { format!("{prefix}.{key}") }, value, into);
            }
        }
        Yaml::Null => drop(into.insert(prefix.into(), "none".into())),
        Yaml::Bool(v) => drop(into.insert(prefix.into(), Value::Flag(*v).to_string())),
        Yaml::Number(v) if v.is_f64() => {
            drop(into.insert(prefix.into(), Value::Real(v.as_f64().unwrap()).to_string()));
        }
        Yaml::Number(v) => drop(into.insert(prefix.into(), v.to_string())),
        Yaml::String(v) => drop(into.insert(prefix.into(), Value::Text(v.clone()).to_string())),
        other => panic!("{prefix}: {other:?}"),
    }
}

/// The rows of the schema are exactly the fields of the configuration, each reading its own.
#[test]
fn the_schema_covers_exactly_the_fields() {
    // Values that differ from each other, so that a row that reads a neighbour's field is seen.
    let mut odd = Config::default();
    odd.optim.bn.momentum = 0.123;
    odd.optim.warmup.epochs = 77;
    odd.optim.nesterov = false;
    odd.checkpoint.every_epochs = 78;
    odd.data.relabel.enabled = true;
    odd.data.relabel.path = "maps".into();
    odd.data.relabel.mode = Mode::LocalizedSingle;
    odd.optim.optimizer = OptimizerKind::AdamP;
    odd.optim.wd.norm_and_bias = false;
    odd.optim.ema.decay = 0.124;
    odd.util.record_samples = true;
    odd.model.num_classes = Some(79);
    odd.model.pretrained = "weights.pth".into();
    for config in [Config::default(), odd] {
        let mut fields = BTreeMap::new();
        leaves("", &serde_yaml_ng::to_value(&config).unwrap(), &mut fields);
        let rows: BTreeMap<String, String> =
            schema().iter().map(|s| (s.key.to_owned(), (s.get)(&config).to_string())).collect();
        assert_eq!(rows, fields);
    }
    assert!(schema().iter().all(|s| !s.help.is_empty() && s.help.len() <= 95 && !s.help.ends_with('.')));
}

#[test]
fn the_defaults_are_valid_and_need_a_data_path() {
    let mut config = Config::default();
    validate(&config).unwrap();
    config.data.data_path.clear();
    assert_eq!(validate(&config).unwrap_err().keys, ["data.data_path"]);
}

#[test]
fn words_are_read_as_the_kind_of_their_key() {
    let kind = |key: &str| schema().iter().find(|s| s.key == key).unwrap().kind;
    for yes in ["True", "true", "yes", "On", "1", "Y"] {
        assert_eq!(kind("data.relabel.use").parse(yes), Some(Value::Flag(true)), "{yes}");
    }
    for no in ["False", "NO", "off", "0", "n"] {
        assert_eq!(kind("data.relabel.use").parse(no), Some(Value::Flag(false)), "{no}");
    }
    assert_eq!(kind("data.relabel.use").parse("maybe"), None);
    for number in ["1e-3", "1.e-3", "0.001", ".001", "1E-3"] {
        assert_eq!(kind("optim.lr.init").parse(number), Some(Value::Real(0.001)), "{number}");
    }
    for wrong in ["", "fast", "nan", "inf", "-0.1", "1e-3x"] {
        assert_eq!(kind("optim.lr.init").parse(wrong), None, "{wrong}");
    }
    for count in ["1024", "1_024", "1024.0", "1.024e3"] {
        assert_eq!(kind("optim.batch_size").parse(count), Some(Value::Whole(1024)), "{count}");
    }
    for wrong in ["0", "-1", "1.5", "4294967296", "1e30", "many"] {
        assert_eq!(kind("optim.batch_size").parse(wrong), None, "{wrong}");
    }
    assert_eq!(kind("model.num_classes").parse("none"), Some(Value::None));
    assert_eq!(kind("optim.batch_size").parse("none"), None);
    assert_eq!(kind("data.data_path").parse("2012"), Some(Value::Text("2012".into())));
    assert_eq!(kind("optim.optimizer").parse("adam"), None);
    for arch in ["resnet50", "efficientnet_b7", "rexnet_100", "script:/nets/a.pt"] {
        assert_eq!(kind("model.arch").parse(arch), Some(Value::Text(arch.into())), "{arch}");
    }
    for wrong in ["resnet51", "script:", "/nets/a.pt", ""] {
        assert_eq!(kind("model.arch").parse(wrong), None, "{wrong}");
    }
    assert_eq!(kind("compute.seed").parse("-1"), Some(Value::Whole(-1)));
    assert_eq!(kind("compute.seed").parse("-2"), None);
    assert_eq!(kind("data.rrc_minimum").parse("0"), None);
    assert_eq!(kind("data.rrc_minimum").parse("1"), Some(Value::Real(1.0)));
    assert_eq!(kind("optim.momentum").parse("1"), None);
}

#[test]
fn kinds_say_what_they_take() {
    let says = |key: &str| schema().iter().find(|s| s.key == key).unwrap().kind.to_string();
    assert_eq!(says("data.image_size"), "a whole number from 8 to 1024");
    assert_eq!(says("optim.epochs"), "a whole number of at least 1");
    assert_eq!(says("data.cutmix.prob"), "a number of at least 0 and at most 1");
    assert_eq!(says("optim.momentum"), "a number of at least 0 and below 1");
    assert_eq!(says("optim.bn.eps"), "a number above 0");
    assert_eq!(says("optim.lr.decay_type"), "cos, linear or default");
    assert!(says("model.arch").ends_with("rexnet_300 or script:FILE"));
    assert_eq!(says("data.dataset"), "only imagenet");
    assert_eq!(Kind::Flag.to_string(), "True or False");
    assert_eq!(Value::Real(1e-5).to_string(), "1e-5");
}

#[test]
fn a_misspelled_key_finds_its_neighbour() {
    for (wrong, right) in [
        ("optim.lr.initt", "optim.lr.init"),
        ("optim.batchsize", "optim.batch_size"),
        ("batch_size", "optim.batch_size"),
        ("optim.val_batch_size", "util.val_batch_size"),
        ("data.data-path", "data.data_path"),
        ("optim.epoch", "optim.epochs"),
    ] {
        assert_eq!(nearest(wrong), Some(right), "{wrong}");
    }
    assert_eq!(nearest("zzz.qqq"), None);
}

#[test]
fn a_value_out_of_range_is_named_with_what_the_key_takes() {
    let mut config = good();
    config.data.image_size = 4;
    let error = validate(&config).unwrap_err();
    assert_eq!(error.to_string(), "data.image_size is 4, but it takes a whole number from 8 to 1024");
    let mut config = good();
    config.compute.opt_level = "O4".into();
    assert_eq!(validate(&config).unwrap_err().keys, ["compute.opt_level"]);
}

#[test]
fn contradictions_name_both_keys() {
    type Change = fn(&mut Config);
    let cases: &[(Change, [&str; 2])] = &[
        (|c| c.data.relabel.enabled = true, ["data.relabel.use", "data.relabel.path"]),
        (|c| c.optim.start_epoch = 100, ["optim.start_epoch", "optim.epochs"]),
        (|c| c.optim.momentum = 0.0, ["optim.nesterov", "optim.momentum"]),
        (|c| c.data.cutmix.prob = 1.0, ["data.cutmix.prob", "data.cutmix.beta"]),
        (|c| c.util.test_only = true, ["util.test_only", "util.test_weight_file"]),
        (|c| c.cluster.dead_after = 1.0, ["cluster.dead_after", "cluster.heartbeat"]),
    ];
    for (change, keys) in cases {
        let mut config = good();
        change(&mut config);
        let error = validate(&config).unwrap_err();
        assert_eq!(error.keys, keys);
        assert!(keys.iter().all(|key| error.message.contains(key)), "{error}");
        assert!(!error.message.contains('\n'), "{error}");
    }
}

#[test]
fn a_folder_is_a_bucket_and_a_prefix() {
    assert_eq!(s3_folder("s3://runs"), Some(("runs", "")));
    assert_eq!(s3_folder("s3://runs/"), Some(("runs", "")));
    assert_eq!(s3_folder("s3://my.runs/team_a/resnet50/"), Some(("my.runs", "team_a/resnet50")));
    for wrong in [
        "",
        "runs/a",
        "s3://",
        "s3:///a",
        "s3://a//b",
        "s3://user:secret@host/a",
        "s3://a/../b",
        "S3://a",
        "s3://a/b c",
    ] {
        assert_eq!(s3_folder(wrong), None, "{wrong}");
    }
}
