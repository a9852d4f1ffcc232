//! The node agent: sources, endpoints, addresses, data-path choice, API.

mod addresses;
pub mod config;
pub mod desired;
mod error;
pub mod identity;
pub mod sources;
mod store;

pub use error::Error;
