//! Writing past the caches, straight to memory. A batch is more than they hold and nobody reads it soon, and an ordinary
//! store first fetches what it overwrites.
#![allow(unsafe_code)]

/// Floats that are being written, and that nobody can read until they are in memory.
pub(super) struct Stream<'a>(&'a mut [f32]);

/// Has `out` written by `write`.
pub(super) fn stream(out: &mut [f32], write: impl FnOnce(&mut Stream<'_>)) {
    // Whatever becomes of `write`: its stores come before all that is done next.
    let _fence = Fence;
    write(&mut Stream(out));
}

impl Stream<'_> {
    /// Writes `values` from float `start` on.
    ///
    /// # Panics
    /// If they reach beyond the end.
    #[inline(always)]
    pub(super) fn put<const N: usize>(&mut self, start: usize, values: &[f32; N]) {
        let out = &mut self.0[start..start + N];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m128, _mm_loadu_ps, _mm_stream_ps};
            // No wider: an allocation is aligned to so many bytes.
            const LANES: usize = size_of::<__m128>() / size_of::<f32>();
            if N.is_multiple_of(LANES) && out.as_ptr().cast::<__m128>().is_aligned() {
                for lane in (0..N).step_by(LANES) {
                    // SAFETY: both hold N floats, of which N is a multiple of LANES, so that these LANES from `lane` on lie
                    // within; `out` is aligned as was looked at. SSE is part of x86-64. Nothing reads what is written
                    // before the fence: `stream` has it borrowed until then.
                    unsafe {
                        let four = _mm_loadu_ps(values.as_ptr().add(lane));
                        _mm_stream_ps(out.as_mut_ptr().add(lane), four);
                    }
                }
                return;
            }
        }
        out.copy_from_slice(values);
    }

    /// As [`Self::put`], of a length that is not known beforehand.
    pub(super) fn put_some(&mut self, start: usize, values: &[f32]) {
        self.0[start..start + values.len()].copy_from_slice(values);
    }
}

struct Fence;

impl Drop for Fence {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: it asks for SSE, which is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_written_wherever_it_begins() {
        let values: [f32; 96] = std::array::from_fn(|index| index as f32 + 1.0);
        for start in 0..20 {
            for some in [0, 1, 8, 95] {
                let mut out = vec![0.0; 256];
                stream(&mut out, |out| {
                    out.put(start, &values);
                    out.put_some(start + 96, &values[..some]);
                });
                let written = [&[0.0].repeat(start), &values[..], &values[..some]].concat();
                let rest = vec![0.0; 256 - written.len()];
                assert_eq!(out, [written, rest].concat(), "from {start}, {some} more");
            }
        }
    }
}
