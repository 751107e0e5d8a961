//! The worker: one process a device, from JPEG files to all-reduced gradients.
//!
//! - [`session`]: the stream to the coordinator.
//! - [`train`]: follows its orders; has the diagram of one sample's and one step's way.
//! - [`data`], [`labels`]: JPEG files to batches, label maps to targets. Know nothing of libtorch.
//! - [`model`], [`optim`], [`eval`], [`checkpoint`]: what is trained, how, how good it is, and its file.
//! - [`weights`]: state_dicts from and to files of torch and safetensors. [`pt`]: the files of torch.save.
//! - [`collective`]: sums between ranks. Knows nothing of libtorch.
//! - [`torch`]: what tch does not expose; the one place with C++.
//! - [`annotate`]: makes label maps with a trained classifier. [`predict`]: says what pictures show.
//! - `leases`: ranges of images from `coordinator label` or `coordinator eval`, in place of a whole command's.
//! - [`doctor`]: what a machine has, and whether a data set can be trained on. [`synth`]: a small one to try it all on.

pub mod annotate;
pub mod checkpoint;
pub mod collective;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod labels;
mod leases;
pub mod model;
pub mod optim;
pub mod predict;
pub mod print;
mod progress;
pub mod pt;
pub mod session;
pub mod synth;
pub mod torch;
pub mod train;
pub mod weights;
