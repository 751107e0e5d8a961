#![allow(clippy::unwrap_used)]

use super::*;

fn dict(items: Vec<(&str, Value)>) -> Value {
    Value::Dict(items.into_iter().map(|(key, value)| (Value::Str(key.into()), value)).collect())
}

/// A value of every sort; its tensors are the storages "0" and "1".
fn everything() -> Value {
    let tensor =
        |key, dtype, shape: &[u64]| Value::Tensor(Arc::new(TensorRef::dense(key, dtype, shape.to_vec())));
    let ints = [0, 1, 255, 256, 65_536, -1, -300, 1 << 31, 1 << 40, -(1 << 63), i128::MAX];
    dict(vec![
        ("none", Value::None),
        ("flags", Value::List(vec![Value::Bool(true), Value::Bool(false)])),
        ("ints", Value::Tuple(ints.map(Value::Int).to_vec())),
        ("floats", Value::List([0.1, -0.0, f64::MAX, f64::INFINITY].map(Value::Float).to_vec())),
        ("text", Value::Str("résumé \"\n".into())),
        ("empty", Value::List(vec![Value::List(vec![]), Value::Tuple(vec![]), Value::Dict(vec![])])),
        ("by number", Value::Dict(vec![(Value::Int(3), tensor(0, Dtype::F32, &[2, 3]))])),
        ("scalar", tensor(1, Dtype::I64, &[])),
    ])
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let (floats, long) =
        ([1.5_f32, -0.0, f32::NAN, 3.0, 4.0, 5.0].map(f32::to_le_bytes), 41_i64.to_le_bytes());
    let mut out = Cursor::new(Vec::new());
    write(&mut out, &everything(), &[floats.as_flattened(), &long]).unwrap();
    let bytes = out.into_inner();
    let file = PtFile::parse(bytes.clone()).unwrap();
    assert_eq!((file.root(), file.format()), (&everything(), Format::Zip));
    let Some(Value::Dict(tensors)) = file.root().get("by number") else { panic!() };
    let (Value::Tensor(matrix), Some(Value::Tensor(scalar))) = (&tensors[0].1, file.root().get("scalar"))
    else {
        panic!()
    };
    assert_eq!(file.contiguous(matrix).unwrap(), floats.as_flattened());
    assert_eq!(file.contiguous(scalar).unwrap(), long);
    // Aligned, so that torch can map it.
    let mut archive = ZipArchive::new(Cursor::new(bytes.as_slice())).unwrap();
    for name in ["data.pkl", "data/0", "data/1"] {
        assert_eq!(archive.by_name(&format!("archive/{name}")).unwrap().data_start() % 64, 0, "{name}");
    }
}

#[test]
fn every_cut_of_a_written_file_is_refused() {
    let bytes = write_tensor(&[2, 2], Dtype::F16, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    PtFile::parse(bytes.clone()).unwrap();
    for end in 0..bytes.len() {
        assert!(PtFile::parse(bytes[..end].to_vec()).is_err(), "{end} of {} bytes", bytes.len());
    }
}

#[test]
fn elements_that_do_not_fill_the_shape_are_refused() {
    for len in [7, 9] {
        assert!(matches!(write_tensor(&[2, 2], Dtype::F16, &[0; 9][..len]), Err(PtError::Bounds { .. })));
    }
}

#[test]
fn bytes_are_not_written() {
    let error = write(Cursor::new(Vec::new()), &Value::Bytes(Arc::from(*b"ab")), &[]).unwrap_err();
    assert!(error.to_string().starts_with("bytes "), "{error}");
}
