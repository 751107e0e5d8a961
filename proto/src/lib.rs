//! The wire protocol, `relabel.v1`: generated code, and conversions between it and the core's types.
//!
//! Wire types are converted and validated here, at the edge; the inside holds only valid values. What a
//! peer leaves out or sets wrong is an [`Invalid`] that names the field.

mod convert;
mod evaluation;
mod labelling;
mod leases;
mod precision;
pub mod security;
mod status;
mod text;
mod values;

/// Generated from `proto/relabel/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("relabel.v1");
}

pub use convert::{FirstMessage, Told, Welcome, from_worker, hello, to_worker, welcome};
pub use leases::{FirstLeaseMessage, LeaseHello, ToHolder, WireWork, from_holder, lease_hello, to_holder};
pub use status::{state_word, status, whole_status};
pub use text::sentence;
pub use values::Invalid;

/// The version that coordinator and workers must share: the protocol and the meaning of every option
/// move with it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The coordinator's port unless told otherwise.
pub const DEFAULT_PORT: u16 = 4747;

/// Largest message that either side takes, in bytes: a formation of 10,000 ranks is under 1 MiB.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Most workers in one reply to a status request, so that it is a small message whatever the run's size.
pub const MOST_WORKERS: u32 = 1000;
