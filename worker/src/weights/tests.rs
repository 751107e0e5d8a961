#![allow(clippy::unwrap_used)]

use std::path::Path;

use tch::Device;

use super::*;
use crate::checkpoint::{self, Progress, State};
use crate::model::{BatchNormOptions, build};
use crate::torch::as_bytes;

fn model(classes: i64, seed: i64) -> Model {
    build("resnet18", classes, BatchNormOptions::default(), Device::Cpu, seed).unwrap()
}

/// Weights as if read from a zip file.
fn of(tensors: StateDict) -> Weights {
    let (under, prefix, arch) = (None, String::new(), Some("resnet18".to_owned()));
    let (epoch, step, top1, momentum, notes) = (Some(4), None, Some(71.5), vec![], BTreeMap::new());
    let (origin, container) = ("FILE".to_owned(), Container::Zip);
    Weights { tensors, origin, container, under, prefix, arch, epoch, step, top1, momentum, notes }
}

/// A state_dict whose every value, of statistics and counters too, could only come from `seed`.
fn state_dict(classes: i64, seed: i64) -> StateDict {
    let tensors = model(classes, seed).state_dict();
    let count = |(i, (name, tensor)): (usize, (String, Tensor))| {
        let shift = (seed as usize + i) as i64;
        let tensor =
            if name.contains("running") || name.ends_with(COUNTER) { &tensor + shift } else { tensor };
        (name, tensor.detach())
    };
    tensors.into_iter().enumerate().map(count).collect()
}

