//! An image that needs no registry: one static program and one page.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::command;
use crate::namespace::Namespace;

/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// What every container of it serves.
pub const PAGE: &str = "a page of a pod\n";
/// Where.
pub const PORT: u16 = 8080;
/// What runtimes call it.
const NAME: &str = "localhost/causeway-test:1";
/// What the one program is known as inside.
const APPLETS: &[&str] = &["sh", "httpd", "ip", "ping", "ping6", "sleep", "true"];

/// A docker-archive on disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// The archive.
    pub archive: PathBuf,
}

impl Image {
    /// Builds it in a directory.
    pub fn build(directory: &Path) -> anyhow::Result<Self> {
        let root = directory.join("image");
        for part in ["bin", "www", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static")?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("www/index.html"), PAGE)?;
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        tar(&root, &directory.join("layer.tar"), ".")?;
        let digest = Sha256::digest(fs::read(directory.join("layer.tar"))?);
        let digest = digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let entry =
            ["/bin/httpd".into(), "-f".into(), "-p".into(), PORT.to_string(), "-h".into(), "/www".into()];
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Entrypoint": entry},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        });
        fs::write(directory.join("config.json"), config.to_string())?;
        let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
        fs::write(directory.join("manifest.json"), manifest.to_string())?;
        let archive = directory.join("image.tar");
        tar(directory, &archive, "manifest.json config.json layer.tar")?;
        fs::remove_dir_all(root)?;
        Ok(Self { archive })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        NAME
    }
}

/// Asks for the page, from a namespace.
pub fn page(from: &Namespace, of: SocketAddr) -> io::Result<String> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&of, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /index.html HTTP/1.0\r\nHost: {of}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.") && head.contains(" 200 ") => {
                Ok(body.to_owned())
            }
            _ => Err(io::Error::other(format!("{of} answers {answer:?}"))),
        }
    })
}

fn tar(from: &Path, to: &Path, what: &str) -> anyhow::Result<()> {
    let mut command = Command::new("tar");
    command.arg("-C").arg(from).arg("-cf").arg(to).args(what.split(' '));
    command::stdout(&mut command, b"")?;
    Ok(())
}
