/// FNV-1a over 64 bits. Names and addresses derived by it must be the same in every version: its constants are fixed
/// for ever, which those of a library's hasher are not. Not for adversarial input.
pub(crate) fn fnv1a<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    // A separator that no name contains keeps ("ab", "c") and ("a", "bc") apart.
    let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
