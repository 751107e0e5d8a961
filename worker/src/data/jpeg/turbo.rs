//! JPEG decompression by libjpeg-turbo 3 alone: a safe handle around its TurboJPEG interface, for every kind of JPEG.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};

use turbojpeg_sys as tj;

use super::{DENSITY, Layout, around, ends};
use crate::data::cut::{Cut, Pick};
use crate::data::{CropBox, ImageError, ImageSize};

/// More scans than any real progressive JPEG has; each costs a pass over all coefficients, so that a
/// small hostile file could otherwise keep a thread busy for hours.
const MAX_SCANS: c_int = 500;

/// Width and height of the blocks that an image is coded in, by libjpeg-turbo's number of its subsampling.
const UNITS: [(u32, u32); 7] = [(8, 8), (16, 8), (16, 16), (8, 8), (8, 16), (32, 8), (8, 32)];

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

    /// Has the next image decoded at 1 / `shrink` of its size (1, 2, 4 or 8), and of that only `region`, or all.
    fn choose(&self, shrink: u32, region: Option<CropBox>) -> Result<(), ImageError> {
        let int =
            |value: u32| c_int::try_from(value).map_err(|_| ImageError::Jpeg("the image is too wide".into()));
        let factor = tj::tjscalingfactor { num: 1, denom: int(shrink)? };
        let region = match region {
            Some(CropBox { left, top, width, height }) => {
                tj::tjregion { x: int(left)?, y: int(top)?, w: int(width)?, h: int(height)? }
            }
            None => tj::tjregion { x: 0, y: 0, w: 0, h: 0 },
        };
        // SAFETY: the handle is live; the callee refuses a factor that it does not have and a region that does not lie
        // in the image whose header was read last, at that factor.
        let statuses =
            unsafe { [tj::tj3SetScalingFactor(self.0, factor), tj::tj3SetCroppingRegion(self.0, region)] };
        if statuses == [0, 0] { Ok(()) } else { Err(ImageError::Jpeg(self.message())) }
    }

    /// Decodes what was [chosen](Self::choose), of `size`, into `pixels`, `bytes` bytes a pixel of `format`.
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
        // `pixels` was given from the dimensions that the first parse of these bytes found and from what was chosen of
        // them.
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

/// Decodes of the JPEG in `jpeg` what `pick` asks of an image of that size, or a little more, into `pixels`. By a handle of
/// its own: libjpeg takes tables that an image lacks from the one before.
pub(super) fn decode(
    jpeg: &[u8],
    pick: impl FnOnce(ImageSize) -> Pick,
    pixels: &mut Vec<u8>,
) -> Result<(Cut, Layout), ImageError> {
    let handle = Handle::new()?;
    complain(handle.read_header(jpeg), jpeg)?;
    let dimension = |param| u32::try_from(handle.get(param)).unwrap_or(0);
    let size = ImageSize {
        width: dimension(tj::TJPARAM_TJPARAM_JPEGWIDTH),
        height: dimension(tj::TJPARAM_TJPARAM_JPEGHEIGHT),
    };
    if size.width == 0 || size.height == 0 {
        return Err(ImageError::Jpeg("no image in it".into()));
    }
    size.check(jpeg.len(), DENSITY)?;
    let colorspace = handle.get(tj::TJPARAM_TJPARAM_COLORSPACE);
    let four_inks = [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK].map(|space| space as c_int);
    let (layout, format, bytes) = if four_inks.contains(&colorspace) {
        (Layout::Cmyk, tj::TJPF_TJPF_CMYK, 4)
    } else {
        (Layout::Rgb, tj::TJPF_TJPF_RGB, 3)
    };
    let Pick { crop, shrink, .. } = pick(size);
    let whole = CropBox::whole(size);
    let unit = usize::try_from(handle.get(tj::TJPARAM_TJPARAM_SUBSAMP)).ok().and_then(|kind| UNITS.get(kind));
    let divisible =
        handle.get(tj::TJPARAM_TJPARAM_LOSSLESS) == 0 && handle.get(tj::TJPARAM_TJPARAM_PRECISION) == 8;
    let (shrink, region) = match unit {
        Some(unit) if divisible && (crop != whole || shrink > 1) => {
            let region = around(crop, *unit, 1, size, shrink);
            handle.choose(shrink, Some(region))?;
            (shrink, region)
        }
        _ => {
            handle.choose(1, None)?;
            (1, whole)
        }
    };
    let of_region = ImageSize { width: region.width, height: region.height };
    complain(handle.read_pixels(jpeg, of_region, format, bytes, pixels), jpeg)?;
    // What lies behind the region is not read, and would not be missed.
    if region != whole && !ends(jpeg) {
        return Err(ImageError::Truncated);
    }
    Ok((Cut { size, crop, shrink, region }, layout))
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
