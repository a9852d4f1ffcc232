use std::io;
use std::ops::Bound;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use redb::{BackendError, StorageBackend};

/// A file whose writes reach the disk behind the back of whoever wrote: what was written before a crash of this process is in
/// the kernel's hands, and what a crash of the machine takes, it takes with the pods that it was about.
///
/// One `fdatasync` is under way at most, and nothing is written meanwhile. So the file is, at any moment, what it would
/// be if each had been waited for and the last one had been cut short: which the store's format is made for.
#[derive(Debug)]
pub(super) struct Behind<B> {
    file: Arc<B>,
    shared: Arc<Shared>,
    asked: Mutex<Sender<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    under_way: bool,
    failed: Option<io::Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what is under way, and tells if it failed.
    fn settle(&self) -> io::Result<()> {
        let waited = self.done.wait_while(self.lock(), |state| state.under_way);
        let failed = waited.unwrap_or_else(PoisonError::into_inner).failed.take();
        failed.map_or(Ok(()), Err)
    }
}

impl<B: StorageBackend> Behind<B> {
    pub(super) fn new(file: B) -> io::Result<Self> {
        let (file, shared) = (Arc::new(file), Arc::new(Shared::default()));
        let (asked, asks) = mpsc::channel();
        let (of_thread, told) = (Arc::clone(&file), Arc::clone(&shared));
        let sync = move || {
            while asks.recv().is_ok() {
                let failed = of_thread.sync_data().err();
                *told.lock() = State { under_way: false, failed };
                told.done.notify_all();
            }
        };
        thread::Builder::new().name("store".into()).spawn(sync)?;
        Ok(Self { file, shared, asked: Mutex::new(asked) })
    }
}

impl<B: StorageBackend> StorageBackend for Behind<B> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.shared.settle()?;
        self.file.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.shared.settle()?;
        self.file.write(offset, data)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.shared.settle()?;
        self.shared.lock().under_way = true;
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).send(());
        asked.map_err(|_| {
            self.shared.lock().under_way = false;
            io::Error::other("the thread that writes the store to disk has ended")
        })
    }

    fn close(&self) -> io::Result<()> {
        let settled = self.shared.settle();
        self.file.close().and(settled)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, RecvTimeoutError};
    use std::time::Duration;

    use redb::backends::InMemoryBackend;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);
    const SOON: Duration = Duration::from_secs(10);

    type Written = io::Result<()>;

    /// A disk that writes when it is let, and how often it has begun to.
    #[derive(Debug)]
    struct Disk {
        memory: InMemoryBackend,
        begun: Arc<AtomicUsize>,
        let_go: Mutex<Receiver<Written>>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len)
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.memory.write(offset, data)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.let_go.lock().unwrap().recv_timeout(SOON).unwrap()
        }
    }

    fn disk() -> (Arc<Behind<Disk>>, Sender<Written>, Arc<AtomicUsize>) {
        let (sender, receiver) = mpsc::channel();
        let begun = Arc::new(AtomicUsize::new(0));
        let disk =
            Disk { memory: InMemoryBackend::new(), begun: Arc::clone(&begun), let_go: Mutex::new(receiver) };
        disk.set_len(100).unwrap();
        (Arc::new(Behind::new(disk).unwrap()), sender, begun)
    }

    /// Does something on a thread of its own; its result comes when it is done.
    fn beside(file: &Arc<Behind<Disk>>, what: fn(&Behind<Disk>) -> Written) -> Receiver<Written> {
        let (file, (done, result)) = (Arc::clone(file), mpsc::channel());
        thread::spawn(move || done.send(what(&file)));
        result
    }

    fn await_begun(begun: &AtomicUsize, wanted: usize) {
        while begun.load(Ordering::SeqCst) < wanted {
            thread::yield_now();
        }
    }

    #[test]
    fn who_wrote_does_not_wait_for_the_disk_and_who_writes_next_does() {
        let (file, let_go, begun) = disk();
        file.write(0, b"one").unwrap();
        file.sync_data().unwrap();
        // Whoever only reads is held up by nothing.
        file.read(0, &mut [0; 3]).unwrap();
        let nexts: [fn(&Behind<Disk>) -> Written; 3] =
            [|file| file.write(0, b"two"), |file| file.set_len(200), |file| file.sync_data()];
        for (number, next) in nexts.into_iter().enumerate() {
            await_begun(&begun, number + 1);
            let done = beside(&file, next);
            assert_eq!(done.recv_timeout(MOMENT).unwrap_err(), RecvTimeoutError::Timeout);
            assert_eq!(begun.load(Ordering::SeqCst), number + 1, "one at a time");
            let_go.send(Ok(())).unwrap();
            done.recv_timeout(SOON).unwrap().unwrap();
            if number < 2 {
                file.sync_data().unwrap();
            }
        }
        let closed = beside(&file, StorageBackend::close);
        assert_eq!(closed.recv_timeout(MOMENT).unwrap_err(), RecvTimeoutError::Timeout);
        let_go.send(Ok(())).unwrap();
        closed.recv_timeout(SOON).unwrap().unwrap();
    }

    #[test]
    fn what_the_disk_did_not_take_is_told_to_who_writes_next_and_once() {
        let (file, let_go, _) = disk();
        file.sync_data().unwrap();
        let_go.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert_eq!(file.write(0, b"one").unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write(0, b"one").unwrap();
    }
}
