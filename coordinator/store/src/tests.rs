#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn an_object_is_what_it_should_be_by_length_and_hash() {
    let of = |bytes, blake3: &str| Content { bytes, blake3: blake3.into() };
    assert!(of(Some(3), "ab").is(&of(Some(3), "AB")));
    assert!(of(None, "ab").is(&of(Some(3), "ab")));
    assert!(!of(Some(4), "ab").is(&of(Some(3), "ab")));
    assert!(!of(None, "ab").is(&of(Some(3), "ac")));
}
