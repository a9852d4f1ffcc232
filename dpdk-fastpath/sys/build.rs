//! Compiles shim.c against the distribution's DPDK and binds shim.h, never a header of DPDK itself.

use bindgen::callbacks::{IntKind, ParseCallbacks};
use std::{env, error::Error, path::PathBuf, process};

/// What we link; drivers are loaded by the EAL from DPDK's plugin directory. `net_ring` is named
/// because ports made of our own rings need its function.
const LIBRARIES: [&str; 6] = ["rte_eal", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_net_ring"];
const OLDEST: &str = "22.11";
const MARCH: &str = "CAUSEWAY_MARCH";

fn main() {
    if let Err(why) = build() {
        eprintln!("{why}");
        process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    for watched in ["shim.h", "shim.c"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    println!("cargo:rerun-if-env-changed={MARCH}");
    let dpdk = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .probe("libdpdk")
        .map_err(|why| format!("DPDK {OLDEST} or newer is needed: install libdpdk-dev\n{why}"))?;
    compile(&dpdk);
    bind()?;
    for path in &dpdk.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for library in LIBRARIES {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    Ok(())
}

fn compile(dpdk: &pkg_config::Library) {
    let mut shim = cc::Build::new();
    shim.file("shim.c").opt_level(3).std("gnu11").flag("-include").flag("rte_config.h");
    if let Some(march) = march() {
        shim.flag(format!("-march={march}"));
    }
    for path in &dpdk.include_paths {
        // -isystem: warnings of DPDK's headers are not ours to fix
        shim.flag("-isystem").flag(path);
    }
    shim.compile("causeway_dpdk_shim");
}

/// The oldest CPU a packaged binary must run on; a bench may ask for `native`.
fn march() -> Option<String> {
    let asked = env::var(MARCH).ok().filter(|march| !march.is_empty());
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    asked.or_else(|| x86.then(|| "x86-64-v2".to_owned()))
}

fn bind() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("shim.rs");
    bindgen::Builder::default()
        .header("shim.h")
        .allowlist_item("(cw|CW)_.*")
        .parse_callbacks(Box::new(WideFlags))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .use_core()
        .derive_default(true)
        .no_default("cw_mbuf")
        // src/lib.rs and shim.c assert what matters, from both sides
        .layout_tests(false)
        .generate()
        .map_err(|why| format!("binding shim.h (libclang-dev must be installed): {why}"))?
        .write_to_file(out)?;
    Ok(())
}

/// Flag words are 64 bits wide in DPDK, so are our constants.
#[derive(Debug)]
struct WideFlags;

impl ParseCallbacks for WideFlags {
    fn int_macro(&self, name: &str, _value: i64) -> Option<IntKind> {
        name.starts_with("CW_").then_some(IntKind::U64)
    }
}
