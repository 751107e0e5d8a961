//! Who is here: workers, their seats, and when each was last heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{Dataset, Hello, Position, Rank, WorkerId};

/// Most missing seats that are named one by one.
const NAMED: u32 = 8;

/// Why a worker is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error(
        "rank {rank} is outside this run's 0..{seats}: start the worker with a smaller --rank, or the coordinator with more --workers"
    )]
    RankOutside { rank: Rank, seats: u32 },
    #[error(
        "rank {rank} is taken by process {pid} on {host}: choose another --rank, or leave it out to get a free one"
    )]
    RankTaken { rank: Rank, host: String, pid: u32 },
    #[error("all {seats} seats of this run are taken: start the coordinator with more --workers")]
    Full { seats: u32 },
    #[error("this is run {here}, and the worker comes from run {theirs}: start it anew")]
    OtherRun { here: String, theirs: String },
    #[error("the run is over")]
    Over,
}

/// A seated worker.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Its seat.
    pub rank: Rank,
    pub hello: Hello,
    pub dataset: Option<Dataset>,
    /// The next step of the state that it holds, as far as it has said.
    pub held: Option<Position>,
    /// Its state is of the line that the newest generation goes on with: at the same position it is the same,
    /// bit for bit.
    pub in_line: bool,
    pub last_heard: Duration,
    /// It has come back from a generation that is over, and has been told so: until it has answered, nobody knows what
    /// it holds.
    pub unsettled: bool,
    /// Why it is to go, if it is.
    pub leaving: Option<String>,
    /// It has been told that it may go.
    pub released: bool,
    pub slow: bool,
}

/// The seated workers. What is asked for often costs no walk over all of them: there may be ten thousand.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    members: BTreeMap<WorkerId, Member>,
    taken: BTreeMap<Rank, WorkerId>,
    free: BTreeSet<Rank>,
    instances: BTreeMap<u64, WorkerId>,
    /// Members that have indexed their data.
    indexed: u32,
}

impl Membership {
    /// Nobody yet, on `seats` seats.
    pub fn new(seats: u32) -> Self {
        Self {
            members: BTreeMap::new(),
            taken: BTreeMap::new(),
            free: (0..seats).map(Rank).collect(),
            instances: BTreeMap::new(),
            indexed: 0,
        }
    }

    fn seats(&self) -> u32 {
        (self.taken.len() + self.free.len()) as u32
    }

    /// Finds a seat for a newcomer, without seating it. One that comes back takes another where its own is taken.
    pub fn seat_for(&self, hello: &Hello) -> Result<Rank, Rejection> {
        let seats = self.seats();
        let first = self.free.first().copied().ok_or(Rejection::Full { seats });
        match hello.rank {
            Some(rank) if rank.0 >= seats => Err(Rejection::RankOutside { rank, seats }),
            Some(rank) => match self.taken.get(&rank).and_then(|holder| self.members.get(holder)) {
                Some(_) if hello.standing.is_some() => first,
                Some(holder) => {
                    Err(Rejection::RankTaken { rank, host: holder.hello.host.clone(), pid: holder.hello.pid })
                }
                None => Ok(rank),
            },
            None => first,
        }
    }

    /// The worker that an earlier stream of the same process stands for.
    pub fn of_instance(&self, instance: u64) -> Option<WorkerId> {
        self.instances.get(&instance).copied()
    }

    pub fn insert(&mut self, worker: WorkerId, member: Member) {
        self.free.remove(&member.rank);
        self.taken.insert(member.rank, worker);
        self.instances.insert(member.hello.instance, worker);
        self.indexed += u32::from(member.dataset.is_some());
        self.members.insert(worker, member);
    }

    /// Notes what a member sees of the data set.
    pub fn indexed(&mut self, worker: WorkerId, dataset: Dataset) {
        if let Some(member) = self.members.get_mut(&worker) {
            self.indexed += u32::from(member.dataset.replace(dataset).is_none());
        }
    }

    /// How many have indexed their data.
    pub fn count_indexed(&self) -> u32 {
        self.indexed
    }

    pub fn remove(&mut self, worker: WorkerId) -> Option<Member> {
        let member = self.members.remove(&worker)?;
        self.taken.remove(&member.rank);
        self.free.insert(member.rank);
        self.instances.remove(&member.hello.instance);
        self.indexed -= u32::from(member.dataset.is_some());
        Some(member)
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

    /// The members in the order of their seats.
    pub fn by_rank(&self) -> impl Iterator<Item = (WorkerId, &Member)> {
        self.by_rank_from(Rank(0))
    }

    /// Those on seat `first` and above, in their order.
    pub fn by_rank_from(&self, first: Rank) -> impl Iterator<Item = (WorkerId, &Member)> {
        self.taken.range(first..).filter_map(|(_, id)| Some((*id, self.members.get(id)?)))
    }

    /// Seats of `0..workers` that nobody holds, as words: `rank 1` or `ranks 1, 3`.
    pub fn missing(&self, workers: u32) -> Option<String> {
        let free: Vec<_> = self.free.range(..Rank(workers)).take(NAMED as usize + 1).collect();
        let words = free.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match free.len() as u32 {
            0 => None,
            1 => Some(format!("rank {words}")),
            n if n > NAMED => Some(format!("{} of {workers} workers", workers.saturating_sub(self.len()))),
            _ => Some(format!("ranks {words}")),
        }
    }
}

impl Member {
    /// It has indexed its data, and is to stay.
    pub fn is_ready(&self) -> bool {
        self.dataset.is_some() && self.leaving.is_none() && !self.unsettled
    }

    /// `worker 1 (process 4711 on node7)`, for sentences.
    pub fn describe(&self) -> String {
        format!("worker {} (process {} on {})", self.rank, self.hello.pid, self.hello.host)
    }
}
