//! CRC32c.

/// The Castagnoli polynomial with its bits in the order in which they are received (RFC 9260 appendix A).
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Row 0 steps over one byte; row `n` over one byte that has `n` more behind it, so that eight bytes
/// cost eight look-ups that do not wait for one another.
const STEPS: [[u32; 256]; 8] = steps();

const fn steps() -> [[u32; 256]; 8] {
    let mut rows = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        rows[0][byte] = crc;
        byte += 1;
    }
    let mut row = 1;
    while row < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = rows[row - 1][byte];
            rows[row][byte] = before >> 8 ^ rows[0][(before & 0xff) as usize];
            byte += 1;
        }
        row += 1;
    }
    rows
}

/// The CRC32c of these pieces laid end to end (RFC 9260 appendix A, RFC 3720 §12.1).
pub fn crc32c(pieces: &[&[u8]]) -> u32 {
    !pieces.iter().fold(!0, |crc, piece| advance(crc, piece))
}

/// By how much the CRC32c of some bytes changes when four of them change by `change`, with `behind` more behind them: the code is
/// linear, so that what does not change does not matter.
pub(crate) fn crc32c_change(change: [u8; 4], behind: usize) -> u32 {
    let crc = advance(0, &change);
    // Nothing but zeros follows.
    let zeros = [0; 64];
    let crc = (0..behind / zeros.len()).fold(crc, |crc, _| advance(crc, &zeros));
    advance(crc, &zeros[..behind % zeros.len()])
}

fn advance(mut crc: u32, bytes: &[u8]) -> u32 {
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let [a, b, c, d, rest @ ..] = *word;
        let front = (crc ^ u32::from_le_bytes([a, b, c, d])).to_le_bytes();
        let rows = STEPS.iter().rev();
        crc =
            rows.zip(front.into_iter().chain(rest)).fold(0, |sum, (row, byte)| sum ^ row[usize::from(byte)]);
    }
    tail.iter().fold(crc, |crc, byte| crc >> 8 ^ STEPS[0][usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 3720 appendix B.4 prints these with their bytes in the order of transmission.
    #[test]
    fn the_rfcs_examples_hold() {
        let ascending: [u8; 32] = std::array::from_fn(|i| i as u8);
        let descending: [u8; 32] = std::array::from_fn(|i| 31 - i as u8);
        assert_eq!(crc32c(&[&[0; 32]]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[&[0xff; 32]]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(crc32c(&[&ascending]).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(crc32c(&[&descending]).to_le_bytes(), [0x5c, 0xdb, 0x3f, 0x11]);
    }

    /// One bit at a time, as the definition has it.
    fn slow(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for bit in bytes.iter().flat_map(|byte| (0..8).map(move |n| u32::from(byte >> n & 1))) {
            let carry = (crc ^ bit) & 1;
            crc = (crc >> 1) ^ (carry * POLYNOMIAL);
        }
        !crc
    }

    proptest! {
        #[test]
        fn fast_is_slow(bytes in prop::collection::vec(any::<u8>(), 0..200), cut: prop::sample::Index) {
            let (front, back) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(crc32c(&[front, back]), slow(&bytes));
        }
    }
}
