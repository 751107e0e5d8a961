//! Which bytes of the buffer go to the next rank, and which come from the previous one, in which step.
//!
//! With n ranks the buffer of an all-reduce is cut into n segments. In step k rank r sends segment r-k
//! and receives segment r-k-1 (mod n). In the first n-1 steps (reduce-scatter) what arrives is added, so
//! that each segment collects one rank's values after the other; in the last n-1 (all-gather) the
//! finished segments go round once more and are copied. What is received in step k is what is sent
//! in step k+1, so no step has to wait for another to end: the bytes stream.
//!
//! An all-gather is the second half alone. A broadcast is a chain from the root, one step a hop.

use std::ops::Range;

use super::frame::Op;

/// One rank's part in one operation. Steps are those of the header: a step that one rank sends is the
/// same step that the next rank receives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) op: Op,
    pub(super) rank: u32,
    pub(super) world: u32,
    /// Of a broadcast; 0 for the others.
    pub(super) root: u32,
    /// Length of the buffer in bytes; whole elements in an all-reduce, a multiple of `world` in an all-gather.
    pub(super) total: usize,
}

impl Schedule {
    /// Steps in which this rank sends. Step k needs what was received in step k-1, where it is received at all.
    pub(super) fn sends(&self) -> Range<u32> {
        match self.op {
            Op::AllReduce | Op::AllReduceBf16 => 0..2 * (self.world - 1),
            Op::AllGather => 0..self.world - 1,
            Op::Broadcast => self.hops()..(self.hops() + 1).min(self.world - 1),
        }
    }

    /// Steps in which this rank receives.
    pub(super) fn receives(&self) -> Range<u32> {
        match self.op {
            Op::AllReduce | Op::AllReduceBf16 | Op::AllGather => self.sends(),
            Op::Broadcast => self.hops().saturating_sub(1)..self.hops(),
        }
    }

    /// True where what is received in `step` is to be added, false where it is to be kept.
    pub(super) fn adds(&self, step: u32) -> bool {
        self.op.adds() && step < self.world - 1
    }

    /// The part of the buffer that is sent in `step`.
    pub(super) fn sent(&self, step: u32) -> Range<usize> {
        self.segment(self.rank + self.world - step % self.world)
    }

    /// The part of the buffer that is received in `step`.
    pub(super) fn received(&self, step: u32) -> Range<usize> {
        self.segment(self.rank + self.world - (step + 1) % self.world)
    }

    /// The part of the buffer whose last term is added by `rank`, in an all-reduce.
    pub(super) fn finished_by(&self, rank: u32) -> Range<usize> {
        Self { rank, ..*self }.received(self.world - 2)
    }

    /// Hops from the root to this rank.
    fn hops(&self) -> u32 {
        (self.rank + self.world - self.root) % self.world
    }

    /// Bytes of segment `index` modulo the world size.
    fn segment(&self, index: u32) -> Range<usize> {
        if self.op == Op::Broadcast {
            return 0..self.total;
        }
        let (index, world) = ((index % self.world) as usize, self.world as usize);
        let unit = self.op.unit();
        let elements = self.total / unit;
        // The first segments take one element more each until the remainder is used up.
        let start = |i: usize| unit * (i * (elements / world) + i.min(elements % world));
        start(index)..start(index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(op: Op, rank: u32, world: u32, root: u32, total: usize) -> Schedule {
        Schedule { op, rank, world, root, total }
    }

    #[test]
    fn what_a_rank_sends_the_next_one_expects_and_has_for_the_step_after() {
        for op in [Op::AllReduce, Op::AllReduceBf16, Op::AllGather, Op::Broadcast] {
            for world in 2..7 {
                for root in 0..if op == Op::Broadcast { world } else { 1 } {
                    for rank in 0..world {
                        let total = 4 * 3 * 5 * 7 * 11 * world as usize;
                        let me = schedule(op, rank, world, root, total);
                        let next = schedule(op, (rank + 1) % world, world, root, total);
                        assert!(me.sends().eq(next.receives()), "{op} {rank}/{world} from {root}");
                        for step in me.sends() {
                            assert_eq!(me.sent(step), next.received(step));
                            if next.sends().contains(&(step + 1)) {
                                assert_eq!(next.received(step), next.sent(step + 1));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn segments_cover_the_buffer_once_whatever_its_length() {
        for world in 2..7 {
            for elements in [0, 1, 2, 3, 7, 100] {
                let me = schedule(Op::AllReduce, 1, world, 0, 4 * elements);
                let mut end = 0;
                for index in 0..world {
                    let part = me.segment(index);
                    assert_eq!((part.start, part.start % 4), (end, 0));
                    end = part.end;
                }
                assert_eq!(end, 4 * elements);
            }
        }
    }
}
