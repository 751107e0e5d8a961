//! Who is let in and who is not: real processes, real certificates, real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod certificates;
mod client;
mod forgeries;
mod leases;
mod limits;
mod roles;
mod strangers;
