//! Finishes images on the device, with `data.finish device`: flip, colour jitter, lighting and mean and deviation, and
//! CutMix's box pasted over. The values are those of the loader's own threads to the bit: each operator here rounds as
//! one of theirs does.

use tch::{Device, Kind, TchError, Tensor};

use crate::data::augment::{Finishing, Step, normalization};
use crate::data::unfinished::{Paste, Unfinished};
use crate::torch::{self, TorchError};

/// Numbers that the device is told of each step of an image's jitter: whether it is a contrast, a saturation (or
/// neither, a brightness), and the factor.
const STEP: usize = 3;
const STEPS: usize = 3;

/// Numbers that it is told of each image: whether it is flipped, its steps, and the shift of each channel.
const TOLD: usize = 1 + STEPS * STEP + 3;

/// The first `n` images of a batch as the network takes them: f32 `[n, 3, side, side]` on `device`, in channels_last
/// memory. Those behind them only lend their boxes.
///
/// # Errors
/// No memory left there; images of another size.
pub fn finish(batch: &Unfinished, n: usize, side: i64, device: Device) -> Result<Tensor, TorchError> {
    let finished = Planes::send(batch, side, device)?.finished();
    let wrong = TorchError::during("finish a batch's images");
    let finished = finished.map_err(wrong)?;
    let mut own = torch::to_channels_last(&finished.f_narrow(0, 0, n as i64).map_err(wrong)?)?;
    if let Some(paste) = &batch.paste {
        let lenders: Vec<i64> = paste.lenders.iter().map(|&lender| lender as i64).collect();
        let lenders = torch::send(bytemuck::cast_slice(&lenders), &[n as i64], Kind::Int64, device)?;
        copy_box(paste, &mut own, &finished, &lenders).map_err(wrong)?;
    }
    Ok(own)
}

/// `m` images on the device.
struct Planes {
    /// u8 `[m, 3, side, side]`.
    bytes: Tensor,
    /// f32 `[m, TOLD]`.
    told: Tensor,
    /// What a byte is multiplied by, f32 `[1, 3, 1, 1]`.
    scale: Tensor,
    /// Whether there is any jitter.
    jittered: bool,
}

impl Planes {
    fn send(batch: &Unfinished, side: i64, device: Device) -> Result<Self, TorchError> {
        let m = batch.finishing.len() as i64;
        let told: Vec<f32> = batch.finishing.iter().flat_map(told).collect();
        let (scale, _) = normalization([0.0; 3]);
        let floats = |values: &[f32], shape: &[i64]| {
            torch::send(bytemuck::cast_slice(values), shape, Kind::Float, device)
        };
        Ok(Self {
            bytes: torch::send(&batch.planes, &[m, 3, side, side], Kind::Uint8, device)?,
            told: floats(&told, &[m, TOLD as i64])?,
            scale: floats(&scale, &[1, 3, 1, 1])?,
            jittered: batch.finishing.iter().any(|finishing| finishing.steps.is_some()),
        })
    }

    /// What image by image stands in `width` columns of what is told, `[m, width, 1, 1]`.
    fn told(&self, column: usize, width: usize) -> Result<Tensor, TchError> {
        self.told.f_narrow(1, column as i64, width as i64)?.f_unsqueeze(-1)?.f_unsqueeze(-1)
    }

    /// f32 `[m, 3, side, side]`.
    fn finished(&self) -> Result<Tensor, TchError> {
        let flipped = self.bytes.f_flip([3])?.f_where_self(&self.told(0, 1)?.f_gt(0.5)?, &self.bytes)?;
        let mut pixels = flipped.f_to_kind(Kind::Float)?;
        for step in (0..STEPS).filter(|_| self.jittered) {
            pixels = self.jittered(step, &pixels)?;
        }
        pixels.f_mul(&self.scale)?.f_add(&self.told(1 + STEPS * STEP, 3)?)
    }

    /// `pixels` after the step of that number: Pillow's blend with a grey, or with the luma.
    fn jittered(&self, step: usize, pixels: &Tensor) -> Result<Tensor, TchError> {
        let first = 1 + step * STEP;
        let luma = luma(pixels)?;
        let mean = rounded_mean(&luma)?;
        let grey = mean.f_mul(&self.told(first, 1)?)?;
        let from = luma.f_mul(&self.told(first + 1, 1)?)?.f_add(&grey)?;
        let mut blended = pixels.f_sub(&from)?.f_mul(&self.told(first + 2, 1)?)?;
        blended.f_add_(&from)?.f_clamp_(0.0, 255.0)?.f_trunc_()
    }
}

/// Pillow's greyscale of f32 `[m, 3, side, side]`, whole numbers: `[m, 1, side, side]`.
fn luma(pixels: &Tensor) -> Result<Tensor, TchError> {
    let of = |channel, weight: f64| pixels.f_narrow(1, channel, 1)?.f_mul_scalar(weight);
    let sum = of(0, 19595.0)?.f_add(&of(1, 38470.0)?)?.f_add(&of(2, 7471.0)?)?;
    sum.f_add_scalar(32768.0)?.f_div_scalar(65536.0)?.f_trunc()
}

/// The mean of whole numbers `[m, 1, side, side]`, rounded half up: `[m, 1, 1, 1]`. In whole numbers, for a GPU divides by
/// a constant as it multiplies by the inverse.
fn rounded_mean(luma: &Tensor) -> Result<Tensor, TchError> {
    let area: i64 = luma.size().iter().skip(1).product();
    let sum = luma.f_sum_dim_intlist([1, 2, 3].as_slice(), true, Kind::Int64)?;
    let mean = sum.f_mul_scalar(2)?.f_add_scalar(area)?.f_floor_divide_scalar(2 * area)?;
    mean.f_to_kind(Kind::Float)
}

fn told(finishing: &Finishing) -> [f32; TOLD] {
    let mut told = [0.0; TOLD];
    told[0] = f32::from(u8::from(finishing.flip));
    // A brightness of 1 is what changes nothing.
    let steps = finishing.steps.unwrap_or([Step::Brightness(1.0); STEPS]);
    for (told, step) in told[1..].chunks_exact_mut(STEP).zip(steps) {
        told.copy_from_slice(&match step {
            Step::Brightness(factor) => [0.0, 0.0, factor],
            Step::Contrast(factor) => [1.0, 0.0, factor],
            Step::Saturation(factor) => [0.0, 1.0, factor],
        });
    }
    told[TOLD - 3..].copy_from_slice(&normalization(finishing.light).1);
    told
}

/// Pastes the box over `own` `[n, 3, side, side]`, out of `finished` and there out of the images `lenders` `[n]`.
fn copy_box(paste: &Paste, own: &mut Tensor, finished: &Tensor, lenders: &Tensor) -> Result<(), TchError> {
    let cut = |images: &Tensor| {
        let rows = images.f_narrow(2, paste.rows.start as i64, paste.rows.len() as i64)?;
        rows.f_narrow(3, paste.columns.start as i64, paste.columns.len() as i64)
    };
    cut(own)?.f_copy_(&cut(finished)?.f_index_select(0, lenders)?)
}

#[cfg(test)]
#[path = "finish_tests.rs"]
pub(super) mod tests;
