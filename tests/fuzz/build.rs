//! Tells the linker where libtorch lies, so that the programs run with no environment variables, and builds what
//! counts the branches of C code.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");

    println!("cargo:rerun-if-changed=coverage.c");
    cc::Build::new().file("coverage.c").cargo_metadata(false).compile("coverage");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    println!("cargo:rustc-link-search=native={out}");
    // Whole: what calls it may stand before it or after it.
    println!("cargo:rustc-link-lib=static:+whole-archive=coverage");
    println!("cargo:rustc-link-arg=-Wl,--wrap=__sanitizer_cov_trace_pc");
}
