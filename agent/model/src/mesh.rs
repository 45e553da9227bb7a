//! The snapshot of the mesh: every lookup is a hash lookup, whatever the mesh's size.
