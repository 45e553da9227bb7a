//! The verbs that work on a whole cluster: install, upgrade, uninstall, analyze.
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use undermesh_admission::analyze::{self, AnalyzeError};
use undermesh_install::{InstallArgs, InstallError, Lines, UpgradeArgs, cluster};
use undermesh_kubernetes::connect::{self, ConnectError};

use crate::{
    command::{ClusterVerb, WithAccess, WithConsent},
    process::{self, ProcessError},
};

/// Threads of the runtime: one answer is waited for at a time.
const THREADS: usize = 1;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The installation.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The analysis itself.
    #[error(transparent)]
    Analyze(#[from] AnalyzeError),
    /// What the analysis found.
    #[error("{0} errors were found; correct them, or show fewer with --level")]
    Findings(usize),
    /// Nobody agreed.
    #[error("nothing was removed; say yes, or give --yes")]
    Refused,
    /// Standard output or input.
    #[error("cannot talk to the terminal: {0}; give --yes where there is none")]
    Terminal(#[from] io::Error),
    /// The runtime.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Runs a verb to its end.
///
/// # Errors
/// When it fails; the error says what to do.
pub fn run(verb: ClusterVerb) -> Result<(), ClusterError> {
    process::runtime("cluster", THREADS)?.block_on(async {
        match verb {
            ClusterVerb::Install(options) => install(options).await,
            ClusterVerb::Upgrade(options) => upgrade(options).await,
            ClusterVerb::Uninstall(options) => uninstall(options).await,
            ClusterVerb::Analyze(options) => {
                let access = options.cluster.access();
                let client = connect::connect_checked(&access);
                let summary = analyze::run(&options.args, client, &mut io::stdout()).await?;
                match summary.is_failure() {
                    true => Err(ClusterError::Findings(summary.errors)),
                    false => Ok(()),
                }
            }
        }
    })
}

async fn install(options: WithAccess<InstallArgs>) -> Result<(), ClusterError> {
    let WithAccess { args, cluster } = options;
    if args.apply.dry_run {
        return print(&cluster::render_install(&args)?);
    }
    let client = connect::connect_checked(&cluster.access()).await?;
    let summary = cluster::install(&args, &client, &mut Lines(io::stdout())).await?;
    print(&format!("{summary}\n"))
}

async fn upgrade(options: WithAccess<UpgradeArgs>) -> Result<(), ClusterError> {
    let WithAccess { args, cluster } = options;
    let client = connect::connect_checked(&cluster.access()).await?;
    if args.apply.dry_run {
        return print(&cluster::render_upgrade(&args, &client).await?);
    }
    let summary = cluster::upgrade(&args, &client, &mut Lines(io::stdout())).await?;
    print(&format!("{summary}\n"))
}

async fn uninstall(options: WithConsent) -> Result<(), ClusterError> {
    let WithConsent { args, cluster, yes } = options;
    let client = connect::connect_checked(&cluster.access()).await?;
    let goes = cluster::what_goes(&args, &client).await?.join("\n");
    if args.dry_run {
        return print(&format!("{goes}\n"));
    }
    if !yes && !agreed(&goes)? {
        return Err(ClusterError::Refused);
    }
    let removed = cluster::uninstall(&args, &client, &mut Lines(io::stdout())).await?;
    print(&format!("{removed}\n"))
}

fn agreed(goes: &str) -> io::Result<bool> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Ok(false);
    }
    let mut out = io::stdout();
    write!(out, "{goes}\nRemove all this? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(text: &str) -> Result<(), ClusterError> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
