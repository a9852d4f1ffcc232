use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

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
