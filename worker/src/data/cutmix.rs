//! CutMix (Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
//! Features", ICCV 2019): a box of every image of a batch is pasted over from another image of it, and the
//! targets are mixed as the areas are.
//!
//! One decision, one ratio and one box are drawn for a global batch, keyed by seed, epoch and step, and every
//! image takes its box from the one before it in the global batch, the first from the last. As the order of
//! the samples is a random permutation anew in each epoch, the image before is as random a partner as any.
//! All this is the same for any number of workers, and a worker has to load only one image more than its own:
//! the one before its first.

use std::ops::Range;

use relabel_config::Config;

use super::rng::KeyedRng;

/// Which batches are mixed, and how much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutMix {
    /// Probability that a batch is mixed.
    pub prob: f64,
    /// Both parameters of the Beta distribution of the ratio; above 0 if `prob` is.
    pub beta: f64,
    /// The first epoch without.
    pub until: u32,
}

/// How one global batch is mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// The box that is pasted over, in pixels of the input; perhaps empty.
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// Part of an image that stays its own, and with it that of its target.
    pub own: f32,
}

impl CutMix {
    /// Mixes nothing.
    pub const OFF: Self = Self { prob: 0.0, beta: 0.0, until: 0 };

    pub fn from_config(config: &Config) -> Self {
        let cutmix = &config.data.cutmix;
        let until = config.optim.epochs.saturating_sub(cutmix.off_epoch);
        Self { prob: cutmix.prob, beta: cutmix.beta, until }
    }

    /// How the global batch of a step is mixed, if it is. `side` is that of the square input in pixels.
    ///
    /// The box has sides of `side * sqrt(1 - ratio)` around a centre that is uniform in the image, and what
    /// lies outside of it is cut off; what then is the image's own replaces the ratio that was drawn.
    pub fn draw(&self, seed: u64, epoch: u32, step: u64, side: u32) -> Option<Mix> {
        if epoch >= self.until || self.prob <= 0.0 {
            return None;
        }
        let mut rng = KeyedRng::of_batch(seed, epoch, step);
        if rng.unit() >= self.prob {
            return None;
        }
        let ratio = rng.beta(self.beta);
        let half = (f64::from(side) * (1.0 - ratio).sqrt()) as u32 / 2;
        let mut span = || {
            let centre = rng.below(side);
            centre.saturating_sub(half) as usize..(centre + half).min(side) as usize
        };
        let (rows, columns) = (span(), span());
        let pasted = (rows.len() * columns.len()) as f64 / f64::from(side).powi(2);
        Some(Mix { rows, columns, own: (1.0 - pasted) as f32 })
    }
}

impl Mix {
    /// Mixes the target of the image that lends its box into `target`, both `[classes]`.
    pub fn mix_target(&self, target: &mut [f32], lender: &[f32]) {
        for (own, lent) in target.iter_mut().zip(lender) {
            *own = self.own * *own + (1.0 - self.own) * lent;
        }
    }
}

/// The position of the image that lends its box to the one at `position`, both in the global batch that
/// holds the positions `all`.
pub fn lender(position: usize, all: &Range<usize>) -> usize {
    if position == all.start { all.end - 1 } else { position - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: CutMix = CutMix { prob: 1.0, beta: 1.0, until: 3 };

    fn draws(cutmix: CutMix) -> Vec<Option<Mix>> {
        (0..20_000).map(|step| cutmix.draw(1, 0, step, 224)).collect()
    }

    #[test]
    fn the_last_epochs_and_the_luck_of_the_draw_go_without() {
        assert_eq!(ALWAYS.draw(1, 3, 0, 224), None);
        assert!(ALWAYS.draw(1, 2, 0, 224).is_some());
        assert!(draws(CutMix::OFF).iter().all(Option::is_none));
        let mixed = draws(CutMix { prob: 0.3, ..ALWAYS }).iter().flatten().count();
        // 6000 expected, standard deviation 65.
        assert!((5700..6300).contains(&mixed), "{mixed}");
        let mut config = Config::default();
        config.data.cutmix.prob = 0.5;
        assert_eq!(CutMix::from_config(&config), CutMix { prob: 0.5, beta: 0.0, until: 95 });
        config.optim.epochs = 3;
        assert_eq!(CutMix::from_config(&config).until, 0);
    }

    #[test]
    fn what_is_its_own_is_what_the_clipped_box_leaves() {
        let (mut clipped, mut whole, mut centres) = (0, 0, [0; 2]);
        for mix in draws(ALWAYS).into_iter().flatten() {
            let Mix { rows, columns, own } = mix;
            assert!(rows.end <= 224 && columns.end <= 224);
            let left = 1.0 - (rows.len() * columns.len()) as f32 / (224.0 * 224.0);
            assert!((own - left).abs() < 1e-6, "{rows:?} {columns:?} {own}");
            let inside = |side: &Range<usize>| side.start > 0 && side.end < 224;
            if inside(&rows) && inside(&columns) {
                whole += 1;
                assert_eq!(rows.len(), columns.len(), "a box that nothing cuts is a square");
                assert_eq!(rows.len() % 2, 0);
            } else {
                clipped += 1;
            }
            for (count, side) in centres.iter_mut().zip([&rows, &columns]) {
                *count += usize::from(side.start + side.end < 224);
            }
        }
        assert!(clipped > 2000 && whole > 2000, "{clipped} {whole}");
        assert!(centres.iter().all(|count| (9500..10_500).contains(count)), "{centres:?}");
    }

    #[test]
    fn the_area_before_clipping_is_uniform_for_a_beta_of_1() {
        // Where both sides lie within the image nothing was cut, so a small box keeps the area that was drawn.
        let areas = draws(ALWAYS).into_iter().flatten().map(|mix| {
            let side = mix.rows.len().max(mix.columns.len());
            (side * side) as f64 / (224.0 * 224.0)
        });
        let below = |bound: f64| areas.clone().filter(|area| *area < bound).count() as f64 / 20_000.0;
        // Hardly ever are both sides cut that early.
        assert!((below(0.01) - 0.01).abs() < 0.004, "{}", below(0.01));
        assert!((below(0.05) - 0.05).abs() < 0.015, "{}", below(0.05));
    }

    #[test]
    fn a_batch_s_mix_depends_on_seed_epoch_and_step_alone() {
        let mix = |seed, epoch, step| ALWAYS.draw(seed, epoch, step, 224);
        assert_eq!(mix(1, 0, 7), mix(1, 0, 7));
        for other in [mix(2, 0, 7), mix(1, 1, 7), mix(1, 0, 8)] {
            assert_ne!(mix(1, 0, 7), other);
        }
    }

    #[test]
    fn every_image_lends_once() {
        let mut lenders: Vec<usize> = (10..15).map(|position| lender(position, &(10..15))).collect();
        assert_eq!(lenders, [14, 10, 11, 12, 13]);
        lenders.sort_unstable();
        assert_eq!(lenders, (10..15).collect::<Vec<_>>());
        assert_eq!(lender(3, &(3..4)), 3);
    }

    #[test]
    fn targets_are_mixed_as_the_areas_are() {
        let mix = Mix { rows: 0..1, columns: 0..1, own: 0.75 };
        let mut target = [1.0, 0.0, 0.0];
        mix.mix_target(&mut target, &[0.0, 0.5, 0.5]);
        assert_eq!(target, [0.75, 0.125, 0.125]);
    }
}
