//! Which part of an image is looked at: torchvision's RandomResizedCrop in training, Resize and
//! CenterCrop in evaluation. Only numbers; no pixels.

use super::rng::KeyedRng;
use super::{CropBox, ImageSize};

/// Width to height of a training crop, at least and at most.
const ASPECT: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// Draws a training crop as torchvision's `RandomResizedCrop.get_params` does: an area uniform in
/// `[min_area, 1]` of the image's and an aspect ratio log-uniform in 3/4 to 4/3, ten tries to fit them into the
/// image, then the largest central crop of an allowed ratio. `min_area` lies in (0, 1].
pub fn random_resized_crop(image: ImageSize, min_area: f64, rng: &mut KeyedRng) -> CropBox {
    let area = f64::from(image.width) * f64::from(image.height);
    for _ in 0..10 {
        let target = area * rng.uniform(min_area, 1.0);
        let aspect = rng.uniform(ASPECT.0.ln(), ASPECT.1.ln()).exp();
        let width = (target * aspect).sqrt().round_ties_even() as u32;
        let height = (target / aspect).sqrt().round_ties_even() as u32;
        if (1..=image.width).contains(&width) && (1..=image.height).contains(&height) {
            let top = rng.below(image.height - height + 1);
            let left = rng.below(image.width - width + 1);
            return CropBox { top, left, height, width };
        }
    }
    let aspect = f64::from(image.width) / f64::from(image.height);
    let (width, height) = if aspect < ASPECT.0 {
        (image.width, (f64::from(image.width) / ASPECT.0).round_ties_even() as u32)
    } else if aspect > ASPECT.1 {
        ((f64::from(image.height) * ASPECT.1).round_ties_even() as u32, image.height)
    } else {
        (image.width, image.height)
    };
    CropBox { top: (image.height - height) / 2, left: (image.width - width) / 2, height, width }
}

/// What evaluation does to an image before it is normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalGeometry {
    /// Size that the whole image is resized to.
    pub resized: ImageSize,
    /// The square of side `image_size` that is cut out of the resized image.
    pub crop: CropBox,
}

