//! Who is here: workers, their seats, and when each was last heard of.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Dataset, Hello, Position, Rank, WorkerId};

/// Why a worker is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error(
        "rank {rank} is outside this run's 0..{world}: start the worker with a smaller --rank, or the coordinator with more --workers"
    )]
    RankOutside { rank: Rank, world: u32 },
    #[error(
        "rank {rank} is taken by process {pid} on {host}: choose another --rank, or leave it out to get a free one"
    )]
    RankTaken { rank: Rank, host: String, pid: u32 },
    #[error("all {world} seats of this run are taken: start the coordinator with more --workers")]
    Full { world: u32 },
    #[error("the run is over")]
    Over,
}

/// What a member is known to hold of the training state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    /// It has not trained in this run.
    Nothing,
    /// It has been told to leave its generation and has not yet said where it stands.
    Asked,
    /// It has done all steps before this position.
    At(Position),
}

/// A seated worker.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub rank: Rank,
    pub hello: Hello,
    pub dataset: Option<Dataset>,
    pub holding: Holding,
    pub last_heard: Duration,
}

/// The seated workers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Membership {
    members: BTreeMap<WorkerId, Member>,
}

impl Membership {
    /// Finds a seat for a newcomer, without seating it.
    pub fn seat_for(&self, hello: &Hello, world: u32) -> Result<Rank, Rejection> {
        match hello.rank {
            Some(rank) if rank.0 >= world => Err(Rejection::RankOutside { rank, world }),
            Some(rank) => match self.members.values().find(|m| m.rank == rank) {
                Some(holder) => {
                    Err(Rejection::RankTaken { rank, host: holder.hello.host.clone(), pid: holder.hello.pid })
                }
                None => Ok(rank),
            },
            None => (0..world)
                .map(Rank)
                .find(|rank| self.members.values().all(|m| m.rank != *rank))
                .ok_or(Rejection::Full { world }),
        }
    }

    pub fn insert(&mut self, worker: WorkerId, member: Member) {
        self.members.insert(worker, member);
    }

    pub fn remove(&mut self, worker: WorkerId) -> Option<Member> {
        self.members.remove(&worker)
    }

    pub fn get(&self, worker: WorkerId) -> Option<&Member> {
        self.members.get(&worker)
    }

    pub fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Member> {
        self.members.get_mut(&worker)
    }

    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut Member)> {
        self.members.iter_mut().map(|(id, member)| (*id, member))
    }

    pub fn ids(&self) -> Vec<WorkerId> {
        self.members.keys().copied().collect()
    }

    pub fn len(&self) -> u32 {
        self.members.len() as u32
    }

    /// The members in the order of their ranks.
    pub fn by_rank(&self) -> Vec<(WorkerId, &Member)> {
        let mut seats: Vec<_> = self.iter().collect();
        seats.sort_by_key(|(_, member)| member.rank);
        seats
    }

    /// Ranks of `0..world` that nobody holds, as words: `rank 1` or `ranks 1, 3`.
    pub fn missing(&self, world: u32) -> Option<String> {
        let free: Vec<String> = (0..world)
            .filter(|rank| self.members.values().all(|m| m.rank.0 != *rank))
            .map(|rank| rank.to_string())
            .collect();
        match free.len() {
            0 => None,
            1 => Some(format!("rank {}", free[0])),
            n if n > 8 => Some(format!("{n} of {world} workers")),
            _ => Some(format!("ranks {}", free.join(", "))),
        }
    }
}

impl Member {
    /// `worker 1 (process 4711 on node7)`, for sentences.
    pub fn describe(&self) -> String {
        format!("worker {} (process {} on {})", self.rank, self.hello.pid, self.hello.host)
    }
}
