//! What a world says of texts; files and their changes are `manifests/tests.rs`.

use causeway_model::{ClusterName, PodName};
use proptest::prelude::*;

use super::*;
use crate::config::PathWish;

const CLUSTER: &str =
    "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: lyon}, spec: {id: 1}}\n---\n";

/// The world of one file at the top, in which a Cluster object comes first.
fn world(text: &str) -> World {
    World::of_files([("all.yaml", &*format!("{CLUSTER}{text}"))])
}

fn problems(text: &str) -> Vec<String> {
    world(text).problems
}

fn pod(annotations: &str) -> World {
    world(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web, annotations: {{{annotations}}}}}, spec: {{containers: []}}}}"
    ))
}

fn nodes(world: &World) -> Vec<String> {
    world.nodes.keys().map(ToString::to_string).collect()
}

#[test]
fn the_documented_example_is_read() {
    let here = r#"
apiVersion: v1
kind: Node
metadata: {name: east, annotations: {causeway.dev/underlay: "192.0.2.11, 2001:db8::11"}}      # missing: the InternalIPs
spec: {podCIDRs: [10.70.1.0/24, "fd70:0:0:1::/64"]}
"#;
    let paris = "
apiVersion: causeway.dev/v1alpha1
kind: Cluster                                   # at the top: this cluster; in clusters/NAME/: that one
metadata: {name: paris}
spec: {id: 2, region: eu-west, podCIDRs: [10.80.0.0/16], serviceCIDRs: [10.97.0.0/16]}
";
    let here = format!("{CLUSTER}{here}");
    let world = World::of_files([("nodes.yaml", here.as_str()), ("clusters/paris/cluster.yaml", paris)]);
    assert_eq!(world.problems, Vec::<String>::new());
    assert_eq!(world.cluster.as_ref().map(ClusterName::as_str), Some("lyon"));
    let east = &world.nodes.values().next().unwrap().node;
    assert_eq!(east.id.to_string(), "lyon/east");
    assert_eq!(
        east.underlay.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.11", "2001:db8::11"]
    );
    assert_eq!(east.pod_prefixes.len(), 2);
    let paris = &world.clusters.values().find(|object| object.cluster.id == 2).unwrap().cluster;
    assert_eq!(paris.region.as_deref(), Some("eu-west"));
    assert_eq!(paris.pod_prefixes, ["10.80.0.0/16".parse().unwrap()]);
    assert_eq!(paris.service_prefixes, ["10.97.0.0/16".parse().unwrap()]);
}

#[test]
fn a_node_has_its_internal_addresses_and_its_older_prefix_field() {
    let world = world(
        "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDR: 10.70.1.0/24}, status: {addresses: [
           {type: Hostname, address: a}, {type: ExternalIP, address: 203.0.113.1},
           {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}, {type: InternalIP, address: 192.0.2.1}]}}",
    );
    let node = &world.nodes.values().next().unwrap().node;
    assert_eq!(
        node.underlay.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "2001:db8::1"]
    );
    assert_eq!(node.pod_prefixes, ["10.70.1.0/24".parse().unwrap()]);
}

#[test]
fn lists_are_their_items() {
    let node = |name: &str| format!("{{metadata: {{name: {name}}}, spec: {{}}}}");
    let whole = "{apiVersion: v1, kind: Node, metadata: {name: c}}";
    let text = format!(
        "{{apiVersion: v1, kind: NodeList, items: [{}, {}]}}\n---\n{{apiVersion: v1, kind: List, items: [{whole}]}}",
        node("a"),
        node("b")
    );
    let world = world(&text);
    assert_eq!(world.problems, Vec::<String>::new());
    assert_eq!(nodes(&world), ["lyon/a", "lyon/b", "lyon/c"]);
    assert_eq!(
        problems("{apiVersion: v1, kind: List, items: {}}"),
        ["all.yaml:3: items of a List is not a list"]
    );
    assert_eq!(
        problems("{apiVersion: v1, kind: List, items: [{metadata: {name: x}}]}"),
        ["all.yaml:3: items[0]: neither apiVersion and kind, nor a list of such"]
    );
}

