//! What the libtorch is that this process has loaded.

use std::ffi::{CStr, c_char, c_int};

use serde::Serialize;

use super::{TorchError, checked, relabel_torch_free};

unsafe extern "C" {
    fn relabel_torch_about(
        build: *mut *mut c_char,
        kernels: *mut *mut c_char,
        onednn: *mut *mut c_char,
        bf16: *mut c_int,
    ) -> *mut c_char;
}

/// A libtorch and what it makes of this processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// Such as 2.11.0; none where it does not say.
    pub version: Option<String>,
    /// The instructions that its own kernels use here: DEFAULT, AVX2, AVX512, or another processor's.
    pub kernels: String,
    /// The version of oneDNN in it; none where it has none.
    pub onednn: Option<String>,
    /// Whether oneDNN computes in bf16 here, be it without instructions for it.
    pub onednn_bf16: bool,
    /// The version of CUDA that it was built for; none for one that was built without.
    pub built_for_cuda: Option<String>,
}

/// Asks libtorch what it is.
///
/// # Errors
/// libtorch cannot say.
pub fn about() -> Result<About, TorchError> {
    let (mut build, mut kernels, mut onednn) =
        (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    let mut bf16 = 0;
    // SAFETY: each is a place for what the shim stores there.
    checked("say what it is", unsafe {
        relabel_torch_about(&raw mut build, &raw mut kernels, &raw mut onednn, &raw mut bf16)
    })?;
    let [build, kernels, onednn] = [build, kernels, onednn].map(|text| {
        // SAFETY: without an error each is a string from strdup that the shim hands over.
        let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: the same pointer, freed once and not used again.
        unsafe { relabel_torch_free(text) };
        owned
    });
    let setting = |name| setting(&build, name);
    let with_cuda = setting("USE_CUDA").is_some_and(|value| value != "OFF" && value != "0");
    Ok(About {
        version: setting("TORCH_VERSION"),
        kernels,
        onednn: version(&onednn),
        onednn_bf16: bf16 != 0,
        built_for_cuda: setting("CUDA_VERSION").filter(|_| with_cuda),
    })
}

/// A setting of libtorch's description of itself, which has them as `NAME=value, `.
fn setting(build: &str, name: &str) -> Option<String> {
    let settings = build.split([',', '\n', ' ']).map(str::trim);
    let value = settings.filter_map(|setting| setting.split_once('=')).find(|(found, _)| *found == name)?.1;
    (!value.is_empty()).then(|| value.to_owned())
}

/// The number in `Intel(R) MKL-DNN v3.10.2 (Git Hash f1d47193)`.
fn version(words: &str) -> Option<String> {
    let mut numbers = words.split_whitespace().filter_map(|word| word.strip_prefix('v'));
    numbers.find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// That of the headers which the shim was compiled with is the one that is loaded.
    #[test]
    fn libtorch_says_what_it_is() {
        let about = about().unwrap();
        assert_eq!(about.version.as_deref(), Some("2.11.0"), "what tch 0.24 goes with");
        assert!(!about.kernels.is_empty() && !about.kernels.contains(' '), "{about:?}");
        let onednn = about.onednn.unwrap();
        assert!(onednn.split('.').count() == 3 && onednn.starts_with('3'), "{onednn}");
    }

    #[test]
    fn its_words_are_understood() {
        let build = "PyTorch built with:\n  - GCC 13.3\n  - Build settings: BLAS_INFO=mkl, CUDA_VERSION=13.0, \
                     CXX_FLAGS= -O2 -DUSE_X=ON, TORCH_VERSION=2.11.0, USE_CUDA=ON, \n";
        assert_eq!(setting(build, "TORCH_VERSION").as_deref(), Some("2.11.0"));
        assert_eq!(setting(build, "CUDA_VERSION").as_deref(), Some("13.0"));
        assert_eq!((setting(build, "CXX_FLAGS"), setting(build, "USE_X")), (None, None));
        assert_eq!(version("Intel(R) MKL-DNN v3.10.2 (Git Hash f1d471933dc852f)").as_deref(), Some("3.10.2"));
        assert_eq!(version("MKLDNN not found"), None);
    }
}
