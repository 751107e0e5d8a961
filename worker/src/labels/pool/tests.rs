#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

#[derive(serde::Deserialize)]
struct Case {
    #[serde(rename = "box")]
    sides: [f32; 4],
    axes: Axes,
    logits: Vec<f32>,
    target: Vec<f32>,
}

/// The same in f64 on the dense map, sample by sample: torchvision's algorithm written down plainly.
fn dense_roi_align(map: &LabelMap, classes: usize, [x1, y1, x2, y2]: [f32; 4]) -> Vec<f64> {
    let (h, w) = (map.height, map.width);
    let mut dense = vec![0.0_f64; classes * h * w];
    for j in 0..map.k {
        for cell in 0..h * w {
            let i = j * h * w + cell;
            dense[map.classes[i] as usize * h * w + cell] = f64::from(map.logits[i]);
        }
    }
    // The number of samples depends on f32 rounding, so the corners are computed as torch does.
    let (x1, x2) = (x1 * w as f32 - 0.5, x2 * w as f32 - 0.5);
    let (y1, y2) = (y1 * h as f32 - 0.5, y2 * h as f32 - 0.5);
    let (roi_w, roi_h) = ((x2 - x1).max(1.0), (y2 - y1).max(1.0));
    let (nx, ny) = (roi_w.ceil() as usize, roi_h.ceil() as usize);
    let mut out = vec![0.0; classes];
    for iy in 0..ny {
        for ix in 0..nx {
            let y = f64::from(y1) + (iy as f64 + 0.5) * f64::from(roi_h) / ny as f64;
            let x = f64::from(x1) + (ix as f64 + 0.5) * f64::from(roi_w) / nx as f64;
            if y < -1.0 || y > h as f64 || x < -1.0 || x > w as f64 {
                continue;
            }
            let (y, x) = (y.clamp(0.0, (h - 1) as f64), x.clamp(0.0, (w - 1) as f64));
            let (y0, x0) = (y.floor() as usize, x.floor() as usize);
            let (y1, x1) = ((y0 + 1).min(h - 1), (x0 + 1).min(w - 1));
            let (ly, lx) = (y - y0 as f64, x - x0 as f64);
            for (class, sum) in out.iter_mut().enumerate() {
                let at = |y: usize, x: usize| dense[class * h * w + y * w + x];
                *sum += (1.0 - ly) * ((1.0 - lx) * at(y0, x0) + lx * at(y0, x1))
                    + ly * ((1.0 - lx) * at(y1, x0) + lx * at(y1, x1));
            }
        }
    }
    out.iter_mut().for_each(|v| *v /= (nx * ny) as f64);
    out
}

fn softmax_f64(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let exps: Vec<f64> = logits.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|v| v / sum).collect()
}

fn random_map(rng: &mut ChaCha8Rng, k: usize, height: usize, width: usize, classes: u32) -> LabelMap {
    let n = k * height * width;
    LabelMap {
        k,
        height,
        width,
        logits: (0..n).map(|_| rng.random_range(-5.0..15.0)).collect(),
        // Drawn without regard to each other, so that cells name classes twice.
        classes: (0..n).map(|_| rng.random_range(0..classes)).collect(),
    }
}

#[test]
fn equals_torchvision_on_its_own_numbers() {
    let bytes = include_bytes!("../testdata/pool.pt").to_vec();
    let map = LabelMap::parse(bytes, 40).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(include_bytes!("../testdata/pool.json")).unwrap();
    assert!(cases.len() >= 18);
    for case in cases {
        let [x1, y1, x2, y2] = case.sides;
        let mut out = vec![f32::NAN; 40];
        pool_logits(&map, UnitBox { x1, y1, x2, y2 }, case.axes, &mut out);
        for (a, b) in out.iter().zip(&case.logits) {
            assert!((a - b).abs() < 1e-5, "{:?} {:?}: logit {a} {b}", case.sides, case.axes);
        }
        pool(&map, UnitBox { x1, y1, x2, y2 }, case.axes, &mut out);
        for (a, b) in out.iter().zip(&case.target) {
            assert!((a - b).abs() < 1e-5, "{:?} {:?}: {a} {b}", case.sides, case.axes);
        }
    }
}

#[test]
fn equals_the_dense_computation_on_random_maps_and_boxes() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (k, height, width, classes) in
        [(5, 15, 15, 30), (3, 7, 11, 12), (1, 1, 1, 4), (2, 1, 9, 5), (4, 24, 3, 50)]
    {
        let map = random_map(&mut rng, k, height, width, classes);
        for _ in 0..200 {
            let mut side = || {
                let (a, b) = (rng.random_range(0.0..1.0_f32), rng.random_range(0.0..1.0_f32));
                (a.min(b), a.max(b))
            };
            let ((x1, x2), (y1, y2)) = (side(), side());
            let crop = UnitBox { x1, y1, x2, y2 };
            for (axes, corners) in [(Axes::Hw, [x1, y1, x2, y2]), (Axes::Reference, [y1, x1, y2, x2])] {
                let wanted = softmax_f64(&dense_roi_align(&map, classes as usize, corners));
                let mut out = vec![0.0; classes as usize];
                pool(&map, crop, axes, &mut out);
                for (a, b) in out.iter().zip(&wanted) {
                    assert!((f64::from(*a) - b).abs() < 1e-5, "{crop:?} {axes:?}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn the_last_of_two_entries_of_one_class_counts() {
    let map = LabelMap { k: 3, height: 1, width: 1, logits: vec![9.0, 1.0, 2.0], classes: vec![1, 0, 1] };
    let mut out = [0.0; 3];
    pool_logits(&map, UnitBox::FULL, Axes::Hw, &mut out);
    assert_eq!(out, [1.0, 2.0, 0.0]);
}

#[test]
fn axes_say_which_side_is_which() {
    // Class 1 fills the right half of the map, class 0 the left.
    let classes = (0..16).map(|cell| u32::from(cell % 4 >= 2)).collect();
    let map = LabelMap { k: 1, height: 4, width: 4, logits: vec![8.0; 16], classes };
    let image = ImageSize { width: 200, height: 100 };
    let right = UnitBox::of(image, CropBox { top: 0, left: 150, height: 50, width: 50 });
    assert_eq!(right, UnitBox { x1: 0.75, y1: 0.0, x2: 1.0, y2: 0.5 });
    let mut out = [0.0; 2];
    pool(&map, right, Axes::Hw, &mut out);
    assert!(out[1] > 0.99, "{out:?}");
    pool(&map, right, Axes::Reference, &mut out);
    assert!(out[0] > 0.8, "{out:?}");
}

#[test]
fn exponentials_are_right_to_the_last_places() {
    for step in 0..87_000_u32 {
        let x = -(step as f32) * 1e-3;
        let exact = f64::from(x).exp();
        let off = (f64::from(exp(x)) - exact).abs() / exact;
        assert!(off < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {off:e} of itself");
    }
    assert_eq!(exp(0.0), 1.0);
    assert!(exp(-1e30) < 2e-38);
}

#[test]
fn a_class_that_stands_out_has_all_of_the_target() {
    // As many as are taken together, one more, and fewer.
    for classes in [1, 3, 16, 17, 1000] {
        for best in [0, classes / 2, classes - 1] {
            let mut logits = vec![0.0; classes];
            logits[best] = 300.0;
            softmax(&mut logits);
            assert_eq!(logits[best], 1.0);
            assert!(logits.iter().sum::<f32>() < 1.0 + 1e-6);
        }
    }
}