#[test]
fn kinds_of_others_are_counted_and_unknown_versions_of_ours_are_problems() {
    let world = world(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}\n---\n{apiVersion: apps/v1, kind: Deployment}\n---\n\
         {apiVersion: cluster.x-k8s.io/v1beta1, kind: Cluster, metadata: {name: b}}",
    );
    assert_eq!(world.problems, Vec::<String>::new());
    let ignored: Vec<_> = world.ignored.into_iter().collect();
    assert_eq!(
        ignored,
        [("Cluster (cluster.x-k8s.io/v1beta1)".to_owned(), 1), ("Deployment (apps/v1)".to_owned(), 2)]
    );
    assert_eq!(
        problems("{apiVersion: v2, kind: Node, metadata: {name: a}}"),
        [r#"all.yaml:3: Node a: unknown apiVersion "v2"; known is "v1""#]
    );
    assert_eq!(
        problems("{apiVersion: causeway.dev/v7, kind: Cluster, metadata: {name: a}}"),
        [r#"all.yaml:3: Cluster a: unknown apiVersion "causeway.dev/v7"; known is "causeway.dev/v1alpha1""#]
    );
    assert_eq!(
        problems("{apiVersion: causeway.dev/v1alpha1, kind: Clutser, metadata: {name: a}}"),
        [r#"all.yaml:3: unknown kind "Clutser" of causeway.dev/v1alpha1; known: Cluster"#]
    );
}

#[test]
fn a_bad_object_is_named_with_its_place_and_the_others_go_on() {
    let node = |rest: &str| format!("{{apiVersion: v1, kind: Node, metadata: {{name: a}}, {rest}}}");
    let annotated = |list: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: a, annotations: {{causeway.dev/underlay: '{list}'}}}}}}"
        )
    };
    let cluster = |spec: &str| {
        format!(
            "{{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {{name: x}}, spec: {{{spec}}}}}"
        )
    };
    for (text, expected) in [
        (
            node("spec: {podCIDRs: [10.70.1.5/24]}"),
            "all.yaml:3: Node a: spec.podCIDRs: 10.70.1.5/24 has host bits set (the prefix of that address is 10.70.1.0/24)",
        ),
        (node("spec: {podCIDRs: [10.70.1.0]}"), "\"10.70.1.0\" is not a prefix such as 10.70.1.0/24"),
        (node("spec: {podCIDRs: [10.70.1.0/33]}"), "\"10.70.1.0/33\" is not a prefix"),
        (node("spec: {podCIDRs: [10.70.1.0/+8]}"), "is not a prefix"),
        (
            node("spec: {podCIDRs: [5]}"),
            "Node a: spec.podCIDRs[0]: invalid type: integer `5`, expected a string",
        ),
        (node("spec: {podCIDR: east}"), "spec.podCIDR: \"east\" is not a prefix"),
        (node("spec: {podCIDR: 0.0.0.0/0}"), "0.0.0.0/0 overlaps 0.0.0.0/8"),
        (
            node("spec: {podCIDR: 169.254.1.0/24}"),
            "169.254.1.0/24 overlaps 169.254.0.0/16, which is link-local",
        ),
        (node("spec: {podCIDR: 'fe80::/64'}"), "fe80::/64 overlaps fe80::/10, which is link-local"),
        (node("spec: 7"), "Node a: spec: invalid type"),
        (node("metadata: {}"), "duplicate mapping key"),
        (annotated("192.0.2.1,"), "annotation causeway.dev/underlay: \"\" is not an IP address"),
        (annotated("192.0.2.1 2001:db8::1"), "is not an IP address"),
        (annotated("127.0.0.1"), "127.0.0.1 is loopback"),
        (annotated("fe80::1"), "fe80::1 is link-local"),
        (annotated("::ffff:192.0.2.1"), "IPv4 in IPv6's clothes"),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: East}}".into(),
            "all.yaml:3: Node East: node name \"East\" is not",
        ),
        ("{apiVersion: v1, kind: Node, metadata: {}}".into(), "all.yaml:3: Node without metadata.name"),
        ("{apiVersion: v1, kind: Node}".into(), "all.yaml:3: Node without metadata.name"),
        ("{apiVersion: v1, metadata: {name: a}}".into(), "all.yaml:3: neither apiVersion and kind"),
        ("hello".into(), "all.yaml:3: neither apiVersion and kind"),
        (
            cluster("id: 2, podCidrs: []"),
            "Cluster x: spec.podCidrs: unknown field `podCidrs`, expected one of",
        ),
        (cluster("id: -1"), "Cluster x: spec.id: invalid value: integer `-1`, expected u32"),
        (cluster("region: a"), "Cluster x: spec: missing field `id`"),
        (cluster("id: 2"), "all.yaml:3: Cluster x: this is the place of cluster lyon's objects"),
    ] {
        let world = world(&format!("{text}\n---\n{{apiVersion: v1, kind: Node, metadata: {{name: good}}}}"));
        assert_eq!(world.problems.len(), 1, "{text}: {:?}", world.problems);
        assert!(world.problems[0].contains(expected), "{:?} does not say {expected:?}", world.problems);
        let syntax = expected.starts_with("duplicate");
        assert_eq!(nodes(&world).len(), usize::from(!syntax), "{text}");
    }
}

