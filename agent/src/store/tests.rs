use std::collections::VecDeque;

use causeway_model::{Identity, MacAddr, Node, NodeId, Path as DataPath, PortKind};
use proptest::prelude::*;

use super::*;
use crate::addresses::{Pool, Wanted};

fn node(prefixes: &[&str]) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: "east".parse().unwrap() };
    Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec!["192.0.2.11".parse().unwrap()],
        pod_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

fn key(container: impl Copy + ToString) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: container.to_string(), interface: "eth0".into() }
}

fn record(key: EndpointKey, grant: &Grant) -> Record {
    let endpoint = Endpoint {
        key,
        pod: None,
        addresses: grant.addresses.clone(),
        mac: grant.mac,
        mtu: 1450,
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        identity: Identity(256),
        path: DataPath::Kernel,
        routes: None,
        path_reason: "asked for".into(),
        port: PortKind::Veth,
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    };
    Record { endpoint, netns: Netns { path: "/run/netns/x".into(), device: 4, inode: 7 }, boot: "b".into() }
}

impl Store {
    fn add(
        &mut self,
        container: impl Copy + ToString,
        pools: &[Pool],
        wanted: &Wanted,
    ) -> Result<Vec<IpAddr>, Error> {
        let grant = self.leases().grant(pools, wanted)?;
        self.insert(record(key(container), &grant), &grant)?;
        Ok(grant.addresses)
    }
}

#[test]
fn what_was_kept_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let pools = Pool::all_of_node(&node(&["10.70.1.0/24", "fd70::/64"]));
    let mut store = Store::open(directory.path()).unwrap();
    store.add("a", &pools, &Wanted::default()).unwrap();
    store.add("b", &pools, &Wanted::default()).unwrap();
    store.remove(&key("a")).unwrap();
    let (records, leases) = (store.records().clone(), store.leases().clone());
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.records(), &records);
    assert_eq!(store.leases(), &leases);
    assert!(store.get(&key("b")).is_some() && store.get(&key("a")).is_none());
}

#[test]
fn forgetting_a_stranger_succeeds_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    assert_eq!(store.remove(&key("zz")).unwrap(), None);
    assert_eq!(store.leases(), &Leases::default());
}

#[test]
fn a_damaged_file_is_refused_by_name_and_never_taken_for_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let pools = Pool::all_of_node(&node(&["10.70.0.0/16"]));
    let mut store = Store::open(directory.path()).unwrap();
    for number in 0..50 {
        store.add(number, &pools, &Wanted::default()).unwrap();
    }
    drop(store);
    let file = directory.path().join(FILE);
    let whole = fs::read(&file).unwrap();
    let cut = |length: usize| whole[..length].to_vec();
    let mut noisy = whole.clone();
    // Every record is hit somewhere.
    noisy[4096..].iter_mut().step_by(61).for_each(|byte| *byte ^= 0x5a);
    let damages =
        [vec![], vec![0; 4096], b"not a store".to_vec(), cut(100), cut(4096), cut(whole.len() / 2), noisy];
    for (number, damage) in damages.into_iter().enumerate() {
        fs::write(&file, &damage).unwrap();
        let error =
            Store::open(directory.path()).err().unwrap_or_else(|| panic!("damage {number} was accepted"));
        assert!(matches!(error, Error::Damaged { .. }), "damage {number}: {error:?}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    fs::write(&file, &whole).unwrap();
    assert_eq!(Store::open(directory.path()).unwrap().records().len(), 50);
}

#[test]
fn a_record_of_the_next_version_is_read_and_of_a_later_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pools = Pool::all_of_node(&node(&["10.70.1.0/24"]));
    let mut store = Store::open(directory.path()).unwrap();
    store.add("a", &pools, &Wanted::default()).unwrap();
    let mut as_version = |version: u32| {
        let mut json = serde_json::to_value(store.get(&key("a")).unwrap()).unwrap();
        json["version"] = version.into();
        json["news"] = "unheard of".into();
        let bytes = serde_json::to_vec(&json).unwrap();
        store
            .commit(|transaction| {
                transaction.open_table(ENDPOINTS)?.insert(table_key(&key("a")), bytes.as_slice())?;
                Ok(())
            })
            .unwrap();
        load(&store.file, store.database.as_ref().unwrap()).map(|contents| contents.records.len())
    };
    assert_eq!(as_version(VERSION + 1).unwrap(), 1);
    let error = as_version(VERSION + 2).unwrap_err().to_string();
    assert!(error.contains("version 3") && error.contains(FILE), "{error}");
}

