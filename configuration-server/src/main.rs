//! The `homeward` command. Each subcommand's arguments and output stand in `cli`, what it does in the library.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use engine::service::{
    exit::{self, Code},
    logging,
};

mod cli {
    //! Arguments and output of the subcommands.
    pub(crate) mod demo;
    pub(crate) mod pki;
}

const EXAMPLES: &str = "\
Examples:
  homeward demo                              see it work: on any Linux machine, nothing configured
  homeward pki init                          make the private CA in ./pki, once
  homeward pki issue --role agent db-1       a certificate for one service
  homeward pki show pki/agent-db-1.pem       whose it is, until when it is valid
  homeward completions bash > /etc/bash_completion.d/homeward

Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 unusable configuration,
4 not running or not reachable, 5 refused (nothing was changed), 130 interrupted.";

/// Brings virtual machines home: the operator's command.
#[derive(Debug, Parser)]
#[command(name = "homeward", version, after_help = EXAMPLES)]
struct Cli {
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
    /// Replicate a scratch disk in use, kill services on the way, restore and verify every point.
    Demo(cli::demo::Args),
    /// Keys: make the private CA, issue and show certificates.
    #[command(subcommand)]
    Pki(cli::pki::Command),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut held = true;
    let code = exit::run(cli.json, || {
        let quiet = matches!(cli.command, Command::Demo(_)).then_some("warn");
        logging::init(cli.log.as_deref().or(quiet), false)?;
        match cli.command {
            Command::Demo(args) => {
                held = args.run(cli.json)?;
                Ok(())
            }
            Command::Pki(command) => command.run(cli.json),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "homeward", &mut std::io::stdout());
                Ok(())
            }
        }
    });
    // It did what it was to do, and found that something is wrong.
    if held { code } else { Code::Failed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }
}
