#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::data::jpeg::huffman::ZIGZAG;

/// A table of these numbers of codes of each length, for symbols in this order.
fn code(lengths: [u8; 16], symbols: impl Iterator<Item = u8>) -> Code {
    let mut code = Code { lengths: [0; 17], symbols: [0; 256] };
    code.lengths[1..].copy_from_slice(&lengths);
    code.symbols.iter_mut().zip(symbols).for_each(|(place, symbol)| *place = symbol);
    code
}

/// For first coefficients: sizes 0 to 11, in the lengths of the standard's table for luminance.
fn dc() -> Code {
    code([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 0..12)
}

/// For the others: the end, 16 zeros, and each run with each size from 1 to 10, from small to large, in the lengths of
/// the standard's table for luminance, half of which are 16 bits.
fn ac() -> Code {
    let mut symbols: Vec<u8> = (0..16).flat_map(|run| (1..11).map(move |size| run << 4 | size)).collect();
    symbols.sort_by_key(|symbol| (symbol >> 4) + (symbol & 15));
    let all = [0x01, 0x00].into_iter().chain(symbols.into_iter().skip(1)).chain([0xF0]);
    code([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], all)
}

/// What an encoder writes: bits, with a zero after each 0xFF.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    bits: u64,
    count: u32,
}

impl Writer {
    fn put(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.bits = self.bits << 1 | u64::from(value >> bit & 1);
            self.count += 1;
            if self.count == 8 {
                self.bytes.push(self.bits as u8);
                if self.bits as u8 == 0xFF {
                    self.bytes.push(0);
                }
                (self.bits, self.count) = (0, 0);
            }
        }
    }

    fn symbol(&mut self, code: &Code, symbol: u8) {
        let (mut next, mut place) = (0, 0);
        for length in 1..17 {
            for _ in 0..code.lengths[length] {
                if code.symbols[place] == symbol {
                    return self.put(next, length as u32);
                }
                (next, place) = (next + 1, place + 1);
            }
            next <<= 1;
        }
        panic!("no code for {symbol:#x}");
    }

    fn value(&mut self, value: i32, size: u32) {
        self.put(if value < 0 { value + (1 << size) - 1 } else { value } as u32, size);
    }

    /// A block whose first coefficient differs by `difference` from the one before.
    fn block(&mut self, difference: i32, block: &Block) {
        let size = |value: i32| 32 - value.abs().leading_zeros();
        self.symbol(&dc(), size(difference) as u8);
        self.value(difference, size(difference));
        let mut run = 0;
        for place in ZIGZAG.iter().skip(1) {
            let value = i32::from(block[usize::from(*place)]);
            if value == 0 {
                run += 1;
                continue;
            }
            for _ in 0..run / 16 {
                self.symbol(&ac(), 0xF0);
            }
            self.symbol(&ac(), (run % 16) << 4 | size(value) as u8);
            self.value(value, size(value));
            run = 0;
        }
        if run > 0 {
            self.symbol(&ac(), 0x00);
        }
    }

    /// Up to the image's end.
    fn end(mut self) -> Vec<u8> {
        while self.count > 0 {
            self.put(1, 1);
        }
        self.bytes.extend([0xFF, 0xD9]);
        self.bytes
    }
}

/// Blocks of every kind: with one coefficient of 20 or all of them, small or large, up to the last place or not.
fn blocks(count: usize) -> Vec<Block> {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut one = |number: usize| {
        let mut block = [0; 64];
        let (often, most) = ([0.05, 0.3, 0.7, 1.0][number % 4], [1, 3, 40, 1023][number / 4 % 4]);
        for place in &mut block {
            if random.random_bool(often) {
                *place = random.random_range(-most..=most);
            }
        }
        if number.is_multiple_of(5) {
            block[63] = most;
        }
        block
    };
    (0..count).map(&mut one).collect()
}

/// MCUs of one component's two blocks and another's one.
fn parts<'a>(dc: &'a Code, ac: &'a Code) -> [Part<'a>; 3] {
    [0, 0, 1].map(|component| Part { component, dc, ac, all: true })
}

fn encoded(blocks: &[Block]) -> Vec<u8> {
    let (mut writer, mut before) = (Writer::default(), [0; 2]);
    for (number, block) in blocks.iter().enumerate() {
        let before = &mut before[usize::from(number % 3 == 2)];
        writer.block(i32::from(block[0]) - *before, block);
        *before = block[0].into();
    }
    writer.end()
}

#[test]
fn coefficients_are_those_that_were_encoded_and_what_is_passed_over_changes_nothing() {
    let (dc, ac) = (dc(), ac());
    let blocks = blocks(3 * 400);
    let coded = encoded(&blocks);
    let mut huffman = Huffman::default();
    let passes: [fn(usize) -> bool; 3] = [|_| false, |mcu| mcu % 3 == 1, |mcu| mcu != 399];
    for pass in passes {
        let mut scan = huffman.scan(&coded, &parts(&dc, &ac)).unwrap();
        for (number, expected) in blocks.chunks(3).enumerate() {
            let mut mcu = [[0; 64]; 3];
            let wanted = !pass(number);
            scan.next(wanted.then_some(&mut mcu[..])).unwrap();
            assert!(!wanted || mcu[..] == *expected, "MCU {number}");
        }
        assert!(scan.next(None).is_none(), "nothing is left");
    }
}

