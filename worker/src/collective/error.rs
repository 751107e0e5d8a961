//! Why a collective failed, in words that name the peer and what was being done with it.

use std::io;
use std::net::SocketAddr;

/// Why a call of a [`Collective`](super::Collective) failed. None of them can be retried on the same collective.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// The abort handle was used: the generation is over.
    #[error("aborted: {reason}")]
    Aborted { reason: String },

    /// The caller's arguments cannot be right; nothing was sent.
    #[error("{0}")]
    Invalid(String),

    /// The ranks did not find each other in time.
    /// `blamed` is the neighbour that was not there, where the other one was.
    #[error("rank {rank} could not form the ring within {seconds:.1} s: {missing}")]
    NotFormed { rank: u32, seconds: f64, missing: String, blamed: Option<u32> },

    /// This process's own sockets failed, before any peer had to do with it.
    #[error("could not {doing}")]
    Local { doing: &'static str, source: io::Error },

    /// The connection to a peer broke; its process is gone, or has left the collective itself.
    #[error("lost rank {rank} at {address} while {doing}")]
    Lost { rank: u32, address: SocketAddr, doing: String, source: io::Error },

    /// A peer's connection is up, but nothing moved for the configured time.
    #[error("rank {rank} at {address} was silent for {seconds:.1} s while {doing}")]
    Silent { rank: u32, address: SocketAddr, doing: String, seconds: f64 },

    /// A peer is doing another operation, or one of another length, than this rank.
    #[error("rank {rank} at {address} is out of step: expected {expected}, it sent {found}")]
    OutOfStep { rank: u32, address: SocketAddr, expected: String, found: String },

    /// NCCL or the GPU did not do as they were asked. Which rank is to blame NCCL does not say.
    #[error("{what}")]
    Nccl { what: String },

    /// An earlier call had failed.
    #[error("this collective ended with an earlier error: {first}")]
    Ended { first: String },
}

impl CollectiveError {
    /// The rank that does not answer, if it is one. A connection that a peer has closed blames nobody: that peer may
    /// only have been the first to notice.
    pub fn blamed(&self) -> Option<u32> {
        match self {
            Self::NotFormed { blamed, .. } => *blamed,
            Self::Silent { rank, .. } => Some(*rank),
            Self::Lost { rank, source, .. } => {
                let unanswered = [
                    io::ErrorKind::TimedOut,
                    io::ErrorKind::HostUnreachable,
                    io::ErrorKind::NetworkUnreachable,
                ];
                unanswered.contains(&source.kind()).then_some(*rank)
            }
            _ => None,
        }
    }
}
