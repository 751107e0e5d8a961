//! With AVX2, the same sums. Across, four pixels are made of 16 bytes, which a shuffle puts side by side as the
//! products want them; down, of two rows at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_storeu_si128, _mm256_add_epi32, _mm256_castsi256_si128, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_packs_epi32, _mm256_permute4x64_epi64, _mm256_set_epi64x, _mm256_set1_epi32,
    _mm256_shuffle_epi8, _mm256_srai_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi16,
};

use super::Taps;
use super::taps::{ACROSS, FRACTION, half};

/// Pixels that are made at once: of two times 16 bytes.
const PIXELS: usize = 8;

/// Bytes that four of them are made of.
const BYTES: usize = 16;

const _: () = assert!(super::BEYOND >= BYTES);

/// How rows are resized. Nothing where the processor cannot, or four pixels lie further apart.
#[derive(Debug, Default)]
pub(super) struct Shuffles {
    /// Where the bytes of each four pixels begin.
    begins: Vec<[usize; 2]>,
    /// For each eight pixels, of two samples of each after the other: their places in these bytes, and weights.
    pairs: Vec<Pair>,
    each: usize,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    places: __m256i,
    weights: __m256i,
}

impl Shuffles {
    pub(super) fn set(&mut self, taps: &Taps) {
        self.begins.clear();
        self.pairs.clear();
        self.each = taps.count.div_ceil(2);
        let near = |four: &[usize]| four[3] - four[0] + taps.count <= BYTES;
        if !is_x86_feature_detected!("avx2") || !taps.first.chunks_exact(4).all(near) {
            return;
        }
        let pixels = taps.first.chunks_exact(PIXELS).zip(taps.weights.chunks_exact(PIXELS * taps.count));
        for (first, weights) in pixels {
            self.begins.push([first[0], first[4]]);
            for pair in 0..self.each {
                let (mut places, mut factors) = ([0x80_u8; 32], [0_u8; 32]);
                for (pixel, of_pixel) in weights.chunks_exact(taps.count).enumerate() {
                    let begin = first[pixel & !3];
                    for (tap, weight) in of_pixel.iter().enumerate().skip(2 * pair).take(2) {
                        let word = 2 * pixel + tap % 2;
                        places[2 * word] = (first[pixel] - begin + tap) as u8;
                        factors[2 * word..][..2].copy_from_slice(&weight.to_le_bytes());
                    }
                }
                // SAFETY: the processor has AVX2, as was asked.
                let [places, weights] = unsafe { [register(&places), register(&factors)] };
                self.pairs.push(Pair { places, weights });
            }
        }
    }

    /// Makes the first pixels of `out`, in 64ths, of the `row`'s bytes. Returns how many.
    pub(super) fn apply(&self, row: &[u8], out: &mut [i16]) -> usize {
        if !self.begins.is_empty() {
            // SAFETY: there are some only where the processor has AVX2.
            unsafe {
                match self.each {
                    1 => self.apply_pairs::<1>(row, out),
                    2 => self.apply_pairs::<2>(row, out),
                    3 => self.apply_pairs::<3>(row, out),
                    _ => self.apply_all(row, out),
                }
            }
        }
        self.begins.len() * PIXELS
    }

    /// [`Self::apply_all`], for a number of pairs that is known.
    #[target_feature(enable = "avx2")]
    fn apply_pairs<const EACH: usize>(&self, row: &[u8], out: &mut [i16]) {
        let groups = self.begins.iter().zip(self.pairs.as_chunks::<EACH>().0);
        for ((begins, pairs), out) in groups.zip(out.as_chunks_mut().0) {
            eight(row, *begins, pairs, out);
        }
    }

