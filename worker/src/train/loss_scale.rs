//! The factor that keeps small gradients of float16 from vanishing, as `torch.amp.GradScaler` chooses it.
//!
//! The loss is multiplied by it before backward and the gradients are divided by it before the update. Where a
//! gradient has become infinite or no number, the update is left out and the factor halved; after enough updates in a
//! row it is doubled. It is decided on the gradient that has been reduced over the ranks: what is infinite on one of
//! them is so in the sum on all, so that they all decide the same.

/// The factor of a run's first step.
const INITIAL: f32 = 65_536.0;
const GROWTH: f32 = 2.0;
const BACKOFF: f32 = 0.5;
/// Updates in a row after which the factor grows.
const GROWTH_INTERVAL: u32 = 2000;
/// A gradient that overflows at this factor does so for another reason than the factor.
const LEAST: f32 = 1.0 / 65_536.0;

/// The factor, and how long it has been right. Part of the state of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// What the loss is multiplied by, above 0.
    pub scale: f32,
    /// Updates since it last changed.
    pub good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: INITIAL, good_steps: 0 }
    }
}

impl LossScale {
    /// A factor as it was saved or received.
    ///
    /// # Errors
    /// None of which gradients could be divided by; says why.
    pub fn new(scale: f32, good_steps: u32) -> Result<Self, String> {
        match scale.is_finite() && scale > 0.0 && good_steps < GROWTH_INTERVAL {
            true => Ok(Self { scale, good_steps }),
            false => Err(format!("a loss scale of {scale} for {good_steps} steps cannot be")),
        }
    }

    /// What gradients are multiplied by to be those of the loss itself.
    pub fn inverse(self) -> f32 {
        // As GradScaler rounds it.
        f64::from(self.scale).recip() as f32
    }

    /// Takes note of a step: whether its gradient was `finite`.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { scale: self.scale * BACKOFF, good_steps: 0 };
            return;
        }
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            let grown = self.scale * GROWTH;
            *self = Self { scale: if grown.is_finite() { grown } else { self.scale }, good_steps: 0 };
        }
    }

    /// Whether halving it any further would not help.
    pub fn is_exhausted(self) -> bool {
        self.scale < LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_after_2000_updates() {
        let mut scale = LossScale::default();
        scale.update(false);
        assert_eq!(scale, LossScale { scale: 32_768.0, good_steps: 0 });
        (0..1999).for_each(|_| scale.update(true));
        assert_eq!(scale, LossScale { scale: 32_768.0, good_steps: 1999 });
        scale.update(true);
        assert_eq!(scale, LossScale { scale: 65_536.0, good_steps: 0 });
        (0..1500).for_each(|_| scale.update(true));
        // An overflow begins the count anew.
        scale.update(false);
        (0..1999).for_each(|_| scale.update(true));
        assert_eq!(scale.scale, 32_768.0);
        assert_eq!(scale.inverse(), 1.0 / 32_768.0);
    }

    #[test]
    fn it_stays_finite_and_says_when_it_does_not_help() {
        let mut scale = LossScale { scale: f32::MAX, good_steps: 1999 };
        scale.update(true);
        assert_eq!(scale, LossScale { scale: f32::MAX, good_steps: 0 });
        let mut scale = LossScale::default();
        (0..32).for_each(|_| scale.update(false));
        assert!(!scale.is_exhausted(), "{scale:?}");
        scale.update(false);
        assert!(scale.is_exhausted(), "{scale:?}");
        for (scale, good_steps) in [(0.0, 0), (-1.0, 0), (f32::NAN, 0), (f32::INFINITY, 0), (1.0, 2000)] {
            assert!(LossScale::new(scale, good_steps).is_err(), "{scale} {good_steps}");
        }
    }
}
