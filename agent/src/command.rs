//! The `homeward-agent` command.
//!
//! In the library, so that tests can build it with a tracker that is wrong. The program itself changes nothing.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Instant};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use engine::{
    net::{Credentials, Role},
    service::{
        admin::AdminServer,
        exit, logging,
        metrics::{self, MetricsServer},
        shutdown::Shutdown,
    },
};

use crate::{
    admin::{self, Admin},
    capture::{hooks, watchdog},
    cli,
    config::Config,
    driver::Driver,
    metrics::Metrics,
    node::{Node, RESYNC_FROM, Settings},
    setup::{self, HOOKS_COMMAND, WATCHDOG_COMMAND},
    tracker::Tracker,
};

const EXAMPLES: &str = "\
Examples:
  homeward-agent serve --config /etc/homeward/agent.toml
  homeward-agent status
  homeward-agent point --wait          (prints the point's id when it can be restored)
  homeward-agent point --application --wait
                                       (the same, with hooks; fails if one does, though there may be a point)
  homeward-agent untrack               (after the last `serve`: frees what tracking holds in the kernel)

Tracking goes on while the agent does not run. Exit codes: 0 done, 1 failed, 2 wrong arguments,
3 unusable configuration, 4 not running or not reachable, 5 refused (nothing was changed), 130 interrupted.";

/// Follows the writes to the disks of this VM and sends them home.
#[derive(Debug, Parser)]
#[command(name = "homeward-agent", version, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/homeward/agent.toml")]
    config: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,

    /// What to log to stderr: `debug`, `engine::net=trace`. Else RUST_LOG, else `info`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve,
    /// How the replication of this VM stands.
    Status,
    /// Make a recovery point now.
    Point {
        /// Wait until it is durable at home, and print its id.
        #[arg(long)]
        wait: bool,
        /// Let applications hold for it, so that it is application-consistent; fails if it is not.
        #[arg(long)]
        application: bool,
    },
    /// Stop tracking writes; the next `serve` sends everything. Only while the service does not run.
    Untrack,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Started by `serve`: thaws file systems should it fail to.
    #[command(hide = true, name = WATCHDOG_COMMAND)]
    FreezeWatchdog,
    /// Started by `serve`: runs hooks, and lets applications go on should it fail to.
    #[command(hide = true, name = HOOKS_COMMAND)]
    RunHooks,
}

/// What of the opened tracker is used.
pub type Tracked = fn(Box<dyn Tracker>) -> Box<dyn Tracker>;

/// The program. Blocks are followed with what `tracked` makes of the tracker.
#[must_use]
pub fn main(tracked: Tracked) -> ExitCode {
    let cli = Cli::parse();
    exit::run(cli.json, || {
        match cli.command {
            // Nothing else may happen in that process.
            Command::FreezeWatchdog => return Ok(watchdog::run()?),
            Command::RunHooks => return Ok(hooks::runner::run()?),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "homeward-agent", &mut std::io::stdout());
                return Ok(());
            }
            _ => (),
        }
        let serving = matches!(cli.command, Command::Serve);
        logging::init(cli.log.as_deref().or((!serving).then_some("warn")), serving && cli.json)?;
        let config = Config::load(&cli.config)?;
        match cli.command {
            Command::Serve => runtime()?.block_on(serve(config, tracked)),
            Command::Status => cli::status(&config, cli.json),
            Command::Point { wait, application } => cli::point(&config, wait, application, cli.json),
            Command::Untrack => {
                setup::forget(&config)?;
                if cli.json {
                    println!("{}", serde_json::json!({ "ok": true }));
                }
                Ok(())
            }
            Command::Completions { .. } | Command::FreezeWatchdog | Command::RunHooks => Ok(()),
        }
    })
}

/// Sockets need little: the work is done in threads of its own.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

async fn serve(config: Config, tracked: Tracked) -> anyhow::Result<()> {
    let stop = Shutdown::on_signals()?;
    let credentials = Credentials::load(&config.tls, Role::Agent)?;
    let tls = credentials.client(Role::ProcessServer)?;
    let admin_server = AdminServer::bind(&config.admin)?;
    let for_setup = config.clone();
    let mut prepared = tokio::task::spawn_blocking(move || setup::prepare(&for_setup)).await??;
    prepared.parts.source.tracker = tracked(prepared.parts.source.tracker);
    let disks = admin::disks_of(&config, &prepared);

    let mut registry = metrics::registry();
    let own_metrics = Metrics::register(&mut registry);
    let settings = Settings {
        agent: credentials.identity().name().to_owned(),
        stream: prepared.stream,
        point_interval: config.point_interval.0,
        application_interval: config.application.as_ref().map(|application| application.interval.0),
        verify_rate: config.verify_rate.0,
        resync_from: RESYNC_FROM,
    };
    let kind = prepared.parts.kind;
    tracing::info!(vm = config.vm, stream = %settings.stream.id, tracker = ?kind, "ready");
    let node = Node::new(settings, prepared.parts, Instant::now());
    let driver = Driver::start(node, config.process_server.clone(), tls, own_metrics)?;
    let admin = Arc::new(Admin::new(driver, &config, disks));
    if let Some(addr) = config.metrics {
        let asked = Arc::clone(&admin);
        let health = Arc::new(move || asked.health());
        tokio::spawn(MetricsServer::bind(addr).await?.serve(registry, health, stop.clone()));
    }
    let asked = Arc::clone(&admin);
    tokio::spawn(admin_server.serve(move |request, _| Arc::clone(&asked).answer(request), stop.clone()));

    let ended = admin.driver().run_until(&stop).await;
    drop(prepared.lock);
    ended
}