#[test]
fn a_file_that_is_no_yaml_is_named_with_its_position() {
    let world =
        World::of_files([("a.yaml", CLUSTER), ("b.yaml", "apiVersion: v1\nkind: [Node\n"), ("c.yaml", "\0")]);
    assert_eq!(world.problems.len(), 2, "{:?}", world.problems);
    assert!(world.problems[0].starts_with("b.yaml:2:7: "), "{:?}", world.problems);
    assert!(world.problems[1].starts_with("c.yaml:1:1: "), "{:?}", world.problems);
    assert!(world.cluster.is_some(), "the others go on");
}

#[test]
fn an_alias_bomb_is_refused_quickly_and_a_long_honest_file_is_read() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{below}]\n");
    }
    let began = std::time::Instant::now();
    let world = World::of_files([("bomb.yaml", bomb.as_str())]);
    assert_eq!(world.problems.len(), 1, "{:?}", world.problems);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());

    let node = |n: u32| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{n}}}\nspec: {{podCIDRs: [10.{}.{}.0/24]}}\n",
            n / 256,
            n % 256
        )
    };
    let long: String = (0..5000).map(node).collect();
    let world = World::of_files([("a.yaml", CLUSTER), ("long.yaml", long.as_str())]);
    assert_eq!((world.problems, world.nodes.len()), (Vec::new(), 5000));
}

#[test]
fn of_two_files_that_define_one_object_the_first_by_path_wins() {
    let node = |prefix: &str| {
        format!("{{apiVersion: v1, kind: Node, metadata: {{name: a}}, spec: {{podCIDR: {prefix}}}}}")
    };
    let (first, second) = (node("10.70.1.0/24"), node("10.70.2.0/24"));
    let expected = ["b.yaml:1: Node a: defined by a.yaml:1 already"];
    for files in [[("a.yaml", &first), ("b.yaml", &second)], [("b.yaml", &second), ("a.yaml", &first)]] {
        let files = files.into_iter().map(|(path, text)| (path, text.as_str()));
        let world = World::of_files(files.chain([("cluster.yaml", CLUSTER)]));
        assert_eq!(world.problems, expected);
        assert_eq!(world.nodes.values().next().unwrap().node.pod_prefixes, ["10.70.1.0/24".parse().unwrap()]);
    }
    // The same name in another cluster, kind or namespace is another object.
    let pod = |namespace: &str| {
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: {namespace}}}}}")
    };
    let text = format!("{CLUSTER}{first}\n---\n{}\n---\n{}", pod("default"), pod("shop"));
    let paris = node("10.80.1.0/24");
    let world = World::of_files([("a.yaml", text.as_str()), ("clusters/paris/a.yaml", &paris)]);
    assert_eq!(world.problems, Vec::<String>::new());
    assert_eq!((nodes(&world).len(), world.pods.len()), (2, 2));
    assert_eq!(
        problems(&format!("{}\n---\n{}", pod("default"), pod("''").replace(", namespace: ''", ""))).len(),
        1
    );
}

