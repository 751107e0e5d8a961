//! The loader on shards: the same as on the folders that they were packed from.

use std::fs::File;

use super::*;
use crate::data::index::packing::pack;

/// The data of the other tests, packed with `.cls` members and with folders.
fn packed() -> [tempfile::TempDir; 3] {
    let [files, folders] = [true, false].map(|by_files| (by_files, tempfile::tempdir().unwrap()));
    let from = data();
    for (by_files, to) in [&files, &folders] {
        pack(from.path(), to.path(), *by_files);
    }
    [from, files.1, folders.1]
}

#[test]
fn shards_give_the_batches_of_folders_to_the_bit() {
    let [from, files, folders] = packed();
    let expected = load(plan(from.path())).unwrap();
    for shards in [&files, &folders] {
        assert_eq!(load(plan(shards.path())).unwrap(), expected);
        let rest = load(TrainPlan { first_step: 2, threads: 1, ..plan(shards.path()) }).unwrap();
        assert_eq!(rest, expected[2..]);
        let evaluated = |root: &Path| {
            EvalLoader::start(eval_plan(root, 0..23)).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
        };
        assert_eq!(evaluated(shards.path()), evaluated(from.path()));
    }
}

#[test]
fn a_damaged_image_in_a_shard_is_named_and_can_be_skipped() {
    let [_, files, _] = packed();
    let split = Split::open(files.path(), None).unwrap();
    let id = epoch_order(11, 2, 23)[8];
    let Location::Part { start, .. } = split.location(id) else { panic!("no part") };
    let shown = split.location(id).to_string();
    let shard = shown.split(", member ").next().unwrap();
    let mut bytes = fs::read(shard).unwrap();
    bytes[start as usize..][..4].copy_from_slice(b"<htm");
    fs::write(shard, bytes).unwrap();
    let error = load(plan(files.path())).unwrap_err().to_string();
    let reason = "neither a JPEG nor a PNG (its first bytes are 3c 68 74 6d)";
    let expected = format!("cannot use image {shown}: {reason}");
    assert!(error.starts_with(&expected), "{error}");
    let batches = load(TrainPlan { on_error: OnError::Skip, ..plan(files.path()) }).unwrap();
    let skipped: Vec<_> = batches.into_iter().flat_map(|batch| batch.skipped).collect();
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].0 == id && skipped[0].1.starts_with(&expected), "{skipped:?}");
}

/// As a folder that is gone: skipping would leave out what is behind the cut of every shard.
#[test]
fn a_shard_that_became_shorter_is_never_skipped() {
    let [_, _, folders] = packed();
    let plan = plan(folders.path());
    for shard in fs::read_dir(folders.path()).unwrap() {
        File::options().write(true).open(shard.unwrap().path()).unwrap().set_len(600).unwrap();
    }
    let error = load(TrainPlan { on_error: OnError::Skip, ..plan }).unwrap_err();
    assert!(matches!(error, DataError::Image { source: ImageError::Read(_), .. }), "{error}");
}

/// The same for any number of ranks and from any step, each sample once.
#[test]
fn shards_in_their_order_are_shared_and_resumed_as_any_other() {
    let [_, files, _] = packed();
    let plan = || TrainPlan { shuffle_buffer: 5, ..plan(files.path()) };
    let expected = load(plan()).unwrap();
    let ids: Vec<u32> = expected.iter().flat_map(|batch| batch.sample_ids.clone()).collect();
    assert_eq!(ids, plan().split.order(11, 2, 5));
    assert_ne!(ids, plan().split.order(11, 2, 0));
    let mut sorted = ids;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..23).collect::<Vec<_>>());
    for cuts in [[0, 3, 6], [0, 1, 6], [0, 6, 6]] {
        let ranks = cuts.windows(2).map(|cut| load(TrainPlan { slice: cut[0]..cut[1], ..plan() }).unwrap());
        assert_eq!(join(ranks.collect()), expected);
    }
    for first_step in 1..4 {
        let rest = load(TrainPlan { first_step, threads: 1, prefetch: 1, ..plan() }).unwrap();
        assert_eq!(rest, expected[first_step as usize..]);
    }
}