    #[target_feature(enable = "avx2")]
    fn apply_all(&self, row: &[u8], out: &mut [i16]) {
        let groups = self.begins.iter().zip(self.pairs.chunks_exact(self.each));
        for ((begins, pairs), out) in groups.zip(out.as_chunks_mut().0) {
            eight(row, *begins, pairs, out);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn eight(row: &[u8], begins: [usize; 2], pairs: &[Pair], out: &mut [i16; PIXELS]) {
    let [low, high] = begins.map(|begin| halves(&row[begin..begin + BYTES]));
    let bytes = _mm256_set_epi64x(high[1], high[0], low[1], low[0]);
    let mut sums = _mm256_set1_epi32(half(ACROSS));
    for Pair { places, weights } in pairs {
        let samples = _mm256_shuffle_epi8(bytes, *places);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(samples, *weights));
    }
    let pixels = _mm256_srai_epi32::<{ ACROSS as i32 }>(sums);
    let words = _mm256_packs_epi32(pixels, pixels);
    let eight = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(words));
    // SAFETY: `out` has 8 words, which are 16 bytes, and need not be aligned.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast::<__m128i>(), eight) }
}

/// Most pairs of rows that are added up.
const ROWS: usize = 4;

/// Makes the first pixels of `out` of the rows that begin at `places`. Returns how many.
pub(super) fn add_up(rows: &[i16], places: &[usize], weights: &[i16], out: &mut [i16]) -> usize {
    if places.len() > 2 * ROWS || !is_x86_feature_detected!("avx2") {
        return 0;
    }
    // SAFETY: the processor has AVX2, as was asked.
    unsafe {
        match places.len() {
            ..=2 => add_up_pairs::<1>(rows, places, weights, out),
            3..=4 => add_up_pairs::<2>(rows, places, weights, out),
            5..=6 => add_up_pairs::<3>(rows, places, weights, out),
            _ => add_up_pairs::<ROWS>(rows, places, weights, out),
        }
    }
}

/// Of `PAIRS` pairs, where a row that is not there counts nothing.
#[target_feature(enable = "avx2")]
fn add_up_pairs<const PAIRS: usize>(
    rows: &[i16],
    places: &[usize],
    weights: &[i16],
    out: &mut [i16],
) -> usize {
    let length = out.len();
    let row = |at: usize| &rows[places.get(at).map_or(0, |place| *place)..][..length];
    let weight = |at: usize| weights.get(at).map_or(0, |weight| *weight);
    let pairs: [[&[i16]; 2]; PAIRS] = std::array::from_fn(|pair| [row(2 * pair), row(2 * pair + 1)]);
    let factors: [__m256i; PAIRS] = std::array::from_fn(|pair| {
        let [first, second] = [weight(2 * pair), weight(2 * pair + 1)];
        _mm256_set1_epi32(i32::from(second) << 16 | i32::from(first))
    });
    let sixteens = out.as_chunks_mut::<16>().0;
    let made = sixteens.len() * 16;
    for (number, out) in sixteens.iter_mut().enumerate() {
        let [mut low, mut high] = [_mm256_set1_epi32(half(FRACTION)); 2];
        for (pair, factor) in pairs.iter().zip(factors) {
            let [first, second] = pair.map(|row| words(&row[number * 16..][..16]));
            let [lows, highs] = [_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second)];
            low = _mm256_add_epi32(low, _mm256_madd_epi16(lows, factor));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(highs, factor));
        }
        let [low, high] = [low, high].map(|sums| _mm256_srai_epi32::<{ FRACTION as i32 }>(sums));
        let pixels = _mm256_packs_epi32(low, high);
        // SAFETY: `out` has 16 words, which are 32 bytes, and need not be aligned.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>(), pixels) }
    }
    made
}

/// # Panics
/// Unless there are 16.
#[inline]
#[target_feature(enable = "avx2")]
fn words(words: &[i16]) -> __m256i {
    assert_eq!(words.len(), 16);
    // SAFETY: 16 words are 32 bytes, and need not be aligned.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast::<__m256i>()) }
}

#[target_feature(enable = "avx2")]
fn register(bytes: &[u8; 32]) -> __m256i {
    let ([low, high], [third, last]) = (halves(&bytes[..BYTES]), halves(&bytes[BYTES..]));
    _mm256_set_epi64x(last, third, high, low)
}

/// Of 16 bytes.
#[inline(always)]
fn halves(bytes: &[u8]) -> [i64; 2] {
    let half = |at: usize| bytes[at..].first_chunk().map_or(0, |eight| i64::from_le_bytes(*eight));
    [half(0), half(8)]
}
