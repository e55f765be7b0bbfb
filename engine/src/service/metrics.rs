//! Prometheus metrics and a health check over HTTP, on loopback only: `/metrics` and `/healthz`.
//!
//! There is no authentication, so other machines are kept out by refusing every other address; whoever scrapes
//! from elsewhere puts a proxy in front. Services register their metrics in [`registry`] before they serve it.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use thiserror::Error;
use tokio::net::TcpListener;

use super::shutdown::Shutdown;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An empty registry; names get the prefix `homeward_`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("homeward")
}

/// Metrics cannot be served.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The address is reachable from elsewhere.
    #[error("metrics would be open to the network on {0}; use an address like 127.0.0.1:9464")]
    NotLoopback(SocketAddr),
    /// The address could not be used.
    #[error("cannot serve metrics on {addr}: {source}; choose another port")]
    Bind {
        /// From the configuration.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What [`MetricsServer::serve`] asks for `/healthz`: `Err` says what is wrong. Called often; must not block.
pub type Health = dyn Fn() -> Result<(), String> + Send + Sync;

/// Listens already, serves not yet.
#[derive(Debug)]
pub struct MetricsServer {
    tcp: TcpListener,
    addr: SocketAddr,
}

impl MetricsServer {
    /// Listens on `addr`; port 0 takes any.
    ///
    /// # Errors
    /// See [`MetricsError`].
    pub async fn bind(addr: SocketAddr) -> Result<Self, MetricsError> {
        if !addr.ip().is_loopback() {
            return Err(MetricsError::NotLoopback(addr));
        }
        let bind_error = |source| MetricsError::Bind { addr, source };
        let tcp = TcpListener::bind(addr).await.map_err(bind_error)?;
        let addr = tcp.local_addr().map_err(bind_error)?;
        Ok(Self { tcp, addr })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown`. `/healthz` answers 200 `ok`, or 503 with what `health` says.
    pub async fn serve(self, registry: Registry, health: Arc<Health>, shutdown: Shutdown) {
        let app = Router::new()
            .route("/metrics", get(metrics))
            .with_state(Arc::new(registry))
            .merge(Router::new().route("/healthz", get(healthz)).with_state(health));
        let stop = async move { shutdown.requested().await };
        if let Err(error) = axum::serve(self.tcp, app).with_graceful_shutdown(stop).await {
            tracing::error!(%error, addr = %self.addr, "metrics are no longer served");
        }
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn healthz(State(health): State<Arc<Health>>) -> Response {
    match health() {
        Ok(()) => "ok\n".into_response(),
        Err(trouble) => (StatusCode::SERVICE_UNAVAILABLE, trouble + "\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn serves_metrics_and_health_until_told_to_stop() {
        let mut registry = registry();
        let counter = Counter::<u64>::default();
        registry.register("wire_bytes", "Bytes sent", counter.clone());
        counter.inc_by(42);
        let healthy = Arc::new(AtomicBool::new(true));
        let health = {
            let healthy = healthy.clone();
            move || if healthy.load(Ordering::SeqCst) { Ok(()) } else { Err("disk gone".into()) }
        };

        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = server.addr();
        let shutdown = Shutdown::manual();
        let serving = tokio::spawn(server.serve(registry, Arc::new(health), shutdown.clone()));

        let response = get(addr, "/metrics").await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains(OPENMETRICS), "{response}");
        assert!(response.contains("homeward_wire_bytes_total 42"), "{response}");
        assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        healthy.store(false, Ordering::SeqCst);
        let response = get(addr, "/healthz").await;
        assert!(response.starts_with("HTTP/1.1 503") && response.contains("disk gone"), "{response}");
        assert!(get(addr, "/").await.starts_with("HTTP/1.1 404"));

        shutdown.request();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn refuses_to_be_reachable_from_elsewhere() {
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9464"] {
            let error = MetricsServer::bind(open.parse().unwrap()).await.unwrap_err();
            assert!(matches!(error, MetricsError::NotLoopback(_)), "{error}");
        }
    }
}