#[test]
fn leases_and_endpoints_that_disagree_are_damage() {
    let directory = tempfile::tempdir().unwrap();
    let pools = Pool::all_of_node(&node(&["10.70.1.0/24"]));
    let mut store = Store::open(directory.path()).unwrap();
    let address = store.add("a", &pools, &Wanted::default()).unwrap()[0].to_string();
    let foreign = encode(&Lease { owner: key("b") });
    store
        .commit(|transaction| {
            transaction.open_table(LEASES)?.insert(address.as_str(), foreign.as_slice())?;
            Ok(())
        })
        .unwrap();
    drop(store);
    let error = Store::open(directory.path()).err().unwrap().to_string();
    assert!(error.contains("10.70.1.3 is pods/b/eth0's and pods/a/eth0's"), "{error}");
}

#[test]
fn a_write_that_failed_is_looked_at_again_before_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let pools = Pool::all_of_node(&node(&["10.70.1.0/24"]));
    let mut store = Store::open(directory.path()).unwrap();
    store.add("a", &pools, &Wanted::default()).unwrap();
    // As if a commit had reached the disk although it was reported as failed.
    let grant = store.leases().grant(&pools, &Wanted::default()).unwrap();
    let ghost = record(key("ghost"), &grant);
    store.commit(|transaction| put_endpoint(transaction, &ghost)).unwrap();
    store.database = None;
    let given = store.add("b", &pools, &Wanted::default()).unwrap();
    assert_eq!(given, grant.addresses);
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    let names: Vec<_> = store.records().keys().map(|key| key.container.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_failing_edit_leaves_memory_and_disk_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let pools = Pool::all_of_node(&node(&["10.70.1.0/24"]));
    let mut store = Store::open(directory.path()).unwrap();
    store.add("a", &pools, &Wanted::default()).unwrap();
    let full = io::Error::from(io::ErrorKind::StorageFull);
    let error = store.commit(|_| Err(redb::Error::Io(full))).unwrap_err();
    assert_eq!(error.failure().code, 5, "{error}");
    assert_eq!(store.records().len(), 1);
    store.add("b", &pools, &Wanted::default()).unwrap();
    assert_eq!(store.records().len(), 2);
}

/// What may happen to a node.
#[derive(Clone, Debug)]
enum Event {
    Add(u8),
    AddStatic(u8, u8),
    Del(u8),
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..14_u8).prop_map(Event::Add),
        1 => (0..14_u8, 0..16_u8).prop_map(|(pod, last)| Event::AddStatic(pod, last)),
        5 => (0..14_u8).prop_map(Event::Del),
        1 => Just(Event::Crash),
    ]
}

/// The slow obvious allocator: all free addresses in one line, taken from the front, given back at the end.
struct Oracle {
    free: VecDeque<IpAddr>,
    pods: BTreeMap<u8, IpAddr>,
}

impl Oracle {
    fn new() -> Self {
        // 10.70.1.0/28 less network, overlay host, probe and broadcast.
        Self { free: (3..15).map(|last| IpAddr::from([10, 70, 1, last])).collect(), pods: BTreeMap::new() }
    }

