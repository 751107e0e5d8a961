//! Tells the linker where libtorch lies, so that the tests run with no environment variables.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}
