//! Which queue of a TAP a flow takes, said to the kernel as a program. The one file of the agent that speaks `bpf`.
//!
//! Without one the kernel learns: the queue through which a flow's answers came last is the flow's own from one packet to the next,
//! while earlier ones still wait in the old queue for another worker to read them. A program that looks at addresses and ports
//! alone keeps every flow in one queue, and both directions of a flow in queues of the same number.
#![expect(unsafe_code, reason = "no safe library loads a program of so few instructions")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// One instruction: `struct bpf_insn` of linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The register that is read above, the one that is written below.
    registers: u8,
    jump: i16,
    number: i32,
}

const SET_REGISTER: u8 = 0xbf;
const SET: u8 = 0xb7;
const XOR_REGISTER: u8 = 0xaf;
const AND: u8 = 0x57;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
/// The upper half becomes zero.
const MULTIPLY_HALF: u8 = 0x24;
const IF_EQUAL: u8 = 0x15;
const IF_ANY_BIT: u8 = 0x45;
const GO: u8 = 0x05;
const END: u8 = 0x95;
/// Loads from the frame into register 0, in host order; beyond the frame's end the program ends with 0.
const BYTE: u8 = 0x30;
const HALF: u8 = 0x28;
const WORD: u8 = 0x20;
/// The same from a register and a number.
const WORD_BEHIND: u8 = 0x40;

/// What a load leaves alone: the frame, which loads look for here, the hash, the length of the IP header. And what it does not.
const FRAME: u8 = 6;
const HASH: u8 = 7;
const HEADER: u8 = 8;
const OTHER: u8 = 1;

const TCP: i32 = 6;
const UDP: i32 = 17;
/// 2³² over the golden ratio, odd: every bit of a sum reaches the upper half of the product.
const GOLDEN: i32 = 0x9e37_79b1_u32.cast_signed();

/// A program in the making: jumps name their labels, which are placed later.
#[derive(Default)]
struct Assembler {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn put(&mut self, code: u8, to: u8, from: u8, number: i32) -> &mut Self {
        self.instructions.push(Instruction { code, registers: from << 4 | to, jump: 0, number });
        self
    }

    /// Register 0 from the frame.
    fn load(&mut self, code: u8, at: i32) -> &mut Self {
        self.put(code, 0, 0, at)
    }

    fn jump(&mut self, code: u8, number: i32, label: &'static str) -> &mut Self {
        self.jumps.push((self.instructions.len(), label));
        self.put(code, 0, 0, number)
    }

    fn label(&mut self, label: &'static str) -> &mut Self {
        self.labels.push((label, self.instructions.len()));
        self
    }

    /// Adds the loaded word to the hash: addresses and ports of both directions come out the same.
    fn mix(&mut self) -> &mut Self {
        self.put(XOR_REGISTER, HASH, 0, 0)
    }

    fn finish(self) -> Vec<Instruction> {
        let mut instructions = self.instructions;
        for (at, label) in self.jumps {
            let place = self.labels.iter().find(|(name, _)| *name == label).map(|(_, place)| *place);
            let place = place.unwrap_or_else(|| unreachable!("label {label} is placed below"));
            instructions[at].jump = i16::try_from(place - at - 1)
                .unwrap_or_else(|_| unreachable!("the program is short and jumps forward"));
        }
        instructions
    }
}

/// Hashes addresses and ports of TCP and UDP, addresses alone of everything else and of fragments, which have no ports.
fn program() -> Vec<Instruction> {
    let mut p = Assembler::default();
    p.put(SET_REGISTER, FRAME, 1, 0).put(SET, HASH, 0, 0);
    p.load(HALF, 12).jump(IF_EQUAL, 0x0800, "v4").jump(IF_EQUAL, 0x86dd, "v6").jump(GO, 0, "end");
    p.label("v4").load(WORD, 26).mix().load(WORD, 30).mix();
    p.load(HALF, 20).jump(IF_ANY_BIT, 0x3fff, "end");
    p.load(BYTE, 14).put(AND, 0, 0, 15).put(SHIFT_LEFT, 0, 0, 2).put(SET_REGISTER, HEADER, 0, 0);
    p.load(BYTE, 23).jump(IF_EQUAL, TCP, "ports").jump(IF_EQUAL, UDP, "ports").jump(GO, 0, "end");
    p.label("v6");
    for at in (22..54).step_by(4) {
        p.load(WORD, at).mix();
    }
    p.put(SET, HEADER, 0, 40);
    p.load(BYTE, 20).jump(IF_EQUAL, TCP, "ports").jump(IF_EQUAL, UDP, "ports").jump(GO, 0, "end");
    // Both ports at once; then one with the other, so that both directions come out the same.
    p.label("ports").put(WORD_BEHIND, 0, HEADER, 14).put(SET_REGISTER, OTHER, 0, 0);
    p.put(SHIFT_RIGHT, OTHER, 0, 16).put(XOR_REGISTER, 0, OTHER, 0).put(AND, 0, 0, 0xffff).mix();
    p.label("end").put(MULTIPLY_HALF, HASH, 0, GOLDEN).put(SHIFT_RIGHT, HASH, 0, 16);
    p.put(SET_REGISTER, 0, HASH, 0).put(END, 0, 0, 0);
    p.finish()
}

