//! The Huffman codes of a baseline JPEG and the values behind them (ITU-T T.81, annex F.2), to the coefficients of a
//! block: two at a time where both lie in the next [`LOOK`] bits, and more where they are only to be passed over. Gives
//! up at whatever an intact file would not have. Which blocks come in which order is [`scan`](super::scan)'s.

/// Quantized coefficients of 8 x 8 samples, row after row.
pub(super) type Block = [i16; 64];

/// Bits that are looked at at once. One more doubles the tables, which then leave the processor's nearest cache.
const LOOK: u32 = 11;

/// How often, before the window has to be filled again.
const LOOKS: u32 = 3;

/// Most bits that are used up at a look.
const MOST: u32 = 56 / LOOKS;

/// A Huffman table, as a file defines it and libjpeg keeps it.
#[repr(C)]
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Code {
    /// How many codes there are of 0 (none) to 16 bits.
    pub lengths: [u8; 17],
    /// What they stand for, from the shortest on.
    pub symbols: [u8; 256],
}

/// Places in a block in the order in which they are coded.
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The bytes of a scan, and the bits of them that come next. Passed on by value, to stay in registers.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    pub data: &'a [u8],
    /// The first byte of which not all bits are in `window`.
    at: usize,
    /// The next bits, from the highest on.
    window: u64,
    /// How many of them count.
    count: u32,
}

impl<'a> Bits<'a> {
    /// All of `data`.
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, window: 0, count: 0 }
    }

    /// Has 56 bits or more in the window. None where the data is at its end, and what was appended to it.
    #[inline(always)]
    pub(super) fn refill(&mut self) -> Option<()> {
        let next = self.data.get(self.at..)?.first_chunk()?;
        self.window |= u64::from_be_bytes(*next) >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
        Some(())
    }

    #[inline(always)]
    fn peek(&self) -> usize {
        (self.window >> (64 - LOOK)) as usize
    }

    #[inline(always)]
    fn drop(&mut self, bits: u32) {
        self.window <<= bits;
        self.count -= bits;
    }

    /// The value of `size` bits, 0 to 15: what begins with a 0 is negative.
    #[inline(always)]
    pub(super) fn value(&mut self, size: u32) -> i32 {
        let value = signed(self.window, size);
        self.drop(size);
        value
    }

    /// Bits that are no longer to come.
    #[inline(always)]
    pub(super) fn taken(&self) -> usize {
        self.at * 8 - self.count as usize
    }
}

/// What the first `size` bits of `window` mean, as [`Bits::value`]. Without a branch, which nobody could foresee.
#[inline(always)]
fn signed(window: u64, size: u32) -> i32 {
    let bits = (window >> 1 >> (63 - size)) as i32;
    let negative = (window >> 63) as i32 - 1;
    bits + (negative & (1 - (1 << size)))
}

/// The codes of one table.
pub(super) struct Symbols {
    /// By the next bits: length and symbol of the code that they begin with, 0 for a longer one.
    short: Box<[(u8, u8); 1 << LOOK]>,
    /// By a code's length: the first 16 bits that are too much for it.
    limits: [u32; 17],
    /// By a code's length: what is to be added to a code, for its place among the symbols.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

impl Symbols {
    pub(super) fn new(code: &Code) -> Self {
        let mut short = Box::new([(0, 0); 1 << LOOK]);
        let (mut limits, mut offsets) = ([0; 17], [0; 17]);
        let (mut next, mut place) = (0_u32, 0_usize);
        for length in 1..17 {
            offsets[length] = place as i32 - next as i32;
            for _ in 0..code.lengths[length] {
                if length <= LOOK as usize {
                    let span = 1 << (LOOK as usize - length);
                    let first = next as usize * span;
                    // Longer than there is room for only where libjpeg has refused the table.
                    let entries = short.get_mut(first..first + span).unwrap_or_default();
                    entries.fill((length as u8, code.symbols[place & 255]));
                }
                (next, place) = (next + 1, place + 1);
            }
            limits[length] = next << (16 - length);
            next <<= 1;
        }
        Self { short, limits, offsets, symbols: code.symbols }
    }

