use std::io::Write;
use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::sources::ManifestSource;

/// Longer than any news takes, shorter than the rescan of these tests.
const SOON: Duration = Duration::from_secs(5);
/// Longer than what must not be news would take.
const NEVER: Duration = Duration::from_millis(400);

fn watch(dir: &Path) -> (ManifestWatch, watch::Receiver<u64>) {
    let watch = ManifestWatch::with_rescan(dir, Duration::from_secs(3600)).unwrap();
    let changes = watch.changes();
    (watch, changes)
}

async fn told(changes: &mut watch::Receiver<u64>, what: &str) {
    timeout(SOON, changes.changed()).await.unwrap_or_else(|_| panic!("nothing told of {what}")).unwrap();
    // What belongs to the same change may come in a second burst on a slow machine.
    while timeout(NEVER, changes.changed()).await.is_ok() {}
}

async fn quiet(changes: &mut watch::Receiver<u64>, what: &str) {
    assert!(timeout(NEVER, changes.changed()).await.is_err(), "{what} is no news");
}

#[tokio::test]
async fn every_change_is_told_and_reading_is_none() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (_watch, mut changes) = watch(dir.path());
    quiet(&mut changes, "nothing").await;
    fs::write(path("a.yaml"), "a: 1").unwrap();
    told(&mut changes, "a new file").await;
    fs::read_to_string(path("a.yaml")).unwrap();
    fs::read_dir(dir.path()).unwrap().count();
    quiet(&mut changes, "reading").await;
    fs::write(path("a.yaml"), "a: 2").unwrap();
    told(&mut changes, "a written file").await;
    fs::rename(path("a.yaml"), path("b.yaml")).unwrap();
    told(&mut changes, "a renamed file").await;
    fs::remove_file(path("b.yaml")).unwrap();
    told(&mut changes, "a removed file").await;
    fs::create_dir_all(path("clusters/paris")).unwrap();
    told(&mut changes, "a new cluster").await;
    fs::write(path("clusters/paris/a.yaml"), "a: 1").unwrap();
    told(&mut changes, "a file of another cluster").await;
    fs::remove_dir_all(path("clusters")).unwrap();
    told(&mut changes, "a cluster gone").await;
}

#[tokio::test]
async fn what_happens_beside_the_directory_is_no_news() {
    let dir = TempDir::new().unwrap();
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let (_watch, mut changes) = watch(&manifests);
    fs::create_dir(dir.path().join("status")).unwrap();
    fs::write(dir.path().join("agent.yaml"), "a: 1").unwrap();
    quiet(&mut changes, "a neighbour").await;
    fs::write(manifests.join("a.yaml"), "a: 1").unwrap();
    told(&mut changes, "a file").await;
}

#[tokio::test]
async fn a_burst_is_told_once_it_has_settled() {
    let dir = TempDir::new().unwrap();
    let (_watch, mut changes) = watch(dir.path());
    for n in 0..500 {
        fs::write(dir.path().join(format!("{n}.yaml")), "a: 1").unwrap();
    }
    told(&mut changes, "a burst").await;
    assert!(*changes.borrow() < 50, "told {} times of one burst", *changes.borrow());
}

#[tokio::test]
async fn a_directory_that_appears_is_watched_and_so_is_its_successor() {
    let dir = TempDir::new().unwrap();
    let manifests = dir.path().join("etc/causeway/manifests");
    let (_watch, mut changes) = watch(&manifests);
    for round in ["first", "second"] {
        fs::create_dir_all(&manifests).unwrap();
        told(&mut changes, round).await;
        fs::write(manifests.join("a.yaml"), "a: 1").unwrap();
        told(&mut changes, "a file in it").await;
        fs::remove_dir_all(dir.path().join("etc")).unwrap();
        told(&mut changes, "its end").await;
    }
    // Replaced by another of its name, in one step.
    fs::create_dir_all(&manifests).unwrap();
    let next = manifests.with_file_name("next");
    fs::create_dir(&next).unwrap();
    told(&mut changes, "the third").await;
    fs::rename(&manifests, manifests.with_file_name("last")).unwrap();
    fs::rename(&next, &manifests).unwrap();
    told(&mut changes, "the replacement").await;
    fs::write(manifests.join("b.yaml"), "b: 1").unwrap();
    told(&mut changes, "a file in the replacement").await;
}

