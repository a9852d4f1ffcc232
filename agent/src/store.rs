//! What survives a restart: endpoints, their leases and the queue of free addresses, in one file and one transaction each.
//!
//! A crash of the agent loses nothing that was kept. One of the machine may lose the last thing that was, and with it the
//! pods: no call waits for the disk. The file is read whole when it is opened and mirrored in memory from then on. A write that fails leaves the memory as it
//! was; the file is then opened again before the next write, and made to agree with the memory if it does not.

mod behind;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use causeway_mesh::Memory;
use causeway_model::{Endpoint, EndpointKey};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::addresses::{Grant, Leases};
use crate::error::Error;
use behind::Behind;

/// The version of every record written here; records of the next one are read too, by ignoring what they add.
const VERSION: u32 = 1;
/// The store's file in the state directory.
const FILE: &str = "agent.redb";
/// All files the store may leave there.
pub(crate) const FILES: [&str; 2] = [FILE, "agent.redb.new"];
/// Far more than a thousand endpoints take.
const CACHE_BYTES: usize = 8 << 20;

const ENDPOINTS: TableDefinition<(&str, &str, &str), &[u8]> = TableDefinition::new("endpoints");
const LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("leases");
const MESH: TableDefinition<&str, &[u8]> = TableDefinition::new("mesh");
const QUEUE: TableDefinition<u64, &[u8]> = TableDefinition::new("free-queue");

/// The one record of what is settled between clusters.
const MEMORY: &str = "memory";

/// A network namespace, as the runtime called it and as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// The path the runtime gave.
    pub path: String,
    /// The device its inode is on.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// An endpoint and where it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The namespace it was plugged into.
    pub netns: Netns,
    /// The boot during which that was; namespaces do not outlive one.
    pub boot: String,
}

#[derive(Serialize, Deserialize)]
struct Lease {
    owner: EndpointKey,
}

#[derive(Serialize, Deserialize)]
struct Free {
    address: IpAddr,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    body: T,
}

/// The store.
pub struct Store {
    file: PathBuf,
    /// None after a failed write, until the file has been opened and compared again.
    database: Option<Database>,
    contents: Contents,
}

#[derive(Default, PartialEq)]
struct Contents {
    records: BTreeMap<EndpointKey, Record>,
    leases: Leases,
    mesh: Memory,
}

/// Whether a state directory has a store.
pub(crate) fn exists(directory: &Path) -> bool {
    directory.join(FILE).exists()
}

impl Store {
    /// Opens the store of a state directory, or makes a new one where there is none. What is there and cannot be read whole is
    /// refused.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let file = directory.join(FILE);
        if !file.try_exists().map_err(Error::io(format!("looking for {}", file.display())))? {
            create(&file)?;
        }
        let database = open_database(&file)?;
        let contents = load(&file, &database)?;
        Ok(Self { file, database: Some(database), contents })
    }

    /// All endpoints.
    pub fn records(&self) -> &BTreeMap<EndpointKey, Record> {
        &self.contents.records
    }

    /// One endpoint.
    pub fn get(&self, key: &EndpointKey) -> Option<&Record> {
        self.contents.records.get(key)
    }

    /// Who has which address.
    pub fn leases(&self) -> &Leases {
        &self.contents.leases
    }

    /// What is settled between clusters and must stay so.
    pub fn mesh(&self) -> &Memory {
        &self.contents.mesh
    }

    /// Keeps what is settled between clusters in the place of what was.
    pub fn keep_mesh(&mut self, memory: Memory) -> Result<(), Error> {
        self.commit(|transaction| put_mesh(transaction, &memory))?;
        self.contents.mesh = memory;
        Ok(())
    }

    /// Keeps an endpoint and takes what it was granted, both or neither.
    pub fn insert(&mut self, record: Record, grant: &Grant) -> Result<(), Error> {
        let left: Vec<_> = self.contents.leases.queued_as(&grant.addresses).collect();
        self.commit(|transaction| {
            put_endpoint(transaction, &record)?;
            let mut queue = transaction.open_table(QUEUE)?;
            for number in &left {
                queue.remove(number)?;
            }
            Ok(())
        })?;
        self.contents.leases.take(&record.endpoint.key, grant);
        self.contents.records.insert(record.endpoint.key.clone(), record);
        Ok(())
    }

    /// Forgets an endpoint and queues its addresses, both or neither. Forgetting a stranger succeeds.
    pub fn remove(&mut self, key: &EndpointKey) -> Result<Option<Record>, Error> {
        let Some(record) = self.contents.records.get(key) else { return Ok(None) };
        let numbered = self.contents.leases.next_numbers(&record.endpoint.addresses);
        let mac = record.endpoint.mac;
        self.commit(|transaction| {
            transaction.open_table(ENDPOINTS)?.remove(table_key(key))?;
            let mut leases = transaction.open_table(LEASES)?;
            for (_, address) in &numbered {
                leases.remove(address.to_string().as_str())?;
            }
            put_queue(transaction, numbered.iter().copied())
        })?;
        self.contents.leases.give_back(&numbered, mac);
        Ok(self.contents.records.remove(key))
    }

    fn commit(
        &mut self,
        edit: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), Error> {
        if self.database.is_none() {
            self.reopen()?;
        }
        let Some(database) = &self.database else { unreachable!("just opened") };
        let written = write(database, edit);
        // Whether a failed commit is on disk nobody knows: look again before the next one.
        if written.is_err() {
            self.database = None;
        }
        written.map_err(failed("writing", &self.file))
    }

    fn reopen(&mut self) -> Result<(), Error> {
        let database = open_database(&self.file)?;
        if load(&self.file, &database)? != self.contents {
            let contents = &self.contents;
            write(&database, |transaction| rewrite(transaction, contents))
                .map_err(failed("writing", &self.file))?;
        }
        self.database = Some(database);
        Ok(())
    }
}

