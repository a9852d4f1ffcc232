//! The metrics page: OpenMetrics text over TCP, for Prometheus. All labels are bounded.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use causeway_model::fastpath::ConnectionFigures;
use causeway_model::operator::{NamesStatus, Status};
use causeway_model::plugin::{Reply, Verb};
use causeway_model::{Count, DropReason, Path};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::task::spawn_blocking;

use crate::engine::{Engine, Report};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper ends of the buckets of a request's duration, in seconds: an ADD takes some milliseconds, or its two seconds of
/// patience, or hangs.
const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 20.0];

type Labels = Vec<(&'static str, String)>;

/// What the plugin asked, how it ended and how long it took.
#[derive(Clone)]
pub(crate) struct CniMeter {
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

impl CniMeter {
    pub(crate) fn new() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Self { requests: Family::default(), durations: Family::new_with_constructor(histogram) }
    }

    /// Counts one request; code 0 is success.
    pub(crate) fn count(&self, verb: Verb, reply: &Reply, took: Duration) {
        let verb = format!("{verb:?}").to_uppercase();
        let code = match reply {
            Reply::Failed(failure) => failure.code,
            Reply::Attached(_) | Reply::Done => 0,
        };
        self.requests.get_or_create(&vec![("verb", verb.clone()), ("code", code.to_string())]).inc();
        self.durations.get_or_create(&vec![("verb", verb)]).observe(took.as_secs_f64());
    }
}

/// The page, at `/metrics`.
pub(crate) fn router(engine: Arc<Engine>, meter: CniMeter) -> Router {
    Router::new().route("/metrics", get(page)).with_state((engine, meter))
}

async fn page(State((engine, meter)): State<(Arc<Engine>, CniMeter)>) -> Response {
    let text = spawn_blocking(move || text(&engine.report(), &meter)).await;
    match text.map_err(|panic| panic.to_string()).and_then(|text| text.map_err(|error| error.to_string())) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

/// The page's text. The registry is made anew each time: what it shows is kept elsewhere.
fn text(report: &Report, meter: &CniMeter) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("causeway");
    let status = &report.status;
    describe_node(&mut registry, status);
    describe_source(&mut registry, report);
    describe_traffic(&mut registry, status);
    if let Some(figures) = status.fastpath.as_ref().and_then(|process| process.connections) {
        describe_connections(&mut registry, &figures);
    }
    describe_names(&mut registry, &status.names);
    let help = "Repairs of what others changed on this node";
    registry.register("repairs", help, counter(status.repairs));
    let help = "Requests of the CNI plugin by verb and code of the answer, 0 for success";
    registry.register("cni_requests", help, meter.requests.clone());
    let help = "How long requests of the CNI plugin took";
    registry.register_with_unit("cni_request_duration", help, Unit::Seconds, meter.durations.clone());
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn describe_node(registry: &mut Registry, status: &Status) {
    registry.register("build", "This agent's release", Info::new(vec![("release", status.release.clone())]));
    let path = vec![
        ("asked", status.path.asked.clone()),
        ("path", status.path.path.to_string()),
        ("tunnel", format!("{:?}", status.path.tunnel).to_lowercase()),
    ];
    registry.register(
        "path",
        "The data path of new endpoints: asked for, given, and who has the tunnel",
        Info::new(path),
    );
    let peers = Family::<Labels, Gauge>::default();
    for peer in &status.peers {
        peers.get_or_create(&vec![("cluster", peer.id.cluster.to_string())]).inc();
    }
    registry.register("peers", "Other nodes by cluster", peers);
    let endpoints = Family::<Labels, Gauge>::default();
    for path in [Path::Fast, Path::Kernel] {
        let count = status.endpoints.get(&path).copied().unwrap_or_default();
        endpoints.get_or_create(&vec![("path", path.to_string())]).set(to_gauge(count));
    }
    registry.register("endpoints", "Endpoints of this node by data path", endpoints);
    registry.register(
        "serving",
        "Whether this agent serves",
        gauge(i64::from(status.waiting_for.is_empty())),
    );
    let help = "What is wrong and not fatal; the status page names it";
    registry.register("problems", help, gauge(to_gauge(status.problems.len())));
}

fn describe_source(registry: &mut Registry, report: &Report) {
    let source = &report.status.source;
    let help = "Whether the source of desired state was read whole";
    registry.register("source_synchronised", help, gauge(i64::from(source.synchronised)));
    if let Some(age) = source.age_seconds {
        let age = gauge(i64::try_from(age).unwrap_or(i64::MAX));
        let help = "How long ago the source of desired state was read";
        registry.register_with_unit("source_age", help, Unit::Seconds, age);
    }
    let since_epoch = report.last_read.and_then(|read| read.duration_since(UNIX_EPOCH).ok());
    if let Some(since_epoch) = since_epoch {
        let time: Gauge<f64, std::sync::atomic::AtomicU64> = Gauge::default();
        time.set(since_epoch.as_secs_f64());
        let help = "When the source of desired state was last read";
        registry.register_with_unit("source_last_sync_timestamp", help, Unit::Seconds, time);
    }
}

fn describe_traffic(registry: &mut Registry, status: &Status) {
    let drop_of = |reason: &DropReason| status.drops.get(reason).copied().unwrap_or_default();
    let drops = DropReason::ALL.iter().map(|reason| (reason.label().to_owned(), drop_of(reason)));
    register_counts(registry, "dropped", "Dropped", "reason", drops);
    let rules = status.rules.iter().map(|rule| (rule.rule.to_string(), rule.denied));
    register_counts(registry, "policy_denied", "Denied by rules of policies", "rule", rules);
    let tunnel = [("sent", status.tunnel_sent), ("received", status.tunnel_received)];
    let tunnel = tunnel.into_iter().map(|(direction, count)| (direction.to_owned(), count));
    register_counts(registry, "tunnel", "Passed through the tunnel", "direction", tunnel);
}

/// The fast path's table of connections.
fn describe_connections(registry: &mut Registry, figures: &ConnectionFigures) {
    let ConnectionFigures { capacity, live, half_open_gone, idle_gone, refused } = *figures;
    registry.register("connections", "Connections of the fast path", gauge(live.into()));
    let help = "How many connections the fast path has room for";
    registry.register("connections_capacity", help, gauge(capacity.into()));
    let pressure = Family::<Labels, Counter>::default();
    for (what, count) in [("half-open-gone", half_open_gone), ("idle-gone", idle_gone), ("refused", refused)]
    {
        pressure.get_or_create(&vec![("outcome", what.to_owned())]).inc_by(count);
    }
    let help = "What lack of room for connections led to: half-open and idle ones lost their place, new ones were refused";
    registry.register("connections_pressure", help, pressure);
}

/// What was asked of the server of names.
fn describe_names(registry: &mut Registry, names: &NamesStatus) {
    let by = |label: &'static str, counts: &[(&str, u64)]| {
        let family = Family::<Labels, Counter>::default();
        for (value, count) in counts {
            family.get_or_create(&vec![(label, (*value).to_owned())]).inc_by(*count);
        }
        family
    };
    let questions = by("transport", &[("udp", names.udp), ("tcp", names.tcp)]);
    registry.register("names_questions", "Questions for names of the mesh", questions);
    let answers: Vec<_> = names.answers.iter().map(|(code, count)| (code.as_str(), *count)).collect();
    registry.register("names_answers", "Answers to them by code", by("code", &answers));
    let rest = [("truncated", names.truncated), ("malformed", names.malformed), ("dropped", names.dropped)];
    let help = "Answers that lacked something, what could not be read as a question, and what got no answer";
    registry.register("names_shortcomings", help, by("outcome", &rest));
}

/// Packets and bytes of one name, by one label.
fn register_counts(
    registry: &mut Registry,
    name: &str,
    what: &str,
    label: &'static str,
    counts: impl Iterator<Item = (String, Count)>,
) {
    let (packets, bytes) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    for (value, count) in counts {
        let labels = vec![(label, value)];
        packets.get_or_create(&labels).inc_by(count.packets);
        bytes.get_or_create(&labels).inc_by(count.bytes);
    }
    registry.register(format!("{name}_packets"), format!("{what}, in packets"), packets);
    registry.register_with_unit(name, format!("{what}, in bytes"), Unit::Bytes, bytes);
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

fn to_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use causeway_model::plugin::Failure;

    use super::*;
    use crate::engine::bench::{Bench, CLUSTER, WEST, world};

    fn page(engine: &Engine, meter: &CniMeter) -> Vec<String> {
        text(&engine.report(), meter).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_page_names_everything_with_its_unit_and_bounded_labels() {
        let bench = Bench::new();
        let engine = bench.start();
        engine.hear(Ok(world(&[CLUSTER, WEST])));
        engine.add("c1");
        bench.dataplane.log().counters.drops =
            [(DropReason::SpoofedMac, Count { packets: 3, bytes: 180 })].into();
        let meter = CniMeter::new();
        meter.count(Verb::Add, &Reply::Failed(Failure::new(100, "full")), Duration::from_millis(30));
        meter.count(Verb::Add, &Reply::Done, Duration::from_millis(3));
        let page = page(&engine, &meter);
        for line in [
            "causeway_path_info{asked=\"auto\",path=\"kernel\",tunnel=\"kernel\"} 1",
            "causeway_peers{cluster=\"lyon\"} 1",
            "causeway_endpoints{path=\"kernel\"} 1",
            "causeway_endpoints{path=\"fast\"} 0",
            "causeway_serving 1",
            "causeway_source_age_seconds 0",
            "causeway_dropped_packets_total{reason=\"spoofed-mac\"} 3",
            "causeway_dropped_bytes_total{reason=\"spoofed-mac\"} 180",
            "causeway_tunnel_packets_total{direction=\"sent\"} 0",
            "causeway_repairs_total 0",
            "causeway_names_questions_total{transport=\"udp\"} 0",
            "causeway_names_shortcomings_total{outcome=\"malformed\"} 0",
            "causeway_cni_requests_total{verb=\"ADD\",code=\"100\"} 1",
            "causeway_cni_requests_total{verb=\"ADD\",code=\"0\"} 1",
            "causeway_cni_request_duration_seconds_bucket{le=\"0.005\",verb=\"ADD\"} 1",
            "causeway_cni_request_duration_seconds_count{verb=\"ADD\"} 2",
            "# EOF",
        ] {
            assert!(page.iter().any(|found| found == line), "{line} is not in\n{}", page.join("\n"));
        }
        for reason in DropReason::ALL {
            let name = format!("causeway_dropped_packets_total{{reason=\"{reason}\"}}");
            assert!(page.iter().any(|line| line.starts_with(&name)), "{name}");
        }
    }

    #[test]
    fn more_endpoints_make_no_more_series() {
        let bench = Bench::new();
        let engine = bench.start();
        engine.hear(Ok(world(&[CLUSTER])));
        engine.add("c1");
        let one = page(&engine, &CniMeter::new()).len();
        engine.add("c2");
        assert_eq!(page(&engine, &CniMeter::new()).len(), one);
    }
}
