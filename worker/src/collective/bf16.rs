//! bfloat16 as ranks send it: the upper half of a float32, which keeps the range and 8 of the 24 digits.

/// What rounding to bfloat16 changes a value by at most, as a part of it: half of its last digit.
#[cfg(test)]
pub(crate) const ROUNDOFF: f64 = 1.0 / 256.0;

/// The nearest bfloat16, the even one of two that are as near. What is beyond the largest becomes infinite.
pub(crate) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // The digits of what is no number might be rounded away.
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// The float32 of the same value.
pub(crate) fn widen(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}

/// Rounds each of `values` into `rounded`, which is as long.
pub(crate) fn round_all(values: &[f32], rounded: &mut [u16]) {
    rounded.iter_mut().zip(values).for_each(|(to, &value)| *to = round(value));
}

/// The other way.
pub(crate) fn widen_all(rounded: &[u16], values: &mut [f32]) {
    values.iter_mut().zip(rounded).for_each(|(to, &value)| *to = widen(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_even_and_what_is_no_number_stays_none() {
        // As torch.tensor(x).bfloat16().view(torch.int16) has them.
        let ulp = f32::from_bits(0x3f80_0000 + 1);
        let cases = [
            (0.0, 0x0000),
            (-0.0, 0x8000),
            (1.0, 0x3f80),
            (ulp, 0x3f80),
            // Half way: to the even one, down and up.
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (-std::f32::consts::PI, 0xc049),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (1e-45, 0x0000),
        ];
        for (value, bits) in cases {
            assert_eq!(round(value), bits, "{value}");
        }
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
            assert!(widen(round(f32::from_bits(bits))).is_nan(), "{bits:x}");
        }
        // Whatever is one already stays it.
        for bits in (0..=u16::MAX).filter(|&bits| !widen(bits).is_nan()) {
            assert_eq!(round(widen(bits)), bits);
        }
    }

    #[test]
    fn the_error_of_rounding_is_within_its_bound_and_comes_near_it() {
        let mut largest = 0.0_f64;
        for bits in (0x3f00_0000_u32..0x4100_0000).step_by(97) {
            let value = f32::from_bits(bits);
            let error = f64::from(widen(round(value)) - value).abs() / f64::from(value);
            largest = largest.max(error);
        }
        assert!(largest <= ROUNDOFF && largest > 0.99 * ROUNDOFF, "{largest}");
    }
}
