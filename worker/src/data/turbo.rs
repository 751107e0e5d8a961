//! JPEG decompression by libjpeg-turbo 3: a safe handle around its C interface, and the one file of
//! `data` with unsafe code. Knows bytes and pixels; files and other formats are `decode`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};

use turbojpeg_sys as tj;

use super::decode::check_size;
use super::{ImageError, ImageSize};

/// Most pixels that a byte of a JPEG can be: a block of 64 takes a bit at least, in the first scan of a progressive
/// one. (Twice that, because arithmetic coding has no such end; nobody writes it.)
const DENSITY: u64 = 2 * 8 * 64;

/// More scans than any real progressive JPEG has; each costs a pass over all coefficients, so that a
/// small hostile file could otherwise keep a thread busy for hours.
const MAX_SCANS: c_int = 500;

/// The version of libjpeg-turbo, and whether it was built with SIMD; none where its header did not say.
pub(crate) fn build() -> (Option<&'static str>, Option<bool>) {
    (option_env!("JPEG_VERSION"), option_env!("JPEG_SIMD").map(|simd| simd == "true"))
}

/// How the pixels came out of the decompressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// 3 bytes a pixel.
    Rgb,
    /// 4 bytes a pixel, as stored: Adobe's convention, 255 is no ink.
    Cmyk,
}

/// A decompressor of one thread. Reused from image to image; made anew after a damaged one, because
/// libjpeg leaves the state of a failed header behind.
pub(super) struct Decompressor {
    handle: Option<Handle>,
}

/// Owns a non-null decompression handle.
struct Handle(tj::tjhandle);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle came from tj3Init, is not null, and is destroyed only here.
        unsafe { tj::tj3Destroy(self.0) }
    }
}

/// What a call that did not return 0 meant.
enum Fault {
    /// The image is there; libjpeg was not content with something. Its first complaint.
    Warning(String),
    Fatal(String),
}

/// The beginnings of libjpeg's warnings. `tj3GetErrorCode` calls a fatal error that follows a warning a
/// warning as well; the message is the fatal one then, so only the message can tell.
const WARNINGS: [&str; 7] = [
    PREMATURE_END,
    "Corrupt JPEG data: ",
    "Inconsistent progression sequence ",
    "Invalid SOS parameters for sequential JPEG",
    "Unknown Adobe color transform code ",
    "Warning: unknown JFIF revision number ",
    "Application transferred too many scanlines",
];
const PREMATURE_END: &str = "Premature end of JPEG file";

impl Handle {
    fn new() -> Result<Self, ImageError> {
        // SAFETY: no preconditions; the result is checked for null before it is used.
        let raw = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        if raw.is_null() {
            return Err(ImageError::Jpeg("no memory for a decompressor".into()));
        }
        let handle = Self(raw);
        handle.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS)?;
        handle.set(tj::TJPARAM_TJPARAM_SAVEMARKERS, 0)?;
        Ok(handle)
    }

    fn set(&self, param: tj::TJPARAM, value: c_int) -> Result<(), ImageError> {
        // SAFETY: the handle is live; an unknown parameter or value is refused by the callee.
        let status = unsafe { tj::tj3Set(self.0, param as c_int, value) };
        if status == 0 { Ok(()) } else { Err(ImageError::Jpeg(self.message())) }
    }

    /// A parameter of the image whose header was read last, -1 where it is unknown.
    fn get(&self, param: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is live.
        unsafe { tj::tj3Get(self.0, param as c_int) }
    }

    fn read_header(&self, jpeg: &[u8]) -> Result<(), Fault> {
        // SAFETY: the handle is live; pointer and length are those of one slice, only read in the call.
        let status = unsafe { tj::tj3DecompressHeader(self.0, jpeg.as_ptr(), jpeg.len() as tj::size_t) };
        self.check(status)
    }

    /// Decodes the whole image of `size` into `pixels`, `bytes` bytes a pixel of `format`.
    fn read_pixels(
        &self,
        jpeg: &[u8],
        size: ImageSize,
        format: tj::TJPF,
        bytes: usize,
        pixels: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let row = size.width as usize * bytes;
        let Ok(pitch) = c_int::try_from(row) else {
            return Err(Fault::Fatal("the image is too wide".into()));
        };
        pixels.resize(row * size.height as usize, 0);
        // SAFETY: the handle is live; `jpeg` is one slice, only read. The callee parses the header of
        // the same bytes again and writes `height` rows of `pitch` bytes, which is the length that
        // `pixels` was given from the dimensions that the first parse of these bytes found; no scaling
        // and no cropping region are ever set on a handle.
        let status = unsafe {
            tj::tj3Decompress8(
                self.0,
                jpeg.as_ptr(),
                jpeg.len() as tj::size_t,
                pixels.as_mut_ptr(),
                pitch,
                format as c_int,
            )
        };
        self.check(status)
    }

    fn check(&self, status: c_int) -> Result<(), Fault> {
        if status == 0 {
            return Ok(());
        }
        let message = self.message();
        // SAFETY: the handle is live.
        let code = unsafe { tj::tj3GetErrorCode(self.0) };
        let warning = code == tj::TJERR_TJERR_WARNING as c_int
            && WARNINGS.iter().any(|beginning| message.starts_with(beginning));
        Err(if warning { Fault::Warning(message) } else { Fault::Fatal(message) })
    }

    /// The last error's message on one line.
    fn message(&self) -> String {
        // SAFETY: the handle is live; the callee returns a NUL-terminated string in the handle or in
        // memory of this thread, which stays as it is until the next call, after the copy made here.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0)) };
        text.to_string_lossy().replace('\n', " ")
    }
}