fn failed(doing: &'static str, file: &Path) -> impl FnOnce(redb::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::Store { doing, file, source: Box::new(source) }
}

fn write(
    database: &Database,
    edit: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    edit(&transaction)?;
    Ok(transaction.commit()?)
}

/// Makes an empty store aside and gives it its name when it is on disk: a file of that name is always whole.
fn create(file: &Path) -> Result<(), Error> {
    let aside = file.with_extension("redb.new");
    let io = |source| Error::Io { doing: format!("creating {}", file.display()), source };
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let made = Builder::new().set_cache_size(CACHE_BYTES).create(&aside).map_err(redb::Error::from);
    let database = made.map_err(failed("creating", file))?;
    write(&database, |transaction| rewrite(transaction, &Contents::default()))
        .map_err(failed("creating", file))?;
    drop(database);
    File::open(&aside).and_then(|aside| aside.sync_all()).map_err(io)?;
    fs::rename(&aside, file).map_err(io)?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

fn open_database(file: &Path) -> Result<Database, Error> {
    let damaged = |why: String| Error::Damaged { file: file.to_owned(), why };
    // redb would make an empty file into an empty store.
    if fs::metadata(file).map_err(Error::io(format!("looking at {}", file.display())))?.len() == 0 {
        return Err(damaged("it is empty".to_owned()));
    }
    // The check costs a walk over a small file and turns what would be a panic later into a refusal now.
    let opened = File::options().read(true).write(true).open(file).map_err(redb::DatabaseError::from);
    let opened = opened.and_then(|there| {
        let backend = Behind::new(FileBackend::new(there)?)?;
        Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
    });
    opened.map_err(redb::Error::from).map_err(|error| match error {
        redb::Error::Corrupted(why) => damaged(why),
        redb::Error::RepairAborted => damaged("it cannot be repaired".to_owned()),
        redb::Error::Io(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            damaged(error.to_string())
        }
        redb::Error::UpgradeRequired(version) => damaged(format!("its file format is version {version}")),
        other => failed("opening", file)(other),
    })
}

fn load(file: &Path, database: &Database) -> Result<Contents, Error> {
    let damaged = |why: String| Error::Damaged { file: file.to_owned(), why };
    let tables = read_tables(database).map_err(failed("reading", file))?;
    let mesh = tables.mesh.as_deref().map(decode).transpose().map_err(damaged)?.unwrap_or_default();
    let mut contents = Contents { mesh, ..Contents::default() };
    for (number, bytes) in &tables.queue {
        let free: Free = decode(bytes).map_err(damaged)?;
        contents.leases.enqueue(*number, free.address);
    }
    for bytes in &tables.endpoints {
        let record: Record = decode(bytes).map_err(damaged)?;
        contents.take(&record, &tables.leases).map_err(damaged)?;
        contents.records.insert(record.endpoint.key.clone(), record);
    }
    let leased: usize = contents.records.values().map(|record| record.endpoint.addresses.len()).sum();
    if leased != tables.leases.len() {
        return Err(damaged("a lease has no endpoint".to_owned()));
    }
    Ok(contents)
}

impl Contents {
    /// Takes an endpoint's addresses, if the leases on disk agree that they are its own.
    fn take(&mut self, record: &Record, leases: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
        let endpoint = &record.endpoint;
        for address in &endpoint.addresses {
            let bytes = leases.get(&address.to_string());
            let lease: Lease = decode(bytes.ok_or_else(|| format!("{address} has no lease"))?)?;
            if lease.owner != endpoint.key {
                return Err(format!("{address} is {}'s and {}'s", lease.owner, endpoint.key));
            }
            if self.leases.queued_as(&[*address]).next().is_some() {
                return Err(format!("{address} is both leased and free"));
            }
        }
        let grant = Grant { addresses: endpoint.addresses.clone(), mac: endpoint.mac };
        self.leases.take(&endpoint.key, &grant);
        Ok(())
    }
}

/// The tables as they lie in the file.
struct Tables {
    endpoints: Vec<Vec<u8>>,
    leases: BTreeMap<String, Vec<u8>>,
    queue: Vec<(u64, Vec<u8>)>,
    mesh: Option<Vec<u8>>,
}

fn read_tables(database: &Database) -> Result<Tables, redb::Error> {
    let transaction = database.begin_read()?;
    let mut tables = Tables { endpoints: Vec::new(), leases: BTreeMap::new(), queue: Vec::new(), mesh: None };
    for entry in transaction.open_table(ENDPOINTS)?.iter()? {
        tables.endpoints.push(entry?.1.value().to_vec());
    }
    for entry in transaction.open_table(LEASES)?.iter()? {
        let (address, lease) = entry?;
        tables.leases.insert(address.value().to_owned(), lease.value().to_vec());
    }
    for entry in transaction.open_table(QUEUE)?.iter()? {
        let (number, free) = entry?;
        tables.queue.push((number.value(), free.value().to_vec()));
    }
    match transaction.open_table(MESH) {
        // A release that knew of no mesh made the file.
        Err(TableError::TableDoesNotExist(_)) => {}
        table => tables.mesh = table?.get(MEMORY)?.map(|memory| memory.value().to_vec()),
    }
    Ok(tables)
}

/// Everything anew.
fn rewrite(transaction: &WriteTransaction, contents: &Contents) -> Result<(), redb::Error> {
    transaction.delete_table(ENDPOINTS)?;
    transaction.delete_table(LEASES)?;
    transaction.delete_table(QUEUE)?;
    transaction.delete_table(MESH)?;
    transaction.open_table(ENDPOINTS)?;
    transaction.open_table(LEASES)?;
    for record in contents.records.values() {
        put_endpoint(transaction, record)?;
    }
    put_mesh(transaction, &contents.mesh)?;
    put_queue(transaction, contents.leases.queue())
}

fn put_mesh(transaction: &WriteTransaction, memory: &Memory) -> Result<(), redb::Error> {
    transaction.open_table(MESH)?.insert(MEMORY, encode(memory).as_slice())?;
    Ok(())
}

fn put_endpoint(transaction: &WriteTransaction, record: &Record) -> Result<(), redb::Error> {
    let endpoint = &record.endpoint;
    transaction.open_table(ENDPOINTS)?.insert(table_key(&endpoint.key), encode(record).as_slice())?;
    let mut leases = transaction.open_table(LEASES)?;
    let lease = encode(&Lease { owner: endpoint.key.clone() });
    for address in &endpoint.addresses {
        leases.insert(address.to_string().as_str(), lease.as_slice())?;
    }
    Ok(())
}

fn put_queue(
    transaction: &WriteTransaction,
    numbered: impl Iterator<Item = (u64, IpAddr)>,
) -> Result<(), redb::Error> {
    let mut queue = transaction.open_table(QUEUE)?;
    for (number, address) in numbered {
        queue.insert(number, encode(&Free { address }).as_slice())?;
    }
    Ok(())
}

fn table_key(key: &EndpointKey) -> (&str, &str, &str) {
    (&key.network, &key.container, &key.interface)
}

fn encode(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(&Versioned { version: VERSION, body })
        .unwrap_or_else(|error| unreachable!("our records are JSON: {error}"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let unreadable = |error: serde_json::Error| format!("a record cannot be read: {error}");
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).map_err(unreadable)?;
    if !(1..=VERSION + 1).contains(&version) {
        return Err(format!("a record has version {version}, and this release reads up to {}", VERSION + 1));
    }
    serde_json::from_slice(bytes).map_err(unreadable)
}

#[cfg(test)]
mod tests;
