//! Connections that the agent makes to applications, told to `sk_lookup` where it cannot see that they come over `lo`.
use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::maps::{HashMap, Map, MapData, MapError};
use undermesh_abi::Ends;

use crate::programs::{self, LoadError};

/// The announced connections. Cheap to clone; for any thread.
///
/// An announcement holds for the time of one handshake. Whoever else comes from the very address and port meanwhile is
/// the client on whose behalf the agent connects.
#[derive(Clone, Debug)]
pub struct Announcements(Arc<Mutex<HashMap<MapData, Ends, u8>>>);

impl Announcements {
    /// Opens the pinned map, without what an earlier agent left in it.
    pub(crate) fn open(pin: &Path) -> Result<Self, LoadError> {
        let mut map = HashMap::try_from(Map::HashMap(MapData::from_pin(pin)?))?;
        let left: Vec<Ends> = map.keys().collect::<Result<_, _>>()?;
        for ends in left {
            programs::absent_is_fine(map.remove(&ends))?;
        }
        Ok(Self(Arc::new(Mutex::new(map))))
    }

    /// From here until [`Self::withdraw`], a connection with these ends reaches the application.
    ///
    /// # Errors
    /// When there is no room for another one.
    pub fn announce(&self, source: SocketAddr, target: SocketAddr) -> io::Result<()> {
        let inserted = self.map().insert(Ends::new(source, target), 0, 0);
        inserted.map_err(|error| {
            io::Error::other(format!(
                "no room to announce the connection to the kernel: {error}"
            ))
        })
    }

    /// The connection stands, or has failed.
    pub fn withdraw(&self, source: SocketAddr, target: SocketAddr) {
        let removed: Result<(), MapError> = self.map().remove(&Ends::new(source, target));
        if let Err(error) = programs::absent_is_fine(removed) {
            tracing::warn!(%error, %source, %target, "cannot withdraw the announcement of a connection");
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<MapData, Ends, u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