    /// The next symbol. The window has 16 bits.
    #[inline(always)]
    pub(super) fn read(&self, bits: &mut Bits) -> Option<u8> {
        let (mut length, mut symbol) = self.short[bits.peek()];
        if length == 0 {
            (length, symbol) = self.long(bits.window)?;
        }
        bits.drop(length.into());
        Some(symbol)
    }

    /// Length and symbol of the code of more than [`LOOK`] bits that `window` begins with.
    #[cold]
    fn long(&self, window: u64) -> Option<(u8, u8)> {
        let next = (window >> 48) as u32;
        let length = (LOOK as usize + 1..17).find(|length| next < self.limits[*length])?;
        let place = (next >> (16 - length)) as i32 + self.offsets[length];
        Some((length as u8, self.symbols[(place & 255) as usize]))
    }
}

/// The coefficients that the next bits begin with: two, or one.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
struct Pair {
    /// Bits of both, 0 where there is none; and of the first alone.
    bits: u8,
    first_bits: u8,
    /// Places from the coefficient before to each; 0 for a second that is the first again, [`END`] for the block's end.
    steps: [u8; 2],
    /// The first's value, unless the second is the first again.
    value: i16,
    /// Where the second's value begins, and how many bits it has: they may lie beyond those that were looked at.
    second: u8,
    size: u8,
}

/// More places than a block has.
const END: u8 = 128;

impl Pair {
    /// The last of a block, by its mark or by its place: the first coefficient is at `first`, and for the second, if
    /// there is one, the block has no place. Does not ask which of them is the mark, which nobody could foresee.
    #[inline(always)]
    fn end<'a>(&self, mut bits: Bits<'a>, first: usize, block: &mut Block) -> Option<Bits<'a>> {
        // Where the first is the mark, a 0 where there is one.
        block[usize::from(ZIGZAG[first.min(63)] & 63)] = self.value;
        let marked = (self.steps[0] | self.steps[1]) >= END;
        // The first is a coefficient that the block has no place for.
        let damaged = (64..usize::from(END)).contains(&first);
        // At the last place the block ends without a mark, and the second is of the next block.
        bits.drop(if first == 63 { self.first_bits } else { self.bits }.into());
        (first == 63 || (marked && !damaged)).then_some(bits)
    }
}

/// How much can be passed over at once.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4))]
struct Leap {
    /// 0 for nothing.
    bits: u8,
    /// Places that have to be left in the block, for all of this to be part of it.
    places: u8,
    /// It ends the block.
    end: bool,
}

/// A table for the coefficients after a block's first.
pub(super) struct Coefficients {
    pub code: Code,
    symbols: Symbols,
    pairs: Box<[Pair; 1 << LOOK]>,
    leaps: Box<[Leap; 1 << LOOK]>,
}

/// A code and the value behind it.
struct Coded {
    /// Bits of the code.
    length: u32,
    /// Bits of the value.
    size: u32,
    /// As [`Pair::steps`].
    step: u8,
}

impl Coded {
    fn bits(&self) -> u32 {
        self.length + self.size
    }
}

impl Coefficients {
    pub(super) fn new(code: &Code) -> Self {
        let symbols = Symbols::new(code);
        let (mut pairs, mut leaps) =
            (Box::new([Pair::default(); 1 << LOOK]), Box::new([Leap::default(); 1 << LOOK]));
        for next in 0..1 << LOOK {
            let window = (next as u64) << (64 - LOOK);
            pairs[next] = pair(&symbols, window).unwrap_or_default();
            leaps[next] = leap(&symbols, window);
        }
        Self { code: code.clone(), symbols, pairs, leaps }
    }

