//! The whole system in network namespaces: the lab, the demo and the stories told over them.
