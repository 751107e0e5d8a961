//! What is counted of a network's answers: numbers and sums that add up over ranges of images.

use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Single-label accuracy of some samples.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    pub samples: u64,
    /// Samples whose class was the first, and among the first five, of the model's answers. With fewer
    /// than five classes every answer is among the first five.
    pub top1: u64,
    pub top5: u64,
    /// Sum of the cross entropies, in nats.
    pub loss_sum: f64,
}

impl Counts {
    /// Share of samples whose class was the first answer, in [0, 1]; NaN of none.
    pub fn top1_share(&self) -> f64 {
        self.top1 as f64 / self.samples as f64
    }

    /// Share of samples whose class was among the first five answers, in [0, 1]; NaN of none.
    pub fn top5_share(&self) -> f64 {
        self.top5 as f64 / self.samples as f64
    }

    /// Mean cross entropy in nats; NaN of none.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.samples as f64
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.loss_sum += other.loss_sum;
    }
}

/// Images that ReaL has labels of, and those whose first answer is among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RealCounts {
    pub images: u64,
    pub right: u64,
}

impl RealCounts {
    /// In [0, 1]; NaN where no image had a label.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.images as f64
    }
}

/// What was right among the images with multi-label annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MultiLabelCounts {
    pub images: u64,
    /// Images whose first answer is one of the correct classes.
    pub correct: u64,
    /// By the image's original class: images, and those whose answer is correct or unclear.
    pub by_class: BTreeMap<u32, (u64, u64)>,
}

impl MultiLabelCounts {
    /// Correct or unclear is right; the mean within each original class, then over those classes. In
    /// [0, 1]; NaN of no images.
    pub fn class_mean(&self) -> f64 {
        let shares = self.by_class.values().map(|&(images, right)| right as f64 / images as f64);
        shares.sum::<f64>() / self.by_class.len() as f64
    }

    /// The authors' own: only correct is right; the mean over images. In [0, 1]; NaN of no images.
    pub fn correct(&self) -> f64 {
        self.correct as f64 / self.images as f64
    }

    fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.correct += other.correct;
        for (&class, &(images, right)) in &other.by_class {
            let sum = self.by_class.entry(class).or_default();
            *sum = (sum.0 + images, sum.1 + right);
        }
    }
}

/// What was found on some images of a folder.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub counts: Counts,
    /// Only for ImageNet's validation set.
    pub real: Option<RealCounts>,
    pub multi_label: Option<MultiLabelCounts>,
    /// By epsilon of the fast gradient sign attack, in parts of a pixel's range.
    pub attacked: Vec<(f64, Counts)>,
}

impl Found {
    /// Whether both were judged by the same, as the ranges of one folder are.
    pub fn is_like(&self, other: &Self) -> bool {
        let epsilons = |found: &Self| found.attacked.iter().map(|(epsilon, _)| *epsilon).collect::<Vec<_>>();
        self.real.is_some() == other.real.is_some()
            && self.multi_label.is_some() == other.multi_label.is_some()
            && epsilons(self) == epsilons(other)
    }

    /// Adds what was found on other images of the same folder, which [`is_like`](Self::is_like) this.
    pub fn add(&mut self, other: &Self) {
        self.counts += other.counts;
        if let (Some(real), Some(other)) = (&mut self.real, &other.real) {
            real.images += other.images;
            real.right += other.right;
        }
        if let (Some(labels), Some(other)) = (&mut self.multi_label, &other.multi_label) {
            labels.add(other);
        }
        for ((_, counts), (_, other)) in self.attacked.iter_mut().zip(&other.attacked) {
            *counts += *other;
        }
    }

    /// Whether it is what can be found on `samples` images.
    fn is_of(&self, samples: u64) -> bool {
        let possible = |counts: &Counts| {
            counts.samples == samples && counts.top1 <= counts.top5 && counts.top5 <= samples
        };
        let real = self.real.is_none_or(|real| real.right <= real.images && real.images <= samples);
        let labels = self.multi_label.as_ref().is_none_or(|labels| {
            labels.images <= samples
                && labels.correct <= labels.images
                && labels.by_class.values().try_fold(0_u64, |sum, &(images, right)| {
                    sum.checked_add(images).filter(|_| images > 0 && right <= images)
                }) == Some(labels.images)
        });
        possible(&self.counts) && self.attacked.iter().all(|(_, counts)| possible(counts)) && real && labels
    }

    /// What is wrong with it as the report on `samples` images, after `before`, one on others of the same folder.
    ///
    /// # Errors
    /// It cannot be that.
    pub(super) fn check(&self, samples: u64, before: Option<&Self>) -> Result<(), String> {
        if !self.is_of(samples) {
            return Err(format!("it reports what cannot be found on {samples} images"));
        }
        match before.is_none_or(|before| self.is_like(before)) {
            true => Ok(()),
            false => Err("it judged the images by something else than the others did".into()),
        }
    }
}
