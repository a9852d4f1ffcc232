//! Memory that will be read soon, asked for without waiting for it.
#![expect(unsafe_code, reason = "the processor's hint takes a pointer")]

/// Asks for the cache line that a value begins in.
#[inline(always)]
pub(super) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint reads and writes nothing, whatever the pointer; this one is of a living value.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
