//! Compiles the C++ shim of `src/torch` and tells the linker where libtorch lies, so that binaries
//! and tests of this package run with no environment variables.

use std::path::Path;

fn main() {
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
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .pic(true)
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["shim", "precision", "layouts"].map(|name| format!("src/torch/{name}.cpp")))
        .compile("relabel_torch_shim");
}