#[test]
fn first_coefficients_alone_can_be_had() {
    let (dc, ac) = (dc(), ac());
    let blocks = blocks(3 * 50);
    let coded = encoded(&blocks);
    let mut huffman = Huffman::default();
    let mut scan = huffman.scan(&coded, &parts(&dc, &ac).map(|part| Part { all: false, ..part })).unwrap();
    for expected in blocks.chunks(3) {
        let mut mcu = [[0; 64]; 3];
        scan.next(Some(&mut mcu)).unwrap();
        for (block, expected) in mcu.iter().zip(expected) {
            assert_eq!((block[0], &block[1..]), (expected[0], &[0; 63][..]));
        }
    }
}

#[test]
fn data_that_ends_too_early_is_noticed() {
    let (dc, ac) = (dc(), ac());
    let blocks = blocks(3 * 20);
    let coded = encoded(&blocks);
    let mut huffman = Huffman::default();
    for length in 0..coded.len() - 2 {
        // The zero that belongs to a byte before it.
        if length > 0 && coded[length - 1] == 0xFF {
            continue;
        }
        let cut = [&coded[..length], &[0xFF, 0xD9]].concat();
        let mut scan = huffman.scan(&cut, &parts(&dc, &ac)).unwrap();
        let whole = (0..20).take_while(|_| scan.next(None).is_some()).count();
        assert!(whole < 20, "{length} of {} bytes", coded.len());
    }
}

#[test]
fn what_an_intact_scan_does_not_have_is_refused() {
    let (dc, ac) = (dc(), ac());
    let mut huffman = Huffman::default();
    let mut decode = |writer: Writer| {
        let coded = writer.end();
        let mut scan = huffman.scan(&coded, &parts(&dc, &ac)[..1]).unwrap();
        [scan.next(Some(&mut [[0; 64]])), scan.next(None)].map(|decoded| decoded.is_some())
    };
    let block = |symbols: &[u8]| {
        let mut writer = Writer::default();
        writer.symbol(&dc, 0);
        for symbol in symbols {
            writer.symbol(&ac, *symbol);
            writer.value(1, u32::from(symbol & 15));
        }
        writer
    };
    assert_eq!(decode(block(&[0x01, 0x00])), [true, false]);
    // A run beyond the block: of a coefficient and of zeros, in one look and after several.
    for run in [[0xF0, 0xF0, 0xF0, 0xF1], [0xF0, 0xF0, 0xF0, 0xF0], [0xF0, 0xF0, 0xF1, 0xF1]] {
        assert_eq!(decode(block(&run)), [false; 2], "{run:?}");
    }
    let mut full = block(&[0x01; 62]);
    full.symbol(&ac, 0x11);
    full.value(1, 1);
    assert_eq!(decode(full), [false; 2]);
    // The same with the end's mark in the same look.
    let mut beyond = block(&[0xF0, 0xF0, 0xF0, 0xF0 | 1]);
    beyond.symbol(&ac, 0x00);
    assert_eq!(decode(beyond), [false; 2]);
    let mut beyond = block(&[0x01; 62]);
    beyond.symbol(&ac, 0x11);
    beyond.value(1, 1);
    beyond.symbol(&ac, 0x00);
    assert_eq!(decode(beyond), [false; 2]);
    // 16 ones are no code.
    let mut none = block(&[0x01]);
    none.put(0xFFFF, 16);
    assert!(!decode(none)[0]);
    // Other markers than the end, and no end.
    for bytes in [&[1, 0xFF, 0xD0, 2, 0xFF, 0xD9][..], &[1, 0xFF, 0xFF, 0xD9], &[1, 2, 3], &[1, 0xFF], &[]] {
        assert!(huffman.scan(bytes, &parts(&dc, &ac)).is_none(), "{bytes:?}");
    }
}

#[test]
fn tables_of_one_image_are_not_those_of_the_next() {
    let mut huffman = Huffman::default();
    let ac = ac();
    for number in 0..40 {
        // The symbols of the sizes 0 and 1, changed with each other every other time.
        let mut dc = dc();
        dc.symbols.swap(0, number % 2);
        let mut writer = Writer::default();
        writer.symbol(&dc, 1);
        writer.value(-1, 1);
        writer.symbol(&ac, 0x00);
        let coded = writer.end();
        // Another table each time, which nothing is coded with.
        let mut unused = ac.clone();
        unused.symbols[200] = number as u8;
        let parts = [&ac, &unused].map(|ac| Part { component: 0, dc: &dc, ac, all: true });
        let mut scan = huffman.scan(&coded, &parts[..1]).unwrap();
        let mut mcu = [[0; 64]];
        scan.next(Some(&mut mcu)).unwrap();
        assert_eq!(mcu[0][0], -1);
        assert!(huffman.scan(&coded, &parts).is_some());
        assert!(huffman.ac.len() <= KEPT + 4 && huffman.dc.len() <= KEPT + 4);
    }
}
