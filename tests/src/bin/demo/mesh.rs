//! A service of the second cluster, used by its name from the first.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_model::{Family, NameServer};
use causeway_tests::lab::{Lab, Pod};
use causeway_tests::traffic::{Query, Responder, Rtype, ask_tcp, resolve_udp};
use serde_json::{Value, json};

use crate::{heading, line};

/// What every agent of the demo has in its configuration: where imports have their addresses.
pub const CONFIG: &str = "clusterset_cidr: [172.30.0.0/16]";
const NAME: &str = "web.default.svc.clusterset.local";
/// The port that pods serve.
const PORT: u16 = 8080;
/// How soon what changes is in force everywhere.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client and two servers: one in the client's cluster and one in the other.
pub struct Call<'a> {
    pub lab: &'a Lab,
    pub client: &'a Pod,
    pub near: &'a Pod,
    pub far: &'a Pod,
}

impl Call<'_> {
    /// Exported far away, used here; preferred here once it is here; lost and found again.
    pub fn show(&self) -> Result<()> {
        heading(&format!("{NAME}, exported by c2, used from c1"));
        let (near, far) = (self.near.name(), self.far.name());
        let serve = |pod: &Pod| Responder::start(pod.namespace(), PORT, pod.name()).context("a server");
        let _servers = [serve(self.near)?, serve(self.far)?];
        self.put(1, "import", &import())?;
        self.offer(2, self.far)?;
        self.answered_by(Some(far), "c2 exports it")?;
        self.offer(1, self.near)?;
        self.answered_by(Some(near), "c1 has it, too, and prefers its own")?;
        self.withdraw(1)?;
        self.answered_by(Some(far), "c1 has it no more")?;
        let lost = self.lab.manifests_of(1)?.join("clusters/c2/lost");
        fs::write(&lost, "10s\n")?;
        self.answered_by(None, "c2 is lost")?;
        fs::remove_file(&lost)?;
        self.answered_by(Some(far), "c2 is found again")
    }

    /// Resolves the name and asks there, until this pod answers, or nobody.
    fn answered_by(&self, wanted: Option<&str>, when: &str) -> Result<()> {
        let server = SocketAddr::new(NameServer::DEFAULT.into(), NameServer::PORT);
        let began = Instant::now();
        loop {
            let resolved = resolve_udp(self.client.namespace(), server, &Query::plain(NAME, Rtype::A));
            let address = resolved.as_ref().ok().and_then(|resolved| resolved.addresses().first().copied());
            let answer = address.map(|to| ask_tcp(self.client.namespace(), SocketAddr::new(to, 80)));
            let by = answer.as_ref().and_then(|answer| answer.as_ref().ok()).map(|answer| answer.by.as_str());
            if let Some(to) = address
                && by == wanted
            {
                let who = wanted.unwrap_or("nobody");
                let told = format!("{who} after {:.0} ms, at {to}", began.elapsed().as_secs_f64() * 1e3);
                line("", when, &told);
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "{when}: {NAME} is {resolved:?}, and there {answer:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn offer(&self, cluster: usize, pod: &Pod) -> Result<()> {
        for (name, object) in offered(cluster, pod.address(Family::V4)) {
            self.put(cluster, name, &object)?;
        }
        Ok(())
    }

    fn withdraw(&self, cluster: usize) -> Result<()> {
        self.everywhere(cluster, |view| Ok(fs::remove_file(view.join("mesh-export.yaml"))?))
    }

    fn put(&self, cluster: usize, name: &str, object: &Value) -> Result<()> {
        self.everywhere(cluster, |view| {
            let file = view.join(format!("mesh-{name}.yaml"));
            let aside = file.with_extension("new");
            fs::write(&aside, object.to_string())?;
            Ok(fs::rename(aside, file)?)
        })
    }

    /// In a cluster's own manifests, and where the other one sees it.
    fn everywhere(&self, cluster: usize, change: impl Fn(&Path) -> Result<()>) -> Result<()> {
        let [own, other] = match cluster {
            1 => [1, 2],
            2 => [2, 1],
            _ => bail!("the demo has two clusters"),
        };
        change(&self.lab.manifests_of(own)?)?;
        change(&self.lab.manifests_of(other)?.join(format!("clusters/c{own}")))
    }
}

fn metadata() -> Value {
    json!({"namespace": "default", "name": "web"})
}

/// The importer's wish: its own backends before others'.
fn import() -> Value {
    let mut metadata = metadata();
    metadata["annotations"] = json!({"causeway.dev/affinity": "local"});
    json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "metadata": metadata})
}

/// A service behind which one pod is, and its export.
fn offered(cluster: usize, address: IpAddr) -> [(&'static str, Value); 3] {
    let cluster_ip = format!("10.{}.7.1", 95 + cluster);
    let spec = json!({
        "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
        "ports": [{"port": 80, "targetPort": PORT, "protocol": "TCP"}],
    });
    let labels = json!({"kubernetes.io/service-name": "web"});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "web-1", "labels": labels},
        "ports": [{"name": "", "protocol": "TCP", "port": PORT}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    });
    [
        ("service", json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(), "spec": spec})),
        ("slice", slice),
        (
            "export",
            json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata()}),
        ),
    ]
}
