#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Condvar;

use relabel_config::OnError;

use super::train::TRAIN_ADVICE;
use super::*;
use crate::data::augment::{Augment, FinishOn, Resize};
use crate::data::cutmix::CutMix;
use crate::data::location::Location;
use crate::data::order::epoch_order;
use crate::data::rng::KeyedRng;
use crate::data::{CropBox, ImageError, ImageSize};
use crate::labels::{LabelError, Targets};

#[path = "loader_shard_tests.rs"]
mod shards;

/// Tells sample, image and crop, so that a target in the wrong row shows. Panics for one sample if told to.
struct Echo {
    panics_at: Option<u32>,
}

impl Targets for Echo {
    fn classes(&self) -> usize {
        4
    }

    fn write(&self, sample: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        assert_ne!(Some(sample), self.panics_at, "told to");
        let crop = crop.top * 1000 + crop.left * 100 + crop.height * 10 + crop.width;
        out.copy_from_slice(&[sample as f32, image.width as f32, image.height as f32, crop as f32]);
        Ok(())
    }
}

/// 23 samples in three classes, of all kinds of file.
fn data() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata");
    let kinds = ["rgb.jpg", "grey.jpg", "cmyk.jpg", "palette.png", "progressive.jpg"];
    for sample in 0..23 {
        let class = root.path().join(format!("n{}", sample % 3));
        fs::create_dir_all(&class).unwrap();
        fs::copy(testdata.join(kinds[sample % 5]), class.join(format!("{sample:02}.JPEG"))).unwrap();
    }
    root
}

fn plan(root: &Path) -> TrainPlan {
    TrainPlan {
        split: Arc::new(Split::open(root, None).unwrap()),
        targets: Arc::new(Echo { panics_at: None }),
        augment: Augment {
            image_size: 8,
            min_area: 0.08,
            color_jitter: 0.4,
            lighting: 0.1,
            resize: Resize::Fast,
            finish: FinishOn::Host,
        },
        cutmix: CutMix::OFF,
        seed: 11,
        shuffle_buffer: 0,
        epoch: 2,
        global_batch: 6,
        first_step: 0,
        slice: 0..6,
        on_error: OnError::Fail,
        threads: 4,
        prefetch: 2,
    }
}

fn load(plan: TrainPlan) -> Result<Vec<Batch>, DataError> {
    TrainLoader::start(plan).unwrap().collect()
}

/// The batches of several ranks put together, step by step.
fn join(ranks: Vec<Vec<Batch>>) -> Vec<Batch> {
    let mut ranks = ranks.into_iter();
    let mut whole = ranks.next().unwrap();
    for rank in ranks {
        assert_eq!(rank.len(), whole.len());
        for (whole, part) in whole.iter_mut().zip(rank) {
            assert_eq!(whole.step, part.step);
            whole.sample_ids.extend(part.sample_ids);
            whole.images.extend(part.images);
            whole.targets.extend(part.targets);
            whole.skipped.extend(part.skipped);
        }
    }
    whole
}

#[test]
fn batches_hold_the_epochs_order_with_images_and_targets_in_their_rows() {
    let root = data();
    let batches = load(plan(root.path())).unwrap();
    let steps: Vec<u64> = batches.iter().map(|batch| batch.step).collect();
    assert_eq!(steps, [0, 1, 2, 3]);
    let ids: Vec<u32> = batches.iter().flat_map(|batch| batch.sample_ids.clone()).collect();
    assert_eq!(ids, epoch_order(11, 2, 23));
    let plan = plan(root.path());
    let mut scratch = Scratch::new();
    for batch in &batches {
        assert_eq!(batch.images.len(), batch.sample_ids.len() * Input::floats(8));
        for (row, &id) in batch.sample_ids.iter().enumerate() {
            let Scratch { decoder, part, scaler, .. } = &mut scratch;
            let mut rng = KeyedRng::of_sample(11, 2, id);
            let pick = |size| plan.augment.draw_crop(size, &mut rng);
            let cut = decoder.decode_file_part(&plan.split.location(id), pick, part).unwrap();
            let input = plan.augment.apply(part, &cut, &mut rng, scaler, Vec::new()).unwrap();
            let mut expected = vec![0.0; Input::floats(8)];
            input.write(&mut expected);
            assert_eq!(batch.images[row * expected.len()..][..expected.len()], expected);
            let mut target = [0.0; 4];
            plan.targets.write(id, cut.size, cut.crop, &mut target).unwrap();
            assert_eq!(batch.targets[row * 4..][..4], target);
        }
    }
}

