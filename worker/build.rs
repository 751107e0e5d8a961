//! Compiles the C of `src/data/jpeg` and the C++ of `src/torch`, and tells the linker where libtorch lies, so that binaries
//! and tests of this package run with no environment variables, and `src/data/jpeg` how libjpeg-turbo was built.

use std::path::Path;

fn main() {
    jpeg();
    shim();
}

/// Compiles against the libjpeg-turbo that is built in, and passes on what its header says of it. One from elsewhere may
/// have another beside.
fn jpeg() {
    println!("cargo:rerun-if-env-changed=DEP_TURBOJPEG_INCLUDE");
    println!("cargo:rerun-if-changed=src/data/jpeg/libjpeg.c");
    let folders = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    cc::Build::new().includes(folders.split(',')).file("src/data/jpeg/libjpeg.c").compile("relabel_jpeg");
    let header =
        folders.split(',').map(|folder| Path::new(folder).join("jconfig.h")).find(|path| path.is_file());
    let text = header.and_then(|path| {
        println!("cargo:rerun-if-changed={}", path.display());
        std::fs::read_to_string(path).ok()
    });
    let defined = |name: &str| {
        let text = text.as_ref()?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("#define ")?.strip_prefix(name));
        lines.find_map(|rest| (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim().to_owned()))
    };
    // Nothing is said where there is no header to tell.
    if text.is_some() {
        println!("cargo:rustc-env=JPEG_SIMD={}", defined("WITH_SIMD").is_some());
    }
    if let Some(version) = defined("LIBJPEG_TURBO_VERSION") {
        println!("cargo:rustc-env=JPEG_VERSION={version}");
    }
}

fn shim() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");

    println!("cargo:rerun-if-changed=src/torch");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    // As torch-sys finds them: beside the libraries, unless the user says otherwise.
    let include = match std::env::var("LIBTORCH_INCLUDE") {
        Ok(root) => Path::new(&root).join("include"),
        Err(_) => Path::new(&lib).with_file_name("include"),
    };
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .opt_level(1)
        .pic(true)
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"));
    // Loops over pixels, for the processors that the Rust of this workspace is compiled for.
    let mut loops = shim.clone();
    loops.opt_level(3).flag_if_supported("-fno-trapping-math");
    if std::env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.contains("avx2")) {
        loops.flag("-march=x86-64-v3");
    }
    loops.file("src/torch/normalize.cpp").compile("relabel_torch_loops");
    shim.files(
        ["shim", "precision", "layouts", "hooks", "small_maps", "streams"]
            .map(|name| format!("src/torch/{name}.cpp")),
    )
    .compile("relabel_torch_shim");
}
