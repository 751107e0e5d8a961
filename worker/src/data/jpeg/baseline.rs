//! JPEGs with one baseline scan and nothing unusual, which is nearly all: libjpeg-turbo decodes them with the Huffman
//! decoder of [`huffman`](super::huffman). What else there is, and whatever libjpeg would so much as warn about, is
//! left to [`turbo`](super::turbo).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use super::huffman::{Block, Code};
use super::scan::{Huffman, Part, Scan};
use crate::data::components::{Components, Plane};
use crate::data::resample::BEYOND;
use crate::data::{CropBox, ImageSize};

/// A decompressor of one thread, reused from image to image.
pub(super) struct Baseline {
    handle: Handle,
    huffman: Huffman,
}

/// Owns what `libjpeg.c` allocated, which is not null.
struct Handle(*mut c_void);

// SAFETY: what it points to is nobody else's, and not bound to a thread.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from relabel_jpeg_new, is not null, and is freed only here.
        unsafe { relabel_jpeg_free(self.0) }
    }
}

/// Of the image that was opened.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    width: u32,
    height: u32,
    unit_width: u32,
    unit_height: u32,
    components: u32,
}

impl Header {
    pub(super) fn size(&self) -> ImageSize {
        ImageSize { width: self.width, height: self.height }
    }

    /// Width and height of the blocks that it is coded in.
    pub(super) fn unit(&self) -> (u32, u32) {
        (self.unit_width, self.unit_height)
    }

    /// Whether there are luma and differences.
    pub(super) fn has_components(&self) -> bool {
        self.components == 3
    }
}

/// A [`CropBox`], in C's order.
#[repr(C)]
struct Region {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

/// How a [`Plane`] lies.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PlaneLayout {
    width: u32,
    height: u32,
    pitch: u32,
    rows: u32,
    mcu_width: u32,
    mcu_height: u32,
    mcu_pixels_wide: u32,
    mcu_pixels_high: u32,
}

#[repr(C)]
struct ScanPart {
    dc: *const Code,
    ac: *const Code,
    component: u32,
    all: u32,
}

/// Blocks that an MCU of a file can have (libjpeg's `D_MAX_BLOCKS_IN_MCU`).
const MOST_BLOCKS: usize = 10;

#[repr(C)]
struct ScanHeader {
    begin: usize,
    blocks: u32,
    parts: [ScanPart; MOST_BLOCKS],
}

type DecodeMcu = extern "C" fn(*mut c_void, *mut i16) -> c_int;

unsafe extern "C" {
    fn relabel_jpeg_new() -> *mut c_void;
    fn relabel_jpeg_free(handle: *mut c_void);
    fn relabel_jpeg_open(handle: *mut c_void, bytes: *const u8, length: usize, header: *mut Header) -> c_int;
    fn relabel_jpeg_start(
        handle: *mut c_void,
        shrink: u32,
        region: *const Region,
        scan: *mut ScanHeader,
        planes: *mut PlaneLayout,
    ) -> c_int;
    fn relabel_jpeg_read(
        handle: *mut c_void,
        region: *const Region,
        decode: DecodeMcu,
        scan: *mut c_void,
        pixels: *mut u8,
    ) -> c_int;
    fn relabel_jpeg_read_planes(
        handle: *mut c_void,
        region: *const Region,
        planes: *const PlaneLayout,
        decode: DecodeMcu,
        scan: *mut c_void,
        samples: *const *mut u8,
    ) -> c_int;
}

/// An image whose header was read, and that is not to be touched until its pixels are.
pub(super) struct Opened<'a> {
    baseline: &'a mut Baseline,
    jpeg: &'a [u8],
    pub(super) header: Header,
}

impl Baseline {
    /// None where there is no memory for it.
    pub(super) fn new() -> Option<Self> {
        // SAFETY: no preconditions; the result is checked for null before it is used.
        let raw = unsafe { relabel_jpeg_new() };
        (!raw.is_null()).then(|| Self { handle: Handle(raw), huffman: Huffman::default() })
    }

    /// None for a JPEG that is not for this.
    pub(super) fn open<'a>(&'a mut self, jpeg: &'a [u8]) -> Option<Opened<'a>> {
        let mut header = Header::default();
        // SAFETY: the handle is live, and `jpeg` outlives what is returned, whose methods alone make the callee look at
        // it again: the next image is opened before anything else is done.
        let opened = unsafe { relabel_jpeg_open(self.handle.0, jpeg.as_ptr(), jpeg.len(), &mut header) };
        (opened == 1).then_some(Opened { baseline: self, jpeg, header })
    }
}

