use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};

use super::PATIENCE;
use super::bulk::accept;
use super::reach::rest;
use crate::namespace::Namespace;

/// Asks a web server, put up for one question in another namespace, for a page; returns the page and the address that the
/// server saw asking.
pub fn http(from: &Namespace, to: &Namespace, address: IpAddr) -> io::Result<(String, IpAddr)> {
    let listener = to.run(|| TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    let page = format!("a page of {}\n", fastrand::u64(..));
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&accept(&listener)?, &page));
        let answer = from.run(|| -> io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET / HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
            rest(stream)
        })?;
        let client = server.join().unwrap_or_else(|_| Err(io::Error::other("the server died")))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if head.starts_with("HTTP/1.0 200 ") && body == page {
            return Ok((body.to_owned(), client));
        }
        Err(io::Error::other(format!("the answer is not the page: {answer:?}")))
    })
}

fn serve(mut stream: &TcpStream, page: &str) -> io::Result<IpAddr> {
    let client = stream.peer_addr()?.ip();
    let mut lines = BufReader::new(stream).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len())?;
    stream.shutdown(Shutdown::Write)?;
    Ok(client)
}
