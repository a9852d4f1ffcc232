//! What becomes of a world while its files change.

use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const CLUSTER: &str =
    "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: lyon}, spec: {id: 1}}";
const PARIS: &str =
    "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: paris}, spec: {id: 2}}";

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n")
}

fn service(number: u8, version: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec: {{clusterIP: 10.96.0.{}, ports: [{{port: 80}}]}}\n",
        version + 1
    )
}

struct Manifests {
    dir: TempDir,
    source: ManifestSource,
}

impl Manifests {
    /// A directory with this cluster's object in it.
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let source = ManifestSource::new(dir.path());
        let new = Self { dir, source };
        new.write("cluster.yaml", CLUSTER);
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&mut self) -> Arc<World> {
        self.source.read().unwrap()
    }

    /// Reads news of these names; none where nothing is new.
    fn hear(&mut self, names: &[&str]) -> Option<Arc<World>> {
        let names = names.iter().map(PathBuf::from).collect();
        self.source.read_news(&News::Names(names)).unwrap()
    }

    fn nodes(&mut self) -> Vec<String> {
        self.read().nodes.keys().map(ToString::to_string).collect()
    }

    fn problems(&mut self) -> Vec<String> {
        self.read().problems.clone()
    }
}

#[test]
fn files_come_change_and_go() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    manifests.write("b.yml", &node("b"));
    manifests.write("c.json", r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"}}"#);
    manifests.write("clusters/paris/all.yaml", &(PARIS.to_owned() + "\n---\n" + &node("p")));
    assert_eq!(manifests.nodes(), ["lyon/a", "lyon/b", "lyon/c", "paris/p"]);
    // The same length within the same instant: only the content tells.
    manifests.write("a.yaml", &node("z"));
    fs::remove_file(manifests.path("b.yml")).unwrap();
    fs::remove_dir_all(manifests.path("clusters")).unwrap();
    assert_eq!(manifests.nodes(), ["lyon/c", "lyon/z"]);
    assert_eq!(manifests.problems(), Vec::<String>::new());
}

#[test]
fn an_unchanged_directory_gives_the_same_world() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    let first = manifests.read();
    assert!(Arc::ptr_eq(&first, &manifests.read()));
    manifests.write("a.yaml", &(node("a") + "# a comment changes nothing\n"));
    assert!(Arc::ptr_eq(&first, &manifests.read()));
    manifests.write("a.yaml", &node("b"));
    assert!(!Arc::ptr_eq(&first, &manifests.read()));
}

#[test]
fn a_settled_file_is_not_read_again() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    std::thread::sleep(COARSE * 2);
    manifests.read();
    let file = &manifests.source.files[Path::new("a.yaml")];
    assert!(file.stamp.settled, "a file that old is told by its stamp");
    let before = file.parsed.objects.as_ptr();
    manifests.read();
    assert_eq!(manifests.source.files[Path::new("a.yaml")].parsed.objects.as_ptr(), before);
    // Times can be set back, the change of the file itself cannot be hidden.
    let modified = fs::metadata(manifests.path("a.yaml")).unwrap().modified().unwrap();
    manifests.write("a.yaml", &node("b"));
    fs::File::options().append(true).open(manifests.path("a.yaml")).unwrap().set_modified(modified).unwrap();
    assert_eq!(manifests.nodes(), ["lyon/b"]);
}

#[test]
fn a_file_that_does_not_parse_keeps_its_last_good_objects() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &(node("a") + &node("b")));
    manifests.write("other.yaml", &node("o"));
    assert_eq!(manifests.nodes(), ["lyon/a", "lyon/b", "lyon/o"]);
    manifests.write("a.yaml", &(node("a") + "metadata: [\n"));
    manifests.write("other.yaml", &node("other"));
    assert_eq!(manifests.nodes(), ["lyon/a", "lyon/b", "lyon/other"], "and the others go on");
    assert!(manifests.problems()[0].starts_with("a.yaml:5:"), "{:?}", manifests.problems());
    manifests.write("a.yaml", "still: [");
    assert_eq!(manifests.nodes(), ["lyon/a", "lyon/b", "lyon/other"], "however often it is read");
    fs::write(manifests.path("a.yaml"), b"\xff\xfe\xfd").unwrap();
    assert_eq!(manifests.nodes().len(), 3, "text that is none is no exception");
    manifests.write("a.yaml", &node("c"));
    assert_eq!(manifests.nodes(), ["lyon/c", "lyon/other"]);
    assert_eq!(manifests.problems(), Vec::<String>::new());
}

