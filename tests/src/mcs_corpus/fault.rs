//! Wrong meshes: each bends what clusters say on its way into the engine, so that a corpus that cannot tell is no test.

use std::collections::BTreeSet;

use causeway_mesh::{Config, Namespaces};
use causeway_model::Cluster;
use serde_json::{Value, json};

use super::format::Name;
use super::stage::Member;

/// A way to judge a mesh wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nobody keeps a backend.
    AffinityIgnored,
    /// Names decide who is the oldest.
    AgeIgnored,
    /// All namespaces take part.
    ListsIgnored,
    /// Own and others' backends are alike.
    WishesIgnored,
    /// Ports have no names.
    PortNamesIgnored,
    /// Everything is IPv4.
    FamiliesIgnored,
    /// Every endpoint is ready.
    ReadinessIgnored,
    /// Whoever has a service exports it.
    EverythingExported,
    /// Nobody is lost.
    LossIgnored,
    /// A headless service has an address.
    HeadlessIgnored,
    /// Pods have no names of their own.
    HostnamesIgnored,
    /// An ExternalName is a service like others.
    ExternalTaken,
    /// Labels of the Service travel.
    LabelsTravel,
    /// Every cluster has every namespace.
    NamespacesImplied,
    /// Traffic policies and distributions are all alike.
    PoliciesIgnored,
    /// A service has one port.
    OnePortOnly,
    /// Whoever claims what another has, has something else.
    ClaimsIgnored,
    /// All clusters are in one region.
    RegionsIgnored,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::AffinityIgnored,
        Self::AgeIgnored,
        Self::ListsIgnored,
        Self::WishesIgnored,
        Self::PortNamesIgnored,
        Self::FamiliesIgnored,
        Self::ReadinessIgnored,
        Self::EverythingExported,
        Self::LossIgnored,
        Self::HeadlessIgnored,
        Self::HostnamesIgnored,
        Self::ExternalTaken,
        Self::LabelsTravel,
        Self::NamespacesImplied,
        Self::PoliciesIgnored,
        Self::OnePortOnly,
        Self::ClaimsIgnored,
        Self::RegionsIgnored,
    ];

    /// A configuration with this fault.
    pub(super) fn bend_config(self, mut config: Config) -> Config {
        if self == Self::ListsIgnored {
            let all: BTreeSet<_> = ["kube-system", "shop", "yard", "default"].map(str::to_owned).into();
            config.exported = Namespaces::Only(all.clone());
            config.imported = Namespaces::Only(all);
        }
        config
    }

    /// A cluster with this fault.
    pub(super) fn bend_cluster(self, cluster: &mut Cluster) {
        match self {
            Self::ClaimsIgnored => {
                cluster.id = cluster.name.as_str().bytes().fold(7, |id, byte| id * 31 + u32::from(byte));
                cluster.pod_prefixes.truncate(1);
                cluster.service_prefixes.clear();
            }
            Self::RegionsIgnored => cluster.region = None,
            _ => {}
        }
    }

    /// Namespaces and exports that are not there and seem to be, with this fault.
    pub(super) fn implied(self, member: &Member) -> Vec<Value> {
        let of_kind = |kind: &'static str| member.objects.keys().filter(move |(this, _)| this == kind);
        match self {
            Self::NamespacesImplied => ["shop", "yard"]
                .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
                .to_vec(),
            Self::EverythingExported => of_kind("Service")
                .map(|(_, Name { namespace, name })| {
                    json!({
                        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
                        "metadata": {"namespace": namespace, "name": name},
                    })
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// An object with this fault.
    pub(super) fn bend(self, of: &Member, kind: &str, name: &Name, object: &mut Value) {
        match kind {
            "Service" => self.bend_service(&mut object["spec"]),
            "EndpointSlice" => self.bend_slice(object),
            "ServiceExport" => self.bend_export(of, name, object),
            _ => {}
        }
    }

    fn bend_service(self, spec: &mut Value) {
        let Some(fields) = spec.as_object_mut() else { return };
        match self {
            Self::AffinityIgnored => drop(fields.remove("sessionAffinity")),
            Self::PoliciesIgnored => {
                fields.remove("internalTrafficPolicy");
                fields.remove("trafficDistribution");
            }
            Self::HeadlessIgnored if spec["clusterIP"] == "None" => spec["clusterIP"] = json!("10.9.9.9"),
            Self::ExternalTaken if spec["type"] == "ExternalName" => spec["type"] = json!("ClusterIP"),
            Self::FamiliesIgnored => {
                spec["ipFamilies"] = json!(["IPv4"]);
            }
            Self::OnePortOnly => {
                spec["ports"].as_array_mut().into_iter().for_each(|ports| ports.truncate(1));
            }
            Self::PortNamesIgnored => {
                for port in spec["ports"].as_array_mut().into_iter().flatten() {
                    port["name"] = json!(format!("p{}", port["port"]));
                }
            }
            _ => {}
        }
    }

    fn bend_slice(self, slice: &mut Value) {
        if self == Self::PortNamesIgnored {
            for port in slice["ports"].as_array_mut().into_iter().flatten() {
                port["name"] = json!(format!("p{}", port["port"]));
            }
        }
        for endpoint in slice["endpoints"].as_array_mut().into_iter().flatten() {
            let Some(fields) = endpoint.as_object_mut() else { continue };
            match self {
                Self::ReadinessIgnored => drop(fields.remove("conditions")),
                Self::HostnamesIgnored => drop(fields.remove("hostname")),
                _ => {}
            }
        }
    }

    fn bend_export(self, of: &Member, name: &Name, export: &mut Value) {
        match self {
            Self::AgeIgnored => {
                export["metadata"].as_object_mut().map(|fields| fields.remove("creationTimestamp"));
            }
            Self::WishesIgnored => {
                if let Some(all) = export["spec"]["exportedAnnotations"].as_object_mut() {
                    all.retain(|key, _| !key.starts_with("causeway.dev/"));
                }
            }
            Self::LabelsTravel => {
                let service = of.objects.get(&("Service".to_owned(), name.clone()));
                let labels = service.map(|service| service["metadata"]["labels"].clone());
                if let Some(labels) = labels.filter(Value::is_object) {
                    export["spec"]["exportedLabels"] = labels;
                }
            }
            _ => {}
        }
    }
}
