//! Files that are made to cost as much as they can: too large for the corpus, or too rare for a mutation. Each has to
//! be refused, or taken, with the memory that its length allows and in little time.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::time::Duration;

use relabel_fuzz::{Target, config, jpeg, label_map, pickle};

/// Seconds of a processor: those of a clock would say how busy the machine is.
const TIME: Duration = Duration::from_secs(4);

/// How long this thread has had a processor.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn check(target: &Target, what: &str, input: &[u8]) {
    let started = processor_time();
    target.check(input);
    let took = processor_time() - started;
    println!("{}: {what} of {} bytes took {took:?}", target.name, input.len());
    assert!(took < TIME, "{}: {what} of {} bytes took {took:?}", target.name, input.len());
}

fn pickled(program: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02", program.concat().as_slice(), b"."].concat()
}

/// Each opcode leaves something, and all of it is there to the end.
#[test]
fn a_pickle_of_very_many_opcodes() {
    for (what, opcodes, times) in [
        ("values", &b"N"[..], 20 << 20),
        ("marks", b"(", 20 << 20),
        ("things to remember", b"\x94", 20 << 20),
        ("copies of the top", b"2", 20 << 20),
        ("lists", b"]", 10 << 20),
    ] {
        check(&pickle::TARGET, what, &pickled(&[b"N", &opcodes.repeat(times)]));
    }
}

/// A function and its arguments are kept once, and called by two bytes each.
#[test]
fn a_pickle_of_very_many_tensors_of_one_shape() {
    let sides = b"K\x01".repeat(64);
    let begin: [&[u8]; 9] = [
        b"ctorch._utils\n_rebuild_tensor_v2\nq\0",
        b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ",
        b"K\0(",
        &sides,
        b"t(",
        &sides,
        b"t\x89)tq\x01",
        b"",
        b"",
    ];
    check(&pickle::TARGET, "tensors", &pickled(&[&begin.concat(), &b"h\0h\x01R".repeat(1 << 20)]));
}