    fn add(&mut self, pod: u8, named: Option<IpAddr>) -> Option<IpAddr> {
        let address = match named {
            Some(named) => {
                self.free.iter().position(|free| *free == named).and_then(|at| self.free.remove(at))
            }
            None => self.free.pop_front(),
        }?;
        self.pods.insert(pod, address);
        Some(address)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn no_address_is_given_twice_whatever_happens(events in prop::collection::vec(event(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let pools = Pool::all_of_node(&node(&["10.70.1.0/28", "fd70::/64"]));
        let mut store = Store::open(directory.path()).unwrap();
        let mut oracle = Oracle::new();
        for event in events {
            match event {
                Event::Add(pod) | Event::AddStatic(pod, _) if oracle.pods.contains_key(&pod) => {}
                Event::Add(pod) => {
                    let given = store.add(pod, &pools, &Wanted::default());
                    prop_assert_eq!(given.ok().map(|addresses| addresses[0]), oracle.add(pod, None));
                }
                Event::AddStatic(pod, last) => {
                    let named = IpAddr::from([10, 70, 1, last]);
                    let wanted = Wanted { addresses: vec![named], mac: None };
                    let given = store.add(pod, &pools, &wanted);
                    prop_assert_eq!(given.ok().map(|addresses| addresses[0]), oracle.add(pod, Some(named)));
                }
                Event::Del(pod) => {
                    let gone = store.remove(&key(pod)).unwrap();
                    let expected = oracle.pods.remove(&pod);
                    prop_assert_eq!(gone.map(|record| record.endpoint.addresses[0]), expected);
                    oracle.free.extend(expected);
                }
                Event::Crash => {
                    drop(store);
                    store = Store::open(directory.path()).unwrap();
                }
            }
            check(&store, &oracle)?;
        }
    }
}

fn check(store: &Store, oracle: &Oracle) -> Result<(), TestCaseError> {
    let endpoints: Vec<_> = store.records().values().map(|record| &record.endpoint).collect();
    prop_assert_eq!(endpoints.len(), oracle.pods.len());
    for endpoint in &endpoints {
        prop_assert_eq!(endpoint.addresses.len(), 2, "both families together");
        for address in &endpoint.addresses {
            prop_assert_eq!(store.leases().owner(*address), Some(&endpoint.key));
        }
    }
    let addresses: Vec<_> = endpoints.iter().flat_map(|endpoint| endpoint.addresses.clone()).collect();
    let distinct: std::collections::BTreeSet<_> = addresses.iter().collect();
    prop_assert_eq!(distinct.len(), addresses.len());
    let macs: std::collections::BTreeSet<MacAddr> = endpoints.iter().map(|endpoint| endpoint.mac).collect();
    prop_assert_eq!(macs.len(), endpoints.len());
    Ok(())
}

/// A file system of one megabyte, for as long as this lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        let options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        assert!(
            std::process::Command::new("mount").args(options).arg(disk.0.path()).status().unwrap().success()
        );
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_keeps_nothing_and_harms_nothing() {
    let disk = SmallDisk::new();
    let directory = disk.0.path();
    let pools = Pool::all_of_node(&node(&["10.70.1.0/24", "fd70::/64"]));
    let mut store = Store::open(directory).unwrap();
    store.add("a", &pools, &Wanted::default()).unwrap();
    let filler = directory.join("filler");
    let filled = fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
    // Free pages in the file may carry a few writes; then it must grow.
    let mut kept = vec![key("a")];
    let mut refused = 0;
    for number in 0..400 {
        match store.add(number, &pools, &Wanted::default()) {
            Ok(_) => kept.push(key(number)),
            Err(error) => {
                assert_eq!(error.failure().code, 5, "{error}");
                refused += 1;
            }
        }
        if refused == 20 {
            break;
        }
    }
    assert_eq!(refused, 20, "the disk never was full");
    kept.sort();
    assert_eq!(store.records().keys().cloned().collect::<Vec<_>>(), kept);
    fs::remove_file(filler).unwrap();
    let late = |number: u32| store.add(format!("late{number}").as_str(), &pools, &Wanted::default()).err();
    let full = (0..).find_map(late).unwrap();
    assert_eq!(full.failure().code, 100, "{full}");
    assert_eq!(store.records().len(), 252, "the whole range can be used");
    let records = store.records().clone();
    drop(store);
    assert_eq!(Store::open(directory).unwrap().records(), &records);
}

#[test]
fn what_is_settled_between_clusters_is_kept_and_a_file_without_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let memory: Memory = serde_json::from_value(serde_json::json!({
        "leases": [{"service": {"namespace": "shop", "name": "web"}, "address": "172.30.0.7", "gone": 3}],
        "members": [{"cluster": "lyon", "id": 1, "prefixes": ["10.70.0.0/16"]}], "clusterset": ["172.30.0.0/24"],
    }))
    .unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    assert_eq!(store.mesh(), &Memory::default());
    store.keep_mesh(memory.clone()).unwrap();
    drop(store);
    assert_eq!(Store::open(directory.path()).unwrap().mesh(), &memory);
    // As a release has it that knows of no mesh.
    let database = open_database(&directory.path().join(FILE)).unwrap();
    write(&database, |transaction| transaction.delete_table(MESH).map(drop).map_err(Into::into)).unwrap();
    drop(database);
    assert_eq!(Store::open(directory.path()).unwrap().mesh(), &Memory::default());
}
