//! The node agent: sources, endpoints, addresses, data-path choice, API.