/// A legacy file that mentions very many storages, and lists the last of them very many times.
#[test]
fn a_legacy_file_with_a_long_list_of_storages() {
    const MENTIONS: u32 = 200_000;
    let mut file = Vec::new();
    file.extend(pickled(&[b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"]));
    file.extend(pickled(&[b"M\xe9\x03"]));
    file.extend(pickled(&[b"}"]));
    let mut object = Vec::new();
    for key in 0..MENTIONS {
        object.extend(b"(X\x07\0\0\0storagectorch\nByteStorage\nX\x06\0\0\0");
        object.extend(format!("{key:06}").as_bytes());
        object.extend(b"NK\0tQ0");
    }
    file.extend(pickled(&[&object, b"N"]));
    let list = [b"h\0".as_slice()].concat().repeat(MENTIONS as usize - 1);
    let last = format!("{:06}", MENTIONS - 1);
    file.extend(pickled(&[b"](X\x06\0\0\0", last.as_bytes(), b"q\0", &list, b"e"]));
    file.extend(vec![0; 8 * MENTIONS as usize]);
    let parsed = worker::pt::PtFile::parse(file.clone());
    assert!(parsed.is_ok(), "it is odd, but in order: {parsed:?}");
    check(&pickle::TARGET, "storages", &file);
}

/// A zip archive whose entries are all the same bytes.
#[test]
fn a_zip_file_whose_entries_overlap() {
    const ENTRIES: u32 = 4000;
    const LENGTH: u32 = 4 << 20;
    let mut program = Vec::new();
    for key in 0..ENTRIES {
        program.extend(b"(X\x07\0\0\0storagectorch\nByteStorage\nX\x06\0\0\0");
        program.extend(format!("{key:06}").as_bytes());
        program.extend(b"NK\0tQ0");
    }
    let program = pickled(&[&program, b"N"]);
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let content = vec![0; LENGTH as usize];
    let mut entry = |file: &mut Vec<u8>, name: &str, content: &[u8], at: Option<u32>| {
        let numbers = [crc32fast::hash(content), content.len() as u32, content.len() as u32];
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let name_length = (name.len() as u16).to_le_bytes();
        let at = at.unwrap_or_else(|| {
            let at = file.len() as u32;
            file.extend([b"PK\x03\x04\x0a\0\0\0\0\0\0\0\0\0", &numbers[..], &name_length, b"\0\0"].concat());
            file.extend(name.as_bytes());
            file.extend(content);
            at
        });
        directory.extend([b"PK\x01\x02\x0a\0\x0a\0\0\0\0\0\0\0\0\0", &numbers[..], &name_length].concat());
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
        at
    };
    entry(&mut file, "a/data.pkl", &program, None);
    let first = entry(&mut file, "a/data/000000", &content, None);
    for key in 1..ENTRIES {
        entry(&mut file, &format!("a/data/{key:06}"), &content, Some(first));
    }
    let (start, length, count) = (file.len() as u32, directory.len() as u32, (ENTRIES + 1) as u16);
    file.extend(&directory);
    file.extend([b"PK\x05\x06\0\0\0\0", &count.to_le_bytes()[..], &count.to_le_bytes()].concat());
    file.extend([&length.to_le_bytes()[..], &start.to_le_bytes(), b"\0\0"].concat());
    let error = worker::pt::PtFile::parse(file.clone()).unwrap_err();
    assert!(error.to_string().contains("overlap"), "{error}");
    check(&pickle::TARGET, "entries", &file);
}

/// A state_dict of very many views of one element, each as large as a view may be.
#[test]
fn weights_that_are_one_element_again_and_again() {
    use worker::pt::pickle::{Dtype, StorageRef, TensorRef, Value};
    let storage = StorageRef { key: "0".into(), dtype: Dtype::F32, numel: 1, start: 0 };
    let tensor = TensorRef { storage: storage.into(), offset: 0, shape: vec![1 << 20], strides: vec![0] };
    let tensor = Value::Tensor(tensor.into());
    let names = (0..2000).map(|number| (Value::Str(format!("t{number}").into()), tensor.clone()));
    let mut file = Cursor::new(Vec::new());
    worker::pt::write(&mut file, &Value::Dict(names.collect()), &[&[0; 4]]).unwrap();
    let error = worker::weights::parse("w.pth".as_ref(), file.get_ref().clone()).unwrap_err();
    assert!(error.to_string().contains("views of the same few bytes"), "{error}");
    check(&pickle::TARGET, "views", file.get_ref());
}

/// A name that begins as those of wrapped modules do, very many times.
#[test]
fn weights_of_a_module_that_is_wrapped_very_often() {
    use worker::pt::pickle::{Dtype, TensorRef, Value};
    let tensor = Value::Tensor(TensorRef::dense(0, Dtype::F32, vec![1]).into());
    let name = "module.".repeat(1 << 20) + "weight";
    let mut file = Cursor::new(Vec::new());
    let root = Value::Dict(vec![(Value::Str(name.into()), tensor)]);
    worker::pt::write(&mut file, &root, &[&[0; 4]]).unwrap();
    let weights = worker::weights::parse("w.pth".as_ref(), file.get_ref().clone()).unwrap();
    assert_eq!(weights.tensors[0].0, "weight");
    check(&pickle::TARGET, "wrappings", file.get_ref());
}

/// A label map of one element that says it is as large as any.
#[test]
fn a_label_map_of_one_element() {
    use worker::pt::pickle::{Dtype, StorageRef, TensorRef, Value};
    let storage = StorageRef { key: "0".into(), dtype: Dtype::F64, numel: 1, start: 0 };
    for shape in [vec![2, 8, 1024, 1024], vec![2, 8, 256, 256], vec![2, 1024, 1024, 1024]] {
        let strides = vec![0; 4];
        let tensor = TensorRef { storage: storage.clone().into(), offset: 0, shape, strides };
        let mut file = Cursor::new(Vec::new());
        worker::pt::write(&mut file, &Value::Tensor(tensor.into()), &[&[0; 8]]).unwrap();
        check(&label_map::TARGET, "element", file.get_ref());
    }
}

/// Headers of images that claim to be as large as any, without the pixels.
#[test]
fn images_that_are_nothing_but_a_header() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../worker/src/data/testdata/");
    for (name, marker) in [("rgb.jpg", 0xC0), ("progressive.jpg", 0xC2), ("cmyk.jpg", 0xC0)] {
        let mut file = std::fs::read(format!("{data}{name}")).unwrap();
        let frame = file.windows(2).position(|pair| pair == [0xFF, marker]).unwrap();
        // 13,000 rows of 13,000 pixels.
        file[frame + 5..frame + 9].copy_from_slice(&[0x32, 0xC8, 0x32, 0xC8]);
        check(&jpeg::TARGET, name, &[&[0; jpeg::CONTROL], file.as_slice()].concat());
    }
    // Sixteen bits of red, green, blue and alpha.
    let mut header =
        [b"IHDR", &13_000_u32.to_be_bytes()[..], &13_000_u32.to_be_bytes(), &[16, 6, 0, 0, 0]].concat();
    header.extend(crc32fast::hash(&header).to_be_bytes());
    let png = [b"\x89PNG\r\n\x1a\n\0\0\0\x0d", header.as_slice(), b"\0\0\0\0IDAT\x35\xaf\x06\x1e"].concat();
    check(&jpeg::TARGET, "png", &[&[0; jpeg::CONTROL], png.as_slice()].concat());
}

/// Each name stands for ten of the one before; and brackets that never end.
#[test]
fn configurations_that_grow() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = [format!("*a{}", level - 1).as_str(); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{below}]\n");
    }
    check(&config::TARGET, "laughs", laughs.as_bytes());
    for open in ["[", "{", "{a: ", "- ", "? ", "[{", "!!a [", "&a ["] {
        check(&config::TARGET, open, open.repeat(100_000).as_bytes());
        check(&config::TARGET, open, format!("data: {}", open.repeat(100_000)).as_bytes());
    }
    let deeper: String = (0..650).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    check(&config::TARGET, "indented sections", deeper.as_bytes());
}