impl<'a> Opened<'a> {
    /// Decodes `region` of the image at 1 / `shrink` of its size into `pixels`, RGB, row after row. None where
    /// something is wrong with the image, or the region is not within it or does not begin at a whole MCU.
    pub(super) fn decode(self, shrink: u32, region: CropBox, pixels: &mut Vec<u8>) -> Option<()> {
        let region = Region::of(region);
        let (handle, mut scan) = self.start(shrink, &region, None)?;
        pixels.resize(region.width as usize * region.height as usize * 3, 0);
        // SAFETY: the handle is live, with the image that `self.jpeg` still borrows; the callee writes `height` rows of
        // `3 * width` bytes, the length of `pixels`, and hands `scan`, which it does not look into, to `decode_mcu`.
        let read = unsafe {
            relabel_jpeg_read(handle.0, &region, decode_mcu, (&raw mut scan).cast(), pixels.as_mut_ptr())
        };
        (read == 1).then_some(())
    }

    /// As [`Self::decode`], the components apart; for an image that [has them](Header::has_components).
    pub(super) fn decode_components(
        self,
        shrink: u32,
        region: CropBox,
        components: &mut Components,
    ) -> Option<()> {
        if !self.header.has_components() {
            return None;
        }
        let region = Region::of(region);
        let mut layouts = [PlaneLayout::default(); 3];
        let (handle, mut scan) = self.start(shrink, &region, Some(&mut layouts))?;
        for (plane, layout) in components.iter_mut().zip(&layouts) {
            layout.fit(plane);
        }
        let samples = components.each_mut().map(|plane| plane.samples.as_mut_ptr());
        // SAFETY: as in `decode`; of each component the callee writes `rows` rows that lie `pitch` apart, of `pitch`
        // bytes at most, and there are so many at each of `samples`.
        let read = unsafe {
            relabel_jpeg_read_planes(
                handle.0,
                &region,
                layouts.as_ptr(),
                decode_mcu,
                (&raw mut scan).cast(),
                samples.as_ptr(),
            )
        };
        (read == 1).then_some(())
    }

    /// Begins with `region`, of pixels or of planes, whose layouts are filled in.
    fn start(
        self,
        shrink: u32,
        region: &Region,
        layouts: Option<&mut [PlaneLayout; 3]>,
    ) -> Option<(&'a Handle, Scan<'a>)> {
        let Baseline { handle, huffman } = self.baseline;
        let nothing = || ScanPart { dc: std::ptr::null(), ac: std::ptr::null(), component: 0, all: 0 };
        let mut scan = ScanHeader { begin: 0, blocks: 0, parts: std::array::from_fn(|_| nothing()) };
        let layouts = layouts.map_or(std::ptr::null_mut(), |layouts| layouts.as_mut_ptr());
        // SAFETY: the handle is live, with the image that `self.jpeg` still borrows; `layouts` is null, or three for an
        // image of three components.
        let started = unsafe { relabel_jpeg_start(handle.0, shrink, region, &mut scan, layouts) };
        if started != 1 {
            return None;
        }
        let part = |part: &ScanPart| {
            // SAFETY: libjpeg's tables, which live as long as the image is open, begin as `Code` is laid out; libjpeg
            // has made its own of them, so none is missing.
            let (dc, ac) = unsafe { (part.dc.as_ref()?, part.ac.as_ref()?) };
            Some(Part { component: part.component as usize, dc, ac, all: part.all != 0 })
        };
        let parts: Option<Vec<Part>> = scan.parts.iter().take(scan.blocks as usize).map(part).collect();
        Some((handle, huffman.scan(self.jpeg.get(scan.begin..)?, &parts?)?))
    }
}

impl Region {
    fn of(CropBox { top, left, height, width }: CropBox) -> Self {
        Self { left, top, width, height }
    }
}

impl PlaneLayout {
    /// Makes `plane` so large.
    fn fit(&self, plane: &mut Plane) {
        plane.size = ImageSize { width: self.width, height: self.height };
        plane.pitch = self.pitch;
        let density = |samples, pixels| f64::from(samples) / f64::from(pixels);
        plane.density =
            (density(self.mcu_width, self.mcu_pixels_wide), density(self.mcu_height, self.mcu_pixels_high));
        plane.samples.resize(self.pitch as usize * self.rows as usize + BEYOND, 0);
    }
}

extern "C" fn decode_mcu(scan: *mut c_void, blocks: *mut i16) -> c_int {
    // SAFETY: libjpeg.c passes on the `scan` that a method of `Opened` gave it and holds no reference to.
    let scan = unsafe { &mut *scan.cast::<Scan>() };
    // SAFETY: null, or as many blocks as an MCU has, one after the other, that nothing else refers to in this call.
    let mcu = (!blocks.is_null())
        .then(|| unsafe { std::slice::from_raw_parts_mut(blocks.cast::<Block>(), scan.blocks()) });
    c_int::from(scan.next(mcu).is_some())
}
