//! How the ranks of a generation find each other: over the ring, or with NCCL where all of them can.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use relabel_core::{Formation, FromWorker, Generation, Rank};
use tch::Device;

use super::Trainer;
use crate::collective::nccl::{self, Nccl};
use crate::collective::tcp::{Membership, Ring, Timeouts};
use crate::collective::{AbortHandle, Collective, CollectiveError, Solo};

/// So many times `cluster.ring_timeout` may the ranks look for each other: one of them may be late.
const LATE: f64 = 2.5;
/// The same for NCCL, which also looks over the GPUs, links and networks of all hosts when it forms.
const NCCL_LATE: f64 = 15.0;

impl Trainer<'_> {
    /// Takes this rank's place in the ring, or says why it cannot, and which rank is to blame.
    pub(super) fn join(
        &self,
        formation: &Formation,
        abort: AbortHandle,
    ) -> Result<Box<dyn Collective>, (String, Option<Rank>)> {
        let Formation { generation, rank, world, previous, next, token, .. } = formation;
        if *world == 1 {
            return Ok(Box::new(Solo::new(abort)));
        }
        if formation.nccl {
            return self.join_nccl(formation, abort);
        }
        let resolved = |peer| resolved(peer).map_err(|reason| (reason, None));
        let membership = Membership {
            rank: rank.0,
            world: *world,
            previous: resolved(previous)?,
            next: resolved(next)?,
            generation: generation.0,
            token: token.0,
            region: self.learner.region().cloned(),
        };
        let peer = self.setup.config.cluster.ring_timeout;
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
        let timeouts = Timeouts { form: seconds(LATE * peer), peer: seconds(peer), ..Timeouts::default() };
        match Ring::connect(&self.setup.listener, &membership, timeouts, abort) {
            Ok(ring) => Ok(Box::new(ring)),
            Err(error) => Err((error.to_string(), error.blamed().map(Rank))),
        }
    }

    /// The same with NCCL: rank 0 makes the id by which the others find it, and the coordinator passes it on.
    fn join_nccl(
        &self,
        formation: &Formation,
        abort: AbortHandle,
    ) -> Result<Box<dyn Collective>, (String, Option<Rank>)> {
        let Formation { generation, rank, world, .. } = *formation;
        let said = |error: &dyn std::fmt::Display| (error.to_string(), None);
        let Device::Cuda(gpu) = self.setup.device else {
            return Err(said(&"it was to sum with NCCL, and has no GPU"));
        };
        let seconds = self.setup.config.cluster.ring_timeout;
        let form = Duration::try_from_secs_f64(NCCL_LATE * seconds).unwrap_or(Duration::MAX);
        let id = match rank {
            Rank(0) => {
                let id = nccl::unique_id().map_err(|error| said(&error))?;
                self.session.reports().send(FromWorker::NcclId { generation, id: id.to_vec() });
                id
            }
            _ => self.await_nccl_id(generation, form, &abort).map_err(|error| said(&error))?,
        };
        let place = nccl::Place { rank: rank.0, world, gpu: gpu as u32 };
        let patience = nccl::Patience { form, silence: Timeouts::default().silence.unwrap_or(Duration::MAX) };
        let formed = Nccl::form(place, &id, patience, abort).map_err(|error| said(&error))?;
        Ok(Box::new(formed))
    }

    /// The id of NCCL that rank 0 has made for `generation`.
    fn await_nccl_id(
        &self,
        generation: Generation,
        patience: Duration,
        abort: &AbortHandle,
    ) -> Result<[u8; nccl::ID_BYTES], CollectiveError> {
        let began = Instant::now();
        loop {
            if let Some(id) = self.session.fence().nccl_id(generation) {
                let length = id.len();
                return id.try_into().map_err(|_| {
                    CollectiveError::Invalid(format!(
                        "an id of NCCL of {length} bytes in place of {}",
                        nccl::ID_BYTES
                    ))
                });
            }
            abort.check()?;
            if began.elapsed() > patience {
                let (rank, seconds) = (self.place.rank.0, patience.as_secs_f64());
                let missing = "rank 0 has sent no id of NCCL".into();
                return Err(CollectiveError::NotFormed { rank, seconds, missing, blamed: Some(0) });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The address behind a peer's `host:port`.
fn resolved(peer: &str) -> Result<SocketAddr, String> {
    let mut addresses =
        peer.to_socket_addrs().map_err(|error| format!("cannot resolve peer {peer}: {error}"))?;
    addresses.next().ok_or_else(|| format!("peer {peer} has no address"))
}
