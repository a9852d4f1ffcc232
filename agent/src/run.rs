//! The agent from its first breath to its last: what it claims, what it starts, how it stops.

use std::fs;
use std::future::Future;
use std::mem;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use causeway_kernel_fallback::watch::{Stop, Watcher, Woken};
use causeway_kernel_fallback::{KernelDataplane, KernelOptions, Reaper, kube_proxy, uplink};
use causeway_mesh::dns;
use causeway_model::NameServer;
use causeway_model::plugin::Request;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::MissedTickBehavior;

use crate::claim::Claim;
use crate::cni_server::{self, Handler};
use crate::config::{Config, KernelFeature, PathWish};
use crate::datapath::{Driver, Drivers, PathChoice};
use crate::desired::Link;
use crate::engine::{Engine, Parts};
use crate::error::{Error, chain};
use crate::fast::{FastDataplane, FastOptions, Missing};
use crate::machine::Machine;
use crate::metrics::CniMeter;
use crate::sources::{ManifestSource, ManifestWatch, News};
use crate::store::Store;
use crate::{api, health_checks, metrics, names};

/// How often the node is looked at although nothing was noticed.
const MEND: Duration = Duration::from_secs(4);
/// How soon it is looked at again: our own changes are noticed too, and a burst of them needs one look.
const MEND_PAUSE: Duration = Duration::from_millis(500);
/// A look costs what all endpoints cost. So many times what one took passes before the next, though never more than [`MEND`].
const MEND_SHARE: u32 = 10;
/// How often the source is read when the kernel gives no word of its changes.
const POLL: Duration = Duration::from_secs(5);
/// How often what became of connections is gathered.
const FLOWS: Duration = Duration::from_millis(250);
/// How long a starting agent waits for the fast path before it chooses without.
const FAST_PATH: Duration = Duration::from_secs(2);
/// How long what is under way may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the agent until it is told to stop. The data path stays as it is then.
pub fn run(config: Config, release: &str) -> Result<(), Error> {
    let starting = Error::io("starting the runtime of the sockets");
    let runtime =
        runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(starting)?;
    let done = runtime.block_on(live(config, release.to_owned()));
    runtime.shutdown_timeout(GRACE);
    done
}

/// Where the kernel path remembers what settings were before they were ours.
pub(crate) fn sysctl_record(config: &Config) -> PathBuf {
    config.state.join("sysctls.json")
}

/// All that is opened before anything is done, so that what is taken or missing is said first.
struct Sockets {
    cni: UnixListener,
    api: UnixListener,
    metrics: Option<TcpListener>,
}

async fn live(config: Config, release: String) -> Result<(), Error> {
    let claim = Claim::of(&config.state)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("listening for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("listening for SIGINT"))?;
    make_directories(&config)?;
    require_uplink(&config)?;
    let store = Store::open(&config.state)?;
    let sockets = Sockets::open(&config).await?;
    let chosen = config.clone();
    let (choice, fast) = spawn_blocking(move || choose(&chosen))
        .await
        .unwrap_or_else(|panic| unreachable!("choosing a data path: {panic}"))?;
    tracing::info!("causeway agent {release}, node {}: {} path, {}", config.node, choice.path, choice.reason);

    let source = ManifestSource::new(&config.manifests);
    let parts = parts(config.clone(), release, store, (choice, fast), source.what())?;
    let started = spawn_blocking(move || Arc::new(Engine::new(parts))).await;
    let engine = started.unwrap_or_else(|panic| unreachable!("taking up the store: {panic}"));
    let (stop, stopped) = watch::channel(false);
    let meter = CniMeter::new();
    let handler = handler(engine.clone(), meter.clone());
    let cni = tokio::spawn(cni_server::serve(sockets.cni, config.cni_socket.clone(), handler, stopped));
    let mut pages = JoinSet::new();
    pages.spawn(read_source(source, engine.clone()));
    pages.spawn(report_end(
        "the operator's API",
        axum::serve(sockets.api, api::router(engine.clone())).into_future(),
    ));
    if let Some(listener) = sockets.metrics {
        let router = metrics::router(engine.clone(), meter);
        pages.spawn(report_end("the metrics page", axum::serve(listener, router).into_future()));
    }
    pages.spawn(report_end("the claim on this node", claim.answer()));
    pages.spawn(gather_flows(engine.clone()));
    pages.spawn(health_checks::serve(engine.clone()));
    pages.spawn(answer_names(&config, &engine));
    let (mender, mending) = spawn_mender(engine)?;

    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping on SIGTERM; the data path stays"),
        _ = interrupt.recv() => tracing::info!("stopping on SIGINT; the data path stays"),
    }
    // Its only reader may have gone; then it needs no telling.
    stop.send_replace(true);
    mending.stop();
    if tokio::time::timeout(GRACE, cni).await.is_err() {
        tracing::warn!("requests of the plugin were still under way after {GRACE:?}");
    }
    drop(spawn_blocking(move || mender.join()).await);
    pages.shutdown().await;
    for socket in [&config.cni_socket, &config.api_socket, &config.fastpath_socket] {
        drop(fs::remove_file(socket));
    }
    Ok(())
}