#[test]
fn a_place_says_whose_objects_they_are() {
    let paris = CLUSTER.replace("lyon", "paris");
    let node = "{apiVersion: v1, kind: Node, metadata: {name: a}}";
    for (path, text, expected) in [
        (
            "clusters/rome/a.yaml",
            &*paris,
            "clusters/rome/a.yaml:1: Cluster paris: this is the place of cluster rome's objects",
        ),
        (
            "clusters/lyon/a.yaml",
            node,
            "clusters/lyon/a.yaml:1: Node a: clusters/lyon/ has the name of this cluster itself",
        ),
        ("clusters/Rome/a.yaml", node, "clusters/Rome/a.yaml: cluster name \"Rome\" is not"),
        ("clusters/a.yaml", node, "manifests lie at the top or in clusters/NAME/"),
        ("clusters/rome/x/a.yaml", node, "manifests lie at the top or in clusters/NAME/"),
        ("rome/a.yaml", node, "manifests lie at the top or in clusters/NAME/"),
        ("b.yaml", &*paris, "b.yaml:1: Cluster paris: this is the place of cluster lyon's objects"),
    ] {
        let world = World::of_files([("a.yaml", CLUSTER), (path, text)]);
        assert_eq!(world.problems.len(), 1, "{path}: {:?}", world.problems);
        assert!(world.problems[0].contains(expected), "{:?} does not say {expected:?}", world.problems);
        assert_eq!((world.clusters.len(), world.nodes.len()), (1, 0), "{path}");
    }
}

#[test]
fn without_a_cluster_object_nothing_of_this_cluster_is_known() {
    let node = "{apiVersion: v1, kind: Node, metadata: {name: a}}";
    let world = World::of_files([("a.yaml", node), ("clusters/paris/a.yaml", node)]);
    assert_eq!((world.cluster.clone(), nodes(&world)), (None, vec!["paris/a".to_owned()]));
}

#[test]
fn a_pod_is_kept_whole_and_says_what_it_asks_for() {
    let world = pod(
        "causeway.dev/path: kernel, causeway.dev/addresses: 'fd70::9,10.70.1.9', causeway.dev/mac: '02:00:00:00:00:09'",
    );
    assert_eq!(world.problems, Vec::<String>::new());
    let web = PodName { namespace: "default".into(), name: "web".into() };
    let pod = world.pod(&web).unwrap();
    assert_eq!(pod.path_wish(), Ok(Some(PathWish::Kernel)));
    let addresses: Vec<_> = pod.wanted_addresses().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.70.1.9", "fd70::9"], "IPv4 first");
    assert_eq!(pod.wanted_mac().unwrap().map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:09"));
    assert_eq!(pod.object().spec.as_ref().unwrap().containers, []);
    assert_eq!(world.pod(&PodName { namespace: "shop".into(), name: "web".into() }), None);
}

#[test]
fn a_pods_wish_that_cannot_be_honoured_is_a_problem_and_the_pod_is_known() {
    for (annotations, expected) in [
        (
            "causeway.dev/path: quick",
            "annotation causeway.dev/path: \"quick\" is no data path; allowed: auto, fast, kernel",
        ),
        ("causeway.dev/addresses: ''", "annotation causeway.dev/addresses: \"\" is not an IP address"),
        ("causeway.dev/addresses: '10.0.0.1, 10.0.0.2'", "10.0.0.1 and 10.0.0.2 are of one family"),
        ("causeway.dev/mac: '01:00:00:00:00:01'", "is not the address of one host"),
        ("causeway.dev/mac: '00:00:00:00:00:00'", "is not the address of one host"),
        ("causeway.dev/mac: nine", "annotation causeway.dev/mac: \"nine\" is not a hardware address"),
    ] {
        let world = pod(annotations);
        assert_eq!(world.problems.len(), 1, "{:?}", world.problems);
        assert!(world.problems[0].starts_with("all.yaml:3: Pod default/web: "), "{:?}", world.problems);
        assert!(world.problems[0].contains(expected), "{:?} does not say {expected:?}", world.problems);
        assert_eq!(world.pods.len(), 1);
    }
}

#[test]
fn namespaces_have_their_implied_labels() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop, causeway.dev/cluster: rome}}}";
    let here = format!("{CLUSTER}{}", namespace.replace(", causeway.dev/cluster: rome", ""));
    let world = World::of_files([("a.yaml", here.as_str()), ("clusters/paris/a.yaml", namespace)]);
    let labels = |cluster: &str, namespace: &str| {
        let labels = world.namespace_labels(&cluster.parse().unwrap(), namespace);
        labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(labels("lyon", "shop"), ["kubernetes.io/metadata.name=shop", "team=shop"]);
    assert_eq!(labels("lyon", "bank"), ["kubernetes.io/metadata.name=bank"]);
    let paris = ["causeway.dev/cluster=paris", "kubernetes.io/metadata.name=shop", "team=shop"];
    assert_eq!(labels("paris", "shop"), paris, "another cluster cannot pass for a third");
}

