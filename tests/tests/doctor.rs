//! `worker doctor`: what it finds of a machine, whichever of NVIDIA's libraries that has, and of a data set.
//!
//! The libraries are stand-ins that the C compiler makes here, with the functions that NVIDIA's headers declare: they
//! hold what the doctor hands over and what it makes of the answers to those declarations, without a GPU.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use relabel_tests::{Scratch, program};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A driver with two GPUs. It is as strict as the real one about the order of calls and what it is handed.
const DRIVER: &str = r#"
    #include <stddef.h>
    #include <stdio.h>
    #include <string.h>
    static int ready = 0;
    int cuInit(unsigned int flags) { if (flags != 0) return 1; ready = 1; return 0; }
    int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
    int cuDeviceGetCount(int *count) { if (!ready) return 3; *count = 2; return 0; }
    int cuDeviceGet(int *device, int ordinal) { if (ordinal < 0 || ordinal > 1) return 101; *device = 40 + ordinal; return 0; }
    int cuDeviceGetName(char *name, int length, int device) {
        if (device < 40 || length < 16) return 1;
        memset(name, 'x', length);
        snprintf(name, length, "Stand-in %d", device);
        return 0;
    }
    int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 39) * 80000000000u; return 0; }
    int cuDeviceGetAttribute(int *value, int attribute, int device) {
        if (attribute == 75) { *value = device - 31; return 0; }
        if (attribute == 76) { *value = 0; return 0; }
        return 1;
    }
"#;

/// A driver without a GPU, as on a login node.
const NO_GPU: &str = r#"
    int cuInit(unsigned int flags) { return 100; }
    int cuGetErrorString(int error, const char **words) { *words = error == 100 ? "no CUDA-capable device is detected" : 0; return 0; }
"#;

const CUDNN: &str = "#include <stddef.h>\nsize_t cudnnGetVersion(void) { return 91900; }";
const NCCL: &str = "int ncclGetVersion(int *version) { *version = 22809; return 0; }";

/// A folder of libraries.
struct Libraries(TempDir);

impl Libraries {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Compiles one.
    fn with(self, name: &str, source: &str) -> Self {
        let file = self.path("source.c");
        std::fs::write(&file, source).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(self.path(name)).arg(&file);
        let output = cc.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self
    }

    fn doctor(&self, more: &[&str]) -> Output {
        let mut command = Command::new(program("worker"));
        command.arg("doctor").args(more).env("LD_LIBRARY_PATH", self.0.path()).output().unwrap()
    }