fn make_directories(config: &Config) -> Result<(), Error> {
    let of = |socket: &PathBuf| socket.parent().unwrap_or(Path::new("/")).to_owned();
    let directories =
        [config.run.clone(), config.tombstones.clone(), of(&config.cni_socket), of(&config.api_socket)];
    for directory in directories {
        fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
    }
    Ok(())
}

/// An uplink that was named and is not there is a mistake; one that has no address yet is waited for.
fn require_uplink(config: &Config) -> Result<(), Error> {
    let Some(name) = &config.uplink else { return Ok(()) };
    let found = uplink::by_name(name).map_err(|error| Error::Dataplane(error.into()))?;
    found.map(drop).ok_or_else(|| Error::NoUplink(name.clone()))
}

impl Sockets {
    async fn open(config: &Config) -> Result<Self, Error> {
        let metrics = match config.metrics {
            None => None,
            Some(address) => Some(TcpListener::bind(address).await.map_err(|error| match error.kind() {
                std::io::ErrorKind::AddrInUse => Error::Taken {
                    what: format!("metrics: TCP port {address}"),
                    why: "another process listens there".to_owned(),
                },
                _ => Error::io(format!("metrics: listening at {address}"))(error),
            })?),
        };
        let cni = cni_server::listen(&config.cni_socket)?;
        Ok(Self { cni, api: cni_server::listen(&config.api_socket)?, metrics })
    }
}

/// Chooses this node's data path, once: who is alive later changes nothing.
fn choose(config: &Config) -> Result<(PathChoice, Option<FastDataplane>), Error> {
    let of = |fast: Result<(), &str>| PathChoice::of(config.datapath, config.default_path, fast);
    if config.datapath == PathWish::Kernel {
        return Ok((of(Err("it was not asked for")), None));
    }
    let options = FastOptions {
        socket: config.fastpath_socket.clone(),
        queues: config.fastpath_queues,
        uplink: config.fastpath_uplink.clone(),
        mask_tunnel_gso: config.mask.contains(&KernelFeature::TunUdpTunnelGso),
    };
    let reaper = Reaper::start().map_err(|error| Error::Dataplane(error.into()))?;
    let fast = FastDataplane::start(options, reaper)?;
    Ok(match fast_path(&fast, config.datapath) {
        Ok(()) => (of(Ok(())), Some(fast)),
        Err(why) => (of(Err(&why)), None),
    })
}

/// Whether this node shall have the fast path, or why not.
fn fast_path(fast: &FastDataplane, asked: PathWish) -> Result<(), String> {
    fs::metadata("/dev/net/tun").map_err(|error| format!("/dev/net/tun: {error}"))?;
    // What an earlier agent chose holds as long as the node is up: pods hang on it.
    if FastDataplane::was_chosen() {
        return Ok(());
    }
    match fast.wait(FAST_PATH, asked == PathWish::Fast) {
        // Asked for by name it is waited for however long it takes; `causeway status` says so.
        Err(Missing::Silent(_)) if asked == PathWish::Fast => Ok(()),
        result => result.map_err(|missing| missing.to_string()),
    }
}

fn parts(
    config: Config,
    release: String,
    store: Store,
    (choice, fast): (PathChoice, Option<FastDataplane>),
    source: String,
) -> Result<Parts, Error> {
    let kernel = KernelDataplane::new(KernelOptions {
        state: sysctl_record(&config),
        mask_reserved_bits: config.mask.contains(&KernelFeature::VxlanReservedBits),
    });
    let kernel = Box::new(kernel.map_err(|error| Error::Dataplane(error.into()))?);
    Ok(Parts {
        release,
        config,
        source,
        store,
        drivers: Drivers { kernel, fast: fast.map(|fast| Box::new(fast) as Box<dyn Driver>) },
        choice,
        links: Arc::new(read_links),
        kube_proxy: Arc::new(|| kube_proxy().map_err(|error| chain(&error))),
        machine: Machine::look()?,
    })
}