#[test]
fn json_is_read_as_kubernetes_writes_it() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z",
                     "labels": {"app": "web", "version": "1.0", "e": "123e4567"}},
        "spec": {"hostNetwork": true, "nodeName": "east", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": "10.70.1.9", "podIPs": [{"ip": "10.70.1.9"}]}}]}"#;
    let world = World::of_files([("a.yaml", CLUSTER), ("pods.json", text)]);
    assert_eq!(world.problems, Vec::<String>::new());
    let pod = world.pods.values().next().unwrap();
    assert_eq!(pod.labels()["version"], "1.0");
    assert_eq!(pod.object().spec.as_ref().unwrap().host_network, Some(true));
    assert_eq!(pod.object().status.as_ref().unwrap().phase.as_deref(), Some("Running"));
}

/// Text that is often nearly a manifest.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "apiVersion: v1\n",
        "kind: Node\n",
        "kind: Pod\n",
        "kind: List\n",
        "items:\n",
        "- ",
        "  ",
        "metadata: {name: a}\n",
        "---\n",
        "spec: {podCIDRs: [10.0.0.0/8]}\n",
        "spec:\n",
        "podCIDRs: [",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "'",
        "\"",
        "\n",
        ": ",
        "!!int ",
        "? ",
        "<<: ",
        "|\n",
        ">\n",
        "\t",
        "%YAML 9.9\n",
        "\u{feff}",
        "\0",
        "1e999",
        ".nan",
        "null",
        "annotations: {causeway.dev/underlay: ",
    ]);
    prop_oneof![any::<String>(), prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())]
}

proptest! {
    #[test]
    fn no_text_whatever_makes_it_panic(text in text()) {
        let world = World::of_files([("a.yaml", CLUSTER), ("b.yaml", text.as_str())]);
        prop_assert!(world.cluster.is_some(), "one file never takes another with it");
        prop_assert_eq!(World::of_files([("a.yaml", CLUSTER), ("b.yaml", text.as_str())]), world, "reading twice is reading once");
        // As a configuration it is taken or refused in words.
        if let Err(error) = crate::config::Config::from_yaml("agent.yaml", &text) {
            prop_assert!(error.to_string().starts_with("agent.yaml"), "{}", error);
        }
    }
}

#[test]
fn policies_are_read_and_what_is_wrong_with_them_is_told() {
    let policy = |kind: &str, version: &str, spec: &str| {
        format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{name: p, namespace: shop}}, spec: {spec}}}\n---\n"
        )
    };
    let good = policy("NetworkPolicy", "networking.k8s.io/v1", "{podSelector: {}}");
    assert_eq!(problems(&good), Vec::<String>::new());
    let bad = policy(
        "NetworkPolicy",
        "networking.k8s.io/v1",
        "{podSelector: {}, ingress: [{ports: [{endPort: 9}]}]}",
    );
    assert_eq!(
        problems(&bad)[0],
        "all.yaml:3: NetworkPolicy/shop/p: isolates those it selects and allows nothing; \
         spec.ingress[0].ports[0].endPort: endPort goes with a numeric port only"
    );
    let withdrawn = policy("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1", "{}");
    assert_eq!(
        problems(&withdrawn)[0],
        "all.yaml:3: AdminNetworkPolicy/p: not taken up; kind: a kind that upstream has withdrawn is not supported"
    );
    let old = policy("NetworkPolicy", "networking.k8s.io/v1beta1", "{}");
    assert!(problems(&old)[0].contains("unknown apiVersion"), "{:?}", problems(&old));
    let others = policy("NetworkPolicy", "crd.example.org/v1", "{}");
    let world = world(&others);
    assert_eq!((world.problems.len(), world.policies.len(), world.ignored.len()), (0, 0, 1));
    let paris =
        "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: paris}, spec: {id: 2}}\n---\n";
    let paris = format!("{paris}{good}");
    let both = World::of_files([("a.yaml", CLUSTER), ("clusters/paris/a.yaml", paris.as_str())]);
    assert_eq!((both.problems.len(), both.policies.len()), (0, 0), "another cluster's are for its own pods");
}