#[test]
fn threads_slices_and_prefetch_change_no_bit() {
    let root = data();
    let expected = load(TrainPlan { threads: 1, prefetch: 1, ..plan(root.path()) }).unwrap();
    for (threads, prefetch) in [(4, 1), (4, 3), (2, 100)] {
        assert_eq!(load(TrainPlan { threads, prefetch, ..plan(root.path()) }).unwrap(), expected);
    }
    for cuts in [vec![0, 3, 6], vec![0, 1, 5, 6], vec![0, 0, 6, 6]] {
        let ranks = cuts
            .windows(2)
            .map(|cut| load(TrainPlan { slice: cut[0]..cut[1], ..plan(root.path()) }).unwrap());
        assert_eq!(join(ranks.collect()), expected, "{cuts:?}");
    }
    // The last batch has 5 samples: a rank that takes the sixth gets none, but gets a batch.
    let last = load(TrainPlan { slice: 5..6, ..plan(root.path()) }).unwrap();
    assert_eq!(last.iter().map(|batch| batch.sample_ids.len()).collect::<Vec<_>>(), [1, 1, 1, 0]);
}

/// Holds one sample back until another, later in the order, is done.
struct Overtaken {
    held: u32,
    until: u32,
    done: (Mutex<bool>, Condvar),
}

impl Targets for Overtaken {
    fn classes(&self) -> usize {
        4
    }

    fn write(&self, sample: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        let (done, changed) = &self.done;
        if sample == self.until {
            *done.lock().unwrap() = true;
            changed.notify_all();
        } else if sample == self.held {
            let patience = Duration::from_secs(60);
            let done = changed.wait_timeout_while(done.lock().unwrap(), patience, |done| !*done);
            assert!(!done.unwrap().1.timed_out(), "the other sample never came");
        }
        Echo { panics_at: None }.write(sample, image, crop, out)
    }
}

#[test]
fn samples_and_batches_that_are_overtaken_keep_their_places() {
    let root = data();
    let expected = load(plan(root.path())).unwrap();
    let order = epoch_order(11, 2, 23);
    // Within a batch, then by the last sample of the next.
    for until in [order[3], order[11]] {
        let targets = Overtaken { held: order[0], until, done: (Mutex::new(false), Condvar::new()) };
        let plan = TrainPlan { targets: Arc::new(targets), threads: 2, ..plan(root.path()) };
        assert_eq!(load(plan).unwrap(), expected);
    }
}

#[test]
fn loading_can_begin_at_any_step() {
    let root = data();
    let expected = load(plan(root.path())).unwrap();
    for first_step in 0..=4 {
        let rest = load(TrainPlan { first_step, ..plan(root.path()) }).unwrap();
        assert_eq!(rest, expected[first_step as usize..]);
    }
    assert!(load(TrainPlan { first_step: u64::MAX, ..plan(root.path()) }).unwrap().is_empty());
}

#[test]
fn recycled_batches_carry_nothing_over() {
    let root = data();
    let expected = load(plan(root.path())).unwrap();
    let mut loader = TrainLoader::start(TrainPlan { prefetch: 1, ..plan(root.path()) }).unwrap();
    let mut found = Vec::new();
    while let Some(batch) = loader.next() {
        let batch = batch.unwrap();
        found.push(batch.clone());
        let junk = Batch { skipped: vec![(1, String::new())], targets: vec![1.0; 99], ..batch };
        loader.recycle(junk);
    }
    assert_eq!(found, expected);
    assert!(loader.next().is_none());
}

/// The file that a sample has of its own.
fn path(split: &Split, id: u32) -> PathBuf {
    match split.location(id) {
        Location::File(path) => path,
        part => panic!("{part} is no file"),
    }
}

/// Damages the files of the samples at two positions of the epoch's order.
fn damage(root: &Path) -> [(u32, PathBuf); 2] {
    let split = Split::open(root, None).unwrap();
    let order = epoch_order(11, 2, 23);
    let damaged = [order[8], order[20]].map(|id| (id, path(&split, id)));
    fs::write(&damaged[0].1, "").unwrap();
    fs::remove_file(&damaged[1].1).unwrap();
    damaged
}

#[test]
fn an_unreadable_image_fails_the_batch_it_is_in_and_is_named() {
    let root = data();
    let mut plan = plan(root.path());
    let [first, _] = damage(root.path());
    plan.prefetch = 4;
    let mut loader = TrainLoader::start(plan).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().step, 0);
    let error = loader.next().unwrap().unwrap_err();
    let at = Location::File(first.1.clone());
    assert!(matches!(&error, DataError::Image { image, source: ImageError::Empty, .. } if *image == at));
    let expected = format!("cannot use image {}: the file is empty; {TRAIN_ADVICE}", first.1.display());
    assert_eq!(error.to_string(), expected);
    assert!(loader.next().is_none());
}

