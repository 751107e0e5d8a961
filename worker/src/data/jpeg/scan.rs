//! The entropy-coded part of a baseline JPEG: the bytes of its one scan, and in them, MCU after MCU, the blocks of its
//! components.

use super::huffman::{Bits, Block, Code, Coefficients, Symbols};

/// How a block of an MCU is coded.
pub(super) struct Part<'a> {
    /// Which component it is of, 0 to 3, and so from which block its first coefficient differs.
    pub component: usize,
    pub dc: &'a Code,
    pub ac: &'a Code,
    /// Whether more than the first coefficient is wanted.
    pub all: bool,
}

/// The tables of the image before, which most often are those of the next, and its scan's bytes.
#[derive(Default)]
pub(super) struct Huffman {
    dc: Vec<(Code, Symbols)>,
    ac: Vec<Coefficients>,
    data: Vec<u8>,
}

/// Tables that are kept: each of the four of either kind that an image may have, and as many of the image before.
const KEPT: usize = 8;

impl Huffman {
    /// Begins a scan of MCUs of `parts`, whose bytes `coded` begins with. None where these are not followed by the
    /// image's end.
    pub(super) fn scan(&mut self, coded: &[u8], parts: &[Part]) -> Option<Scan<'_>> {
        unstuff(coded, &mut self.data)?;
        if self.dc.len() > KEPT || self.ac.len() > KEPT {
            self.dc.clear();
            self.ac.clear();
        }
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            let dc = self.dc.iter().position(|(code, _)| code == part.dc).unwrap_or_else(|| {
                self.dc.push((part.dc.clone(), Symbols::new(part.dc)));
                self.dc.len() - 1
            });
            let ac = self.ac.iter().position(|table| table.code == *part.ac).unwrap_or_else(|| {
                self.ac.push(Coefficients::new(part.ac));
                self.ac.len() - 1
            });
            places.push((dc, ac));
        }
        let coding = |(part, (dc, ac)): (&Part, (usize, usize))| Coding {
            component: part.component & 3,
            dc: &self.dc[dc].1,
            ac: &self.ac[ac],
            all: part.all,
        };
        let blocks = parts.iter().zip(places).map(coding).collect();
        Some(Scan { bits: Bits::new(&self.data), blocks, before: [0; 4] })
    }
}

struct Coding<'a> {
    component: usize,
    dc: &'a Symbols,
    ac: &'a Coefficients,
    all: bool,
}

/// A scan that is being decoded, an MCU at a time.
pub(super) struct Scan<'a> {
    bits: Bits<'a>,
    blocks: Vec<Coding<'a>>,
    /// The first coefficient of each component's last block.
    before: [i32; 4],
}

impl Scan<'_> {
    /// Blocks of an MCU.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Decodes the next MCU into `mcu`, all zeros, or passes over it. None where it is damaged, or not there; then no
    /// more can be said of what follows.
    pub(super) fn next(&mut self, mut mcu: Option<&mut [Block]>) -> Option<()> {
        let mut bits = self.bits;
        for (number, Coding { component, dc, ac, all }) in self.blocks.iter().enumerate() {
            bits.refill()?;
            let size = u32::from(dc.read(&mut bits)?);
            let first = &mut self.before[*component];
            // Larger sizes are not for images of 8 bits, and refused by libjpeg.
            *first = first.wrapping_add(bits.value(size.min(15)));
            match mcu.as_mut().map(|mcu| &mut mcu[number]) {
                Some(block) => {
                    block[0] = *first as i16;
                    bits = if *all { ac.read(bits, block)? } else { ac.pass(bits)? };
                }
                None => bits = ac.pass(bits)?,
            }
        }
        self.bits = bits;
        (bits.taken() <= (bits.data.len() - BEYOND) * 8).then_some(())
    }
}

/// Zeros after a scan's bytes, so that the last can be looked at as any other: a window of them, and one to refill it.
const BEYOND: usize = 16;

/// The bytes that `coded` begins with, up to the image's end, without the zero that follows each 0xFF among them. None
/// where another marker comes first, or no end.
fn unstuff(coded: &[u8], data: &mut Vec<u8>) -> Option<()> {
    data.clear();
    data.reserve(coded.len() + BEYOND);
    let mut rest = coded;
    loop {
        let (plain, from) = rest.split_at(memchr::memchr(0xFF, rest)?);
        data.extend_from_slice(plain);
        match from.get(1)? {
            0x00 => data.push(0xFF),
            0xD9 => break,
            _ => return None,
        }
        rest = &from[2..];
    }
    data.extend_from_slice(&[0; BEYOND]);
    Some(())
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
