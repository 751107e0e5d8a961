//! From gradients to new weights: optimizers with their state by parameter name, and the learning rate of
//! a step. Knows nothing of models beyond their named parameters.

pub mod schedule;
pub mod sgd;
#[cfg(test)]
mod tests;

pub use sgd::{Sgd, SgdOptions};
