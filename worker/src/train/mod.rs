//! Training: one sample's way from the plan to the loss, and one step's way to every rank.
//!
//! ```text
//!   order of the epoch ─▶ shard of this rank ─▶ image and target ─▶ forward, loss, backward
//!      data/order.rs      core shards.rs         data/, labels/         learner.rs
//!                                                                          │ flat gradients
//!   optimizer step ◀── divide by what really counted ◀── all-reduce ◀──────┘
//!     optim/             learner.rs                      collective/
//! ```
//!
//! - [`feed`] brings batches to the device, and [`finish`] does there what the loader has left to it.
//! - [`inputs`] opens the data set that the configuration names.
//! - [`learner`] holds model and optimizer and does one [`step`].
//! - [`loss_scale`] keeps gradients of float16 in range.
//! - [`overlap`] sums gradients over the ranks while others are still computed.
//! - [`trainer`] follows the coordinator's orders: forms a ring, trains an epoch, validates, saves.
//! - `transfer` gives every rank the state of the source.
//! - `pictures` draws what some images teach.
//! - `samples` records which samples were trained on.
//! - `saver` writes checkpoints on a thread of its own.

pub mod feed;
pub mod finish;
pub mod inputs;
pub mod learner;
pub mod loss;
pub mod loss_scale;
pub mod overlap;
mod pictures;
mod samples;
mod saver;
pub mod step;
pub mod trainer;
mod transfer;
