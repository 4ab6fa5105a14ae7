//! Paths, and what they answer.

use super::super::inputs::{Inputs, Query, Reply};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, WWW_AUTHENTICATE,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use mvm_fleet::body::{ErrorBody, service_discovery};
use mvm_fleet::metrics::Format;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How many expositions may be held until they are sent: each may have some twenty megabytes.
const MAX_EXPOSITIONS: usize = 2;

/// How long a scrape waits for its turn: as long as Prometheus waits for a scrape by default.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// The paths, for those who ask for another.
const PATHS: &str = "/metrics, /sd, /v1/fleet, /v1/pools/NAME, /v1/plan, /healthz and /readyz";

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What is answered with.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) inputs: Inputs,
    /// Where this exporter is reached, if that is not where it was asked.
    pub(super) advertise: Option<String>,
    /// Where it listens, if that is on a network.
    pub(super) address: Option<SocketAddr>,
    pub(super) host: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Who asks has to show it, but for health.
    pub(super) token: RwLock<Option<Arc<str>>>,
    pub(super) expositions: Arc<Semaphore>,
}

impl Answers {
    pub(super) fn expositions() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_EXPOSITIONS))
    }
}

/// A body, and the right to hold it.
#[derive(Debug)]
pub(super) struct Held {
    /// What is left to be sent, in pieces.
    pieces: VecDeque<Bytes>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.pieces.pop_front();
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// Answers one request.
pub(super) async fn answer<B>(answers: &Answers, request: &Request<B>) -> Response<Held> {
    let path = request.uri().path();
    let is_health = matches!(path, "/healthz" | "/readyz");
    if !is_health && !answers.may_ask(request) {
        let mut refused = refuse(
            StatusCode::UNAUTHORIZED,
            "this asks for a bearer token",
            "send `Authorization: Bearer TOKEN` with the content of the server's --bearer-token-file",
        );
        let bearer = HeaderValue::from_static("Bearer");
        refused.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        return refused;
    }
    let is_path = is_health
        || matches!(path, "/metrics" | "/sd" | "/v1/fleet" | "/v1/plan")
        || path
            .strip_prefix("/v1/pools/")
            .is_some_and(|pool| !pool.contains('/'));
    if !is_path {
        let hint = format!("there are {PATHS}");
        return refuse(StatusCode::NOT_FOUND, "there is no such path", &hint);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is only read",
            "ask with GET; VMs are steered by the policy and by `mvmctl vm`",
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    match path {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => answers.ask(Query::IsComplete, TEXT).await,
        "/metrics" => answers.metrics(request).await,
        "/sd" => answers.service_discovery(request),
        "/v1/fleet" => answers.ask(Query::Fleet, JSON).await,
        "/v1/plan" => answers.ask(Query::Plan, JSON).await,
        _ => answers.pool(path).await,
    }
}

impl Answers {
    fn may_ask<B>(&self, request: &Request<B>) -> bool {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        let Some(token) = &*token else { return true };
        let shown = request.headers().get(AUTHORIZATION);
        let shown = shown.and_then(|shown| shown.as_bytes().split_at_checked(b"Bearer ".len()));
        shown.is_some_and(|(scheme, shown)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.as_bytes().ct_eq(shown))
        })
    }

    async fn ask(&self, query: Query, content_type: &'static str) -> Response<Held> {
        match self.inputs.ask(query).await {
            Some(Reply::Text(text)) => respond(StatusCode::OK, content_type, text),
            Some(Reply::Incomplete(text)) => {
                respond(StatusCode::SERVICE_UNAVAILABLE, content_type, text)
            }
            Some(Reply::NoSuchPool { pools }) => {
                let hint = match pools.as_slice() {
                    [] => "there is no VM, and no policy that names a pool".to_owned(),
                    // A list that people can read.
                    some => format!("there are {}", some.get(..20).unwrap_or(some).join(", ")),
                };
                refuse(StatusCode::NOT_FOUND, "there is no such pool", &hint)
            }
            Some(Reply::Pieces(_)) | None => ending(),
        }
    }

    async fn pool(&self, path: &str) -> Response<Held> {
        // What has to be escaped is no pool's name.
        let name = path.strip_prefix("/v1/pools/").unwrap_or_default();
        self.ask(Query::Pool(name.to_owned()), JSON).await
    }

