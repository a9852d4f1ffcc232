//! What is on a link, judged by a decoder that we did not write.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::command::{self, CommandError};
use crate::namespace::Namespace;
use crate::packet_socket::Lookout;
use crate::pcap::PcapWriter;

/// Tells apart the files of captures of one process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What tshark finds wrong with a frame. Checksums count only where a frame has one.
const COMPLAINTS: &str = "_ws.malformed || _ws.expert.severity == error || ip.checksum.status == 0 || udp.checksum.status == 0 \
                          || tcp.checksum.status == 0 || icmp.checksum.status == 0 || icmpv6.checksum.status == 0 \
                          || ip.bogus_header_length || udp.length.bad";

/// What is spoken on a lab's links: tshark names everything else by a port, or finds it in noise.
const SPOKEN: &[&str] = &[
    "eth",
    "ethertype",
    "vlan",
    "arp",
    "ip",
    "ipv6",
    "ipv6.fraghdr",
    "ipv6.hopopts",
    "icmp",
    "icmpv6",
    "udp",
    "tcp",
    "vxlan",
    "data",
    "_ws.malformed",
];

/// Records every frame of a link until it is finished.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    recorder: JoinHandle<io::Result<(usize, usize)>>,
}

/// A finished recording; its file goes with it.
#[derive(Debug)]
pub struct Recording {
    file: PathBuf,
    /// How many frames it holds.
    pub frames: usize,
    /// How many of them had a checksum that was left to others. In the recording it is as those would make it.
    pub partial: usize,
}

impl Capture {
    /// Begins to record; whatever passes from now on is in it.
    pub fn start(namespace: &Namespace, interface: &str) -> io::Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("causeway-capture-{}-{number}.pcap", std::process::id());
        let file = std::env::temp_dir().join(name);
        let socket = namespace.run(|| Lookout::open(interface))?;
        let (stop, output) = (Arc::new(AtomicBool::new(false)), BufWriter::new(File::create(&file)?));
        let recorder = std::thread::spawn({
            let stop = stop.clone();
            move || record(&socket, output, &stop)
        });
        Ok(Self { file, stop, recorder })
    }

    /// Ends the recording.
    pub fn finish(self) -> io::Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        let recorded = self.recorder.join().unwrap_or_else(|_| Err(io::Error::other("the recorder died")));
        let mut recording = Recording { file: self.file, frames: 0, partial: 0 };
        (recording.frames, recording.partial) = recorded?;
        Ok(recording)
    }
}

/// Writes what the socket hears to a file, and counts the frames and those that were left incomplete.
fn record(socket: &Lookout, output: impl Write, stop: &AtomicBool) -> io::Result<(usize, usize)> {
    let (mut output, mut partial) = (PcapWriter::new(output)?, 0);
    while !stop.load(Ordering::Relaxed) {
        // What is still in the socket when it ends is taken along.
        while let Some(seen) = socket.receive(Duration::from_millis(20))? {
            output.frame(&seen.frame)?;
            partial += usize::from(seen.partial);
        }
    }
    Ok((output.finish()?, partial))
}

impl Recording {
    /// A recording that somebody else made, in the classic pcap form.
    pub fn of_file(file: PathBuf) -> io::Result<Self> {
        // Behind the file's head each frame has one of its own, whose third word is the length that was kept.
        const HEADS: (usize, usize) = (24, 16);
        let bytes = fs::read(&file)?;
        let (mut at, mut frames) = (HEADS.0, 0);
        while let Some(length) = bytes.get(at + 8..at + 12) {
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            at += HEADS.1 + length as usize;
            frames += 1;
        }
        Ok(Self { file, frames, partial: 0 })
    }

    /// The frames that a display filter takes, each as these fields, joined by tabs. Where headers are nested, all of
    /// them are there, joined by commas, the outermost first.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Result<Vec<String>, CommandError> {
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&self.file).args([
            "-n",
            "-d",
            "udp.port==4789,vxlan",
            // The payload is noise in which tshark would find protocols that nobody speaks, and mistakes in them.
            "-d",
            "tcp.port==1-65535,data",
            "-Y",
            filter,
            "-T",
            "fields",
        ]);
        for checked in ["ip", "udp", "tcp"] {
            tshark.args(["-o", &format!("{checked}.check_checksum:TRUE")]);
        }
        for field in fields {
            tshark.args(["-e", field]);
        }
        Ok(command::stdout(&mut tshark, b"")?.lines().map(str::to_owned).collect())
    }

    /// The frames that tshark has something against: malformed, or a wrong checksum on any layer.
    pub fn complaints(&self) -> Result<Vec<String>, CommandError> {
        let mut complaints = self.fields(
            COMPLAINTS,
            &["frame.number", "frame.protocols", "_ws.expert.message", "ip.src", "ip.dst"],
        )?;
        // Both are zero in ones' complement. Linux's own TCP writes either, once in 65,536 segments, and every receiver
        // takes it: nothing that a data path does.
        complaints.retain(|line| !line.contains("TCP Checksum 0xffff instead of 0x0000"));
        // A datagram of ours on a port that some protocol is known by is not that protocol.
        complaints.retain(|line| {
            let protocols = line.split('\t').nth(1).unwrap_or_default();
            protocols.split(':').all(|protocol| SPOKEN.contains(&protocol))
        });
        Ok(complaints)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.file));
    }
}