#[test]
fn a_broken_object_keeps_its_last_good_self_and_the_rest_of_its_file_goes_on() {
    let mut manifests = Manifests::new();
    let with = |prefix: &str| {
        format!(
            "{}apiVersion: v1\nkind: Node\nmetadata: {{name: b}}\nspec: {{podCIDR: {prefix}}}\n",
            node("a")
        )
    };
    manifests.write("a.yaml", &with("10.70.1.0/24"));
    let prefixes = |world: &World| {
        world
            .nodes
            .values()
            .flat_map(|object| &object.node.pod_prefixes)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(prefixes(&manifests.read()), ["10.70.1.0/24"]);
    manifests.write("a.yaml", &with("10.70.2.1/24").replace("name: a", "name: c"));
    assert_eq!(manifests.nodes(), ["lyon/b", "lyon/c"]);
    assert_eq!(prefixes(&manifests.read()), ["10.70.1.0/24"]);
    assert!(manifests.problems()[0].contains("Node b: spec.podCIDR: 10.70.2.1/24 has host bits set"));
    manifests.write("a.yaml", &with("10.70.2.0/24"));
    assert_eq!(prefixes(&manifests.read()), ["10.70.2.0/24"]);
}

#[test]
fn a_broken_cluster_object_does_not_take_the_cluster_away() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    manifests.read();
    manifests.write("cluster.yaml", &CLUSTER.replace("id: 1", "id: one"));
    assert_eq!(manifests.nodes(), ["lyon/a"]);
    assert_eq!(manifests.problems().len(), 1);
}

#[test]
fn a_directory_that_cannot_be_read_keeps_its_objects() {
    let mut manifests = Manifests::new();
    manifests.write("clusters/paris/all.yaml", &(PARIS.to_owned() + "\n---\n" + &node("p")));
    assert_eq!(manifests.nodes(), ["paris/p"]);
    fs::rename(manifests.path("clusters"), manifests.path(".away")).unwrap();
    symlink("clusters", manifests.path("clusters")).unwrap();
    assert_eq!(manifests.nodes(), ["paris/p"]);
    assert!(manifests.problems()[0].starts_with("clusters: "), "{:?}", manifests.problems());
    fs::remove_file(manifests.path("clusters")).unwrap();
    assert_eq!(manifests.nodes(), Vec::<String>::new());
}

#[test]
fn a_missing_directory_is_named_and_picked_up_when_it_appears() {
    let mut manifests = Manifests::new();
    let dir = manifests.path("later");
    let mut source = ManifestSource::new(&dir);
    let error = source.read().expect_err("it is not there").to_string();
    assert!(error.contains(&dir.display().to_string()), "{error}");
    manifests.write("later/a.yaml", &node("a"));
    manifests.write("later/cluster.yaml", CLUSTER);
    assert_eq!(source.read().unwrap().nodes.len(), 1);
    fs::rename(&dir, manifests.path("away")).unwrap();
    source.read().expect_err("it has gone again");
    fs::rename(manifests.path("away"), &dir).unwrap();
    assert_eq!(source.read().unwrap().nodes.len(), 1);
    assert_eq!(manifests.problems(), ["later: this directory is not read; others' are clusters/NAME/"]);
    assert_eq!(source.what(), format!("manifests in {}", dir.display()));
}

#[test]
fn what_editors_leave_is_not_read() {
    let mut manifests = Manifests::new();
    for dropping in [
        ".a.yaml",
        ".#a.yaml",
        "a.yaml~",
        "#a.yaml#",
        "a.yaml.swp",
        ".a.yaml.swp",
        "4913",
        "README",
        "a.yaml.bak",
    ] {
        manifests.write(dropping, &node("x"));
    }
    manifests.write(".git/a.yaml", &node("x"));
    manifests.write("clusters/.x/a.yaml", &node("x"));
    manifests.write("clusters/README", "no cluster");
    assert_eq!(manifests.nodes(), Vec::<String>::new());
    assert_eq!(manifests.problems(), Vec::<String>::new());
}

#[test]
fn a_mounted_config_map_is_swapped_whole() {
    let mut manifests = Manifests::new();
    let swap = |manifests: &Manifests, version: &str, name: &str| {
        manifests.write(&format!("..{version}/nodes.yaml"), &node(name));
        manifests.write(
            &format!("..{version}/clusters/paris/all.yaml"),
            &(PARIS.to_owned() + "\n---\n" + &node(name)),
        );
        symlink(format!("..{version}"), manifests.path("..data_tmp")).unwrap();
        fs::rename(manifests.path("..data_tmp"), manifests.path("..data")).unwrap();
    };
    swap(&manifests, "2026_01", "old");
    symlink("..data/nodes.yaml", manifests.path("nodes.yaml")).unwrap();
    symlink("..data/clusters", manifests.path("clusters")).unwrap();
    assert_eq!(manifests.nodes(), ["lyon/old", "paris/old"]);
    swap(&manifests, "2026_02", "new");
    fs::remove_dir_all(manifests.path("..2026_01")).unwrap();
    assert_eq!(manifests.nodes(), ["lyon/new", "paris/new"]);
    assert_eq!(manifests.problems(), Vec::<String>::new());
}

