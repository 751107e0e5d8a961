#![allow(clippy::unwrap_used)]

use relabel_config::OnError;

use super::*;
use crate::data::augment::{Augment, FinishOn};
use crate::data::loader::TrainPlan;
use crate::train::finish::tests::{JITTERED, SIDE, data, plan};

const FORM: Form = Form { side: SIDE as i64, classes: 1, device: Device::Cpu };

fn start(plan: TrainPlan) -> TrainLoader {
    TrainLoader::start(plan).unwrap()
}

#[test]
fn what_is_sent_ahead_is_what_is_sent_when_it_is_asked_for() {
    let root = data();
    for finish in [FinishOn::Host, FinishOn::Device] {
        for slice in [0..6, 1..3, 0..0] {
            let plan = || plan(root.path(), Augment { finish, ..JITTERED }, 1.0, slice.clone());
            let mut plain = Feed::new(start(plan()), FORM).unwrap();
            assert!(matches!(plain, Feed::Plain(..)));
            let mut ahead = Feed::ahead(start(plan()), FORM).unwrap();
            let mut batches = 0;
            for fed in ahead.by_ref() {
                let ((batch, sent), (expected, by_itself)) = (fed.unwrap(), plain.next().unwrap().unwrap());
                assert_eq!(batch.sample_ids, expected.sample_ids);
                let (images, targets) = sent.arrived().unwrap();
                let n = batch.sample_ids.len() as i64;
                assert_eq!((images.size(), targets.size()), (vec![n, 3, FORM.side, FORM.side], vec![n, 1]));
                assert!((images, targets) == by_itself.arrived().unwrap());
                batches += 1;
            }
            assert!(batches == 3 && plain.next().is_none());
        }
    }
}

/// Buffers that are used again while what was made of them is still held.
#[test]
fn a_batch_that_is_given_back_changes_nothing_that_was_sent() {
    let root = data();
    let mut feed = Feed::ahead(start(plan(root.path(), JITTERED, 0.0, 0..6)), FORM).unwrap();
    let mut held = Vec::new();
    while let Some(fed) = feed.next() {
        let (batch, sent) = fed.unwrap();
        let (images, _) = sent.arrived().unwrap();
        held.push((images.copy(), sent));
        feed.recycle(batch);
    }
    for (copy, sent) in held {
        assert!(*sent.arrived().unwrap().0 == copy);
    }
}

#[test]
fn an_error_comes_in_its_place_and_is_the_last() {
    let root = data();
    let plan = TrainPlan { on_error: OnError::Fail, ..plan(root.path(), JITTERED, 0.0, 0..6) };
    let mut feed = Feed::ahead(start(plan), FORM).unwrap();
    let errors: Vec<String> =
        feed.by_ref().filter_map(|fed| fed.err()).map(|error| error.to_string()).collect();
    assert!(errors.len() == 1 && errors[0].contains("05.JPEG"), "{errors:?}");
    assert!(feed.next().is_none());
    // Images of another size than was said.
    let plan = crate::train::finish::tests::plan(root.path(), JITTERED, 0.0, 0..6);
    let mut feed = Feed::ahead(start(plan), Form { side: 36, ..FORM }).unwrap();
    assert!(matches!(feed.next(), Some(Err(TrainError::Step(StepError::Torch(_))))));
    assert!(feed.next().is_none());
}

#[test]
fn nobody_is_left_behind_where_the_feed_is_dropped() {
    let root = data();
    let split = std::sync::Arc::new(crate::data::index::Split::open(root.path(), None).unwrap());
    for taken in [0, 1] {
        let plan = TrainPlan { split: split.clone(), ..plan(root.path(), JITTERED, 0.0, 0..6) };
        let mut feed = Feed::ahead(start(plan), FORM).unwrap();
        for _ in 0..taken {
            feed.next().unwrap().unwrap();
        }
        drop(feed);
        // Its threads and its plan are gone.
        let until = Instant::now() + Duration::from_secs(20);
        while std::sync::Arc::strong_count(&split) > 1 {
            assert!(Instant::now() < until, "after {taken} batches");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The end of an epoch is not taken from a thread that can no longer tell it.
#[test]
fn a_thread_that_died_is_an_error_and_not_the_end() {
    let root = data();
    let loader = start(plan(root.path(), JITTERED, 0.0, 0..6));
    let (_, fed) = mpsc::sync_channel(0);
    let (used, _) = mpsc::channel();
    let closer = loader.closer();
    let mut feed = Feed::Ahead(Ahead { fed, ended: false, used, _closer: closer, waited: Duration::ZERO });
    let died = feed.next().unwrap().unwrap_err().to_string();
    assert!(died.contains("died"), "{died}");
    assert!(feed.next().is_none());
}
