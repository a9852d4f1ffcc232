//! The Container Runtime Interface (runtime.v1), as much of it as a kubelet needs for the network of a pod.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pod as the kubelet asks for it.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    /// Its name, in namespace `default`.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its annotations.
    pub annotations: HashMap<String, String>,
    /// Ports of the node that lead to it.
    pub ports: Vec<HostPort>,
}

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug)]
pub struct HostPort {
    /// The node's.
    pub host: u16,
    /// The pod's.
    pub container: u16,
}

/// What a runtime says of a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxStatus {
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The path of its network namespace.
    pub netns: String,
}

/// A connection to a runtime.
pub struct Cri {
    channel: Channel,
    runtime: Runtime,
}

impl Cri {
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?.timeout(PATIENCE);
        let channel = runtime.block_on(endpoint.connect())?;
        Ok(Self { channel, runtime })
    }

    /// The message of the condition `NetworkReady`, if it is not met.
    pub fn network(&self) -> anyhow::Result<Result<(), String>> {
        let answer: StatusResponse = self.call("Status", StatusRequest {})?;
        let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition.kind == "NetworkReady");
        let condition = found.context("no condition NetworkReady")?;
        Ok(if condition.status { Ok(()) } else { Err(condition.message) })
    }

    /// Starts pods, all at once; their ids in the same order.
    pub fn run(&self, pods: &[Sandbox]) -> Vec<anyhow::Result<String>> {
        let requests = pods.iter().map(RunRequest::of).collect();
        let answers = self.call_all::<_, SandboxId>("RunPodSandbox", requests);
        answers.into_iter().map(|answer| answer.map(|answer| answer.id)).collect()
    }

    /// What `StopPodSandbox` or `RemovePodSandbox` make of pods, all at once.
    pub fn end(&self, verb: &'static str, ids: &[&str]) -> Vec<anyhow::Result<()>> {
        let requests = ids.iter().map(|id| SandboxId { id: (*id).to_owned() }).collect();
        let answers = self.call_all::<_, Nothing>(verb, requests);
        answers.into_iter().map(|answer| answer.map(drop)).collect()
    }

    /// The ids of all sandboxes.
    pub fn list(&self) -> anyhow::Result<Vec<String>> {
        let answer: ListResponse = self.call("ListPodSandbox", Nothing {})?;
        Ok(answer.items.into_iter().map(|item| item.id).collect())
    }

    pub fn status(&self, id: &str) -> anyhow::Result<SandboxStatus> {
        let request = SandboxStatusRequest { id: id.to_owned(), verbose: true };
        let answer: SandboxStatusResponse = self.call("PodSandboxStatus", request)?;
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        let addresses = std::iter::once(network.ip).chain(network.more.into_iter().map(|more| more.ip));
        let info: serde_json::Value = serde_json::from_str(answer.info.get("info").context("no info")?)?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().into_iter().flatten();
        let netns = namespaces.filter(|one| one["type"] == "network").find_map(|one| one["path"].as_str());
        Ok(SandboxStatus {
            addresses: addresses.filter(|address| !address.is_empty()).collect(),
            netns: netns.context("a sandbox without a network namespace")?.to_owned(),
        })
    }

    fn call<Q: Message + 'static, A: Message + Default + 'static>(
        &self,
        verb: &str,
        request: Q,
    ) -> anyhow::Result<A> {
        self.runtime.block_on(call(self.channel.clone(), verb.to_owned(), request))
    }

    fn call_all<Q, A>(&self, verb: &str, requests: Vec<Q>) -> Vec<anyhow::Result<A>>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.runtime.block_on(async {
            let begin = |request| tokio::spawn(call(self.channel.clone(), verb.to_owned(), request));
            let mut answers = Vec::new();
            for task in requests.into_iter().map(begin).collect::<Vec<_>>() {
                answers.push(task.await.unwrap_or_else(|panic| Err(panic.into())));
            }
            answers
        })
    }
}

async fn call<Q, A>(channel: Channel, verb: String, request: Q) -> anyhow::Result<A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{verb}").parse()?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = client.unary(tonic::Request::new(request), path, codec).await;
    Ok(answer.map_err(|status| anyhow::anyhow!("{verb}: {}", status.message()))?.into_inner())
}

// Messages by the numbers of k8s.io/cri-api, pkg/apis/runtime/v1/api.proto; what is left out is skipped or has its default.

#[derive(Message)]
struct Nothing {}

#[derive(Message)]
struct StatusRequest {}

#[derive(Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, repeated, tag = "5")]
    ports: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Nothing>,
}

#[derive(Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Message)]
struct PortMapping {
    #[prost(int32, tag = "2")]
    container: i32,
    #[prost(int32, tag = "3")]
    host: i32,
}

#[derive(Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<SandboxId>,
}

#[derive(Message)]
struct SandboxStatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Message)]
struct SandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatusBody>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Message)]
struct SandboxStatusBody {
    #[prost(message, optional, tag = "5")]
    network: Option<NetworkStatus>,
}

#[derive(Message)]
struct NetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    more: Vec<PodIp>,
}

#[derive(Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

impl RunRequest {
    fn of(pod: &Sandbox) -> Self {
        let port = |port: &HostPort| PortMapping { container: port.container.into(), host: port.host.into() };
        let metadata = Metadata { name: pod.name.clone(), uid: pod.uid.clone(), namespace: "default".into() };
        let config = SandboxConfig {
            metadata: Some(metadata),
            hostname: pod.name.clone(),
            ports: pod.ports.iter().map(port).collect(),
            annotations: pod.annotations.clone(),
            linux: Some(Nothing {}),
        };
        Self { config: Some(config) }
    }
}
