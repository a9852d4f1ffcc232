//! Ports: any device of DPDK, found or attached by name.

use crate::{
    eal::Eal,
    error::{Reason, SysError, hear},
    ffi,
    offload::{RxOffloads, TxOffloads},
    pool::Pool,
    queue::{RxQueue, TxQueue},
    ring::Rings,
};
use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// A device with queues. It is stopped and detached when this and all of its queues are gone.
#[derive(Debug)]
pub struct Port(pub(crate) Arc<Life>);

/// What keeps a port alive: its handle and each of its queues hold one of these.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) id: u16,
    pub(crate) name: String,
    /// The frames it receives into; set once, when it starts.
    pool: OnceLock<Pool>,
    /// What it is made of, if of rings of ours.
    _rings: Option<Arc<Rings>>,
    _eal: Eal,
    closed: bool,
}

/// Ports that have an owner, so that no port has two.
static OWNED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// What a port is to have. More than there is becomes what there is; see [`Granted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortConfig {
    /// Queues to receive on.
    pub rx_queues: u16,
    /// Queues to send on.
    pub tx_queues: u16,
    /// Descriptors of each receiving queue.
    pub rx_ring: u16,
    /// Descriptors of each sending queue.
    pub tx_ring: u16,
    /// The MTU, if it is not to stay as it is.
    pub mtu: Option<u16>,
    /// Work wanted of the port on receipt.
    pub rx_offloads: RxOffloads,
    /// Work wanted of the port when sending.
    pub tx_offloads: TxOffloads,
    /// Descriptors to sleep on are wanted; see [`RxQueue::descriptor`].
    pub interrupts: bool,
}

impl PortConfig {
    /// `queues` queues each way, chains sent if the port can, nothing else.
    pub fn new(queues: u16) -> Self {
        Self {
            rx_queues: queues,
            tx_queues: queues,
            rx_ring: 512,
            tx_ring: 512,
            mtu: None,
            rx_offloads: RxOffloads::NONE,
            tx_offloads: TxOffloads::CHAINS,
            interrupts: false,
        }
    }
}

/// What a port was given of what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Queues to receive on.
    pub rx_queues: u16,
    /// Queues to send on.
    pub tx_queues: u16,
    /// Descriptors of each receiving queue.
    pub rx_ring: u16,
    /// Descriptors of each sending queue.
    pub tx_ring: u16,
    /// Work it does on receipt.
    pub rx_offloads: RxOffloads,
    /// Work it does when sending and asked by the frame.
    pub tx_offloads: TxOffloads,
}

/// A running port's queues.
#[derive(Debug)]
pub struct Started {
    /// Queues to receive on, each for one thread.
    pub rx: Vec<RxQueue>,
    /// Queues to send on, each for one thread.
    pub tx: Vec<TxQueue>,
    /// What was granted.
    pub granted: Granted,
}

/// What a port is and could do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// DPDK's number of it, as frames carry it.
    pub id: u16,
    /// Its driver.
    pub driver: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u16,
    /// The smallest MTU it can have.
    pub min_mtu: u16,
    /// The largest MTU it can have.
    pub max_mtu: u16,
    /// The most queues it can receive on.
    pub max_rx_queues: u16,
    /// The most queues it can send on.
    pub max_tx_queues: u16,
    /// Work it can do on receipt.
    pub rx_offloads: RxOffloads,
    /// Work it can do when sending.
    pub tx_offloads: TxOffloads,
    /// The NUMA node it sits on, if that is known.
    pub socket: Option<u32>,
}

/// Counts since the port was started, as its driver keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames that came while the queue was full.
    pub rx_missed: u64,
    /// Frames that came damaged.
    pub rx_errors: u64,
    /// Frames for which the pool had no buffer.
    pub rx_no_buffer: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
}

/// The state of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Whether both ends may talk at once.
    pub full_duplex: bool,
    /// Its speed in Mbit/s, if known.
    pub mbps: Option<u32>,
}