fn same(a: &StateDict, b: &StateDict) -> bool {
    let bits = |(name, t): &(String, Tensor)| {
        (name.clone(), t.size(), t.kind(), as_bytes(&t.detach().contiguous()).unwrap().to_vec())
    };
    let sorted = |tensors: &StateDict| {
        let mut all: Vec<_> = tensors.iter().map(bits).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    sorted(a) == sorted(b)
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/labels/testdata").join(name)
}

#[test]
fn every_form_comes_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let given = state_dict(10, 3);
    for (name, form, container, under) in [
        ("bare.pth", Form::Bare, Container::Zip, None),
        ("reference.pt", Form::Reference, Container::Zip, Some("state_dict")),
        ("bare.safetensors", Form::Bare, Container::Safetensors, None),
    ] {
        let file = dir.path().join(name);
        write(&file, &of(given.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()), form).unwrap();
        let weights = read(&file).unwrap();
        assert_eq!((weights.container, weights.under.as_deref()), (container, under), "{name}");
        assert_eq!((weights.classes(), weights.prefix.as_str()), (Some(10), ""), "{name}");
        assert!(same(&weights.tensors, &given), "{name}");
        if form == Form::Reference {
            assert_eq!((weights.epoch, weights.top1), (Some(4), Some(71.5)));
        }
        let mut model = model(10, 0);
        let loaded = load(&mut model, &weights, Head::Strict).unwrap();
        assert_eq!((loaded.tensors, loaded.counters, &loaded.replaced), (given.len(), 0, &None));
        assert!(same(&model.state_dict(), &given), "{name}");
    }
    // Nothing but the finished files.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn checkpoints_of_torch_and_ours_are_found_in_their_files() {
    for (name, container) in
        [("checkpoint.pth", Container::Zip), ("checkpoint_legacy.pth", Container::Legacy)]
    {
        let weights = read(&testdata(name)).unwrap();
        assert_eq!((weights.container, weights.under.as_deref()), (container, Some("state_dict")));
        assert_eq!(
            (weights.arch.as_deref(), weights.epoch, weights.tensors.len()),
            (Some("resnet18"), Some(3), 7)
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let momentum: StateDict =
        model(10, 5).parameters().iter().map(|(n, t)| (n.clone(), t.detach())).collect();
    let mut state = State {
        progress: Progress { epoch: 2, step: 9, seed: 1 },
        arch: "resnet18".to_owned(),
        metadata: BTreeMap::from([("top1".to_owned(), "0.25".to_owned())]),
        model: state_dict(10, 4),
        ema: None,
        optimizer_name: "sgd".to_owned(),
        optimizer: momentum
            .iter()
            .map(|(n, t)| (format!("momentum_buffer.{n}"), t.shallow_clone()))
            .collect(),
        loss_scale: None,
    };
    let file = checkpoint::write(&state, dir.path(), "last").unwrap().file;
    let weights = read(&file).unwrap();
    assert_eq!((weights.container, weights.epoch, weights.step), (Container::Checkpoint, Some(2), Some(9)));
    assert_eq!((weights.top1, weights.arch.as_deref()), (Some(0.25), Some("resnet18")));
    assert!(same(&weights.tensors, &state.model) && same(&weights.momentum, &momentum));
    state.ema = Some(state_dict(10, 6));
    let averaged = checkpoint::write(&state, dir.path(), "averaged").unwrap().file;
    let weights = read(&averaged).unwrap();
    assert!(same(&weights.tensors, &state_dict(10, 6)) && weights.momentum.is_empty());
    // One bit of one weight.
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(read(&file).unwrap_err().to_string().contains("is damaged"));
}

#[test]
fn sgd_is_written_where_its_buffers_and_constants_are_known() {
    use crate::pt::PtFile;
    use crate::pt::pickle::Value;

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.pth");
    let optimizer = |weights: &Weights| {
        write(&file, weights, Form::Reference).unwrap();
        PtFile::parse(std::fs::read(&file).unwrap()).unwrap().root().get("optimizer").cloned()
    };
    let mut weights = of(state_dict(10, 3));
    let mut options = relabel_config::Optim::default();
    options.wd.base = 0.25;
    weights.momentum = weights.parameters().map(|(n, t)| (n.clone(), t * 2)).collect();
    assert_eq!(optimizer(&weights), None);
    weights.notes = SgdNotes::of(&options, 0.125).unwrap().to_metadata();
    let state = optimizer(&weights).unwrap();
    let (Some(Value::Dict(buffers)), Some(Value::List(groups))) =
        (state.get("state"), state.get("param_groups"))
    else {
        panic!("{state:?}")
    };
    for (i, ((index, buffer), (name, tensor))) in buffers.iter().zip(&weights.momentum).enumerate() {
        let Some(Value::Tensor(buffer)) = buffer.get("momentum_buffer") else { panic!("{buffer:?}") };
        assert_eq!(index, &Value::Int(i as i128));
        assert!(buffer.shape.iter().map(|&side| side as i64).eq(tensor.size()), "{name}");
    }
    assert_eq!((buffers.len(), groups.len()), (62, 1));
    assert_eq!(groups[0].get("lr"), Some(&Value::Float(0.125)));
    assert_eq!(groups[0].get("weight_decay"), Some(&Value::Float(0.25)));
    assert_eq!(groups[0].get("params"), Some(&Value::List((0..62).map(Value::Int).collect())));

    // Buffers of other parameters, or in another order, would go to the wrong ones.
    weights.momentum.swap(0, 1);
    assert_eq!(optimizer(&weights), None);
    options.optimizer = relabel_config::OptimizerKind::AdamP;
    assert_eq!(SgdNotes::of(&options, 0.125), None);
    // Two groups, where the file has one.
    options.optimizer = relabel_config::OptimizerKind::Sgd;
    options.wd.norm_and_bias = false;
    assert_eq!(SgdNotes::of(&options, 0.125), None);
}

#[test]
fn prefixes_of_wrapping_modules_are_taken_off() {
    let dir = tempfile::tempdir().unwrap();
    for prefix in ["module.", "_orig_mod.", "module._orig_mod."] {
        let file = dir.path().join("w.pth");
        let mut tensors = state_dict(10, 3);
        tensors.iter_mut().for_each(|(name, _)| name.insert_str(0, prefix));
        write(&file, &of(tensors), Form::Reference).unwrap();
        let weights = read(&file).unwrap();
        assert_eq!(weights.prefix, prefix);
        load(&mut model(10, 0), &weights, Head::Strict).unwrap();
    }
}

#[test]
fn what_does_not_fit_is_named_and_changes_nothing() {
    let mut tensors = state_dict(10, 3);
    tensors.retain(|(name, _)| name != "layer2.0.conv1.weight");
    tensors.push(("layer2.0.conv9.weight".to_owned(), Tensor::from(1.0_f32)));
    tensors[0].1 = Tensor::zeros([64, 1, 7, 7], (Kind::Float, Device::Cpu));
    let (mut model, before) = (model(10, 0), model(10, 0).state_dict());
    let error = load(&mut model, &of(tensors), Head::Replace).unwrap_err().to_string();
    for part in [
        "FILE",
        "says that it is of resnet18",
        "1 missing (layer2.0.conv1.weight)",
        "1 unexpected (layer2.0.conv9.weight)",
        "1 of another shape (conv1.weight [64, 1, 7, 7] where [64, 3, 7, 7] is needed)",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(!error.contains('\n') && same(&model.state_dict(), &before));
}

#[test]
fn a_head_of_other_classes_is_refused_or_replaced() {
    let weights = of(state_dict(1000, 3));
    let mut model = model(10, 0);
    let error = load(&mut model, &weights, Head::Strict).unwrap_err().to_string();
    assert!(error.contains("2 of another shape") && error.contains("fc.weight [1000, 512]"), "{error}");
    let fresh: Vec<_> = state_dict_head(&model);
    let loaded = load(&mut model, &weights, Head::Replace).unwrap();
    let replaced = Replaced { name: "fc".to_owned(), found: Some(1000), wanted: 10 };
    assert_eq!((loaded.tensors, &loaded.replaced), (weights.tensors.len() - 2, &Some(replaced)));
    assert!(
        loaded.to_string().ends_with("its classifier fc of 1000 classes was replaced by a fresh one of 10")
    );
    assert!(same(&state_dict_head(&model), &fresh));
    let rest = |tensors: StateDict| tensors.into_iter().filter(|(n, _)| !n.starts_with("fc.")).collect();
    assert!(same(&rest(model.state_dict()), &rest(state_dict(1000, 3))));

    // The same classes: nothing is replaced. No classifier: the same as another one.
    assert_eq!(load(&mut model, &of(state_dict(10, 3)), Head::Replace).unwrap().replaced, None);
    let loaded = load(&mut model, &of(rest(state_dict(10, 3))), Head::Replace).unwrap();
    assert_eq!(loaded.replaced.unwrap().found, None);
    // Features of another width are of another network, whatever the classes.
    let mut wide = state_dict(10, 3);
    wide.iter_mut()
        .filter(|(n, _)| n == "fc.weight")
        .for_each(|(_, t)| *t = Tensor::zeros([7, 99], (Kind::Float, Device::Cpu)));
    assert!(
        load(&mut model, &of(wide), Head::Replace).unwrap_err().to_string().contains("fc.weight [7, 99]")
    );
}

fn state_dict_head(model: &Model) -> StateDict {
    let head = model.state_dict().into_iter().filter(|(name, _)| name.starts_with("fc."));
    head.map(|(name, tensor)| (name, tensor.detach().copy())).collect()
}

#[test]
fn missing_counters_are_set_to_0_and_said() {
    let mut tensors = state_dict(10, 3);
    tensors.retain(|(name, _)| !name.ends_with(COUNTER));
    let mut model = model(10, 0);
    load(&mut model, &of(state_dict(10, 5)), Head::Strict).unwrap();
    let loaded = load(&mut model, &of(tensors), Head::Strict).unwrap();
    assert_eq!(loaded.counters, 20);
    assert!(loaded.to_string().contains("20 num_batches_tracked, which it lacks, were set to 0"), "{loaded}");
    let counters = model.buffers().iter().filter(|(name, _)| name.ends_with(COUNTER));
    assert!(counters.map(|(_, t)| t.int64_value(&[])).eq([0; 20]));
}

#[test]
fn other_kinds_are_converted_and_quantized_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let given = state_dict(10, 3);
    for (name, kind) in [("a.pth", Kind::Half), ("b.safetensors", Kind::BFloat16), ("c.pth", Kind::Double)] {
        let cast: StateDict = given
            .iter()
            .map(|(n, t)| (n.clone(), if is_float(t.kind()) { t.to_kind(kind) } else { t.shallow_clone() }))
            .collect();
        let wanted =
            cast.iter().zip(&given).map(|((n, t), (_, g))| (n.clone(), t.to_kind(g.kind()))).collect();
        write(&dir.path().join(name), &of(cast), Form::Bare).unwrap();
        let mut model = model(10, 0);
        load(&mut model, &read(&dir.path().join(name)).unwrap(), Head::Strict).unwrap();
        assert!(same(&model.state_dict(), &wanted), "{kind:?}");
    }
    let mut quantized = state_dict(10, 3);
    quantized[0].1 = quantized[0].1.to_kind(Kind::Int8);
    let error = load(&mut model(10, 0), &of(quantized), Head::Strict).unwrap_err().to_string();
    assert!(error.contains("conv1.weight holds Int8"), "{error}");
}

#[test]
fn every_wrong_file_is_one_line_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    };
    let good = |name: &str| {
        let file = dir.path().join(name);
        write(&file, &of(state_dict(2, 0)), Form::Bare).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        put(&format!("cut {name}"), &bytes[..bytes.len() - bytes.len() / 3])
    };
    for (file, wanted) in [
        (dir.path().join("none.pth"), "No such file"),
        (put("empty.pth", b""), "neither a file of torch.save"),
        (put("photo.pth", b"\xff\xd8\xff\xe0"), "neither a file of torch.save"),
        (testdata("evil_zip.pt"), "posix.system"),
        (testdata("evil_legacy.pt"), "posix.system"),
        (testdata("zip_f32.pt"), "holds no state_dict, but a tensor"),
        (good("torch.pth"), "truncated or damaged"),
        (good("tensors.safetensors"), "truncated or damaged"),
        (put("nothing.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "no tensors at all"),
    ] {
        let message = read(&file).unwrap_err().to_string();
        assert!(message.contains(wanted) && !message.contains('\n'), "{message}");
        assert!(message.contains(file.to_str().unwrap()), "{message}");
    }
    let weights = of(state_dict(2, 0));
    for (name, form, wanted) in [
        ("w.onnx", Form::Bare, "should end in .pth or .safetensors"),
        ("w.safetensors", Form::Reference, "leave out --reference"),
        ("no/such/w.pth", Form::Bare, "No such file"),
    ] {
        let message = write(&dir.path().join(name), &weights, form).unwrap_err().to_string();
        assert!(message.contains(wanted) && message.contains(name), "{message}");
    }
}

#[test]
fn timms_rexnet_fills_the_authors() {
    let rexnet = |seed| build("rexnet_100", 10, BatchNormOptions::default(), Device::Cpu, seed).unwrap();
    let given = rexnet(3).state_dict();
    let timms = given.iter().map(|(name, tensor)| {
        let name = rexnet::to_timm(name).unwrap();
        let flat = name == "head.fc.weight";
        (name, if flat { tensor.detach().flatten(1, -1) } else { tensor.detach() })
    });
    let mut model = rexnet(4);
    assert!(!same(&model.state_dict(), &given));
    load(&mut model, &of(timms.collect()), Head::Strict).unwrap();
    assert!(same(&model.state_dict(), &given));
}

#[test]
fn the_epsilon_of_batch_norm_is_the_checkpoints_or_the_published_one() {
    let mut weights = of(vec![]);
    assert_eq!(weights.batch_norm("resnet50").eps, 1e-5);
    assert_eq!(weights.batch_norm("efficientnet_b7").eps, 1e-3);
    weights.notes.insert(BN_EPS.to_owned(), 2e-4.to_string());
    assert_eq!(weights.batch_norm("efficientnet_b7").eps, 2e-4);
}
