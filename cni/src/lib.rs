//! The plugin a container runtime executes: one CNI call becomes one question to the agent.
