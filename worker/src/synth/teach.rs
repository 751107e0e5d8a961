//! The label map of a scene: what a strong classifier would see in each cell, taken from the true geometry.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::scene::{Object, Scene};
use crate::labels::LabelMap;

/// Rows and columns of a map, as in the released maps.
pub(super) const SIDE: usize = 15;
/// Classes kept a cell, as in the released maps.
pub(super) const TOP: usize = 5;
/// Logit of a cell that an object fills: softmax over 1000 classes gives it 97% then.
const STRONG: f32 = 10.5;
/// Points looked at along each side of a cell.
const POINTS: usize = 3;

/// The label map of `scene` over `classes` classes, `[min(TOP, classes), SIDE, SIDE]`, each cell's classes
/// from the strongest. An object scores high where it lies and, as a classifier's receptive field reaches
/// beyond its cell, a little around; everything else is faint.
pub(super) fn label_map(scene: &Scene, classes: u32, rng: &mut ChaCha8Rng) -> LabelMap {
    let k = TOP.min(classes as usize);
    let plane = SIDE * SIDE;
    let mut map =
        LabelMap { k, height: SIDE, width: SIDE, logits: vec![0.0; k * plane], classes: vec![0; k * plane] };
    let certainty: Vec<f32> = scene.objects.iter().map(|_| rng.random_range(-0.8..0.8)).collect();
    for cell in 0..plane {
        let mut scores: Vec<(u32, f32)> =
            (0..classes).map(|class| (class, rng.random_range(0.0..0.9))).collect();
        for (i, object) in scene.objects.iter().enumerate() {
            let presence = presence(scene, object, &scene.objects[i + 1..], cell / SIDE, cell % SIDE);
            let logit = (STRONG + certainty[i]) * presence + rng.random_range(-0.2..0.2);
            let score = &mut scores[object.class as usize].1;
            *score = score.max(logit);
        }
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (j, &(class, logit)) in scores.iter().take(k).enumerate() {
            map.classes[j * plane + cell] = class;
            map.logits[j * plane + cell] = logit;
        }
    }
    map
}

/// How much of `object` a cell sees, 0 to 1; `nearer` are the objects in front of it.
fn presence(scene: &Scene, object: &Object, nearer: &[Object], row: usize, column: usize) -> f32 {
    let mut sum = 0.0;
    for i in 0..POINTS * POINTS {
        let at = |cell: usize, step: usize, side: u32| {
            (cell as f32 + (step as f32 + 0.5) / POINTS as f32) * side as f32 / SIDE as f32
        };
        let (x, y) = (at(column, i % POINTS, scene.width), at(row, i / POINTS, scene.height));
        // The shape's circle rather than its ink: the hole of a ring is still the ring.
        let outside = |o: &Object| (o.x - x).hypot(o.y - y) - 0.9 * o.radius;
        let beyond = outside(object).max(0.0) / (0.5 * object.radius);
        let hidden = nearer.iter().any(|o| outside(o) < 0.0);
        sum += (-beyond * beyond).exp() * if hidden { 0.3 } else { 1.0 };
    }
    sum / (POINTS * POINTS) as f32
}
