//! What one step exchanges between ranks, in one buffer: gradients, BatchNorm statistics, and a few sums.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::Model;
use crate::collective::Region;
use crate::collective::buckets::{BUCKET_BYTES, Buckets, END_BYTES};
use crate::torch::{self, TorchError};

/// One flat f32 buffer that lies on the model's device, in main memory in a [`Region`], and holds, one after the other,
///
/// 1. the gradient of every parameter, in [`Model::parameters`] order: `parameter.grad` is a view of its
///    part, with the parameter's strides, so backward writes here and the optimizer reads from here;
/// 2. `running_mean` and `running_var` of every BatchNorm, unless frozen: see [`Self::store_buffers`];
/// 3. scalars of the caller: sums of losses, counts.
///
/// So summing the buffers of all ranks sums everything that a step shares. Has to be made anew after
/// [`Model::to_channels_last`]. While backward runs, of a view only what it is through with may be touched.
pub struct FlatGradients {
    flat: Tensor,
    /// Its memory, where that is no GPU's.
    region: Option<Arc<Region>>,
    /// How the gradients are cut.
    buckets: Buckets,
    /// Each running statistic, its place in `flat`, and its value before the step.
    statistics: Vec<(Tensor, Tensor, Tensor)>,
    /// Values that are gradients: the first part.
    gradients: usize,
    scalars: usize,
}

impl FlatGradients {
    /// Allocates the buffer, zeroed, for `model` and `scalars` further values, and makes it the place of
    /// the model's gradients.
    ///
    /// # Errors
    /// A parameter that is not f32, or no memory left.
    pub fn new(model: &Model, scalars: usize) -> Result<Self, TorchError> {
        let statistics: Vec<&Tensor> = match model.batch_norm().frozen {
            // They are the same on every rank; a weighted sum would only add rounding.
            true => Vec::new(),
            false => model.buffers().iter().map(|(_, t)| t).filter(|t| t.kind() == Kind::Float).collect(),
        };
        let lengths: Vec<usize> = model.parameters().iter().map(|(_, p)| p.numel()).collect();
        let in_gradients = lengths.iter().sum::<usize>();
        let in_statistics = statistics.iter().map(|t| t.numel()).sum::<usize>();
        let length = in_gradients + in_statistics + scalars;
        let (flat, region) = allocated(length, model.device())?;

        let mut offset = 0;
        let mut place = |like: &Tensor| {
            // The strides of a dense tensor stay within its own number of elements.
            let view = flat.as_strided(like.size(), like.stride(), offset);
            offset += like.numel() as i64;
            view
        };
        for (_, parameter) in model.parameters() {
            torch::set_grad(parameter, &place(parameter))?;
        }
        let statistics = statistics.into_iter().map(|t| (t.shallow_clone(), place(t), t.copy())).collect();
        let buckets = Buckets::new(&lengths, END_BYTES, BUCKET_BYTES);
        Ok(Self { flat, region, buckets, statistics, gradients: in_gradients, scalars })
    }

    /// Values in the whole buffer.
    pub fn len(&self) -> usize {
        self.flat.numel()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it lies in main memory, for the other ranks of the host.
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref()
    }

    /// Sets everything to 0, before the first backward of a step.
    pub fn zero(&mut self) {
        let _ = self.flat.zero_();
    }

    /// Multiplies the gradients and the statistics, not the scalars, by `factor`.
    pub fn scale(&mut self, factor: f64) {
        let _ = self.flat.narrow(0, 0, (self.len() - self.scalars) as i64).g_mul_scalar_(factor);
    }

    /// Multiplies the gradients alone by `inverse_scale`, and says whether all of them were finite.
    ///
    /// # Errors
    /// What libtorch throws.
    pub fn unscale(&mut self, inverse_scale: f32) -> Result<bool, TorchError> {
        torch::unscale(&mut self.flat.narrow(0, 0, self.gradients as i64), inverse_scale)
    }

    /// How the gradients are cut, each by its number among [`Model::parameters`].
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// Views of each bucket, in their order, and of the statistics and scalars as the last: together the whole buffer.
    pub fn views(&self) -> Vec<Tensor> {
        let rest = self.gradients..self.len();
        let parts = self.buckets.ranges().chain([rest]);
        parts.map(|part| self.flat.narrow(0, part.start as i64, part.len() as i64)).collect()
    }

    /// The caller's scalars, the last part of the buffer. On a GPU this waits for what is queued there.
    ///
    /// # Errors
    /// What libtorch throws.
    pub fn scalars(&self) -> Result<Vec<f32>, TorchError> {
        let scalars = self.scalars_view().f_to_device(Device::Cpu);
        let scalars = scalars.map_err(TorchError::during("read the sums"))?;
        Ok(torch::as_f32(&scalars)?.to_vec())
    }

    /// Sets them, all of them.
    ///
    /// # Errors
    /// Another number of values, or what libtorch throws.
    pub fn set_scalars(&mut self, values: &[f32]) -> Result<(), TorchError> {
        let values = torch::from_f32(values, &[self.scalars as i64])?;
        let set = self.scalars_view().f_copy_(&values);
        set.map_err(TorchError::during("write the sums"))
    }

    fn scalars_view(&self) -> Tensor {
        self.flat.narrow(0, (self.len() - self.scalars) as i64, self.scalars as i64)
    }

    /// Copies `weight` times each running mean and variance into the buffer. With the weights of all ranks
    /// summing to 1 (a rank's share of the global batch), the sum over the ranks is the weighted mean.
    pub fn store_buffers(&mut self, weight: f64) {
        for (statistic, place, _) in &mut self.statistics {
            place.copy_(statistic);
            let _ = place.g_mul_scalar_(weight);
        }
    }

    /// Remembers the model's statistics for [`Self::restore_buffers`].
    pub fn keep_buffers(&mut self) {
        for (statistic, _, kept) in &mut self.statistics {
            kept.copy_(statistic);
        }
    }

    /// Puts back the statistics that [`Self::keep_buffers`] found.
    pub fn restore_buffers(&mut self) {
        for (statistic, _, kept) in &mut self.statistics {
            statistic.copy_(kept);
        }
    }

    /// Copies the (summed) statistics back into the model.
    pub fn load_buffers(&mut self) {
        for (statistic, place, _) in &mut self.statistics {
            statistic.copy_(place);
        }
    }
}

/// `length` zeros, and the memory that they lie in where that can be shared.
fn allocated(length: usize, device: Device) -> Result<(Tensor, Option<Arc<Region>>), TorchError> {
    if device == Device::Cpu {
        let region = Region::new(length * size_of::<f32>()).map_err(TorchError::Region)?;
        return Ok((torch::over_region(&region)?, Some(region)));
    }
    let flat = Tensor::f_zeros([length as i64], (Kind::Float, device));
    let flat = flat.map_err(TorchError::during("allocate the gradient buffer"))?;
    Ok((flat, None))
}
