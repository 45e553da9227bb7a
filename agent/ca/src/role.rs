//! What a replica may do: all of them sign, one of them writes.

/// The part of this replica, as the Lease gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It holds the Lease, and writes Secrets and ConfigMaps.
    Leader,
    /// Another one does.
    #[default]
    Follower,
}
