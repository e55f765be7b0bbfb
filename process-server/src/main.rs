//! The `homeward-process-server` command.

mod cli;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use engine::{
    io::DirLock,
    net::{Credentials, Listener, Role},
    service::{
        admin::{AdminServer, Failure, Reporter},
        exit::{self, Code},
        logging,
        metrics::{self, MetricsServer},
        shutdown::Shutdown,
    },
};
use process_server::{
    admin::{Request, Response},
    config::Config,
    driver::{Server, Settings},
    metrics::Metrics,
};

const EXAMPLES: &str = "\
Examples:
  homeward-process-server serve --config /etc/homeward/process-server.toml
  homeward-process-server status
  homeward-process-server status --json
  homeward-process-server point shop --wait   (prints the barrier's id when all members' points can be restored)

Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 unusable configuration,
4 not running or not reachable, 5 refused (nothing was changed), 130 interrupted.";

/// Takes frames from agents, keeps them safe in its spool, and forwards them to the master target.
#[derive(Debug, Parser)]
#[command(name = "homeward-process-server", version, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/homeward/process-server.toml")]
    config: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,

    /// What to log to stderr: `debug`, `engine::net=trace`. Else the configuration's, else RUST_LOG, else `info`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve,
    /// How each VM's stream stands, and each group: positions, spool, rates, waits, common points.
    Status,
    /// Make a recovery point that the VMs of a group share, now.
    Point {
        /// The group's name.
        group: String,
        /// Hold the VMs' applications for it, as their agents are configured to.
        #[arg(long)]
        application: bool,
        /// Wait until it is durable at home for every member, and print its barrier's id.
        #[arg(long)]
        wait: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::run(cli.json, || match cli.command {
        Command::Serve => {
            let config = Config::load(&cli.config)?;
            logging::init(cli.log.as_deref().or(config.log.as_deref()), cli.json)?;
            tokio::runtime::Runtime::new()?.block_on(serve(config))
        }
        Command::Status => {
            logging::init(cli.log.as_deref().or(Some("warn")), false)?;
            cli::status(&Config::load(&cli.config)?, cli.json)
        }
        Command::Point { group, application, wait } => {
            logging::init(cli.log.as_deref().or(Some("warn")), false)?;
            cli::point(&Config::load(&cli.config)?, Request::Point { group, application, wait }, cli.json)
        }
        Command::Completions { shell } => {
            let name = "homeward-process-server";
            clap_complete::generate(shell, &mut Cli::command(), name, &mut std::io::stdout());
            Ok(())
        }
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let stop = Shutdown::on_signals()?;
    let credentials = Credentials::load(&config.tls, Role::ProcessServer)?;
    let spool = &config.spool.path;
    std::fs::create_dir_all(spool)
        .map_err(|error| anyhow::anyhow!("cannot create the spool folder {}: {error}", spool.display()))?;
    let _lock = DirLock::acquire(spool)?;
    let admin = AdminServer::bind(&config.admin)?;
    let listener = Listener::bind(&config.listen, credentials.server(&[Role::Agent])?).await?;
    let mut registry = metrics::registry();
    let settings = Settings {
        target: config.target.clone(),
        target_tls: credentials.client(Role::MasterTarget)?,
        spool: spool.clone(),
        bounds: config.bounds(),
        rate: config.rate,
        groups: config.groups(),
    };
    let server = Server::new(settings, Metrics::register(&mut registry));
    if let Some(addr) = config.metrics {
        let health = Arc::clone(&server);
        let metrics = MetricsServer::bind(addr).await?;
        tokio::spawn(metrics.serve(registry, Arc::new(move || health.health()), stop.clone()));
    }
    let asked = Arc::clone(&server);
    let answer = move |request: Request, _: Reporter| answer(Arc::clone(&asked), request);
    tokio::spawn(admin.serve(answer, stop.clone()));
    tracing::info!(name = credentials.identity().name(), listen = %listener.local_addr()?, "ready");
    Ok(server.serve(listener, stop).await?)
}

async fn answer(server: Arc<Server>, request: Request) -> Result<Response, Failure> {
    let (group, application, wait) = match request {
        Request::Status => return Ok(Response::Status(server.status())),
        Request::Point { group, application, wait } => (group, application, wait),
    };
    let refused = |message| Failure { message, code: Code::Refused };
    let failed = |message| Failure { message, code: Code::Failed };
    let point = server.request_point(&group, application).map_err(refused)?;
    if !wait {
        return Ok(Response::Requested);
    }
    match point.await {
        Ok(Ok(point)) => Ok(Response::Durable(point)),
        Ok(Err(reason)) => Err(failed(format!("no common point was made: {reason}"))),
        Err(_) => Err(failed("the process server is stopping".into())),
    }
}
