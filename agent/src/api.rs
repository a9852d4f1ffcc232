//! What an operator may ask: HTTP and JSON on a unix socket.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use causeway_model::flow::FlowQuery;
use causeway_model::operator::{ConnectionQuery, ServiceQuery};
use causeway_model::why::WhyQuery;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::engine::{Engine, Unanswered};

/// The pages of the API.
pub(crate) fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(engine)| page(engine, |engine| engine.report().status).await))
        .route("/v1/endpoints", get(async |State(engine)| page(engine, Engine::endpoints).await))
        .route("/v1/connections", get(connections))
        .route("/v1/services", get(services))
        .route("/v1/services/clusters", get(clusterset))
        .route("/v1/why", get(why))
        .route("/v1/flows", get(flows))
        .route("/v1/health", get(health))
        .with_state(engine)
}

/// Asks the engine where it may take its time.
async fn page<T: serde::Serialize + Send + 'static>(
    engine: Arc<Engine>,
    ask: impl FnOnce(&Engine) -> T + Send + 'static,
) -> Response {
    match spawn_blocking(move || ask(&engine)).await {
        Ok(answer) => Json(answer).into_response(),
        Err(panic) => (StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()).into_response(),
    }
}

/// The connections that a query asks for; 400 and the reason when it asks for what cannot be.
async fn connections(
    State(engine): State<Arc<Engine>>,
    query: Result<Query<ConnectionQuery>, QueryRejection>,
) -> Response {
    answer(engine, query, Engine::connections).await
}

/// The services, likewise.
async fn services(
    State(engine): State<Arc<Engine>>,
    query: Result<Query<ServiceQuery>, QueryRejection>,
) -> Response {
    answer(engine, query, |engine, query| Ok(engine.services(query))).await
}

/// The services across clusters, likewise.
async fn clusterset(
    State(engine): State<Arc<Engine>>,
    query: Result<Query<ServiceQuery>, QueryRejection>,
) -> Response {
    answer(engine, query, |engine, query| Ok(engine.clusterset(query))).await
}

/// Why a connection is allowed or denied, likewise.
async fn why(State(engine): State<Arc<Engine>>, query: Result<Query<WhyQuery>, QueryRejection>) -> Response {
    answer(engine, query, Engine::why).await
}

/// What became of connections, likewise.
async fn flows(
    State(engine): State<Arc<Engine>>,
    query: Result<Query<FlowQuery>, QueryRejection>,
) -> Response {
    answer(engine, query, |engine, query| Ok(engine.flows(query))).await
}

async fn answer<Q: Send + 'static, T: serde::Serialize + Send + 'static>(
    engine: Arc<Engine>,
    query: Result<Query<Q>, QueryRejection>,
    ask: impl FnOnce(&Engine, &Q) -> Result<T, Unanswered> + Send + 'static,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(refused) => return (StatusCode::BAD_REQUEST, refused.body_text()).into_response(),
    };
    match spawn_blocking(move || ask(&engine, &query)).await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(Unanswered::Question(why))) => (StatusCode::BAD_REQUEST, why).into_response(),
        Ok(Err(Unanswered::Trouble(why))) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
        Err(panic) => (StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()).into_response(),
    }
}

/// 200 when this agent serves, else 503 and what it waits for.
async fn health(State(engine): State<Arc<Engine>>) -> Response {
    let waiting =
        spawn_blocking(move || engine.waiting_for()).await.unwrap_or_else(|panic| vec![panic.to_string()]);
    let code = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "serving": waiting.is_empty(), "waiting_for": waiting }))).into_response()
}

#[cfg(test)]
mod tests;
