//! The `homeward-master-target` command.

mod cli;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use engine::{
    net::{Credentials, Listener, Role},
    service::{
        admin::AdminServer,
        exit, logging,
        metrics::{self, MetricsServer},
        shutdown::Shutdown,
    },
};
use master_target::{admin, config::Config, driver::Server, metrics::Metrics};

const EXAMPLES: &str = "\
Examples:
  homeward-master-target serve --config /etc/homeward/master-target.toml
  homeward-master-target status
  homeward-master-target points web-01
  homeward-master-target pin web-01 2026-11-23T02:00:00Z
  homeward-master-target restore web-01 --point latest-application-consistent --dry-run
  homeward-master-target restore web-01 --point 2026-11-23T02:00:00Z
  homeward-master-target restore web-01 --point before-failback    (the originals, as they were)
  homeward-master-target restore --group shop       (the newest moment that all its VMs have)
  homeward-master-target restore web-01 --undo      (replication can go on again)
  homeward-master-target restore web-01 --accept    (or never: the disks stay so)
  homeward-master-target verify web-01 --point latest --wait
  homeward-master-target verify --check certificate.json --ca ca.pem
  homeward-master-target drill web-01 --point latest --writable
  homeward-master-target drill web-01 --socket /run/web-01.sock --disk sda
  homeward-master-target export web-01 --point latest --disk sda web-01-sda.vmdk
  homeward-master-target export web-01 --format raw - | zstd > web-01-sda.raw.zst
  homeward-master-target drills
  homeward-master-target drill --stop 1

`points`, `pin`, `unpin`, `restore`, `drill` and `export` also work while the service does not run. A restore may be interrupted at any
moment, by ^C or `kill -9`; the same command goes on where it stopped, and --undo leads back from there.

Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 unusable configuration,
4 not running or not reachable, 5 refused (nothing was changed), 6 verified, or exported and read again, and different, 130 interrupted.";

/// Applies replicated frames to VMware disks and keeps recovery points.
#[derive(Debug, Parser)]
#[command(name = "homeward-master-target", version, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/homeward/master-target.toml")]
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
    /// How each VM's replication stands.
    Status,
    /// The recovery points of a VM, oldest first, and what each costs: bytes of the journal that lead back to it from the
    /// one after it.
    Points {
        /// The VM.
        vm: String,
    },
    /// Keep a point whatever retention says.
    Pin(cli::points::PinArgs),
    /// Let retention have a point again.
    Unpin(cli::points::PinArgs),
    /// Make the disks of a VM, or of a group's VMs, what they were at a point; replication waits until that is undone.
    Restore(cli::restore::Args),
    /// Compare a point with the source, leaf by leaf, while replication goes on; a signed certificate says that all is
    /// equal, and what differs is named and sent again.
    Verify(cli::verify::Args),
    /// Serve a VM's disks as they were at a point, over NBD. In the service if it runs, else until interrupted.
    Drill(cli::drill::Args),
    /// Write a disk of a VM, as it was at a point, to a new file, and read it again to check it. Replication goes on.
    Export(cli::export::Args),
    /// The drills that run.
    Drills,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::run(cli.json, || {
        let serving = matches!(cli.command, Command::Serve);
        logging::init(cli.log.as_deref().or((!serving).then_some("warn")), serving && cli.json)?;
        if let Command::Completions { shell } = cli.command {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "homeward-master-target",
                &mut std::io::stdout(),
            );
            return Ok(());
        }
        if let Command::Verify(args) = &cli.command
            && let Some((file, ca)) = args.offline()
        {
            return cli::verify::check(file, ca, cli.json);
        }
        let config = Config::load(&cli.config)?;
        match cli.command {
            Command::Serve => tokio::runtime::Runtime::new()?.block_on(serve(config)),
            Command::Status => cli::status(&config, cli.json),
            Command::Points { vm } => cli::points::list(&config, &vm, cli.json),
            Command::Pin(args) => cli::points::pin(&config, &args, true, cli.json),
            Command::Unpin(args) => cli::points::pin(&config, &args, false, cli.json),
            Command::Restore(args) => cli::restore::run(&config, &args, cli.json),
            Command::Verify(args) => cli::verify::run(&config, args, cli.json),
            Command::Drill(args) => cli::drill::run(&config, args, cli.json),
            Command::Export(args) => cli::export::run(&config, args, cli.json),
            Command::Drills => cli::drill::list(&config, cli.json),
            Command::Completions { .. } => Ok(()),
        }
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let stop = Shutdown::on_signals()?;
    let credentials = Credentials::load(&config.tls, Role::MasterTarget)?;
    let (home, lock) = config.open_home()?;
    let admin_server = AdminServer::bind(&config.admin)?;
    let listener = Listener::bind(&config.listen, credentials.server(&[Role::ProcessServer])?).await?;
    let mut registry = metrics::registry();
    let signer = Arc::new(credentials.clone());
    let server = Server::new(
        home,
        config.retention.policy(),
        config.scrub.plan(),
        Metrics::register(&mut registry),
        signer,
    )?;
    if let Some(addr) = config.metrics {
        let metrics = MetricsServer::bind(addr).await?;
        tokio::spawn(metrics.serve(registry, Arc::new(|| Ok(())), stop.clone()));
    }
    let drills = Arc::new(config.drills(&credentials)?);
    let asked = (Arc::clone(&server), Arc::clone(&drills));
    let answer =
        move |request, reporter| admin::answer(Arc::clone(&asked.0), Arc::clone(&asked.1), request, reporter);
    tokio::spawn(admin_server.serve(answer, stop.clone()));
    tracing::info!(name = credentials.identity().name(), listen = %listener.local_addr()?, "ready");
    server.serve(listener, stop).await;
    tokio::task::spawn_blocking(move || drills.stop_all()).await?;
    drop(lock);
    Ok(())
}
