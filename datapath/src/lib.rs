//! The packet program: decap, connection, service, police, route, encap; plain functions over a burst.
//!
//! A driver fills a [`Burst`] with the [`Frame`]s of one port, runs that port's pipeline ([`from_pod`], [`from_host`] or
//! [`from_uplink`]) over it against a [`World`], and sends what is left by each frame's egress, after [`fit`] did what that
//! port cannot do itself. What is dropped is counted in the [`Worker`]'s [`Tally`] and freed.
//! Bytes and time are arguments: nothing here does I/O, starts a thread or reads a clock.

mod bandwidth;
mod burst;
pub mod connection;
mod datagrams;
mod egress;
mod entropy;
mod errors;
mod events;
mod fragment;
mod frame;
mod from_host;
mod from_pod;
mod from_uplink;
mod gateway;
mod limit;
mod offload;
mod outer;
mod packet;
mod path_mtu;
mod policy;
mod segment;
mod send;
mod service;
mod slots;
mod table;
mod tally;
mod track;
mod transport;
mod worker;
mod world;

pub use burst::{Burst, Port};
pub use egress::{Capabilities, fit};
pub use events::{Event, Events};
pub use frame::{Buffer, Frame, HEADROOM, Pool};
pub use from_host::from_host;
pub use from_pod::from_pod;
pub use from_uplink::from_uplink;
pub use offload::{Checksum, Gso, Offload, Segments};
pub use service::{Clients, Touched};
pub use slots::Slots;
pub use tally::Tally;
pub use track::Tracking;
pub use worker::Worker;
pub use world::{Links, NextHop, World, WorldError};
