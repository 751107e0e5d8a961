//! What a network computes in, as several messages say it.

use relabel_config::Precision;

use crate::Invalid;
use crate::text::out_of_range;
use crate::v1;

pub(crate) fn to_wire(precision: Precision) -> i32 {
    i32::from(match precision {
        Precision::Fp32 => v1::Precision::Fp32,
        Precision::Tf32 => v1::Precision::Tf32,
        Precision::Bf16 => v1::Precision::Bf16,
        Precision::Fp16 => v1::Precision::Fp16,
    })
}

pub(crate) fn from_wire(value: i32, field: &'static str) -> Result<Precision, Invalid> {
    match v1::Precision::try_from(value) {
        Ok(v1::Precision::Fp32) => Ok(Precision::Fp32),
        Ok(v1::Precision::Tf32) => Ok(Precision::Tf32),
        Ok(v1::Precision::Bf16) => Ok(Precision::Bf16),
        Ok(v1::Precision::Fp16) => Ok(Precision::Fp16),
        Err(_) => Err(out_of_range(field, &value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_precision_survives_the_wire_and_no_other_number_does() {
        for precision in [Precision::Fp32, Precision::Tf32, Precision::Bf16, Precision::Fp16] {
            assert_eq!(from_wire(to_wire(precision), "f"), Ok(precision));
        }
        let refused = from_wire(4, "EvalOptions.precision").map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.starts_with("EvalOptions.precision is")));
    }
}