#[test]
fn skipping_leaves_out_the_unreadable_and_nothing_else() {
    let root = data();
    let whole = load(plan(root.path())).unwrap();
    let plan = plan(root.path());
    let damaged = damage(root.path());
    let batches = load(TrainPlan { on_error: OnError::Skip, ..plan }).unwrap();
    for (batch, whole) in batches.iter().zip(&whole) {
        let keep = |id: &u32| damaged.iter().all(|(bad, _)| bad != id);
        let rows = whole.sample_ids.iter().enumerate().filter(|(_, id)| keep(id));
        let mut expected = Batch { step: whole.step, skipped: batch.skipped.clone(), ..Batch::default() };
        for (row, &id) in rows {
            expected.sample_ids.push(id);
            expected.images.extend(&whole.images[row * Input::floats(8)..][..Input::floats(8)]);
            expected.targets.extend(&whole.targets[row * 4..][..4]);
        }
        assert_eq!(*batch, expected);
    }
    let skipped: Vec<_> = batches.iter().flat_map(|batch| &batch.skipped).collect();
    assert_eq!(skipped.len(), 2);
    for ((id, reason), (bad, path)) in skipped.into_iter().zip(&damaged) {
        assert_eq!(id, bad);
        assert!(reason.contains(&path.display().to_string()), "{reason}");
    }
}

#[test]
fn a_vanished_folder_is_never_skipped() {
    let root = data();
    let plan = plan(root.path());
    fs::remove_dir_all(root.path().join("n1")).unwrap();
    let error = load(TrainPlan { on_error: OnError::Skip, ..plan }).unwrap_err();
    assert!(matches!(error, DataError::Image { .. }));
}

#[test]
fn a_panic_while_loading_is_an_error_that_names_the_file() {
    let root = data();
    let panics_at = epoch_order(11, 2, 23)[13];
    for threads in [1, 4] {
        let targets = Arc::new(Echo { panics_at: Some(panics_at) });
        let plan = TrainPlan { targets, threads, ..plan(root.path()) };
        let path = plan.split.location(panics_at).to_string();
        let results: Vec<_> = TrainLoader::start(plan).unwrap().collect();
        assert_eq!(results.len(), 3);
        let error = results.into_iter().find_map(Result::err).unwrap();
        assert!(
            matches!(&error, DataError::Panic { what, message } if *what == path && message.contains("told to"))
        );
    }
}

/// The threads hold the plan, so that its targets are free again once they have all stopped.
#[test]
fn dropping_a_loader_stops_its_threads() {
    let root = data();
    for taken in 0..3 {
        let targets = Arc::new(Echo { panics_at: None });
        let plan = TrainPlan { targets: targets.clone(), prefetch: 1, ..plan(root.path()) };
        let mut loader = TrainLoader::start(plan).unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        drop(loader);
        assert_eq!(Arc::strong_count(&targets), 1);
    }
}

#[test]
fn a_plan_outside_of_the_data_is_refused() {
    let root = data();
    let refused = |plan| matches!(TrainLoader::start(plan), Err(DataError::Plan { .. }));
    assert!(refused(TrainPlan { slice: 0..7, ..plan(root.path()) }));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 5..2;
    assert!(refused(TrainPlan { slice: reversed, ..plan(root.path()) }));
    assert!(refused(TrainPlan { slice: 0..0, global_batch: 0, ..plan(root.path()) }));
}

fn eval_plan(root: &Path, positions: Range<usize>) -> EvalPlan {
    let split = Arc::new(Split::open(root, None).unwrap());
    let transform = EvalTransform { image_size: 8, crop_ratio: 0.875, resize: Resize::Fast };
    // The folders in another order than theirs.
    EvalPlan { split, class_ids: [2, 0, 1].into(), transform, positions, batch: 4, threads: 3, prefetch: 2 }
}

#[test]
fn evaluation_loads_each_position_once_with_its_class() {
    let root = data();
    let batches: Vec<EvalBatch> =
        EvalLoader::start(eval_plan(root.path(), 0..23)).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.iter().map(|batch| batch.first).collect::<Vec<_>>(), [0, 4, 8, 12, 16, 20]);
    let classes: Vec<i64> = batches.iter().flat_map(|batch| batch.classes.clone()).collect();
    assert_eq!(classes, [vec![2; 8], vec![0; 8], vec![1; 7]].concat());
    let images: Vec<f32> = batches.iter().flat_map(|batch| batch.images.clone()).collect();
    assert_eq!(images.len(), 23 * Input::floats(8));
    let part: Vec<EvalBatch> =
        EvalLoader::start(eval_plan(root.path(), 5..14)).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(
        part.iter().map(|batch| (batch.first, batch.classes.len())).collect::<Vec<_>>(),
        [(5, 4), (9, 4), (13, 1)]
    );
    let part: Vec<f32> = part.into_iter().flat_map(|batch| batch.images).collect();
    assert_eq!(part, images[5 * Input::floats(8)..14 * Input::floats(8)]);
    assert_eq!(EvalLoader::start(eval_plan(root.path(), 7..7)).unwrap().count(), 0);
    assert!(matches!(EvalLoader::start(eval_plan(root.path(), 7..24)), Err(DataError::Plan { .. })));
}

