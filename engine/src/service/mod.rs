//! What every service and every command does the same way: configuration, logs, metrics, progress, stopping,
//! the local admin interface, exit codes.
//!
//! Nothing here knows what a service does. Layers: `code`, `quantity`, `held_log` → `progress`, `shutdown`, `config`, `logging` →
//! `metrics`, `admin` → `exit`, which knows the code of every error.
//!
//! A service's `serve`, in short:
//!
//! ```no_run
//! use std::{path::Path, process::ExitCode, sync::Arc};
//!
//! use engine::{
//!     net::{Credentials, Listener, Role, TlsFiles},
//!     service::{
//!         admin::{AdminServer, Failure, Reporter},
//!         config, exit, logging,
//!         metrics::{self, MetricsServer},
//!         quantity::Size,
//!         shutdown::Shutdown,
//!     },
//! };
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     listen: String,
//!     metrics: std::net::SocketAddr,
//!     admin: std::path::PathBuf,
//!     spool: Size,
//!     tls: TlsFiles,
//! }
//!
//! async fn serve(config: Config) -> anyhow::Result<()> {
//!     let stop = Shutdown::on_signals()?;
//!     let credentials = Credentials::load(&config.tls, Role::ProcessServer)?;
//!     let admin = AdminServer::bind(&config.admin)?; // first: refuses a second instance
//!     let metrics = MetricsServer::bind(config.metrics).await?;
//!     let listener = Listener::bind(&config.listen, credentials.server(&[Role::Agent])?).await?;
//!
//!     tokio::spawn(metrics.serve(metrics::registry(), Arc::new(|| Ok(())), stop.clone()));
//!     tokio::spawn(admin.serve(
//!         async |_request: serde_json::Value, _: Reporter| Ok::<_, Failure>("up"),
//!         stop.clone(),
//!     ));
//!     loop {
//!         let incoming = tokio::select! {
//!             () = stop.requested() => return Ok(()),
//!             incoming = listener.accept() => incoming,
//!         };
//!         tokio::spawn(async move {
//!             match incoming.handshake().await {
//!                 Ok(peer) => tracing::info!(peer = %peer.identity, addr = %peer.addr, "connected"),
//!                 Err(error) => tracing::warn!(%error, reason = error.label(), "refused"), // and count it
//!             }
//!         });
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     exit::run(false, || {
//!         logging::init(None, false)?;
//!         let config = config::load(Path::new("/etc/homeward/process-server.toml"))?;
//!         tokio::runtime::Runtime::new()?.block_on(serve(config))
//!     })
//! }
//! ```

pub mod admin;
mod code;
pub mod config;
pub mod exit;
pub mod held_log;
pub mod logging;
pub mod metrics;
pub mod progress;
pub mod quantity;
pub mod shutdown;
