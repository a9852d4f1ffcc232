//! Writes the seeds of every target into the corpus; what else is there stays.

use std::fs;
use std::io;

use causeway_fuzz::{TARGETS, directory, seeds};

fn main() -> io::Result<()> {
    for target in TARGETS {
        let place = directory().join("corpus").join(target.name);
        fs::create_dir_all(&place)?;
        for (name, bytes) in seeds::of(target.name) {
            fs::write(place.join(name), bytes)?;
        }
    }
    Ok(())
}