/// `union bpf_attr`, as far as loading a program takes it.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
}

/// Loads the program; its descriptor may be closed once a TAP has it.
pub fn load() -> Result<OwnedFd, Errno> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const SOCKET_FILTER: u32 = 1;
    let program = program();
    let request = Load {
        kind: SOCKET_FILTER,
        count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
    };
    // SAFETY: the kernel reads `size` bytes of the request, the instructions and the license it points to, all of which outlive
    // the call, and writes nowhere: no log is asked for.
    let loaded =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const request, size_of::<Load>()) };
    let descriptor = RawFd::try_from(Errno::result(loaded)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::fd::AsRawFd;

    use super::*;

    /// `union bpf_attr`, as far as trying a program takes it.
    #[derive(Default)]
    #[repr(C)]
    struct Trial {
        program: u32,
        verdict: u32,
        length: [u32; 2],
        frame: u64,
        rest: [u64; 7],
    }

    fn hash(frame: &[u8]) -> u32 {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        let program = load().expect("root, to load a program");
        // The kernel takes one Ethernet header off before it tries a program of this kind.
        let framed = [&[0; 14], frame].concat();
        let mut trial = Trial {
            program: program.as_raw_fd().cast_unsigned(),
            length: [framed.len() as u32, 0],
            frame: framed.as_ptr().addr() as u64,
            ..Trial::default()
        };
        // SAFETY: the kernel reads the frame, which outlives the call, and writes into the trial, which is as long as is said.
        let tried =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut trial, size_of::<Trial>()) };
        Errno::result(tried).expect("the program runs");
        trial.verdict
    }

    /// A frame of UDP, or of another protocol, between hosts with these last bytes and ports.
    fn v4(hosts: [u8; 2], ports: [u16; 2], protocol: u8, fragment: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, fragment, 0, 64, protocol, 0, 0]);
        hosts.iter().for_each(|host| frame.extend([10, 70, 1, *host]));
        ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
        frame.extend([0; 16]);
        frame
    }

    fn v6(hosts: [u8; 2], ports: [u16; 2], protocol: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
        hosts.iter().for_each(|host| frame.extend([[0xfd, 0x70].as_slice(), &[0; 13], &[*host]].concat()));
        ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn both_directions_of_a_flow_are_one_and_flows_are_spread() {
        for protocol in [6, 17] {
            let (mut low, mut low6) = (BTreeSet::new(), BTreeSet::new());
            for port in 40_000..40_016 {
                assert_eq!(
                    hash(&v4([3, 9], [port, 80], protocol, 0)),
                    hash(&v4([9, 3], [80, port], protocol, 0))
                );
                assert_eq!(hash(&v6([3, 9], [port, 80], protocol)), hash(&v6([9, 3], [80, port], protocol)));
                low.insert(hash(&v4([3, 9], [port, 80], protocol, 0)) % 4);
                low6.insert(hash(&v6([3, 9], [port, 80], protocol)) % 4);
            }
            assert_eq!((low.len(), low6.len()), (4, 4), "sixteen flows, four queues");
        }
    }

    #[test]
    fn what_has_no_ports_is_hashed_without() {
        let of = |ports, protocol, fragment| hash(&v4([3, 9], ports, protocol, fragment));
        assert_eq!(of([1, 2], 1, 0), of([3, 4], 1, 0), "ICMP");
        assert_eq!(of([1, 2], 17, 0x20), of([3, 4], 17, 0x20), "the first of several fragments");
        assert_ne!(of([1, 2], 17, 0x40), of([3, 4], 17, 0x40), "\"do not fragment\" is no fragment");
        assert_eq!(hash(&[&[2; 12][..], &[8, 6], &[7; 28]].concat()), 0, "ARP");
        assert_eq!(hash(&v4([3, 9], [1, 2], 17, 0)[..30]), 0, "cut off");
    }
}
