//! Sums with bfloat16 on the wire, over real sockets.
#![allow(clippy::unwrap_used)]

use super::tests::{bits, in_world, value, values};
use crate::collective::bf16::{ROUNDOFF, round, widen};

/// What the ring makes of [`values`]: each segment begins with the rank of its number, goes round, and is rounded whenever
/// it is sent.
fn expected(world: u32, length: usize) -> Vec<f32> {
    let (each, more) = (length / world as usize, length % world as usize);
    let segments = (0..world).flat_map(|segment| {
        let length = each + usize::from((segment as usize) < more);
        std::iter::repeat_n(segment, length)
    });
    let sent = |sum| widen(round(sum));
    let sum = |(index, segment)| {
        let others = (1..world).map(|hop| value((segment + hop) % world, index));
        others.fold(value(segment, index), |sum, own| own + sent(sum))
    };
    (0..length).zip(segments).map(sum).map(sent).collect()
}

#[test]
fn sums_are_rounded_where_they_are_sent_and_nowhere_else_and_are_the_same_on_every_rank() {
    let lengths = [0, 1, 2, 3, 7, 1000, 300_001];
    for world in 1..=5_u32 {
        let results = in_world(world as usize, |collective| {
            lengths.map(|length| {
                let mut buffer = values(collective.rank(), length);
                collective.all_reduce_bf16(&mut buffer).unwrap();
                buffer
            })
        });
        for (i, length) in lengths.into_iter().enumerate() {
            let expected = if world == 1 { values(0, length) } else { expected(world, length) };
            for (rank, found) in results.iter().enumerate() {
                assert!(bits(&found[i]) == bits(&expected), "world {world}, rank {rank}, length {length}");
            }
        }
    }
}

#[test]
fn the_error_of_a_sum_is_within_what_is_promised_and_not_far_below() {
    for world in 2..=5_u32 {
        let length = 100_000;
        let sums = in_world(world as usize, |collective| {
            let mut buffer = values(collective.rank(), length);
            collective.all_reduce_bf16(&mut buffer).unwrap();
            buffer
        });
        // n roundings, each of a sum of which those before are part, and the additions' own in float32.
        let part = (1.0 + ROUNDOFF + f64::from(f32::EPSILON)).powi(world as i32) - 1.0;
        let mut largest = 0.0_f64;
        for (index, &sum) in sums[0].iter().enumerate() {
            let terms = (0..world).map(|rank| f64::from(value(rank, index)));
            let (exact, absolute) = (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>());
            largest = largest.max((f64::from(sum) - exact).abs() / absolute);
        }
        assert!(largest <= part && largest > ROUNDOFF / 2.0, "world {world}: {largest} of {part}");
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let sums = in_world(3, |collective| {
        let mut buffer = [1.0, 1.0, f32::MAX, 1.0];
        if collective.rank() == 1 {
            buffer = [f32::NAN, f32::INFINITY, f32::MAX, 1.0];
        }
        collective.all_reduce_bf16(&mut buffer).unwrap();
        buffer
    });
    for sums in sums {
        assert!(sums[0].is_nan() && sums[1..] == [f32::INFINITY, f32::INFINITY, 3.0], "{sums:?}");
    }
}

#[test]
fn ranks_that_do_not_send_the_same_are_out_of_step() {
    let failed = in_world(2, |collective| {
        let mut buffer = [1.0; 8];
        match collective.rank() {
            0 => collective.all_reduce(&mut buffer[..4]),
            _ => collective.all_reduce_bf16(&mut buffer),
        }
        .unwrap_err()
        .to_string()
    });
    assert!(failed.iter().any(|error| error.contains("all-reduce in bfloat16")), "{failed:?}");
}