#[test]
fn what_is_no_file_is_named() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    symlink("a.yaml", manifests.path("link.yaml")).unwrap();
    symlink("nowhere", manifests.path("dangling.yaml")).unwrap();
    symlink("/dev/null", manifests.path("device.yaml")).unwrap();
    symlink("loop.yaml", manifests.path("loop.yaml")).unwrap();
    fs::create_dir(manifests.path("dir.yaml")).unwrap();
    manifests.write("clusters/stray.yaml", &node("x"));
    manifests.write("clusters/paris/deep/a.yaml", &node("x"));
    assert_eq!(manifests.nodes(), ["lyon/a"]);
    let problems = manifests.problems();
    for (expected, count) in [
        ("link.yaml:1: Node a: defined by a.yaml:1 already", 1),
        ("dangling.yaml: a link to nowhere", 1),
        ("device.yaml: neither a file nor a link to one", 1),
        ("loop.yaml: ", 1),
        ("dir.yaml: this directory is not read", 1),
        ("clusters/stray.yaml: manifests lie in clusters/NAME/", 1),
        ("clusters/paris/deep: this directory is not read", 1),
    ] {
        let found = problems.iter().filter(|problem| problem.starts_with(expected)).count();
        assert_eq!(found, count, "{expected:?} in {problems:?}");
    }
    assert_eq!(problems.len(), 7, "{problems:?}");
}

#[test]
fn directory_and_text_tell_the_same() {
    let mut manifests = Manifests::new();
    let paris = PARIS.to_owned() + "\n---\n" + &node("p");
    manifests.write("a.yaml", &node("a"));
    manifests.write("clusters/paris/all.yaml", &paris);
    let files = [("cluster.yaml", CLUSTER), ("a.yaml", &node("a")), ("clusters/paris/all.yaml", &paris)];
    assert_eq!(*manifests.read(), World::of_files(files));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// However a directory came to be what it is, it is read as if for the first time, when nothing in it is broken.
    #[test]
    fn reading_changes_is_reading_anew(
        steps in prop::collection::vec((0u8..5, prop::option::of((0u8..3, 0u8..3))), 1..12),
        named: bool,
    ) {
        let mut manifests = Manifests::new();
        manifests.read();
        for (file, content) in steps {
            let name = if file == 4 { "clusters/paris/x.yaml".to_owned() } else { format!("{file}.yaml") };
            match content {
                // The same objects saying something else, or others.
                Some((number, version)) => {
                    let (node, service) = (node(&format!("n{number}")), service(number, version));
                    manifests.write(&name, &(node + &service));
                }
                None => drop(fs::remove_file(manifests.path(&name))),
            }
            let world = match named {
                true => manifests.hear(&[&name]).or_else(|| manifests.source.world.clone()).unwrap(),
                false => manifests.read(),
            };
            prop_assert!(Arc::ptr_eq(&world, &manifests.read()));
            prop_assert_eq!(world, ManifestSource::new(manifests.dir.path()).read().unwrap());
        }
    }
}

#[test]
fn a_file_that_says_other_things_of_its_objects_leaves_all_others_as_they_were_read() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &service(1, 1));
    manifests.write("b.yaml", &service(2, 1));
    let before = manifests.read();
    manifests.write("b.yaml", &service(2, 2));
    let after = manifests.read();
    let of = |world: &World, name: &str| {
        let mut services = world.services.iter();
        services.find(|(known, _)| known.name == name).map(|(_, read)| read.clone()).expect("it is there")
    };
    assert!(Arc::ptr_eq(&of(&before, "s1"), &of(&after, "s1")));
    assert_ne!(of(&before, "s2"), of(&after, "s2"));
}

