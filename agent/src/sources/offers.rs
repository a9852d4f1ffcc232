//! What clusters say of their services to each other, and the mark of one that is lost.

use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use causeway_mesh::prefer::Wish;
use causeway_mesh::read::{self, Problem, Read, Written, Wrong};
use causeway_mesh::{Export, Service, ServiceName, Slice};
use imbl::OrdMap;
use serde_json::Value;

use super::objects::{Kind, typed};
use super::world::CLUSTERS;

/// The file in `clusters/NAME/` that says that the cluster is lost.
const LOST: &str = "lost";

/// What one cluster says of its services, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offers {
    /// Its Services.
    pub services: OrdMap<ServiceName, Arc<Service>>,
    /// Its EndpointSlices, by their own names.
    pub slices: OrdMap<ServiceName, Arc<Slice>>,
    /// Its ServiceExports.
    pub exports: OrdMap<ServiceName, Arc<Export>>,
    /// The choice of backends that its ServiceImports ask for.
    pub imports: OrdMap<ServiceName, Arc<Wish>>,
}

impl Offers {
    /// Takes up an object in the place of what had its name.
    pub(super) fn put(&mut self, name: ServiceName, offer: Offer) {
        match offer.what {
            What::Service(object) => put(&mut self.services, name, object),
            What::Slice(object) => put(&mut self.slices, name, object),
            What::Export(object) => put(&mut self.exports, name, object),
            What::Import(object) => put(&mut self.imports, name, object),
        }
    }

    /// Takes away what an object of this kind and name offered.
    pub(super) fn remove(&mut self, name: &ServiceName, offer: &Offer) {
        match offer.what {
            What::Service(_) => drop(self.services.remove(name)),
            What::Slice(_) => drop(self.slices.remove(name)),
            What::Export(_) => drop(self.exports.remove(name)),
            What::Import(_) => drop(self.imports.remove(name)),
        }
    }

    /// Whether an object of this kind and name offers something.
    pub(super) fn has(&self, name: &ServiceName, offer: &Offer) -> bool {
        match offer.what {
            What::Service(_) => self.services.contains_key(name),
            What::Slice(_) => self.slices.contains_key(name),
            What::Export(_) => self.exports.contains_key(name),
            What::Import(_) => self.imports.contains_key(name),
        }
    }
}

fn put<T>(map: &mut OrdMap<ServiceName, Arc<T>>, name: ServiceName, object: Option<Arc<T>>) {
    match object {
        Some(object) => drop(map.insert(name, object)),
        None => drop(map.remove(&name)),
    }
}

/// One object as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Offer {
    what: What,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Service(Option<Arc<Service>>),
    Slice(Option<Arc<Slice>>),
    Export(Option<Arc<Export>>),
    Import(Option<Arc<Wish>>),
}

impl Offer {
    /// Reads a Service or an EndpointSlice.
    pub fn of_service(kind: Kind, value: Value) -> Self {
        match kind {
            Kind::Service => match typed(value) {
                Ok(written) => Self::of(read::service(&written), What::Service),
                Err(error) => Self::unreadable(What::Service(None), error),
            },
            _ => match typed(value).map(|written| read::slice(&written)) {
                Ok(Some(read)) => Self::of(read, What::Slice),
                Ok(None) => Self { what: What::Slice(None), problems: Vec::new() },
                Err(error) => Self::unreadable(What::Slice(None), error),
            },
        }
    }

    /// Reads a ServiceExport or a ServiceImport.
    pub fn of_mesh(value: &Value) -> Result<Self, String> {
        Ok(match read::read(value).map_err(|error| error.to_string())? {
            Written::Export(read) => Self::of(read, What::Export),
            Written::Import(read) => Self::of(read, What::Import),
        })
    }

    fn of<T>(read: Read<T>, what: impl FnOnce(Option<Arc<T>>) -> What) -> Self {
        Self { what: what(read.object.map(Arc::new)), problems: read.problems }
    }

    fn unreadable(what: What, error: String) -> Self {
        let problem = Problem { at: "the object".to_owned(), wrong: Wrong::Unreadable(error) };
        Self { what, problems: vec![problem] }
    }

