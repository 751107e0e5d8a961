#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use relabel_config::{Optim, OptimizerKind};
use tch::{Device, Kind, Tensor};

use super::*;
use crate::model::{BatchNormOptions, build};

fn options(optimizer: OptimizerKind) -> Optim {
    let mut options = Optim { optimizer, ..Optim::default() };
    options.wd.base = 1e-4;
    options
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values)
}

/// A state small enough to break every byte of.
fn tiny() -> State {
    State {
        progress: Progress { epoch: 3, step: 250, seed: -7 },
        arch: "resnet18".to_owned(),
        metadata: BTreeMap::from([("run_id".to_owned(), "a \"run\"\n".to_owned())]),
        model: vec![
            ("w".to_owned(), tensor(&[1.0, -0.0, f32::NAN, f32::MIN_POSITIVE / 2.0, 5.0]).view([5, 1])),
            ("bn.num_batches_tracked".to_owned(), Tensor::from(41_i64)),
        ],
        ema: None,
        optimizer_name: "sgd".to_owned(),
        optimizer: vec![("momentum_buffer.w".to_owned(), tensor(&[0.1, 0.2, 0.3, 0.4, 0.5]).view([5, 1]))],
        loss_scale: Some(LossScale { scale: 3.0e-5, good_steps: 1999 }),
    }
}

fn by_name(tensors: &StateDict) -> BTreeMap<String, (Vec<i64>, Kind, Vec<u8>)> {
    let bytes = |t: &Tensor| crate::torch::as_bytes(&t.detach().contiguous()).unwrap().to_vec();
    tensors.iter().map(|(n, t)| (n.clone(), (t.size(), t.kind(), bytes(t)))).collect()
}

fn assert_same(a: &State, b: &State) {
    assert_eq!((a.progress, &a.arch, &a.metadata), (b.progress, &b.arch, &b.metadata));
    assert!(by_name(&a.model) == by_name(&b.model));
    assert!(a.ema.as_ref().map(by_name) == b.ema.as_ref().map(by_name));
    assert_eq!((&a.optimizer_name, a.loss_scale), (&b.optimizer_name, b.loss_scale));
    assert!(by_name(&a.optimizer) == by_name(&b.optimizer));
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_round_trip_is_equal_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let written = write(&tiny(), dir.path(), "last").unwrap();
    assert_eq!(names_in(dir.path()), ["last.b3", "last.safetensors"]);
    assert_eq!(written.bytes, std::fs::metadata(&written.file).unwrap().len());
    let sidecar = std::fs::read_to_string(dir.path().join("last.b3")).unwrap();
    assert_eq!(sidecar, format!("{}  last.safetensors\n", written.blake3));
    verify(&written.file, None).unwrap();
    verify(&written.file, Some(&written.blake3)).unwrap();
    assert_same(&load(&written.file).unwrap(), &tiny());
    // Equal states give equal files, and a file of the same name is replaced.
    assert_eq!(write(&tiny(), dir.path(), "last").unwrap(), written);
}

#[test]
fn training_goes_on_from_a_checkpoint_as_if_nothing_had_happened() {
    for (optimizer, averaged) in
        [(OptimizerKind::Sgd, false), (OptimizerKind::AdamP, true), (OptimizerKind::Sgd, true)]
    {
        goes_on(optimizer, averaged);
    }
}

