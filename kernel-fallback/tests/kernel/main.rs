//! The kernel path on real kernels: nodes and pods in scratch network namespaces.

mod lab;
mod mending;
mod reachability;
mod refusals;
