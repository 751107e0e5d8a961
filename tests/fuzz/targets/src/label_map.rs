//! A `.pt` file as a label map: what is taken is whole, pools to distributions, and survives being written.

use relabel_config::Axes;
use worker::labels::LabelMap;
use worker::labels::pool::{UnitBox, pool};
use worker::pt::pickle::Dtype;

use crate::Target;

pub const TARGET: Target = Target {
    name: "label_map",
    run,
    seeds: &["worker/src/labels/testdata", "tests/testdata"],
    // An element of two bytes becomes one of four, twice over.
    amplification: 64,
};

/// ImageNet's.
const CLASSES: u32 = 1000;

fn run(input: &[u8]) {
    let Ok(stored) = LabelMap::parse_stored(input.to_vec(), None) else {
        // What no class list can mend, none does.
        assert!(LabelMap::parse(input.to_vec(), CLASSES).is_err());
        return;
    };
    let map = stored.map;
    assert_eq!(map.logits.len(), map.k * map.height * map.width);
    assert_eq!(map.classes.len(), map.logits.len());
    assert!(map.logits.iter().all(|logit| logit.is_finite()));
    let (_, share) = map.best(map.height - 1, map.width - 1);
    assert!((0.0..=1.0).contains(&share), "a share of {share}");

    let written = map.to_pt(Dtype::F32).expect("float32 holds every id that was read");
    let again = LabelMap::parse_stored(written, None).expect("what was written is read");
    assert_eq!(again.map, map);

    let Ok(map) = LabelMap::parse(input.to_vec(), CLASSES) else { return };
    let quarter = UnitBox { x1: 0.25, y1: 0.5, x2: 0.75, y2: 1.0 };
    let point = UnitBox { x1: 1.0, y1: 0.0, x2: 1.0, y2: 0.0 };
    for (crop, axes) in [(UnitBox::FULL, Axes::Hw), (quarter, Axes::Reference), (point, Axes::Hw)] {
        let mut target = vec![0.0; CLASSES as usize];
        pool(&map, crop, axes, &mut target);
        let sum: f32 = target.iter().sum();
        assert!(target.iter().all(|share| *share >= 0.0), "{target:?}");
        assert!((sum - 1.0).abs() < 1e-3, "shares that sum to {sum}");
    }
}
