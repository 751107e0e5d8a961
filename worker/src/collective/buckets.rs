//! Cuts a flat gradient buffer into buckets and reduces them one after the other.
//!
//! Buckets bound what one operation moves, so that an abort is seen soon and a first part can be on
//! its way while the rest is still being computed.

use super::{Collective, CollectiveError};

/// Bytes of one bucket where nothing else is asked for: 25 MiB, as in PyTorch's DistributedDataParallel.
pub const BUCKET_BYTES: usize = 25 << 20;

/// Sums `gradients` over all ranks in place, at most `bucket_bytes` at a time (at least one element).
///
/// Every rank has to pass the same length and the same `bucket_bytes`. The sum of an element does not
/// depend on the rank that looks, but its last bit may depend on `bucket_bytes`, which decides the
/// order in which the ranks' values are added.
pub fn all_reduce(
    collective: &mut dyn Collective,
    gradients: &mut [f32],
    bucket_bytes: usize,
) -> Result<(), CollectiveError> {
    let elements = (bucket_bytes / size_of::<f32>()).max(1);
    for bucket in gradients.chunks_mut(elements) {
        collective.all_reduce(bucket)?;
    }
    Ok(())
}
