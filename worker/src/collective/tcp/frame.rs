//! The header before each step's bytes, by which two ranks notice that they are not doing the same thing.
//!
//! Integers and floats are little-endian on the wire; floats go as they lie in memory.

use std::fmt;

#[cfg(target_endian = "big")]
compile_error!("the ring sends floats as they lie in memory, which has to be little-endian");

/// Length of an encoded [`Header`].
pub const HEADER_BYTES: usize = 32;

const MARK: [u8; 4] = *b"RLF3";

/// Which operation a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    AllReduce,
    /// With bfloat16 on the wire.
    AllReduceBf16,
    Broadcast,
    AllGather,
}

impl Op {
    pub(super) fn code(self) -> u8 {
        match self {
            Op::AllReduce => 1,
            Op::Broadcast => 2,
            Op::AllGather => 3,
            Op::AllReduceBf16 => 4,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        let all = [Op::AllReduce, Op::Broadcast, Op::AllGather, Op::AllReduceBf16];
        all.into_iter().find(|op| op.code() == code)
    }

    /// Whether what ranks have is added up.
    pub(super) fn adds(self) -> bool {
        matches!(self, Op::AllReduce | Op::AllReduceBf16)
    }

    /// Bytes of one element on the wire.
    pub(super) fn unit(self) -> usize {
        match self {
            Op::AllReduce => size_of::<f32>(),
            Op::AllReduceBf16 => size_of::<u16>(),
            Op::Broadcast | Op::AllGather => 1,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::AllReduce => "all-reduce",
            Op::AllReduceBf16 => "all-reduce in bfloat16",
            Op::Broadcast => "broadcast",
            Op::AllGather => "all-gather",
        })
    }
}

/// What the bytes that follow are. The receiver knows every field beforehand and accepts nothing else;
/// the number of bytes follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub op: Op,
    /// Step of the operation's schedule.
    pub step: u16,
    pub generation: u64,
    /// Operations that this ring had done before this one.
    pub sequence: u64,
    /// Bytes of the whole buffer, which also fixes how it is cut.
    pub total: u64,
}

impl Header {
    /// As it goes over the wire.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MARK);
        bytes[4] = self.op.code();
        bytes[6..8].copy_from_slice(&self.step.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    /// The header in `bytes`, or none where they are not one.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let [m0, m1, m2, m3, op, 0, s0, s1, rest @ ..] = *bytes else { return None };
        if [m0, m1, m2, m3] != MARK {
            return None;
        }
        let word = |i: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&rest[8 * i..8 * i + 8]);
            u64::from_le_bytes(le)
        };
        Some(Self {
            op: Op::from_code(op)?,
            step: u16::from_le_bytes([s0, s1]),
            generation: word(0),
            sequence: word(1),
            total: word(2),
        })
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, step, generation, sequence, total } = self;
        write!(f, "step {step} of {op} {sequence} of {total} bytes in generation {generation}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire_and_damage_is_seen() {
        let header =
            Header { op: Op::AllGather, step: 513, generation: 7, sequence: u64::MAX, total: 1 << 40 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for i in 0..HEADER_BYTES {
            let mut damaged = bytes;
            damaged[i] ^= 0x40;
            assert_ne!(Header::decode(&damaged), Some(header), "byte {i}");
        }
    }
}