    async fn metrics<B>(&self, request: &Request<B>) -> Response<Held> {
        let turn = Arc::clone(&self.expositions).acquire_owned();
        let Ok(Ok(permit)) = timeout(TURN_WITHIN, turn).await else {
            return refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "others are being sent the metrics, and take their time",
                "scrape less often, or from fewer places",
            );
        };
        let accept = request.headers().get_all(ACCEPT).iter();
        let accept: Vec<&str> = accept.filter_map(|one| one.to_str().ok()).collect();
        let format = Format::accepted(&accept.join(","));
        match self.inputs.ask(Query::Metrics(format)).await {
            Some(Reply::Pieces(pieces)) => {
                let content_type = format.content_type();
                respond_in_pieces(StatusCode::OK, content_type, pieces, Some(permit))
            }
            _ => ending(),
        }
    }

    fn service_discovery<B>(&self, request: &Request<B>) -> Response<Held> {
        let asked = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok());
        let advertised = self.advertise.clone();
        let reached = advertised.or_else(|| reached_at(asked, self.address));
        let Some(address) = reached else {
            return refuse(
                StatusCode::BAD_REQUEST,
                "this server listens on every address of its host, and knows none by which others reach it",
                "ask with a header `Host`, or start it with `--advertise HOST:PORT`",
            );
        };
        let targets = service_discovery(&address, &self.host, &self.labels);
        let text = serde_json::to_string(&targets).unwrap_or_else(|_| "[]".into());
        respond(StatusCode::OK, JSON, text)
    }
}

/// Where a server is reached that listens there and was asked with that header `Host`: where it was asked,
/// at its own port if `Host` has none. An address that stands for all of a host's is none to dial.
fn reached_at(asked: Option<&str>, address: Option<SocketAddr>) -> Option<String> {
    let asked: Option<Authority> = asked.and_then(|host| host.parse().ok());
    let asked = asked.filter(|asked| !asked.as_str().contains('@') && !asked.host().is_empty());
    let by_host = asked.and_then(|asked| {
        if asked.port_u16().is_some() {
            return Some(asked.to_string());
        }
        // What stands behind its name may be no port at all.
        let is_name = asked.as_str() == asked.host();
        let port = address.filter(|_| is_name)?.port();
        Some(format!("{asked}:{port}"))
    });
    let by_address = address.filter(|address| !address.ip().is_unspecified());
    by_host.or_else(|| by_address.map(|address| address.to_string()))
}

fn ending() -> Response<Held> {
    refuse(
        StatusCode::SERVICE_UNAVAILABLE,
        "this program is ending",
        "ask again when it has been started anew",
    )
}

fn refuse(status: StatusCode, error: &str, hint: &str) -> Response<Held> {
    let body = ErrorBody {
        error: error.to_owned(),
        hint: hint.to_owned(),
    };
    let mut text = serde_json::to_string(&body).unwrap_or_default();
    text.push('\n');
    respond(status, JSON, text)
}

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response<Held> {
    respond_in_pieces(status, content_type, vec![text], None)
}

fn respond_in_pieces(
    status: StatusCode,
    content_type: &'static str,
    pieces: Vec<String>,
    permit: Option<OwnedSemaphorePermit>,
) -> Response<Held> {
    let pieces = pieces.into_iter().map(Bytes::from);
    let mut response = Response::new(Held {
        // An empty one would be taken for the end of all.
        pieces: pieces.filter(|piece| !piece.is_empty()).collect(),
        _permit: permit,
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // A number from before is a wrong one.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_is_reached() {
        let everywhere = Some("0.0.0.0:9152".parse().unwrap());
        let loopback = Some("127.0.0.1:9152".parse().unwrap());
        for (host, address, reached) in [
            (Some("10.0.0.7:80"), everywhere, Some("10.0.0.7:80")),
            (Some("[::1]:9152"), None, Some("[::1]:9152")),
            (Some("host-1"), everywhere, Some("host-1:9152")),
            (Some("[::1]"), everywhere, Some("[::1]:9152")),
            (Some("host-1"), None, None),
            (None, loopback, Some("127.0.0.1:9152")),
            (None, everywhere, None),
            (None, Some("[::]:9152".parse().unwrap()), None),
            (Some("a b:1"), everywhere, None),
            (Some(""), everywhere, None),
            (Some("user@host:1"), everywhere, None),
            (Some("host:99999"), everywhere, None),
        ] {
            assert_eq!(reached_at(host, address).as_deref(), reached, "{host:?}");
        }
    }
}