#[test]
fn evaluation_fails_at_an_unreadable_image() {
    let root = data();
    let plan = eval_plan(root.path(), 0..23);
    let path = path(&plan.split, 9);
    fs::write(&path, "not an image").unwrap();
    let results: Vec<_> = EvalLoader::start(plan).unwrap().collect();
    assert_eq!(results.len(), 3);
    let error = results.into_iter().find_map(Result::err).unwrap().to_string();
    assert!(
        error.contains(&path.display().to_string()) && error.contains("evaluation skips none"),
        "{error}"
    );
}

const MIXED: CutMix = CutMix { prob: 0.5, beta: 1.0, until: 100 };

/// A plan for images large enough to see a box in.
fn mixed_plan(root: &Path) -> TrainPlan {
    let plan = plan(root);
    TrainPlan { augment: Augment { image_size: 16, ..plan.augment }, cutmix: MIXED, ..plan }
}

#[test]
fn cutmix_pastes_one_box_a_batch_from_the_image_before() {
    let root = data();
    // Five epochs of four batches, so that there are some of each.
    let (mut mixed, mut plain) = (0, 0);
    for epoch in 0..5 {
        let with = load(TrainPlan { epoch, ..mixed_plan(root.path()) }).unwrap();
        let without = load(TrainPlan { epoch, cutmix: CutMix::OFF, ..mixed_plan(root.path()) }).unwrap();
        for (with, without) in with.iter().zip(&without) {
            let n = without.sample_ids.len();
            let mut expected = without.clone();
            if let Some(mix) = MIXED.draw(11, epoch, with.step, 16) {
                mixed += 1;
                let floats = Input::floats(16);
                for (row, before) in (0..n).map(|row| (row, (row + n - 1) % n)) {
                    for (y, x) in mix.rows.clone().flat_map(|y| mix.columns.clone().map(move |x| (y, x))) {
                        for at in (y * 16 + x) * 3..(y * 16 + x + 1) * 3 {
                            expected.images[row * floats + at] = without.images[before * floats + at];
                        }
                    }
                    for class in 0..4 {
                        let of = |row: usize| without.targets[row * 4 + class];
                        expected.targets[row * 4 + class] = mix.own * of(row) + (1.0 - mix.own) * of(before);
                    }
                }
                assert!(mix.rows.is_empty() || mix.columns.is_empty() || expected != *without);
            } else {
                plain += 1;
            }
            assert_eq!(*with, expected);
        }
    }
    assert!(mixed > 5 && plain > 5, "{mixed} {plain}");
}

#[test]
fn cutmix_is_the_same_for_any_number_of_workers() {
    let root = data();
    let always = CutMix { prob: 1.0, ..MIXED };
    let plan = || TrainPlan { cutmix: always, ..mixed_plan(root.path()) };
    let expected = load(plan()).unwrap();
    for cuts in [vec![0, 3, 6], vec![0, 1, 5, 6], vec![0, 0, 6, 6], vec![0, 1, 2, 3, 4, 5, 6]] {
        let ranks = cuts.windows(2).map(|cut| load(TrainPlan { slice: cut[0]..cut[1], ..plan() }).unwrap());
        assert_eq!(join(ranks.collect()), expected, "{cuts:?}");
    }
    let rest = load(TrainPlan { first_step: 2, slice: 0..6, ..plan() }).unwrap();
    assert_eq!(rest, expected[2..]);
    // What cannot be read lends nothing, whoever would have loaded it.
    let skipping = || TrainPlan { on_error: OnError::Skip, ..plan() };
    let plans = [0..6, 0..3, 3..6, 2..6, 0..2].map(|slice| TrainPlan { slice, ..skipping() });
    damage(root.path());
    let [whole, first, second, most, few] = plans.map(|plan| load(plan).unwrap());
    assert_eq!(whole.iter().map(|batch| batch.skipped.len()).sum::<usize>(), 2);
    assert_ne!(whole[1].images, expected[1].images);
    assert_eq!(join(vec![first, second]), whole);
    assert_eq!(join(vec![few, most]), whole);
}