fn read_links() -> Result<Vec<Link>, String> {
    let links = uplink::all().map_err(|error| chain(&error))?.into_iter();
    let link = |link: uplink::Uplink| Link {
        name: link.name,
        mtu: link.mtu,
        addresses: link.addresses,
        up: link.up,
    };
    Ok(links.map(link).collect())
}

fn handler(engine: Arc<Engine>, meter: CniMeter) -> Arc<Handler> {
    Arc::new(move |request: &Request, netns, caller| {
        let began = Instant::now();
        engine.meet(caller.pid);
        let reply = engine.answer(request, netns, caller);
        meter.count(request.verb, &reply, began.elapsed());
        reply
    })
}

/// Reads the source now, and whenever there is word of changes.
async fn read_source(source: ManifestSource, engine: Arc<Engine>) {
    let watch = ManifestWatch::new(source.dir());
    let watch = watch.inspect_err(|error| tracing::warn!("{}; reading it every {POLL:?}", chain(error))).ok();
    let mut changes = watch.as_ref().map(ManifestWatch::changes);
    let source = Arc::new(Mutex::new(source));
    let mut first = true;
    loop {
        let news =
            watch.as_ref().filter(|_| !mem::take(&mut first)).map_or(News::Anything, ManifestWatch::news);
        let (source, engine) = (source.clone(), engine.clone());
        let reading = spawn_blocking(move || {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(world) = source.read_news(&news).map_err(|error| chain(&error)).transpose() {
                engine.hear(world);
            }
        });
        if let Err(panic) = reading.await {
            tracing::error!("reading the source: {panic}");
        }
        let told = match &mut changes {
            Some(changes) => changes.changed().await.is_ok(),
            None => false,
        };
        if !told {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Takes what the data paths have to tell of connections, before their rings are full.
async fn gather_flows(engine: Arc<Engine>) {
    let mut moments = tokio::time::interval(FLOWS);
    moments.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        moments.tick().await;
        let engine = engine.clone();
        if let Err(panic) = spawn_blocking(move || engine.gather_flows()).await {
            tracing::error!("gathering flows: {panic}");
        }
    }
}

/// Answers names of the mesh at this node's own addresses.
fn answer_names(config: &Config, engine: &Arc<Engine>) -> impl Future<Output = ()> + use<> {
    let places = config.names.addresses.iter().map(|address| SocketAddr::new(*address, NameServer::PORT));
    let mesh = engine.mesh();
    let answers = move |name: &str, kind| mesh.read(|mesh| dns::answer(mesh, name, kind));
    names::serve(places.collect(), Arc::new(answers), engine.name_meter())
}

async fn report_end(what: &str, task: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = task.await {
        tracing::error!("{what} has ended: {error}");
    }
}

/// Looks after the node on a thread of its own: at every change that the kernel tells, and now and then.
fn spawn_mender(engine: Arc<Engine>) -> Result<(thread::JoinHandle<()>, Stop), Error> {
    let watcher = Watcher::new().map_err(|error| Error::Dataplane(error.into()))?;
    let stop = watcher.stop();
    let thread = thread::Builder::new().name("mender".into()).spawn(move || mend(&engine, &watcher));
    Ok((thread.map_err(Error::io("starting the mender's thread"))?, stop))
}

fn mend(engine: &Engine, watcher: &Watcher) {
    loop {
        match watcher.wait(MEND) {
            Ok(Woken::Stopped) => return,
            Ok(Woken::Changed | Woken::TimedOut) => {}
            Err(error) => {
                tracing::warn!("{}", chain(&error));
                thread::sleep(MEND);
            }
        }
        let began = Instant::now();
        engine.mend();
        watcher.rest(mend_pause(began.elapsed()));
    }
}

fn mend_pause(took: Duration) -> Duration {
    (took * MEND_SHARE).clamp(MEND_PAUSE, MEND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_is_taken_less_often_but_taken() {
        let pause = |milliseconds| mend_pause(Duration::from_millis(milliseconds)).as_millis();
        assert_eq!([pause(0), pause(10), pause(100), pause(60_000)], [500, 500, 1000, 4000]);
    }
}
