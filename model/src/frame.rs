use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The longest record on a local socket: far more than any CNI configuration, far less than would hurt.
const LIMIT: usize = 4 << 20;

/// A record that did not come through.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side announced more than we take.
    #[error("a record of {0} bytes is over the limit of {LIMIT}")]
    TooLong(usize),
    /// The bytes are not the record we expect.
    #[error("unreadable record: {0}")]
    Json(#[from] serde_json::Error),
}

/// Writes one record: its length as four bytes, most significant first, then JSON.
pub fn write_frame(mut to: impl Write, record: &impl Serialize) -> Result<(), FrameError> {
    let json = serde_json::to_vec(record)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= LIMIT);
    let length = length.ok_or(FrameError::TooLong(json.len()))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(json);
    Ok(to.write_all(&bytes)?)
}

/// Reads one record as [`write_frame`] wrote it.
pub fn read_frame<T: DeserializeOwned>(mut from: impl Read) -> Result<T, FrameError> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LIMIT {
        return Err(FrameError::TooLong(length));
    }
    let mut json = vec![0; length];
    from.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &vec!["a", "b"]).unwrap();
        assert_eq!(read_frame::<Vec<String>>(&wire[..]).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_length_without_measure_is_refused_before_memory_is_taken() {
        assert!(matches!(read_frame::<String>(&[0xff; 8][..]), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn a_record_cut_short_is_an_error() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &"hello").unwrap();
        for cut in 0..wire.len() {
            assert!(matches!(read_frame::<String>(&wire[..cut]), Err(FrameError::Io(_))), "{cut}");
        }
    }
}
