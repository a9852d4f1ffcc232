//! The kernel path on real kernels: nodes and pods in scratch network namespaces.

#[cfg(test)]
mod checking;
#[cfg(test)]
mod kube_proxy;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod mending;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod reachability;
#[cfg(test)]
mod refusals;
#[cfg(test)]
#[path = "../../src/policy/sample.rs"]
mod sample;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod services;
#[cfg(test)]
mod surveys;
