//! Ranks that are all on one host: each reads what the others have where it lies, and the ring between them only says
//! when it may. Every rank adds up one segment, straight from all the others' memories, and then copies the segments
//! that they have added up: no partial sum is written down, no byte is copied twice, and no packet is made of it.
//!
//! Whether it is so the ranks try out when the ring forms: each tells the others where its [`Region`] is. What is not in
//! it, or is short, goes round the ring as it does between hosts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::frame::Op;
use super::handshake::Member;
use super::{Ring, transfer};
use crate::collective::region::{OFFER_BYTES, Peer, Region};
use crate::collective::{CollectiveError, bf16};

/// Fewer bytes go round the ring: they are there before the ranks have told each other where theirs lie.
const LEAST_BYTES: usize = 256 << 10;

/// Most ranks that try: beyond that they are hardly on one host, and it would take long to say so.
const MOST_RANKS: u32 = 256;

/// Values that are added up at a time, so that the sums stay in the cache.
const BLOCK: usize = 16 << 10;

/// Most values that are copied before the next look at the abort handle.
const COPY: usize = 1 << 20;

/// The memories of a host's ranks.
pub(super) struct Host {
    own: Arc<Region>,
    /// By rank, this one included.
    peers: Vec<Peer>,
    /// Where in them the ranks' values lie, in the operation that is under way.
    places: Vec<Place>,
    /// Sums of a block.
    sums: Vec<f32>,
}

/// Where a rank's values lie in its region, and what is to be done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Place {
    offset: u64,
    length: u64,
    op: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u8::try_from(self.op).ok().and_then(Op::from_code) {
            Some(op) => write!(f, "{op} of {} bytes at {} of its memory", self.length, self.offset),
            None => f.write_str("something unknown"),
        }
    }
}

/// The host of all ranks, if there is one. The same on all ranks, of which each has a region or none has.
///
/// # Errors
/// A neighbour is gone or silent; `Aborted`.
pub(super) fn try_out(ring: &mut Ring, own: Arc<Region>) -> Result<Option<Host>, CollectiveError> {
    let Member { rank, world, .. } = ring.member;
    if world > MOST_RANKS {
        return Ok(None);
    }
    let mut offers = vec![[0; OFFER_BYTES]; world as usize];
    offers[rank as usize] = own.offer();
    go_round(ring, offers.as_flattened_mut())?;
    // Why one is not there is the kernel's business: the values go round the ring then.
    let peers: Option<Vec<_>> = offers.iter().map(|offer| Peer::open(offer).ok()).collect();
    let mut found = vec![0; world as usize];
    found[rank as usize] = u8::from(peers.is_some());
    go_round(ring, &mut found)?;
    let peers = peers.filter(|_| found.iter().all(|found| *found == 1));
    Ok(peers.map(|peers| Host { own, peers, places: Vec::new(), sums: vec![0.0; BLOCK] }))
}

impl Host {
    /// Whether `values` are to be added up here.
    pub(super) fn has(&self, values: &[f32]) -> bool {
        size_of_val(values) >= LEAST_BYTES && self.own.offset_of(bytemuck::cast_slice(values)).is_some()
    }

    /// What [`Op::AllReduce`] and [`Op::AllReduceBf16`] do round the ring, with the same result bit for bit.
    pub(super) fn all_reduce(
        &mut self,
        ring: &mut Ring,
        op: Op,
        values: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let Member { rank, world, .. } = ring.member;
        let schedule = ring.schedule(op, 0, op.unit() * values.len());
        let segment = |of: u32| {
            let bytes = schedule.finished_by(of);
            bytes.start / op.unit()..bytes.end / op.unit()
        };
        self.meet(ring, op, values)?;
        for start in segment(rank).step_by(BLOCK) {
            ring.abort.check()?;
            self.add_up(ring.member, op, start..segment(rank).end.min(start + BLOCK), values);
        }
        // All are through: what they have added up is there, and what it was made of may be overwritten.
        self.meet(ring, op, values)?;
        for other in (rank + 1..world).chain(0..rank) {
            for start in segment(other).step_by(COPY) {
                ring.abort.check()?;
                let part = start..segment(other).end.min(start + COPY);
                values[part.clone()].copy_from_slice(self.values(other, part));
            }
        }
        // Nobody's sums may go before all have copied them.
        self.meet(ring, op, values)
    }

    /// Makes `values[part]` the sums of what all ranks have there, in the order in which they would have come round.
    fn add_up(&mut self, member: Member, op: Op, part: Range<usize>, values: &mut [f32]) {
        let Member { rank, world, .. } = member;
        let mut sums = std::mem::take(&mut self.sums);
        let (partial, values) = (&mut sums[..part.len()], &mut values[part.clone()]);
        let rounded = |sum: f32| bf16::widen(bf16::round(sum));
        partial.copy_from_slice(self.values((rank + 1) % world, part.clone()));
        for other in (rank + 2..rank + world).map(|other| other % world) {
            let terms = self.values(other, part.clone());
            match op {
                // As they would have been sent.
                Op::AllReduceBf16 => partial.iter_mut().zip(terms).for_each(|(s, t)| *s = rounded(*s) + t),
                _ => transfer::add(partial, terms),
            }
        }
        match op {
            Op::AllReduceBf16 => {
                values.iter_mut().zip(&*partial).for_each(|(v, s)| *v = rounded(*v + rounded(*s)));
            }
            _ => transfer::add(values, partial),
        }
        self.sums = sums;
    }

    /// Those of rank `other`, which has met the others with them.
    #[allow(unsafe_code)]
    fn values(&self, other: u32, part: Range<usize>) -> &[f32] {
        let offset = self.places[other as usize].offset as usize + size_of::<f32>() * part.start;
        // SAFETY: when they met each was seen to have its values, of the same number. From one meeting to the next a
        // rank writes only the segment that it adds up, which nobody reads then, and after that all but that one. One
        // that has failed may write anywhere: what was read of it is any float, and the next meeting fails, so that
        // nobody uses it.
        unsafe { self.peers[other as usize].floats(offset, part.len()) }
    }

    /// Waits for all ranks, which come with as many values for the same purpose.
    fn meet(&mut self, ring: &mut Ring, op: Op, values: &[f32]) -> Result<(), CollectiveError> {
        let Member { rank, world, .. } = ring.member;
        let offset = self.own.offset_of(bytemuck::cast_slice(values)).unwrap_or(usize::MAX) as u64;
        let own = Place { offset, length: size_of_val(values) as u64, op: u64::from(op.code()) };
        self.places.clear();
        self.places.resize(world as usize, own);
        go_round(ring, bytemuck::cast_slice_mut(&mut self.places))?;
        let differs = |of: u32| {
            let place = self.places[of as usize];
            Place { offset, ..place } != own || !self.peers[of as usize].has(place.offset, place.length)
        };
        let prev = (rank + world - 1) % world;
        if !differs(prev) && (0..world).any(differs) {
            // The rank that comes after one that differs is gone, or goes: this waits for that.
            go_round(ring, &mut vec![0; world as usize])?;
        }
        match (0..world).any(differs) {
            true => {
                let found = self.places[prev as usize].to_string();
                Err(transfer::out_of_step(&ring.prev, &own.to_string(), &found))
            }
            false => Ok(()),
        }
    }
}

/// An all-gather round the ring.
fn go_round(ring: &mut Ring, slots: &mut [u8]) -> Result<(), CollectiveError> {
    let schedule = ring.schedule(Op::AllGather, 0, slots.len());
    ring.transfer(schedule, slots, None)
}
