use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use causeway_model::connection::{Connection, Listing, Stage};
use causeway_model::operator::{EndpointStatus, Status};
use causeway_model::{Count, DropReason, EndpointCounters};

use super::*;
use crate::engine::bench::{Bench, CLUSTER, WEST, key, world};

/// Head and body of a page.
fn get(socket: &Path, page: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {page} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn connection(from: IpAddr, to: IpAddr) -> Connection {
    Connection {
        path: causeway_model::Path::Kernel,
        protocol: 6,
        from: (from, 40_000),
        to: (to, 80),
        answers: None,
        from_pod: None,
        to_pod: None,
        stage: Stage::Established,
        picked_up: false,
        sent: Count::default(),
        answered: Count::default(),
        retransmits: None,
        age_ms: None,
        left_ms: 1000,
        handshake_us: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_show_what_the_engine_knows() {
    let bench = Bench::new();
    let engine = Arc::new(bench.start());
    let socket = bench.directory.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(axum::serve(listener, router(engine.clone())).into_future());
    let pages = move || {
        let (code, body) = get(&socket, "/v1/health");
        assert_eq!(code, "HTTP/1.0 503 Service Unavailable");
        assert!(body.contains("the first reading of manifests in a test"), "{body}");

        engine.hear(Ok(world(&[CLUSTER, WEST])));
        engine.add("c1");
        let count = Count { packets: 3, bytes: 180 };
        {
            let mut log = bench.dataplane.log();
            log.counters.tunnel_sent = count;
            log.counters.drops =
                [(DropReason::SpoofedMac, count), (DropReason::TooBig, Count::default())].into();
            let of_c1 = EndpointCounters { from_pod: count, ..EndpointCounters::default() };
            log.counters.endpoints = [(key("c1"), of_c1)].into();
        }
        assert_eq!(get(&socket, "/v1/health").0, "HTTP/1.0 200 OK");
        let status: Status = serde_json::from_str(&get(&socket, "/v1/status").1).unwrap();
        assert_eq!(status.node.unwrap().id.to_string(), "lyon/east");
        assert_eq!(status.peers.len(), 1);
        assert_eq!(status.tunnel_sent, count);
        assert_eq!(status.drops, [(DropReason::SpoofedMac, count)].into(), "what never occurred is left out");
        assert!(status.source.synchronised && status.waiting_for.is_empty());
        let endpoints: Vec<EndpointStatus> = serde_json::from_str(&get(&socket, "/v1/endpoints").1).unwrap();
        assert_eq!(endpoints[0].endpoint.key, key("c1"));
        assert_eq!(endpoints[0].counters.from_pod, count);
        assert_eq!(get(&socket, "/v1/nothing").0, "HTTP/1.0 404 Not Found");

        let (own, far) = (endpoints[0].endpoint.addresses[0], "10.70.2.9".parse().unwrap());
        bench.dataplane.log().connections =
            vec![connection(own, far), connection(far, "10.70.2.8".parse().unwrap())];
        let listed = |query: &str| -> Listing {
            let (head, body) = get(&socket, &format!("/v1/connections?{query}"));
            assert_eq!(head, "HTTP/1.0 200 OK", "{body}");
            serde_json::from_str(&body).unwrap()
        };
        assert_eq!(listed("").connections.len(), 2);
        assert_eq!(listed("most=1").more, 1);
        let of_one = listed(&format!("within={own}%2F32&protocol=tcp&stage=established&path=kernel&port=80"));
        assert_eq!(of_one.connections.len(), 1);
        assert_eq!(listed("protocol=17").connections.len(), 0);
        for (query, named) in [
            ("colour=blue", "colour"),
            ("port=70000", "port"),
            ("within=10.70.1.0/33", "within"),
            ("stage=old", "old"),
            ("protocol=tpc", "tpc"),
            ("pod=default/nobody", "nobody"),
            ("pod=a&within=10.0.0.0/8", "one of both"),
        ] {
            let (head, body) = get(&socket, &format!("/v1/connections?{query}"));
            assert_eq!(head, "HTTP/1.0 400 Bad Request", "{query}");
            assert!(body.contains(named), "{query}: {body}");
        }
        bench.dataplane.log().fail = Some("connections");
        let (head, body) = get(&socket, "/v1/connections");
        assert_eq!(head, "HTTP/1.0 503 Service Unavailable");
        assert!(body.contains("connections was told to fail"), "{body}");
    };
    spawn_blocking(pages).await.unwrap();
}