impl Port {
    /// Attaches a device by its devargs, such as `net_af_packet0,iface=eth0`.
    pub fn attach(eal: &Eal, devargs: &str) -> Result<Self, SysError> {
        let c_devargs = c_string(devargs)?;
        let mut id = 0;
        // SAFETY: the EAL runs, the string is read for the call only, `id` may be written.
        hear(|| unsafe { ffi::cw_port_attach(c_devargs.as_ptr(), &raw mut id) })
            .map_err(|reason| SysError::Attach { devargs: devargs.to_owned(), reason })?;
        let name = devargs.split(',').next().unwrap_or_default();
        Self::own(eal, id, name, None)
    }

    /// Takes a port that is there already, as PCI devices named to the EAL are when it has started.
    pub fn find(eal: &Eal, name: &str) -> Result<Self, SysError> {
        let c_name = c_string(name)?;
        let mut id = 0;
        // SAFETY: the EAL runs, the string is read for the call only, `id` may be written.
        hear(|| unsafe { ffi::cw_port_by_name(c_name.as_ptr(), &raw mut id) })
            .map_err(|reason| failed(name, "finding it", reason))?;
        Self::own(eal, id, name, None)
    }

    pub(crate) fn own(eal: &Eal, id: u16, name: &str, rings: Option<Arc<Rings>>) -> Result<Self, SysError> {
        if !OWNED.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return Err(SysError::InUse(name.to_owned()));
        }
        Ok(Self(Arc::new(Life {
            id,
            name: name.to_owned(),
            pool: OnceLock::new(),
            _rings: rings,
            _eal: eal.clone(),
            closed: false,
        })))
    }

    /// The name it was attached by.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is and could do.
    pub fn info(&self) -> Result<PortInfo, SysError> {
        let mut info = ffi::cw_port_info::default();
        // SAFETY: the port is attached, `info` may be written.
        self.try_to("reading what it is", || unsafe { ffi::cw_port_info(self.0.id, &raw mut info) })?;
        // SAFETY: the shim ends the text with a NUL within its array.
        let driver = unsafe { CStr::from_ptr(info.driver.as_ptr()) };
        Ok(PortInfo {
            id: self.0.id,
            driver: driver.to_string_lossy().into_owned(),
            mac: info.mac,
            mtu: info.mtu,
            min_mtu: info.min_mtu,
            max_mtu: info.max_mtu,
            max_rx_queues: info.max_rx_queues,
            max_tx_queues: info.max_tx_queues,
            rx_offloads: RxOffloads::from_bits(info.rx_offloads),
            tx_offloads: TxOffloads::from_bits(info.tx_offloads),
            socket: u32::try_from(info.socket).ok(),
        })
    }

    /// Gives it queues, all receiving into `pool`, and starts it. A port is started once; to have
    /// it otherwise, close it and attach it again.
    pub fn start(&self, config: &PortConfig, pool: &Pool) -> Result<Started, SysError> {
        if self.0.pool.set(pool.clone()).is_err() {
            return Err(SysError::InUse(self.0.name.clone()));
        }
        let granted = self.configure(config)?;
        let id = self.0.id;
        for queue in 0..granted.rx_queues {
            // SAFETY: the port is configured with this queue and stopped; `Life` keeps the pool.
            let setup = || unsafe { ffi::cw_port_rx_queue(id, queue, granted.rx_ring, pool.as_ptr()) };
            self.try_to("setting up a receiving queue", setup)?;
        }
        for queue in 0..granted.tx_queues {
            // SAFETY: the port is configured with this queue and stopped.
            let setup = || unsafe { ffi::cw_port_tx_queue(id, queue, granted.tx_ring) };
            self.try_to("setting up a sending queue", setup)?;
        }
        // SAFETY: the port is configured, all its queues are set up.
        self.try_to("starting it", || unsafe { ffi::cw_port_start(id) })?;
        Ok(Started {
            rx: (0..granted.rx_queues).map(|queue| RxQueue::new(&self.0, queue)).collect(),
            tx: (0..granted.tx_queues)
                .map(|queue| TxQueue::new(&self.0, queue, granted.tx_offloads))
                .collect(),
            granted,
        })
    }

    fn configure(&self, config: &PortConfig) -> Result<Granted, SysError> {
        let mut setup = ffi::cw_port_setup {
            rx_queues: config.rx_queues,
            tx_queues: config.tx_queues,
            rx_ring: config.rx_ring,
            tx_ring: config.tx_ring,
            mtu: config.mtu.unwrap_or(0),
            interrupts: config.interrupts.into(),
            rx_offloads: config.rx_offloads.bits(),
            tx_offloads: config.tx_offloads.bits(),
        };
        // SAFETY: the port is attached and not started, `setup` may be written.
        self.try_to("configuring it", || unsafe { ffi::cw_port_configure(self.0.id, &raw mut setup) })?;
        Ok(Granted {
            rx_queues: setup.rx_queues,
            tx_queues: setup.tx_queues,
            rx_ring: setup.rx_ring,
            tx_ring: setup.tx_ring,
            rx_offloads: RxOffloads::from_bits(setup.rx_offloads),
            tx_offloads: TxOffloads::from_bits(setup.tx_offloads),
        })
    }

    /// Its driver's counts.
    pub fn stats(&self) -> Result<PortStats, SysError> {
        let mut stats = ffi::cw_port_stats::default();
        // SAFETY: the port is attached, `stats` may be written.
        self.try_to("reading its counts", || unsafe { ffi::cw_port_stats(self.0.id, &raw mut stats) })?;
        Ok(PortStats {
            rx_frames: stats.rx_frames,
            rx_bytes: stats.rx_bytes,
            rx_missed: stats.rx_missed,
            rx_errors: stats.rx_errors,
            rx_no_buffer: stats.rx_no_buffer,
            tx_frames: stats.tx_frames,
            tx_bytes: stats.tx_bytes,
            tx_errors: stats.tx_errors,
        })
    }

    /// The state of its wire.
    pub fn link(&self) -> Result<Link, SysError> {
        let mut link = ffi::cw_link::default();
        // SAFETY: the port is attached, `link` may be written.
        self.try_to("reading its link", || unsafe { ffi::cw_port_link(self.0.id, &raw mut link) })?;
        Ok(Link {
            up: link.up != 0,
            full_duplex: link.full_duplex != 0,
            mbps: (link.mbps != u32::MAX).then_some(link.mbps),
        })
    }

    /// Takes in frames for other MAC addresses too, or stops doing so.
    pub fn set_promiscuous(&self, on: bool) -> Result<(), SysError> {
        // SAFETY: the port is attached.
        let call = || unsafe { ffi::cw_port_promiscuous(self.0.id, on.into()) };
        self.try_to("setting promiscuous mode", call)
    }

    /// Stops and detaches it, and says what went wrong with that. Its queues must be gone: with one
    /// left this fails, and the port is closed when that one goes.
    pub fn close(self) -> Result<(), SysError> {
        let name = self.0.name.clone();
        Arc::try_unwrap(self.0).map_err(|_| SysError::InUse(name))?.shut()
    }

    fn try_to(&self, step: &'static str, call: impl FnOnce() -> i32) -> Result<(), SysError> {
        hear(call).map_err(|reason| failed(&self.0.name, step, reason))
    }
}

impl Life {
    fn shut(&mut self) -> Result<(), SysError> {
        self.closed = true;
        // SAFETY: the port is attached; no queue is left, each would hold this value. Stopping a
        // port that never started is no error.
        let stopped = hear(|| unsafe { ffi::cw_port_stop(self.id) });
        // SAFETY: as above, and nobody uses the number afterwards.
        let detached = hear(|| unsafe { ffi::cw_port_detach(self.id) });
        if detached.is_ok() {
            OWNED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        }
        stopped.map_err(|reason| failed(&self.name, "stopping it", reason))?;
        detached.map_err(|reason| failed(&self.name, "detaching it", reason))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if !self.closed
            && let Err(why) = self.shut()
        {
            tracing::warn!("{why}");
        }
    }
}

fn failed(port: &str, step: &'static str, reason: Reason) -> SysError {
    SysError::Port { port: port.to_owned(), step, reason }
}

pub(crate) fn c_string(text: &str) -> Result<CString, SysError> {
    CString::new(text).map_err(|_| SysError::ZeroByte(text.to_owned()))
}
