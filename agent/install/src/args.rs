//! The command line of `undermesh install`, `upgrade` and `uninstall`.
use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::chart::{Overrides, Profile, ValuesError};

/// Where to, and for how long.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Namespace of the mesh. Nodes and ztunnel look for their control plane in istio-system.
    #[arg(short, long, value_name = "NS", default_value = "istio-system", value_parser = namespace)]
    pub namespace: String,
    /// How long each part may take to become ready, or to go.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Values other than the profile's.
#[derive(Clone, Debug, Default, Args)]
pub struct ValueArgs {
    /// File of values, as for the Helm chart; later files win.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// One value, for example log.level=debug; the right side is YAML.
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
}

impl ValueArgs {
    /// The values in all files and options.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn overrides(&self) -> Result<Overrides, ValuesError> {
        let mut overrides = Overrides::default();
        for path in &self.values {
            overrides.file(path)?;
        }
        for pair in &self.set {
            overrides.set(pair)?;
        }
        Ok(overrides)
    }
}

/// How far to go.
#[derive(Clone, Debug, Default, Args)]
pub struct ApplyArgs {
    /// Print the manifests and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Form of the printed manifests.
    #[arg(
        short,
        long,
        value_name = "FORM",
        default_value = "yaml",
        requires = "dry_run"
    )]
    pub output: ManifestForm,
    /// Take over fields that other programs, such as Helm, have set.
    #[arg(long)]
    pub force_conflicts: bool,
    /// Go on in spite of problems that the preflight finds.
    #[arg(long)]
    pub ignore_problems: bool,
}

/// Form of printed manifests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ManifestForm {
    /// Documents for `kubectl apply -f -`.
    #[default]
    Yaml,
    /// One List.
    Json,
}

/// Arguments of `undermesh install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// Where to.
    #[command(flatten)]
    pub target: Target,
    /// Set of values to begin with.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub profile: Profile,
    /// What to set.
    #[command(flatten)]
    pub values: ValueArgs,
    /// How far to go.
    #[command(flatten)]
    pub apply: ApplyArgs,
}

/// Arguments of `undermesh upgrade`. Values of the installation are kept unless given anew.
#[derive(Clone, Debug, Args)]
pub struct UpgradeArgs {
    /// Where to.
    #[command(flatten)]
    pub target: Target,
    /// Set of values to begin with [default: that of the installation].
    #[arg(long, value_name = "NAME")]
    pub profile: Option<Profile>,
    /// What to set.
    #[command(flatten)]
    pub values: ValueArgs,
    /// How far to go.
    #[command(flatten)]
    pub apply: ApplyArgs,
}

/// Arguments of `undermesh uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Where to.
    #[command(flatten)]
    pub target: Target,
    /// Print what would be removed and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Also remove the certificate authority's key and the definitions that the installation made, with all
    /// policies and entries in them.
    #[arg(long)]
    pub purge: bool,
}

/// A DNS label (RFC 1123), which names of namespaces are.
fn namespace(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
    let sound = text.len() <= 63
        && text.bytes().all(inner)
        && edge(text.bytes().next())
        && edge(text.bytes().last());
    if sound {
        Ok(text.to_owned())
    } else {
        Err("write a name of at most 63 lower-case letters, digits and inner dashes".to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    units
        .into_iter()
        .find_map(|(unit, seconds)| {
            let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
            (count > 0).then(|| Duration::from_secs(u64::from(count) * seconds))
        })
        .ok_or_else(|| "write a number with s, m or h, for example 90s or 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser, Subcommand};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
    }

    #[derive(Debug, Subcommand)]
    enum Verb {
        Install(InstallArgs),
        Upgrade(UpgradeArgs),
        Uninstall(UninstallArgs),
    }

    fn parsed(line: &str) -> Result<Verb, String> {
        let cli = Cli::try_parse_from(format!("undermesh {line}").split(' '));
        cli.map(|cli| cli.verb).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_installation_needs_no_arguments() {
        let Verb::Install(args) = parsed("install").unwrap() else {
            panic!("another verb")
        };
        assert_eq!(args.target.namespace, "istio-system");
        assert_eq!(args.target.timeout, Duration::from_secs(300));
        assert_eq!(args.profile, Profile::Default);
    }

    #[test]
    fn the_manifests_can_be_printed_only_instead_of_applied() {
        assert!(parsed("install --dry-run -o yaml").is_ok());
        assert!(parsed("upgrade --dry-run -o json").is_ok());
        assert!(parsed("install -o yaml").is_err());
    }

    #[test]
    fn wrong_arguments_say_what_would_be_right() {
        for (line, text) in [
            ("install --timeout 5", "for example 90s"),
            ("install --timeout 0s", "for example 90s"),
            ("uninstall -n Upper", "lower-case"),
            ("upgrade -n -a", "-a"),
            ("install --profile ambient", "istiod"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(text), "{line}: {error}");
        }
        assert!(namespace("a-").is_err() && namespace("").is_err());
        assert!(namespace(&"a".repeat(64)).is_err());
    }
}
