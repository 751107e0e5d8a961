#![allow(clippy::unwrap_used)]

use super::*;

/// A pickle of protocol 2 with this body.
fn program(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

fn value(body: &[u8]) -> Result<Value, PickleError> {
    read(&program(body)).map(|pickle| pickle.value)
}

#[test]
fn plain_values_are_read() {
    assert_eq!(value(b"N").unwrap(), Value::None);
    assert_eq!(value(b"J\xff\xff\xff\xff").unwrap(), Value::Int(-1));
    assert_eq!(value(b"\x8a\x02\x00\x80").unwrap(), Value::Int(-32768));
    assert_eq!(value(b"\x8a\x00").unwrap(), Value::Int(0));
    assert_eq!(value(b"G\x3f\xe0\0\0\0\0\0\0").unwrap(), Value::Float(0.5));
    let list = Value::List(vec![Value::Int(1), Value::Bool(true)]);
    assert_eq!(value(b"](K\x01\x88e").unwrap(), list);
    assert_eq!(value(b"(K\x01\x88l").unwrap(), list);
    let dict = value(b"}(X\x01\0\0\0aK\x01X\x01\0\0\0bN\x85u").unwrap();
    assert_eq!(dict.get("a"), Some(&Value::Int(1)));
    assert_eq!(dict.get("b"), Some(&Value::Tuple(vec![Value::None])));
    assert_eq!(dict.get("c"), None);
}

#[test]
fn the_length_of_the_pickle_is_what_it_took() {
    let mut bytes = program(b"K\x07");
    let len = bytes.len();
    bytes.extend(b"more");
    assert_eq!(read(&bytes).unwrap().len, len);
}

#[test]
fn any_unknown_global_is_refused_by_its_name() {
    for (body, name) in [
        (&b"cos\nsystem\nX\x02\0\0\0ls\x85R"[..], "os.system"),
        (b"cbuiltins\neval\n", "builtins.eval"),
        (b"\x8c\x05posix\x8c\x06system\x93", "posix.system"),
        (b"ctorch\nload\n", "torch.load"),
        (b"ctorch._utils\n_rebuild_qtensor\n", "torch._utils._rebuild_qtensor"),
    ] {
        let error = value(body).unwrap_err();
        assert_eq!(error, PickleError::Global { name: name.into() });
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn deep_and_cyclic_values_are_refused() {
    let nested = [vec![b']'; 100_000], vec![b'a'; 99_999]].concat();
    assert_eq!(value(&nested).unwrap_err(), PickleError::Depth);
    // A list that holds itself.
    assert_eq!(value(b"]q\0h\0a").unwrap_err(), PickleError::Depth);
}

#[test]
fn values_that_multiply_are_refused() {
    // Each tuple holds the one before it three times: 3^40 values of 120 bytes.
    let bomb = [b")".to_vec(), b"22\x87".repeat(40)].concat();
    assert_eq!(value(&bomb).unwrap_err(), PickleError::TooLarge);
}

#[test]
fn claimed_lengths_allocate_nothing() {
    for body in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
    ] {
        assert!(matches!(value(body).unwrap_err(), PickleError::Truncated { .. }));
    }
}

#[test]
fn nonsense_is_an_error_and_never_a_panic() {
    for body in [
        &b""[..],
        b"R",
        b"(R",
        b"K\x01K\x02R",
        b"0",
        b"1",
        b"t",
        b"h\x05",
        b"K\x01a",
        b"]K\x01s",
        b"}(K\x01u",
        b"(\x85",
        b"Nb",
        b"Q",
        b"NQ",
        b"\x86",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))tR",
        b"\x8a\x11zzzzzzzzzzzzzzzzz",
        b"\xff",
        b"i",
    ] {
        assert!(value(body).is_err(), "{body:?}");
    }
    // Every prefix and every one-byte change of a real file's pickle.
    let real = include_bytes!("../../labels/testdata/checkpoint_legacy.pth");
    let mut at = 0;
    for _ in 0..3 {
        at += read(&real[at..]).unwrap().len;
    }
    let real = &real[at..at + read(&real[at..]).unwrap().len];
    for end in 0..real.len() {
        assert!(read(&real[..end]).is_err());
    }
    for i in 0..real.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = real.to_vec();
            bytes[i] ^= change;
            let _ = read(&bytes);
        }
    }
}
