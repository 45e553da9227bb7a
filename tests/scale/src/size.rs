//! How large the generated cluster is, and how long it is watched.

use std::time::Duration;

use clap::Args;

/// Time from the creation of a pod to its address and readiness.
pub const START_TIME: Duration = Duration::from_millis(500);

/// Sizes that make no cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct Misfit(&'static str);

impl std::fmt::Display for Misfit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.0)
    }
}

/// The cluster and the load.
#[derive(Debug, Clone, Args)]
pub struct Size {
    /// Nodes, each with an agent's connection to the controller.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub nodes: u32,
    /// Pods, spread evenly over nodes and services.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub pods: u32,
    /// Services.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub services: u32,
    /// Namespaces, over which the services are spread.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub namespaces: u32,
    /// Services that each node talks to, beside those of its own pods.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub talks: u32,
    /// Pods that are replaced each second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub churn: u32,
    /// How long pods are replaced, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub seconds: u32,
}

impl Size {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), Misfit> {
        if self.pods < self.services || self.pods < self.nodes {
            return Err(Misfit(
                "there are fewer pods than nodes or services; raise --pods",
            ));
        }
        if self.talks > self.services {
            return Err(Misfit(
                "a node cannot talk to more services than there are; lower --talks",
            ));
        }
        // A pod that is replaced has long been ready.
        if u64::from(self.pods) < 4 * u64::from(self.churn) {
            return Err(Misfit(
                "every pod would be replaced within four seconds; lower --churn",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> Size {
        Size {
            nodes: 10,
            pods: 100,
            services: 10,
            namespaces: 2,
            talks: 5,
            churn: 10,
            seconds: 1,
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert_eq!(size().check(), Ok(()));
        let few_pods = Size { pods: 9, ..size() };
        let many_talks = Size {
            talks: 11,
            ..size()
        };
        let fast = Size {
            churn: 26,
            ..size()
        };
        for misfit in [few_pods, many_talks, fast] {
            assert!(misfit.check().is_err(), "{misfit:?}");
        }
    }
}