    /// Decodes a block's coefficients but for the first into `block`, where they are 0.
    #[inline(always)]
    pub(super) fn read<'a>(&self, mut bits: Bits<'a>, block: &mut Block) -> Option<Bits<'a>> {
        let mut place = 0;
        'block: loop {
            bits.refill()?;
            for _ in 0..LOOKS {
                let pair = &self.pairs[bits.peek()];
                if pair.bits == 0 {
                    (bits, place) = self.read_one(bits, place, Some(block))?;
                    if place == 63 {
                        break 'block;
                    }
                    continue 'block;
                }
                let first = place + usize::from(pair.steps[0]);
                let second = first + usize::from(pair.steps[1]);
                if second > 63 {
                    return pair.end(bits, first, block);
                }
                block[usize::from(ZIGZAG[first & 63] & 63)] = pair.value;
                let value = signed(bits.window << pair.second, pair.size.into());
                block[usize::from(ZIGZAG[second & 63] & 63)] = value as i16;
                bits.drop(pair.bits.into());
                place = second;
                if place == 63 {
                    break 'block;
                }
            }
        }
        Some(bits)
    }

    /// Passes over a block's coefficients but for the first.
    #[inline(always)]
    pub(super) fn pass<'a>(&self, mut bits: Bits<'a>) -> Option<Bits<'a>> {
        let mut place = 0;
        'block: loop {
            bits.refill()?;
            for _ in 0..LOOKS {
                let leap = self.leaps[bits.peek()];
                let next = place + usize::from(leap.places);
                if leap.bits == 0 || next > 63 {
                    (bits, place) = self.read_one(bits, place, None)?;
                    if place == 63 {
                        break 'block;
                    }
                    continue 'block;
                }
                bits.drop(leap.bits.into());
                place = next;
                if leap.end || place == 63 {
                    break 'block;
                }
            }
        }
        Some(bits)
    }

    /// Decodes the coefficient after `place`, and says where it is: 63 at the end of the block. None beyond that.
    #[inline(never)]
    fn read_one<'a>(
        &self,
        mut bits: Bits<'a>,
        place: usize,
        block: Option<&mut Block>,
    ) -> Option<(Bits<'a>, usize)> {
        bits.refill()?;
        let symbol = self.symbols.read(&mut bits)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 && run < 15 {
            return Some((bits, 63));
        }
        let place = place + run + 1;
        let at = ZIGZAG.get(place)?;
        let value = bits.value(size);
        if let Some(block) = block {
            block[usize::from(*at)] = value as i16;
        }
        Some((bits, place))
    }
}

/// The code that `window` begins with, if all of it is among its first `left` bits, [`LOOK`] at most.
fn coded(symbols: &Symbols, window: u64, left: u32) -> Option<Coded> {
    let (length, symbol) = symbols.short[(window >> (64 - LOOK)) as usize];
    let (length, run, size) = (u32::from(length), symbol >> 4, u32::from(symbol & 15));
    let step = if size == 0 && run < 15 { END } else { run + 1 };
    (length > 0 && length <= left).then_some(Coded { length, size, step })
}

/// The coefficients that the first [`LOOK`] bits of `window` begin with.
fn pair(symbols: &Symbols, window: u64) -> Option<Pair> {
    let first = coded(symbols, window, LOOK).filter(|first| first.bits() <= MOST)?;
    let (bits, Coded { length, size, step }) = (first.bits(), first);
    let alone = Pair {
        bits: bits as u8,
        first_bits: bits as u8,
        steps: [step, 0],
        value: signed(window << length, size) as i16,
        second: length as u8,
        size: size as u8,
    };
    // A second only behind the whole of a first, for that one's value is looked up.
    let rest = if step == END { 0 } else { LOOK.saturating_sub(bits) };
    let second = coded(symbols, window << bits, rest).filter(|second| bits + second.bits() <= MOST);
    let Some(second) = second else { return Some(alone) };
    Some(Pair {
        bits: (bits + second.bits()) as u8,
        steps: [step, second.step],
        second: (bits + second.length) as u8,
        size: second.size as u8,
        ..alone
    })
}

/// All that the first [`LOOK`] bits of `window` say of one block.
fn leap(symbols: &Symbols, window: u64) -> Leap {
    let mut leap = Leap::default();
    while !leap.end {
        let taken = u32::from(leap.bits);
        let Some(next) = coded(symbols, window << taken, LOOK.saturating_sub(taken)) else { break };
        let end = next.step == END;
        let places = leap.places + if end { 1 } else { next.step };
        let bits = taken + next.bits();
        if places > 63 || bits > MOST {
            break;
        }
        leap = Leap { bits: bits as u8, places, end };
    }
    leap
}
