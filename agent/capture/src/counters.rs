//! The counters of the kernel programs.
use aya::maps::{MapData, MapError, PerCpuArray};
use undermesh_abi::{COUNTERS, Counter};

/// Connections counted by the kernel programs since they were first loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Outbound connections steered to the agent.
    pub captured: u64,
    /// Outbound connections of enrolled pods left alone.
    pub skipped: u64,
    /// Outbound connections refused because their destination could not be kept.
    pub refused: u64,
    /// Inbound plain connections handed to the agent.
    pub inbound_assigned: u64,
    /// Inbound plain connections refused because the agent had no listener.
    pub inbound_refused: u64,
    /// Inbound plain connections left alone because they are probes.
    pub probes: u64,
    /// Sockets of the machine's slice that could not be noted: `bind()` was refused, or, where the kernel chose
    /// the port in `listen()`, connections to it go past the mesh.
    pub unnoted: u64,
}

/// A value for each slot of [`Counter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts([u64; COUNTERS as usize]);

impl Counts {
    /// Reads a per-CPU array, summing over all CPUs.
    pub(crate) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Self, MapError> {
        let mut counts = Self::default();
        for (index, count) in (0..).zip(&mut counts.0) {
            *count = map.get(&index, 0)?.iter().sum();
        }
        Ok(counts)
    }

    pub(crate) fn add(&mut self, more: Self) {
        for (count, more) in self.0.iter_mut().zip(more.0) {
            *count += more;
        }
    }

    fn get(self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}

impl From<Counts> for Counters {
    fn from(counts: Counts) -> Self {
        Self {
            captured: counts.get(Counter::Captured),
            skipped: counts.get(Counter::Skipped),
            refused: counts.get(Counter::Refused),
            inbound_assigned: counts.get(Counter::InboundAssigned),
            inbound_refused: counts.get(Counter::InboundRefused),
            probes: counts.get(Counter::Probes),
            unnoted: counts.get(Counter::Unnoted),
        }
    }
}