#[test]
fn a_mark_of_loss_comes_and_goes() {
    let mut manifests = Manifests::new();
    manifests.write("clusters/paris/all.yaml", PARIS);
    assert!(manifests.read().lost.is_empty());
    manifests.write("clusters/paris/lost", "45s");
    let world = manifests.read();
    assert_eq!(world.lost.values().map(Duration::as_secs).collect::<Vec<_>>(), [45]);
    assert_eq!((world.clusters.len(), world.problems.len()), (2, 0), "its objects are still known");
    manifests.write("clusters/paris/lost", "90s");
    assert_eq!(manifests.read().lost.values().map(Duration::as_secs).collect::<Vec<_>>(), [90]);
    fs::remove_file(manifests.path("clusters/paris/lost")).unwrap();
    assert!(manifests.read().lost.is_empty());
    manifests.write("lost", "here it is no mark");
    assert!(manifests.read().lost.is_empty());
}

#[test]
fn news_of_names_is_read_without_a_look_at_others() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    manifests.write("b.yaml", &node("b"));
    let nodes = |world: Option<Arc<World>>| {
        let names = |world: Arc<World>| world.nodes.keys().map(|id| id.name.to_string()).collect::<Vec<_>>();
        world.map(names).unwrap_or_default()
    };
    // What was never read is not known by its news.
    assert_eq!(nodes(manifests.hear(&["b.yaml"])), ["a", "b"]);
    manifests.write("a.yaml", &node("other"));
    manifests.write("b.yaml", &node("c"));
    assert_eq!(nodes(manifests.hear(&["b.yaml"])), ["a", "c"]);
    assert_eq!(manifests.hear(&["b.yaml", "c.yaml", "README", ".a.yaml", "b.yaml.new"]), None);
    fs::rename(manifests.path("b.yaml"), manifests.path("d.yaml")).unwrap();
    assert_eq!(nodes(manifests.hear(&["b.yaml", "d.yaml"])), ["a", "c"]);
    fs::remove_file(manifests.path("d.yaml")).unwrap();
    assert_eq!(nodes(manifests.hear(&["d.yaml"])), ["a"]);
    manifests.write("e.yaml", &(node("e") + "metadata: [\n"));
    assert!(manifests.hear(&["e.yaml"]).unwrap().problems[0].starts_with("e.yaml:5:"));
    manifests.write("e.yaml", &node("a"));
    let contested = manifests.hear(&["e.yaml"]).unwrap();
    assert_eq!(contested.problems, ["e.yaml:1: Node a: defined by a.yaml:1 already"]);
    manifests.write("e.yaml", &node("e"));
    assert_eq!(nodes(manifests.hear(&["e.yaml"])), ["a", "e"]);
    assert_eq!(
        manifests.nodes(),
        ["lyon/e", "lyon/other"],
        "and a look at everything finds what was not told"
    );
}

#[test]
fn news_of_a_link_or_a_directory_is_a_look_at_everything() {
    let mut manifests = Manifests::new();
    manifests.write("..1/nodes.yaml", &node("old"));
    manifests.write("..2/nodes.yaml", &node("new"));
    manifests.write("elsewhere", &node("moved"));
    let link = |manifests: &Manifests, target: &str, name: &str| {
        symlink(target, manifests.path("..data_tmp")).unwrap();
        fs::rename(manifests.path("..data_tmp"), manifests.path(name)).unwrap();
    };
    link(&manifests, "..1", "..data");
    symlink("..data/nodes.yaml", manifests.path("nodes.yaml")).unwrap();
    assert_eq!(manifests.nodes(), ["lyon/old"]);
    link(&manifests, "..2", "..data");
    let names = |world: Option<Arc<World>>| {
        world.unwrap().nodes.keys().map(|id| id.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(manifests.hear(&["..data_tmp", "..data"])), ["new"]);
    link(&manifests, "elsewhere", "nodes.yaml");
    assert_eq!(names(manifests.hear(&["..data_tmp", "nodes.yaml"])), ["moved"]);
    fs::remove_file(manifests.path("nodes.yaml")).unwrap();
    assert_eq!(names(manifests.hear(&["nodes.yaml"])), Vec::<String>::new());
    fs::rename(manifests.path("..1"), manifests.path("..1.yaml")).unwrap();
    manifests.write("a.yaml", &node("a"));
    assert_eq!(names(manifests.hear(&["..1"])), ["a"]);
}

#[test]
fn a_directory_that_was_away_is_read_whole() {
    let mut manifests = Manifests::new();
    manifests.write("a.yaml", &node("a"));
    manifests.read();
    let dir = manifests.dir.path().to_owned();
    let away = dir.with_extension("away");
    fs::rename(&dir, &away).unwrap();
    manifests.source.read_news(&News::Anything).expect_err("it is not there");
    fs::rename(&away, &dir).unwrap();
    manifests.write("b.yaml", &node("b"));
    assert_eq!(manifests.hear(&["a.yaml"]).unwrap().nodes.len(), 2);
}
