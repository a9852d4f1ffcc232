//! The whole system in network namespaces: the lab, the demo and the stories told over them.
//!
//! A [`lab::Lab`] is a set of nodes, each a network namespace with a real agent in it, joined by a kernel bridge or by the
//! user-space [`switch`]. [`namespace`], [`process`] and [`hugepages`] are what it is made of, [`runtime`] whatever else
//! calls the plugin; [`traffic`], [`packet_socket`],
//! [`capture`] and [`leftovers`] are what its tests look with.

pub mod capture;
pub mod command;
pub mod corpus;
pub mod hugepages;
pub mod lab;
pub mod leftovers;
pub mod mcs_corpus;
pub mod namespace;
pub mod packet_socket;
pub mod pcap;
pub mod policy_corpus;
pub mod process;
pub mod runtime;
pub mod service_corpus;
pub mod switch;
pub mod traffic;