    /// What is wrong with it; where a node's own reading has told of its fields already, only what that does not read.
    pub fn problems(&self, told: bool) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(move |problem| !told || matches!(problem.wrong, Wrong::Wish(_)))
    }
}

/// Whether a file, by its path within the directory of manifests, says that a cluster is lost.
pub(super) fn marks_lost(relative: &Path) -> bool {
    let parts: Vec<_> = relative.components().collect();
    matches!(parts[..], [Component::Normal(clusters), _, Component::Normal(file)] if clusters == CLUSTERS && file == LOST)
}

/// An age as it is written: `45s`, `3m`, `2h`, or seconds. Nothing is said by an empty text.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60),
        Some(number) if text.ends_with('h') => (number, 3600),
        Some(number) => (number, 1),
        None => (text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let bad = || format!("{text:?} is no age such as 45s, 3m or 2h; the cluster is lost all the same");
    seconds.map(Duration::from_secs).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::World;

    const OSLO: &str =
        "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: oslo}, spec: {id: 1}}\n";
    const LYON: &str =
        "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: lyon}, spec: {id: 2}}\n";
    const WEB: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, annotations: {causeway.dev/affinity: local}}, spec: {ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.70.0.4], hostname: y}]
---
{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: {name: web, namespace: shop}}
---
{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceImport, metadata: {name: web, namespace: shop}}
";

    fn world(files: &[(&str, &str)]) -> World {
        World::of_files(
            [("cluster.yaml", OSLO), ("clusters/lyon/cluster.yaml", LYON)].iter().chain(files).copied(),
        )
    }

    #[test]
    fn what_all_clusters_say_of_their_services_is_read() {
        let world = world(&[("web.yaml", WEB), ("clusters/lyon/web.yaml", WEB)]);
        assert_eq!(world.problems, Vec::<String>::new());
        assert_eq!((world.services.len(), world.slices.len()), (1, 1), "of this cluster alone");
        let counts = |offers: &Offers| {
            [offers.services.len(), offers.slices.len(), offers.exports.len(), offers.imports.len()]
        };
        let all: Vec<_> = world.offers.iter().map(|(name, offers)| (name.as_str(), counts(offers))).collect();
        assert_eq!(all, [("lyon", [1; 4]), ("oslo", [1; 4])]);
        let slice = world.offers.values().flat_map(|offers| offers.slices.values()).next().unwrap();
        assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("y"), "a name, and no truth");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_offers_nothing() {
        let version = WEB.replace("v1beta1, kind: ServiceExport", "v1alpha1, kind: ServiceExport");
        let read = world(&[("web.yaml", &version)]);
        assert_eq!(
            read.problems,
            [
                r#"web.yaml:11: ServiceExport shop/web: apiVersion: unknown apiVersion "multicluster.x-k8s.io/v1alpha1"; known is "multicluster.x-k8s.io/v1beta1""#
            ]
        );
        assert!(read.offers.values().all(|offers| offers.exports.is_empty()));
        let wish = WEB.replace("affinity: local", "affinity: here").replace("port: 80}]}}", "port: 0}]}}");
        let read = world(&[("web.yaml", &wish)]);
        assert_eq!(read.problems.len(), 2, "the port is told once: {:?}", read.problems);
        assert!(read.offers.values().all(|offers| offers.services.is_empty()));
        let foreign = "{apiVersion: net.example/v1, kind: ServiceImport, metadata: {name: web}}";
        assert_eq!(world(&[("web.yaml", foreign)]).ignored.len(), 1);
    }

    #[test]
    fn a_file_in_its_directory_marks_a_cluster_lost() {
        for (text, seconds) in [("45s\n", 45), ("3m", 180), ("2h", 7200), ("7", 7), ("", 0)] {
            let world = world(&[("clusters/lyon/lost", text)]);
            assert_eq!(world.lost.values().map(Duration::as_secs).collect::<Vec<_>>(), [seconds]);
            assert_eq!(world.problems, Vec::<String>::new());
        }
        let read = world(&[("clusters/lyon/lost", "since noon")]);
        assert_eq!(read.lost.len(), 1);
        assert!(read.problems[0].contains("\"since noon\" is no age"), "{:?}", read.problems);
        assert!(World::of_files([("cluster.yaml", OSLO)]).lost.is_empty());
    }
}
