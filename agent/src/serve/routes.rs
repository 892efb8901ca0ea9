//! Which path answers what. Nothing here does I/O: each answer is a page of
//! the latest published value.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use overlaywatch_core::diagnose::Status;

use super::metrics;
use super::pages::{Page, Shelf};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// What a wrong path is answered with.
const DIRECTORY: &str = "paths here:
  /health       the verdict on the network as JSON; as text with `Accept: text/plain`
  /metrics      the same for Prometheus
  /v1/report    everything known of this node and its peers
  /v1/snapshot  a recording for `overlaywatch replay`
  /livez        whether the agent itself is alive (`?verbose` says more)
  /readyz       whether the agent itself has seen the node
";

type Shared = State<Arc<Shelf>>;

pub(super) fn router(shelf: Arc<Shelf>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/-/healthy", get(livez))
        .route("/readyz", get(readyz))
        .route("/-/ready", get(readyz))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/report", get(report))
        .route("/v1/snapshot", get(snapshot))
        .fallback(|| async {
            (StatusCode::NOT_FOUND, body(TEXT, format!("no such path; {DIRECTORY}").into()))
        })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, body(TEXT, "only GET and HEAD here\n".into()))
        })
        .with_state(shelf)
}

fn body(content_type: &'static str, bytes: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        // Each answer is of one moment; a cache would serve an old verdict as a new one.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, bytes).into_response()
}

fn page(content_type: &'static str, page: Page) -> Response {
    match page {
        Ok(bytes) => body(content_type, bytes),
        Err(error) => {
            tracing::error!(%error, "a page could not be rendered");
            let text = format!("this page could not be rendered: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, body(TEXT, text.into())).into_response()
        }
    }
}

fn not_yet() -> Response {
    let retry = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
    let text = "nothing was observed yet; ask again in a second\n";
    (StatusCode::SERVICE_UNAVAILABLE, retry, body(TEXT, text.into())).into_response()
}

/// That this is answered at all is the proof.
async fn livez(State(shelf): Shared, RawQuery(query): RawQuery) -> Response {
    checks(query, &[("http", true)], &shelf)
}

/// A latch: once an observation was published, the agent stays ready. The
/// peers are no part of it, or one dead node would take all the others out.
async fn readyz(State(shelf): Shared, RawQuery(query): RawQuery) -> Response {
    let observed = shelf.pages().tick().is_some();
    checks(query, &[("http", true), ("first observation", observed)], &shelf)
}

fn checks(query: Option<String>, checks: &[(&str, bool)], shelf: &Shelf) -> Response {
    let good = checks.iter().all(|(_, good)| *good);
    let verbose =
        query.is_some_and(|query| query.split('&').any(|p| p.split('=').next() == Some("verbose")));
    let mut text = String::new();
    if verbose || !good {
        for (name, good) in checks {
            text += &format!("[{}] {name}\n", if *good { "+" } else { "-" });
        }
    }
    if verbose {
        let tick = shelf.pages().tick().unwrap_or(0);
        text += &format!("observations so far: {tick}\n");
    }
    text += if good { "ok\n" } else { "not ready\n" };
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, body(TEXT, text.into())).into_response()
}

async fn health(State(shelf): Shared, headers: HeaderMap) -> Response {
    let pages = shelf.pages();
    let answer = if wants_text(&headers) {
        page(TEXT, pages.health_text())
    } else {
        page(JSON, pages.health_json())
    };
    // A node that cannot be judged is not a broken node: only `fail` is 503.
    let status = match pages.status() {
        Status::Fail => StatusCode::SERVICE_UNAVAILABLE,
        Status::Pass | Status::Warn | Status::Unknown => answer.status(),
    };
    (status, [(header::VARY, HeaderValue::from_static("accept"))], answer).into_response()
}

async fn metrics(State(shelf): Shared) -> Response {
    page(metrics::CONTENT_TYPE, shelf.pages().metrics())
}

async fn report(State(shelf): Shared) -> Response {
    shelf.pages().report().map_or_else(not_yet, |report| page(JSON, report))
}

async fn snapshot(State(shelf): Shared) -> Response {
    shelf.pages().snapshot().await.map_or_else(not_yet, |recording| page(JSON, recording))
}

/// Whether text is asked for by name, and no less than JSON (RFC 9110, 12.5.1).
/// Wildcards, which curl and browsers send, get JSON.
fn wants_text(headers: &HeaderMap) -> bool {
    let ranges: Vec<(String, f32)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(media_range)
        .collect();
    let weight = |wanted: &str| {
        ranges.iter().filter(|(range, _)| range == wanted).map(|(_, weight)| *weight).next()
    };
    match (weight("text/plain"), weight("application/json")) {
        (Some(text), json) => text > 0.0 && json.is_none_or(|json| text >= json),
        (None, _) => false,
    }
}

fn media_range(text: &str) -> (String, f32) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or("").to_ascii_lowercase();
    let weight =
        parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
    (range, weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_asked_for_by_name() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_text(&headers)
        };
        assert!(wants("text/plain"));
        assert!(wants("TEXT/plain;q=0.9, application/json;q=0.5"));
        assert!(wants("*/*;q=0.1, text/plain"));
        assert!(!wants("*/*"));
        assert!(!wants("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!wants("application/json, text/plain;q=0.5"));
        assert!(!wants("text/plain;q=0"));
        assert!(!wants_text(&HeaderMap::new()));
    }
}
