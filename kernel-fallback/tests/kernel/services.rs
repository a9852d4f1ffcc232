//! Services as clients meet them: who answers, whom the backend sees, who is refused, and what becomes of flows.

mod adopting;
mod choosing;
mod fast_node;
mod refusing;
mod sending_out;
mod spread;
mod strays;
mod tending;
mod world;
