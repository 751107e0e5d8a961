//! Collectives: what the ranks of one generation do together, gradients summed and weights sent round.
//!
//! [`Collective`] is what the training loop sees. [`tcp::Ring`] is the embedded implementation, [`nccl::Nccl`] that of
//! ranks on GPUs, [`Solo`] that of a world of one. A collective belongs to one generation: after any error it is finished, is
//! dropped, and the next generation forms a new one. This module knows nothing of tensors or libtorch.

mod abort;
mod bf16;
pub mod buckets;
mod error;
pub mod nccl;
mod region;
mod solo;
pub mod tcp;

pub use abort::AbortHandle;
pub use error::CollectiveError;
pub use region::Region;
pub use solo::Solo;

/// Operations that every rank of a world calls in the same order with buffers of the same length.
///
/// Every method blocks until this rank's part is done. All of them return [`CollectiveError::Aborted`]
/// once the [`AbortHandle`] has been used, and after any error every later call is an error too: how
/// far the other ranks have come is no longer known, so the buffer's contents are undefined.
pub trait Collective: Send {
    /// This process's rank, in `0..world()`.
    fn rank(&self) -> u32;

    /// Number of ranks, at least 1.
    fn world(&self) -> u32;

    /// Replaces each element by its sum over all ranks. The result is the same bit for bit on every
    /// rank: one rank computes each sum, the others copy it.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// As [`Self::all_reduce`] with half the bytes: a value or sum is rounded to bfloat16 whenever it is sent, and what a
    /// rank adds up it adds up in float32. The sum of the values x of n ranks is off by at most about n/256 times the
    /// sum of |x|: each of the n-1 partial sums that are sent, and the sum itself, is off by 1/256 of it at most.
    fn all_reduce_bf16(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Replaces `bytes` on every rank by those of `root`. The root may return before the others have them.
    fn broadcast(&mut self, bytes: &mut [u8], root: u32) -> Result<(), CollectiveError>;

    /// Fills `slots`, `world()` equal parts one after the other, with each rank's part. On entry this
    /// rank's own part, the one at `rank()`, is set; the others are overwritten.
    fn all_gather(&mut self, slots: &mut [u8]) -> Result<(), CollectiveError>;

    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        // Only when a rank's byte has come round is it known that the rank has got here.
        let mut slots = vec![0; self.world() as usize];
        self.all_gather(&mut slots)
    }

    /// The same as what it is, where it can sum in the memory of a GPU.
    fn nccl(&mut self) -> Option<&mut nccl::Nccl> {
        None
    }

    /// A handle that ends every blocked and later call of this collective, from any thread.
    fn abort_handle(&self) -> AbortHandle;
}