impl Decompressor {
    pub(super) fn new() -> Self {
        Self { handle: None }
    }

    /// Decodes the JPEG in `jpeg` into `pixels`, row after row without padding, at libjpeg's accurate
    /// settings, those of Pillow. What libjpeg only warns about is let through, as Pillow does; a file
    /// that ends too early is an error.
    pub(super) fn decode(
        &mut self,
        jpeg: &[u8],
        pixels: &mut Vec<u8>,
    ) -> Result<(ImageSize, Layout), ImageError> {
        let handle = match self.handle.take() {
            Some(handle) => handle,
            None => Handle::new()?,
        };
        let decoded = decode_with(&handle, jpeg, pixels);
        if decoded.is_ok() {
            self.handle = Some(handle);
        }
        decoded
    }
}

fn decode_with(
    handle: &Handle,
    jpeg: &[u8],
    pixels: &mut Vec<u8>,
) -> Result<(ImageSize, Layout), ImageError> {
    complain(handle.read_header(jpeg), jpeg)?;
    let dimension = |param| u32::try_from(handle.get(param)).unwrap_or(0);
    let size = ImageSize {
        width: dimension(tj::TJPARAM_TJPARAM_JPEGWIDTH),
        height: dimension(tj::TJPARAM_TJPARAM_JPEGHEIGHT),
    };
    if size.width == 0 || size.height == 0 {
        return Err(ImageError::Jpeg("no image in it".into()));
    }
    check_size(size, jpeg.len(), DENSITY)?;
    let colorspace = handle.get(tj::TJPARAM_TJPARAM_COLORSPACE);
    let four_inks = [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK].map(|space| space as c_int);
    let (layout, format, bytes) = if four_inks.contains(&colorspace) {
        (Layout::Cmyk, tj::TJPF_TJPF_CMYK, 4)
    } else {
        (Layout::Rgb, tj::TJPF_TJPF_RGB, 3)
    };
    complain(handle.read_pixels(jpeg, size, format, bytes, pixels), jpeg)?;
    Ok((size, layout))
}

/// Turns libjpeg's faults into errors and lets its warnings pass, unless they hide a truncated file.
fn complain(outcome: Result<(), Fault>, jpeg: &[u8]) -> Result<(), ImageError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(Fault::Fatal(message)) => Err(ImageError::Jpeg(message)),
        Err(Fault::Warning(message)) if message.starts_with(PREMATURE_END) => Err(ImageError::Truncated),
        // Only the first warning is told, so that a premature end may stand behind it.
        Err(Fault::Warning(_)) if !ends(jpeg) => Err(ImageError::Truncated),
        Err(Fault::Warning(_)) => Ok(()),
    }
}

/// Whether an end marker follows the last start of a scan. Within a scan 0xFF is always escaped, so
/// neither marker can occur there by chance.
fn ends(jpeg: &[u8]) -> bool {
    let last = |marker: [u8; 2]| jpeg.windows(2).rposition(|pair| pair == marker);
    last([0xFF, 0xD9]) > last([0xFF, 0xDA])
}