#[tokio::test]
async fn the_swap_of_a_mounted_config_map_is_told() {
    let dir = TempDir::new().unwrap();
    let swap = |version: &str| {
        fs::create_dir_all(dir.path().join(version).join("clusters/paris")).unwrap();
        symlink(version, dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
    };
    swap("..1");
    symlink("..data/clusters", dir.path().join("clusters")).unwrap();
    let (_watch, mut changes) = watch(dir.path());
    swap("..2");
    told(&mut changes, "the swap").await;
    fs::write(dir.path().join("..2/clusters/paris/a.yaml"), "a: 1").unwrap();
    told(&mut changes, "a file behind the new link").await;
}

/// What was told since the last time, and nothing else: names of the top.
fn names(watch: &ManifestWatch) -> Vec<String> {
    match watch.news() {
        News::Anything => vec!["anything".to_owned()],
        News::Names(names) => names.iter().map(|name| name.display().to_string()).collect(),
    }
}

#[tokio::test]
async fn news_names_what_was_touched() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("clusters/paris")).unwrap();
    let (watch, mut changes) = watch(dir.path());
    fs::write(path("a.yaml"), "a: 1").unwrap();
    fs::write(path("clusters/paris/b.yaml"), "b: 1").unwrap();
    told(&mut changes, "two files").await;
    assert_eq!(names(&watch), ["a.yaml", "clusters/paris/b.yaml"]);
    fs::write(path("c.yaml.new"), "c: 1").unwrap();
    fs::rename(path("c.yaml.new"), path("c.yaml")).unwrap();
    told(&mut changes, "a file written aside").await;
    assert_eq!(names(&watch), ["c.yaml", "c.yaml.new"]);
    fs::rename(path("a.yaml"), path("d.yaml")).unwrap();
    fs::remove_file(path("c.yaml")).unwrap();
    told(&mut changes, "a renamed and a removed file").await;
    assert_eq!(names(&watch), ["a.yaml", "c.yaml", "d.yaml"]);
    fs::write(path("README"), "nobody reads this").unwrap();
    fs::create_dir(path("clusters/turin")).unwrap();
    told(&mut changes, "a new cluster").await;
    assert_eq!(names(&watch), ["anything"]);
    assert_eq!(watch.news(), News::default(), "it is told once");
}

#[tokio::test]
async fn a_file_that_is_being_written_is_told_when_it_is_whole() {
    let dir = TempDir::new().unwrap();
    let (watch, mut changes) = watch(dir.path());
    let mut slow = fs::File::create(dir.path().join("slow.yaml")).unwrap();
    slow.write_all(b"a: 1\n").unwrap();
    thread::sleep(CREATED * 5);
    assert!(!changes.has_changed().unwrap(), "told of half a file");
    slow.write_all(b"b: 2\n").unwrap();
    drop(slow);
    told(&mut changes, "the whole file").await;
    assert_eq!(names(&watch), ["slow.yaml"]);
}

#[tokio::test]
async fn a_file_that_is_written_for_ever_holds_up_nobody() {
    let dir = TempDir::new().unwrap();
    let (watch, mut changes) = watch(dir.path());
    let mut endless = fs::File::create(dir.path().join("endless.yaml")).unwrap();
    endless.write_all(b"a: 1\n").unwrap();
    thread::sleep(PATIENCE * 2);
    changes.mark_unchanged();
    fs::write(dir.path().join("other.yaml"), "a: 1").unwrap();
    endless.write_all(b"b: 2\n").unwrap();
    told(&mut changes, "the other file").await;
    assert_eq!(names(&watch), ["other.yaml"]);
    drop(endless);
    told(&mut changes, "the end of the writing").await;
    assert_eq!(names(&watch), ["endless.yaml"]);
}

#[test]
fn a_queue_that_ran_over_may_have_held_anything() {
    let dir = Path::new("/manifests");
    let overflow = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    assert_eq!(touched(&overflow, dir), [Touched::Anything]);
    let (send, words) = mpsc::channel();
    let open = Touched::Name(PathBuf::from("a.yaml"), Stage::Open);
    for touched in [open, Touched::Anything] {
        send.send(Word::Touched(touched)).unwrap();
    }
    let mut bursts = Bursts::new(Duration::from_secs(3600));
    assert_eq!(bursts.next(&words), Some(News::Anything));
    assert!(bursts.open.is_empty(), "the end of the writing may have been among what was lost");
}

#[test]
fn a_rescan_comes_in_the_midst_of_changes() {
    let (send, words) = mpsc::channel();
    let mut bursts = Bursts::new(Duration::ZERO);
    send.send(Word::Touched(Touched::Name(PathBuf::from("a.yaml"), Stage::Finished))).unwrap();
    assert_eq!(bursts.next(&words), Some(News::Anything));
}

#[tokio::test]
async fn now_and_then_it_is_told_without_reason() {
    let dir = TempDir::new().unwrap();
    let watch = ManifestWatch::with_rescan(dir.path(), Duration::from_millis(20)).unwrap();
    let mut changes = watch.changes();
    timeout(SOON, changes.wait_for(|count| *count >= 3)).await.expect("a rescan").unwrap();
}

#[tokio::test]
async fn its_end_ends_its_thread() {
    let dir = TempDir::new().unwrap();
    let (watch, mut changes) = watch(dir.path());
    drop(watch);
    changes.changed().await.expect_err("nobody is left to tell");
}

#[tokio::test]
async fn what_comes_and_goes_quickly_is_read_from_its_news() {
    let dir = TempDir::new().unwrap();
    let (file, aside) = (dir.path().join("pod.yaml"), dir.path().join(".pod.yaml.aside"));
    fs::write(
        dir.path().join("cluster.yaml"),
        "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: lyon}, spec: {id: 1}}",
    )
    .unwrap();
    let (watch, mut changes) = watch(dir.path());
    let mut source = ManifestSource::new(dir.path());
    let mut world = source.read().unwrap();
    for round in 0..200 {
        for there in [true, false] {
            if there {
                fs::write(&aside, "{apiVersion: v1, kind: Pod, metadata: {name: guest}}").unwrap();
                fs::rename(&aside, &file).unwrap();
            } else {
                fs::remove_file(&file).unwrap();
            }
            while world.pods.is_empty() == there {
                let told = timeout(SOON, changes.changed()).await;
                told.unwrap_or_else(|_| panic!("round {round}: nothing told, there: {there}")).unwrap();
                world = source.read_news(&watch.news()).unwrap().unwrap_or(world);
            }
        }
    }
}
