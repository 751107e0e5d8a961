//! Steps for which there is too little memory, in a process of its own that may have no more.
#![allow(clippy::unwrap_used)]

use nix::sys::resource::{Resource, setrlimit};
use relabel_config::Config;
use relabel_core::Position;
use tch::{Device, Tensor};
use worker::collective::Solo;
use worker::data::loader::Batch;
use worker::train::learner::Learner;
use worker::train::step::{Ask, StepError};

const SIDE: usize = 8;
const CLASSES: usize = 10;
/// Images of the slice, which take 16 MB each, three times the memory that is left.
const SLICE: usize = 64;
const LEFT: u64 = 320 << 20;

/// Of `tests/testdata/wide_net.py`. Memory runs out in one large step: where it does in a small one, oneDNN crashes.
fn learner(micro_batch: i64) -> Learner {
    let mut config = Config::default();
    config.model.arch =
        concat!("script:", env!("CARGO_MANIFEST_DIR"), "/../tests/testdata/wide_net.pt").into();
    config.data.image_size = SIDE as u32;
    config.compute.micro_batch = micro_batch;
    Learner::new(&config, CLASSES as u32, 10, Device::Cpu).unwrap()
}

fn step(learner: &mut Learner, n: usize) -> Result<(), StepError> {
    let batch = Batch {
        step: 0,
        sample_ids: (0..n as u32).collect(),
        images: (0..n * 3 * SIDE * SIDE).map(|i| (i as f32 * 0.37).sin()).collect(),
        targets: (0..n * CLASSES)
            .map(|i| if i % CLASSES == i / CLASSES % CLASSES { 1.0 } else { 0.0 })
            .collect(),
        ..Batch::default()
    };
    let ask = Ask { position: Position::default(), planned: n as u64, leave: false, may_skip: false };
    learner.step(&batch, ask, &mut Solo::default()).map(drop)
}

fn tensors(learner: &Learner) -> Vec<Tensor> {
    learner.model.state_dict().into_iter().map(|(_, tensor)| tensor.copy()).collect()
}

/// What the process has of addresses by now.
fn addresses() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_slice_that_does_not_fit_is_an_error_or_goes_through_in_as_few_parts_as_fit() {
    worker::torch::set_num_threads(1);
    // What libtorch needs besides is there now.
    step(&mut learner(0), 2).unwrap();
    let limit = addresses() + LEFT;
    setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();

    let mut whole = learner(0);
    let before = tensors(&whole);
    let error = step(&mut whole, SLICE).unwrap_err();
    assert!(matches!(error, StepError::Memory { images: SLICE, .. }), "{error}");
    assert!(error.to_string().contains("--auto-batch") && !error.to_string().contains('\n'), "{error}");
    assert!(before == tensors(&whole), "as before the step");

    let mut found = learner(-1);
    step(&mut found, SLICE).unwrap();
    // BatchNorm's statistics tell how the slice was cut.
    let fits = |parts: &usize| {
        let mut given = learner(SLICE.div_ceil(*parts) as i64);
        match step(&mut given, SLICE) {
            Ok(()) => Some(tensors(&given)),
            Err(StepError::Memory { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    };
    assert!([1, 2, 3].iter().all(|parts| fits(parts).is_none()), "so many do not fit");
    let given = (4..=SLICE).find_map(|parts| fits(&parts)).unwrap();
    assert!(tensors(&found) == given, "the fewest parts that fit");
}
