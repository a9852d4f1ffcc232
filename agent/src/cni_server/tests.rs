use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as Stream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use causeway_model::EndpointKey;
use causeway_model::plugin::VERSION;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::task::spawn_blocking;

use super::*;

fn request(container: &str) -> Vec<u8> {
    let key = EndpointKey { network: "pods".into(), container: container.into(), interface: "eth0".into() };
    let request = Request {
        version: VERSION,
        verb: Verb::Add,
        key,
        netns: "/x".into(),
        pod: None,
        args: Default::default(),
        config: Default::default(),
        ipam: Default::default(),
        remembered: None,
        valid: None,
        capabilities: Default::default(),
    };
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &request).unwrap();
    bytes
}

fn send(to: &Stream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    assert_eq!(sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap(), bytes.len());
}

fn reply(from: &mut Stream) -> Reply {
    from.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    read_frame(from).unwrap()
}

/// Says what it got: the container, and what the descriptor is open on.
fn echo(request: &Request, descriptor: Option<OwnedFd>, caller: &Caller) -> Reply {
    if request.key.container == "panic" {
        panic!("told to");
    }
    // Here the client and the server are one process.
    assert_eq!(caller.pid.map(i32::cast_unsigned), Some(std::process::id()));
    let text = descriptor.map(|descriptor| {
        let mut text = String::new();
        File::from(descriptor).read_to_string(&mut text).unwrap();
        text
    });
    Reply::Failed(Failure::new(999, format!("{} {text:?}", request.key.container)))
}

/// Serves in a directory of its own while the client runs on a thread.
async fn with_server(handler: Arc<Handler>, client: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listen(&path).unwrap(), path.clone(), handler, stopped));
    spawn_blocking(move || client(&path)).await.unwrap();
    stop.send(true).unwrap();
    timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_comes_with_its_descriptor_and_gets_its_answer() {
    with_server(Arc::new(echo), |path| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"namespace").unwrap();
        let netns = File::open(file.path()).unwrap();
        let mut stream = Stream::connect(path).unwrap();
        // In pieces, as a stream may deliver it.
        let bytes = request("c1");
        send(&stream, &bytes[..3], &[netns.as_fd()]);
        std::thread::sleep(Duration::from_millis(50));
        send(&stream, &bytes[3..40], &[]);
        std::thread::sleep(Duration::from_millis(50));
        send(&stream, &bytes[40..], &[]);
        assert_eq!(reply(&mut stream), Reply::Failed(Failure::new(999, "c1 Some(\"namespace\")")));
        let mut stream = Stream::connect(path).unwrap();
        send(&stream, &request("c2"), &[]);
        assert_eq!(reply(&mut stream), Reply::Failed(Failure::new(999, "c2 None")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_in_anybodys_way() {
    let waiting = Arc::new(AtomicUsize::new(0));
    let handler = {
        let waiting = waiting.clone();
        move |request: &Request, descriptor, caller: &Caller| {
            if request.key.container == "slow" {
                waiting.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_secs(3));
            }
            echo(request, descriptor, caller)
        }
    };
    with_server(Arc::new(handler), move |path| {
        let silent: Vec<_> = (0..20).map(|_| Stream::connect(path).unwrap()).collect();
        let slow = Stream::connect(path).unwrap();
        send(&slow, &request("slow"), &[]);
        while waiting.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let started = Instant::now();
        let mut stream = Stream::connect(path).unwrap();
        send(&stream, &request("c1"), &[]);
        reply(&mut stream);
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        // Who says nothing is hung up on.
        let mut silent = silent;
        silent[0].set_read_timeout(Some(TALK * 2)).unwrap();
        assert_eq!(silent[0].read(&mut [0; 1]).unwrap(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_or_hung_up_on() {
    with_server(Arc::new(echo), |path| {
        let mut stream = Stream::connect(path).unwrap();
        send(&stream, b"\0\0\0\x05{\"a\":", &[]);
        let Reply::Failed(failure) = reply(&mut stream) else { panic!() };
        assert_eq!(failure.code, Failure::DECODING);
        let mut stream = Stream::connect(path).unwrap();
        send(&stream, &[0xff; 8], &[]);
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // Closed at once, with what was not read: an end or a reset.
        let ended = stream.read(&mut [0; 1]);
        assert!(matches!(ended, Ok(0)) || ended.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
        let mut stream = Stream::connect(path).unwrap();
        send(&stream, &request("panic"), &[]);
        let Reply::Failed(failure) = reply(&mut stream) else { panic!() };
        assert_eq!(failure.code, Failure::IO);
    })
    .await;
}

#[tokio::test]
async fn a_taken_path_is_named_and_a_dead_socket_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let first = listen(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = listen(&path).unwrap_err().to_string();
    assert_eq!(error, format!("socket {} is taken: another process listens there", path.display()));
    drop(first);
    listen(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let error = listen(&path).unwrap_err().to_string();
    assert_eq!(error, format!("socket {} is taken: it is something else than a socket", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_being_served_is_served_to_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let (stop, stopped) = watch::channel(false);
    let begun = Arc::new(tokio::sync::Notify::new());
    let handler = {
        let begun = begun.clone();
        move |request: &Request, descriptor, caller: &Caller| {
            begun.notify_one();
            std::thread::sleep(Duration::from_millis(500));
            echo(request, descriptor, caller)
        }
    };
    let server = tokio::spawn(serve(listen(&path).unwrap(), path.clone(), Arc::new(handler), stopped));
    let mut stream = Stream::connect(&path).unwrap();
    send(&stream, &request("c1"), &[]);
    begun.notified().await;
    stop.send(true).unwrap();
    let answer = spawn_blocking(move || reply(&mut stream)).await.unwrap();
    assert_eq!(answer, Reply::Failed(Failure::new(999, "c1 None")));
    server.await.unwrap();
}