/// torchvision's `Resize(ceil(image_size / crop_ratio))` of the short side, the long side rounded down, and
/// `CenterCrop(image_size)`. `image_size` is at least 1, `crop_ratio` lies in (0, 1].
pub fn eval_geometry(image: ImageSize, image_size: u32, crop_ratio: f64) -> EvalGeometry {
    let short_side = ((f64::from(image_size) / crop_ratio).ceil() as u32).max(image_size);
    let (short, long) = (image.width.min(image.height), image.width.max(image.height));
    // In whole numbers, so exact; torchvision divides in floating point, which for sizes of images
    // rounds to the same.
    let long_side = u64::from(short_side) * u64::from(long) / u64::from(short.max(1));
    let long_side = u32::try_from(long_side).unwrap_or(u32::MAX);
    let resized = if image.width <= image.height {
        ImageSize { width: short_side, height: long_side }
    } else {
        ImageSize { width: long_side, height: short_side }
    };
    let middle = |side: u32| (f64::from(side - image_size) / 2.0).round_ties_even() as u32;
    let crop = CropBox {
        top: middle(resized.height),
        left: middle(resized.width),
        height: image_size,
        width: image_size,
    };
    EvalGeometry { resized, crop }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u32, height: u32) -> ImageSize {
        ImageSize { width, height }
    }

    fn crops(image: ImageSize, min_area: f64) -> impl Iterator<Item = CropBox> {
        (0..20_000)
            .map(move |sample| random_resized_crop(image, min_area, &mut KeyedRng::of_sample(1, 0, sample)))
    }

    #[test]
    fn crops_lie_within_the_image() {
        for image in [size(500, 375), size(1, 1), size(1, 900), size(900, 1), size(3, 2), size(20, 400)] {
            for crop in crops(image, 0.08) {
                assert!(crop.width >= 1 && crop.left + crop.width <= image.width, "{image:?} {crop:?}");
                assert!(crop.height >= 1 && crop.top + crop.height <= image.height, "{image:?} {crop:?}");
            }
        }
    }

    #[test]
    fn areas_ratios_and_places_are_spread_as_drawn() {
        // In a square of 1000 nearly every try for an area below a half fits, so those are uniform.
        let image = size(1000, 1000);
        let all: Vec<CropBox> = crops(image, 0.08).collect();
        let share = |wanted: &dyn Fn(&CropBox) -> bool| {
            all.iter().filter(|crop| wanted(crop)).count() as f64 / all.len() as f64
        };
        let area = |crop: &CropBox| f64::from(crop.width) * f64::from(crop.height) / 1e6;
        let low = share(&|crop| (0.10..0.30).contains(&area(crop)));
        let high = share(&|crop| (0.30..0.50).contains(&area(crop)));
        assert!((low / high - 1.0).abs() < 0.06, "{low} {high}");
        assert!(share(&|crop| area(crop) < 0.079) == 0.0);
        // Log-uniform: the median ratio is 1, and the quartiles are at the square root of the ends.
        let ratio = |crop: &CropBox| f64::from(crop.width) / f64::from(crop.height);
        let small = |crop: &CropBox| area(crop) < 0.5;
        let among_small =
            |wanted: &dyn Fn(f64) -> bool| share(&|crop| small(crop) && wanted(ratio(crop))) / share(&small);
        assert!((among_small(&|ratio| ratio < 1.0) - 0.5).abs() < 0.02);
        assert!((among_small(&|ratio| ratio < 0.75_f64.sqrt()) - 0.25).abs() < 0.02);
        assert!(among_small(&|ratio| !(0.74..1.35).contains(&ratio)) == 0.0);
        let centred = |start: u32, side: u32| f64::from(start) / f64::from(1000 - side).max(1.0) < 0.5;
        assert!(
            (share(&|crop| small(crop) && centred(crop.top, crop.height)) / share(&small) - 0.5).abs() < 0.02
        );
        assert!(
            (share(&|crop| small(crop) && centred(crop.left, crop.width)) / share(&small) - 0.5).abs() < 0.02
        );
    }

    #[test]
    fn an_image_too_narrow_for_any_try_is_cropped_in_its_middle() {
        // No crop of ratio 3/4 at least and of 8% of the area fits in 20 x 4000.
        for crop in crops(size(20, 4000), 0.08) {
            assert_eq!(crop, CropBox { top: 1986, left: 0, height: 27, width: 20 });
        }
        for crop in crops(size(4000, 20), 0.08) {
            assert_eq!(crop, CropBox { top: 0, left: 1986, height: 20, width: 27 });
        }
        for crop in crops(size(300, 300), 1.0).take(2000) {
            assert!(crop.width == 300 || crop.height == 300 || crop.width * crop.height > 89_000);
        }
    }

    #[test]
    fn evaluation_resizes_and_cuts_as_torchvision() {
        let expected = |width, height, top, left| EvalGeometry {
            resized: size(width, height),
            crop: CropBox { top, left, height: 224, width: 224 },
        };
        // 256 * 500 / 375 = 341.33; (341 - 224) / 2 = 58.5, which Python rounds to 58.
        assert_eq!(eval_geometry(size(500, 375), 224, 0.875), expected(341, 256, 16, 58));
        assert_eq!(eval_geometry(size(375, 500), 224, 0.875), expected(256, 341, 58, 16));
        // 256 * 400 / 299 = 342.47; 59. And 343: 59.5, which Python rounds to 60.
        assert_eq!(eval_geometry(size(400, 299), 224, 0.875), expected(342, 256, 16, 59));
        assert_eq!(eval_geometry(size(343, 256), 224, 0.875), expected(343, 256, 16, 60));
        assert_eq!(eval_geometry(size(64, 64), 224, 0.875), expected(256, 256, 16, 16));
        assert_eq!(eval_geometry(size(10, 10), 64, 0.9).resized, size(72, 72));
        assert_eq!(eval_geometry(size(10, 10), 64, 1.0).crop.top, 0);
    }
}
