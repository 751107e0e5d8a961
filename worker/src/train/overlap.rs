//! Sums gradients over the ranks while the backward pass still computes others.
//!
//! The collective goes to a thread of its own for the step and comes back at its end. Buckets are summed in one order,
//! each as soon as it is complete; over NCCL the thread only queues the sums, which the GPU orders by events. Whatever
//! happens, the thread has ended when the step has: a backward pass that fails gives up the buckets that are not complete
//! and aborts the collective, so that no rank waits for them.

use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use relabel_config::Wire;

use super::step::StepError;
use crate::collective::buckets::Ready;
use crate::collective::nccl::Nccl;
use crate::collective::{AbortHandle, Collective, CollectiveError};
use crate::torch::{self, TorchError};

/// When what was done in one step.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub began: Instant,
    /// The backward pass had ended, and what comes after the gradients was in its place.
    pub computed: Instant,
    /// All sums were there.
    pub ended: Instant,
    /// In the order in which they were summed; the last one is what comes after the gradients.
    pub buckets: Vec<Passage>,
}

/// One bucket on its way.
#[derive(Debug, Clone, Copy)]
pub struct Passage {
    pub bytes: usize,
    /// Complete on this rank.
    pub ready: Instant,
    /// This rank began to sum it, or queued its sum on a GPU.
    pub begun: Instant,
    /// The sum was there. Over NCCL that is known of all at once.
    pub done: Instant,
}

impl Timeline {
    /// How long the thread that trains waited for sums.
    pub fn waited(&self) -> Duration {
        self.ended.saturating_duration_since(self.computed)
    }

    /// How long this rank was summing, waits for ranks that were not as far included.
    pub fn communicated(&self) -> Duration {
        let mut until = self.began;
        // Over NCCL they are on their way together.
        let spans = self.buckets.iter().map(|passage| {
            let span = passage.done.saturating_duration_since(passage.begun.max(until));
            until = until.max(passage.done);
            span
        });
        spans.sum()
    }
}

/// Runs `compute`, which fills `views` and tells `ready` of it, and sums the views meanwhile, the last one when it has
/// returned. `views` are what [`FlatGradients::views`](crate::model::FlatGradients::views) gives; those of gradients go
/// over the wire as `wire` says, and the last one, whose sums are counts too, in float32.
///
/// # Errors
/// That of `compute`, after which the collective has been aborted; or that of a sum.
pub fn overlapped<T>(
    ring: &mut dyn Collective,
    views: Vec<Tensor>,
    wire: Wire,
    ready: &Ready,
    compute: impl FnOnce() -> Result<T, StepError>,
) -> Result<(T, Timeline), StepError> {
    let (began, abort) = (Instant::now(), ring.abort_handle());
    std::thread::scope(|scope| {
        let sums = std::thread::Builder::new().name("gradients".into());
        let sums = sums.spawn_scoped(scope, move || in_turn(ring, views, wire, ready)).map_err(|source| {
            CollectiveError::Local { doing: "start the thread that sums gradients", source }
        })?;
        let mut unfinished = Unfinished { ready, abort: Some(abort) };
        let value = compute()?;
        unfinished.abort = None;
        ready.complete();
        let computed = Instant::now();
        let buckets = sums.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((value, Timeline { began, computed, ended: Instant::now(), buckets }))
    })
}

/// Lets go of the thread where nothing more is to come, after an error or a panic.
struct Unfinished<'a> {
    ready: &'a Ready,
    /// None once all is well.
    abort: Option<AbortHandle>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(abort) = &self.abort {
            abort.abort("this rank could not compute its gradients");
            self.ready.give_up();
        }
    }
}

/// Sums each view when it is complete.
fn in_turn(
    ring: &mut dyn Collective,
    mut views: Vec<Tensor>,
    wire: Wire,
    ready: &Ready,
) -> Result<Vec<Passage>, StepError> {
    let on_gpu = views.first().is_some_and(|view| view.device().is_cuda());
    if on_gpu && let Some(nccl) = ring.nccl() {
        return on_the_gpu(nccl, &mut views, wire, ready);
    }
    let mut passages = Vec::with_capacity(views.len());
    let last = views.len() - 1;
    for (bucket, view) in views.iter_mut().enumerate() {
        let Some(since) = ready.wait(bucket) else { break };
        let begun = Instant::now();
        in_main_memory(view, |values| match wire {
            Wire::Bf16 if bucket < last => Ok(ring.all_reduce_bf16(values)?),
            _ => Ok(ring.all_reduce(values)?),
        })?;
        passages.push(Passage { bytes: bytes(view), ready: since, begun, done: Instant::now() });
    }
    Ok(passages)
}

/// The same where they are, or from copies in bfloat16 there.
fn on_the_gpu(
    nccl: &mut Nccl,
    views: &mut [Tensor],
    wire: Wire,
    ready: &Ready,
) -> Result<Vec<Passage>, StepError> {
    let (mut passages, mut failed, last) = (Vec::with_capacity(views.len()), None, views.len() - 1);
    // What goes over the wire, if that is not the view itself. None of it may go before its sum is there.
    let mut rounded: Vec<Option<Tensor>> = views.iter().map(|_| None).collect();
    let slices = views.iter_mut().zip(&mut rounded).enumerate().map_while(|(bucket, (view, rounded))| {
        let since = ready.wait(bucket)?;
        let begun = Instant::now();
        passages.push(Passage { bytes: bytes(view), ready: since, begun, done: begun });
        let slice = match wire {
            // Queued behind what fills the view.
            Wire::Bf16 if bucket < last => view
                .f_to_kind(Kind::BFloat16)
                .map_err(TorchError::during("round gradients"))
                .and_then(|copy| torch::cuda::slice(rounded.insert(copy))),
            _ => torch::cuda::slice(view),
        };
        slice.map_err(|error| failed = Some(error)).ok()
    });
    nccl.all_reduce_in_turn(slices)?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    for (view, rounded) in views.iter_mut().zip(&rounded) {
        if let Some(sums) = rounded {
            let widened = view.f_copy_(sums);
            widened.map_err(TorchError::during("widen gradients"))?;
        }
    }
    let done = Instant::now();
    passages.iter_mut().for_each(|passage| passage.done = done);
    Ok(passages)
}

fn bytes(view: &Tensor) -> usize {
    view.numel() * size_of::<f32>()
}

/// Does `work` with the values of a part of the buffer, or with a copy in main memory that is put back.
fn in_main_memory(
    view: &mut Tensor,
    work: impl FnOnce(&mut [f32]) -> Result<(), StepError>,
) -> Result<(), StepError> {
    if view.device() == Device::Cpu {
        return work(torch::as_f32_mut(view)?);
    }
    let copied = TorchError::during("copy gradients between memories");
    let mut copy = view.f_to_device(Device::Cpu).map_err(copied)?;
    work(torch::as_f32_mut(&mut copy)?)?;
    view.f_copy_(&copy).map_err(copied)?;
    Ok(())
}

#[cfg(test)]
mod tests;
