//! The node agent: sources, endpoints, addresses, data-path choice, API.

mod addresses;
mod api;
mod caller;
mod claim;
mod cni_server;
pub mod config;
mod datapath;
mod descriptors;
pub mod desired;
mod engine;
mod error;
mod fast;
mod health_checks;
pub mod hugepages;
pub mod install;
mod machine;
mod metrics;
mod names;
mod run;
pub mod sources;
mod statuses;
mod steering;
mod store;
pub mod tap;
mod uninstall;

pub use error::Error;
pub use run::run;
pub use uninstall::uninstall;