fn goes_on(optimizer: OptimizerKind, averaged: bool) {
    let dir = tempfile::tempdir().unwrap();
    let x = Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin().view([2, 3, 32, 32]);
    let target = Tensor::full([2, 10], 0.1, (Kind::Float, Device::Cpu));
    let new = |seed, channels_last: bool| {
        let build = || {
            let mut model = build("resnet18", 10, BatchNormOptions::default(), Device::Cpu, seed).unwrap();
            if channels_last {
                model.to_channels_last().unwrap();
            }
            model
        };
        let model = build();
        let ema = averaged.then(|| Ema::new(build(), &model, 0.5).unwrap());
        let optimizer = Optimizer::new(model.parameters(), &options(optimizer));
        (model, optimizer, ema)
    };
    type Training = (Model, Optimizer, Option<Ema>);
    let step = |(model, optimizer, ema): &mut Training| {
        for (_, parameter) in model.parameters() {
            parameter.shallow_clone().zero_grad();
        }
        crate::train::loss::soft_cross_entropy(&model.forward(&x, true).unwrap(), &target)
            .unwrap()
            .backward();
        optimizer.step(0.05).unwrap();
        ema.iter_mut().for_each(|ema| ema.update(model));
    };
    let state = |(model, optimizer, ema): &Training| {
        let progress = Progress { epoch: 0, step: 1, seed: 1 };
        State::of(model, optimizer, ema.as_ref(), progress, BTreeMap::new()).copied(None).unwrap()
    };
    let restore =
        |from: &State, (model, optimizer, ema): &mut Training| from.restore(model, optimizer, ema.as_mut());

    let mut undisturbed = new(1, true);
    step(&mut undisturbed);
    let saved = state(&undisturbed);
    step(&mut undisturbed);
    let written = write(&saved, dir.path(), "step1").unwrap();

    let mut resumed = new(2, true);
    let loaded = load(&written.file).unwrap();
    assert_same(&loaded, &saved);
    restore(&loaded, &mut resumed).unwrap();
    step(&mut resumed);
    assert_same(&state(&resumed), &state(&undisturbed));

    // The memory format is not part of the file.
    let mut plain = new(3, false);
    restore(&loaded, &mut plain).unwrap();
    assert_same(&state(&plain), &saved);

    let resnet34 = build("resnet34", 10, BatchNormOptions::default(), Device::Cpu, 0).unwrap();
    let its_optimizer = Optimizer::new(resnet34.parameters(), &options(optimizer));
    let message = restore(&loaded, &mut (resnet34, its_optimizer, None)).unwrap_err().to_string();
    assert!(message.contains("resnet18") && message.contains("resnet34"), "{message}");
}

#[test]
fn a_copy_into_a_spare_state_takes_its_memory_and_leaves_training_its_own() {
    let model = build("resnet18", 10, BatchNormOptions::default(), Device::Cpu, 0).unwrap();
    let sgd = Optimizer::new(model.parameters(), &options(OptimizerKind::Sgd));
    let now = || State::of(&model, &sgd, None, tiny().progress, BTreeMap::new());
    let addresses =
        |state: &mut State| state.tensors_mut().map(|(_, tensor)| tensor.data_ptr()).collect::<Vec<_>>();

    let mut room = now().room().unwrap();
    let spare = addresses(&mut room);
    let mut copy = now().copied(Some(room)).unwrap();
    assert_eq!(addresses(&mut copy), spare);
    assert_same(&copy, &now().copied(None).unwrap());

    let trained = addresses(&mut now());
    assert!(trained.iter().all(|address| !spare.contains(address)));
    let before = copy.model[0].1.copy();
    let _ = tch::no_grad(|| now().model[0].1.shallow_clone().fill_(7.0));
    assert_eq!(copy.model[0].1, before);
    assert_eq!(addresses(&mut now().copied(Some(copy)).unwrap()), spare);
}

#[test]
fn another_optimizer_s_checkpoint_is_refused() {
    let mut model = build("resnet18", 10, BatchNormOptions::default(), Device::Cpu, 0).unwrap();
    let adamp = Optimizer::new(model.parameters(), &options(OptimizerKind::AdamP));
    let state = State::of(&model, &adamp, None, tiny().progress, BTreeMap::new()).copied(None).unwrap();
    let mut sgd = Optimizer::new(model.parameters(), &options(OptimizerKind::Sgd));
    let message = state.restore(&mut model, &mut sgd, None).unwrap_err().to_string();
    assert!(
        message.contains("trained with adamp, but the run trains with sgd; set optim.optimizer"),
        "{message}"
    );
}

#[test]
fn the_plain_names_of_a_file_hold_what_is_to_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = tiny();
    state.ema = Some(vec![
        ("w".to_owned(), tensor(&[9.0; 5]).view([5, 1])),
        ("bn.num_batches_tracked".to_owned(), Tensor::from(41_i64)),
    ]);
    let written = write(&state, dir.path(), "averaged").unwrap();
    assert_same(&load(&written.file).unwrap(), &state);
    let file = std::fs::read(&written.file).unwrap();
    let (header, data_start) = safetensors_file::parse(&file).unwrap();
    let tensors = safetensors_file::tensors(&file, &header, data_start).unwrap();
    let plain: Vec<_> = tensors.iter().filter(|(name, _)| !name.starts_with("optimizer.")).collect();
    assert_eq!(plain.len(), 2);
    assert!(plain.iter().any(|(name, t)| name == "w" && *t == tensor(&[9.0; 5]).view([5, 1])));
}

