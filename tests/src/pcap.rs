//! Files of frames in the classic pcap form, with the time left out: nobody asks.

use std::io::{self, Write};

const LINKTYPE_ETHERNET: u32 = 1;
/// No frame here is longer.
const SNAPLEN: u32 = 1 << 18;

/// Writes frames one after the other.
#[derive(Debug)]
pub struct PcapWriter<W> {
    output: W,
    frames: usize,
}

impl<W: Write> PcapWriter<W> {
    /// Begins a file.
    pub fn new(mut output: W) -> io::Result<Self> {
        output.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
        output.write_all(&[2, 0, 4, 0])?;
        for word in [0, 0, SNAPLEN, LINKTYPE_ETHERNET] {
            output.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { output, frames: 0 })
    }

    /// Adds a frame.
    pub fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        for word in [0, 0, length, length] {
            self.output.write_all(&word.to_le_bytes())?;
        }
        self.output.write_all(frame)?;
        self.frames += 1;
        Ok(())
    }

    /// Ends the file and tells how many frames it has.
    pub fn finish(mut self) -> io::Result<usize> {
        self.output.flush()?;
        Ok(self.frames)
    }
}