    fn report(&self) -> Value {
        let output = self.doctor(&["--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// What was found of `what`, as verdict and words.
fn found<'a>(report: &'a Value, what: &str) -> Vec<(&'a str, &'a str)> {
    let findings = report["findings"].as_array().unwrap().iter();
    let of = findings.filter(|finding| finding["what"] == what);
    of.map(|finding| (finding["verdict"].as_str().unwrap(), finding["words"].as_str().unwrap())).collect()
}

#[test]
fn what_any_machine_has_is_told() {
    let output = Libraries::new().doctor(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let line = |what: &str| {
        let lines = text.lines().filter(|line| line.get(6..).is_some_and(|rest| rest.starts_with(what)));
        lines.collect::<Vec<_>>().join("\n")
    };
    for (what, words) in [
        ("worker", env!("CARGO_PKG_VERSION")),
        ("processor", "cores"),
        ("memory", " GB"),
        ("libtorch", "2.11.0"),
        ("oneDNN", "bf16"),
        ("JPEG", "libjpeg-turbo 3"),
        ("GPU", ""),
        ("CUDA runtime", ""),
        ("cuDNN", ""),
        ("NCCL", ""),
    ] {
        assert!(!line(what).is_empty() && line(what).contains(words), "{what}: {words}\n{text}");
    }
    assert!(text.contains("\nA worker trains on the processor"), "{text}");

    // Its numbers are those of the kernel.
    let report = Libraries::new().report();
    let kilobytes = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = kilobytes.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    assert_eq!(report["machine"]["memory"]["total"], 1024 * total);
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(report["machine"]["processor"]["usable_cores"], cores);
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let features = report["machine"]["processor"]["features"].as_array().unwrap();
    assert_eq!(features.contains(&json!("AVX2")), flags.contains(" avx2 "));
}

#[test]
fn gpus_and_libraries_are_told_with_their_versions() {
    let libraries =
        Libraries::new().with("libcuda.so.1", DRIVER).with("libcudnn.so.9", CUDNN).with("libnccl.so.2", NCCL);
    let report = libraries.report();
    let machine = &report["machine"];
    let gpu = |name: &str, memory: u64, capability: &str| json!({ "name": name, "memory_bytes": memory, "compute_capability": capability });
    let driver = &machine["driver"]["found"];
    assert_eq!((&driver["cuda"], &driver["path"]), (&json!("12.8"), &json!(libraries.path("libcuda.so.1"))));
    let two = [gpu("Stand-in 40", 80_000_000_000, "9.0"), gpu("Stand-in 41", 160_000_000_000, "10.0")];
    assert_eq!(driver["gpus"], json!(two));
    let library =
        |version: &str, name: &str| json!({ "found": { "version": version, "path": libraries.path(name) } });
    assert_eq!(machine["cudnn"], library("9.19.0", "libcudnn.so.9"));
    assert_eq!(machine["nccl"], library("2.28.9", "libnccl.so.2"));
    assert_eq!(found(&report, "GPU").len(), 2);
    let text = String::from_utf8(libraries.doctor(&[]).stdout).unwrap();
    assert!(text.ends_with("with --gpu and its number on a GPU.\n"), "{text}");
    // This libtorch was built for a newer CUDA than that driver has.
    let built_for = machine["libtorch"]["found"]["built_for_cuda"].as_str();
    let odd = built_for.is_some_and(|version| version.starts_with("13."));
    assert_eq!(found(&report, "driver")[0].1.contains("too old"), odd, "{report}");
    assert_eq!(report["verdict"] == "odd", odd || found(&report, "JPEG")[0].0 == "odd", "{report}");
}

#[test]
fn what_is_missing_or_broken_is_told_and_ends_nothing() {
    let libraries =
        Libraries::new().with("libcuda.so.1", NO_GPU).with("libnccl.so.2", "int other(void) { return 0; }");
    std::fs::write(libraries.path("libcudnn.so.9"), "no library").unwrap();
    let report = libraries.report();
    let wanted = [
        (
            "GPU",
            "none: the NVIDIA driver does not start: cuInit says 100 (no CUDA-capable device is detected)",
        ),
        ("NCCL", "libnccl.so.2 has no ncclGetVersion"),
        ("cuDNN", "cannot be loaded: "),
    ];
    for (what, words) in wanted {
        let (verdict, told) = found(&report, what)[0];
        assert!(verdict == "absent" && told.starts_with(words), "{what}: {told}");
    }
    assert!(
        found(&report, "cuDNN")[0].1.contains(libraries.path("libcudnn.so.9").to_str().unwrap()),
        "{report}"
    );
    assert!(found(&report, "driver").is_empty());

    // A machine that the tests run on may have a driver of its own.
    if !["/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
        .iter()
        .any(|lib| Path::new(lib).join("libcuda.so.1").exists())
    {
        let report = Libraries::new().report();
        let why = "no NVIDIA driver was found: libcuda.so.1 cannot be loaded (libcuda.so.1: cannot open shared object file: \
                   No such file or directory)";
        assert_eq!(found(&report, "GPU"), [("absent", format!("none: {why}").as_str())]);
        assert_eq!(report["machine"]["driver"], json!({ "missing": why }));
    }
}

#[test]
fn flags_of_a_data_set_want_one() {
    let output = Libraries::new().doctor(&["--all"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--data <DIR>"), "{output:?}");
}

#[test]
fn the_doctor_finds_what_a_run_would_stumble_over() {
    let scratch = Scratch::with_data(24, 8);
    let doctor = |more: &[&str]| {
        let mut command = Command::new(program("worker"));
        command.args(["doctor", "--image-size", "32", "--data"]).arg(scratch.path("data"));
        command.arg("--labels").arg(scratch.path("data/labels")).args(more);
        command.output().unwrap()
    };
    let well = doctor(&[]);
    let text = String::from_utf8_lossy(&well.stdout).into_owned();
    assert!(well.status.success() && text.ends_with("The data can be trained on.\n"), "{text}");

    let (image, map) = (scratch.file_of("train", 1), scratch.file_of("labels", 2));
    truncate(&image);
    std::fs::remove_file(&map).unwrap();
    let ill = doctor(&["--json"]);
    assert_eq!(ill.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&ill.stdout).unwrap();
    assert_eq!(report["verdict"], "bad");
    let named = |what: &str, path: &Path| {
        let words = path.file_stem().unwrap().to_str().unwrap();
        let findings = report["findings"].as_array().unwrap();
        let bad = findings.iter().filter(|finding| finding["what"] == what && finding["verdict"] == "bad");
        assert!(
            bad.flat_map(|finding| finding["of"].as_array().unwrap())
                .any(|of| of.as_str().unwrap().contains(words)),
            "{report}"
        );
    };
    named("train images", &image);
    named("label maps", &map);
}

/// A name may be any bytes.
#[test]
fn a_folder_whose_name_is_no_text_is_looked_for() {
    let mut command = Command::new(program("worker"));
    command.args(["doctor", "--json", "--data"]).arg(OsStr::from_bytes(b"/nowhere/\xff"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found(&report, "train")[0].1.starts_with("there is no folder /nowhere/"), "{report}");
}

fn truncate(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}