#[test]
fn an_average_that_the_state_lacks_begins_with_its_weights() {
    let new = |seed| build("resnet18", 10, BatchNormOptions::default(), Device::Cpu, seed).unwrap();
    let trained = new(1);
    let optimizer = Optimizer::new(trained.parameters(), &options(OptimizerKind::Sgd));
    let state = State::of(&trained, &optimizer, None, tiny().progress, BTreeMap::new()).copied(None).unwrap();
    let mut model = new(2);
    let mut ema = Ema::new(new(3), &model, 0.9).unwrap();
    let mut optimizer = Optimizer::new(model.parameters(), &options(OptimizerKind::Sgd));
    state.restore(&mut model, &mut optimizer, Some(&mut ema)).unwrap();
    assert!(by_name(&ema.model().state_dict()) == by_name(&trained.state_dict()));
}

#[test]
fn every_changed_byte_and_every_length_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let written = write(&tiny(), dir.path(), "good").unwrap();
    let good = std::fs::read(&written.file).unwrap();
    let path = dir.path().join("bad.safetensors");
    let mut broken: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    broken.push([good.as_slice(), &[0]].concat());
    for place in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bytes = good.clone();
            bytes[place] ^= flip;
            broken.push(bytes);
        }
    }
    for bytes in broken {
        std::fs::write(&path, &bytes).unwrap();
        let message = load(&path).expect_err("a broken file").to_string();
        assert!(message.contains("bad.safetensors") && !message.contains('\n'), "{message}");
        assert!(verify(&path, Some(&written.blake3)).is_err());
    }
}

#[test]
fn foreign_and_missing_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    assert!(matches!(load(&path), Err(CheckpointError::Read { .. })));
    std::fs::write(&path, b"PK\x03\x04 a zip file, as torch.save writes one").unwrap();
    assert!(matches!(load(&path), Err(CheckpointError::Damaged { .. })));
    assert!(matches!(verify(&path, None), Err(CheckpointError::Read { .. })));
    std::fs::write(dir.path().join("x.b3"), "not a hash\n").unwrap();
    assert!(matches!(verify(&path, None), Err(CheckpointError::Damaged { .. })));
    let weights = tensor(&[1.0]);
    let contents = safetensors_file::Contents::new([("w".into(), &weights)], BTreeMap::new());
    contents.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    assert!(matches!(load(&path), Err(CheckpointError::Foreign { .. })));
}

#[test]
fn a_checkpoint_that_lacks_a_tensor_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = build("resnet18", 10, BatchNormOptions::default(), Device::Cpu, 0).unwrap();
    let mut sgd = Optimizer::new(model.parameters(), &options(OptimizerKind::Sgd));
    let mut state = State::of(&model, &sgd, None, tiny().progress, BTreeMap::new()).copied(None).unwrap();
    state.optimizer.retain(|(name, _)| name != "momentum_buffer.layer1.0.conv1.weight");
    let written = write(&state, dir.path(), "part").unwrap();
    let message = load(&written.file).unwrap().restore(&mut model, &mut sgd, None).unwrap_err().to_string();
    assert!(
        message.contains("the optimizer sgd")
            && message.contains("1 missing (momentum_buffer.layer1.0.conv1.weight)"),
        "{message}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for dir in [file.as_path(), Path::new("/proc")] {
        let message = write(&tiny(), dir, "x").unwrap_err().to_string();
        assert!(message.contains(dir.to_str().unwrap()) && message.contains("bytes"), "{message}");
    }
}

/// Set for the process that [`a_full_disk_leaves_nothing_behind`] starts.
const FULL_DISK: &str = "RELABEL_TEST_FULL_DISK";

#[test]
fn a_full_disk_leaves_nothing_behind() {
    if let Some(dir) = std::env::var_os(FULL_DISK) {
        let mut state = tiny();
        state.model.push(("big".to_owned(), Tensor::zeros([100_000], (Kind::Float, Device::Cpu))));
        let error = write(&state, Path::new(&dir), "last").expect_err("the file must not fit");
        println!("refused: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let good = write(&tiny(), dir.path(), "last").unwrap();
    // No file of this process may grow over 64 blocks (32 or 64 KiB), and trying is an error, not a signal.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact checkpoint::tests::a_full_disk_leaves_nothing_behind --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(FULL_DISK, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let refused = text.lines().find(|line| line.contains("refused:")).unwrap();
    assert!(refused.contains("last.safetensors") && refused.contains("needs 40"), "{refused}");
    // The checkpoint of the same name is still the old one.
    assert_eq!(names_in(dir.path()), ["last.b3", "last.safetensors"]);
    verify(&good.file, None).unwrap();
    assert_same(&load(&good.file).unwrap(), &tiny());
}
