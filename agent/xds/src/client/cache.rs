//! The last known state on disk: the resources as they came over the wire, with their versions. It carries a node
//! through an outage of the server that outlives the agent.
//!
//! The file is a header and protocol messages behind each other, each with its length in front: a request that names
//! the cluster and what was asked for on demand, then responses. It is replaced as a whole or not at all, and one
//! that is damaged is as good as none. It holds no keys and no tokens.
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use prost::Message;
use xxhash_rust::xxh64::xxh64;

use super::feed::{Held, Resources};
use crate::wire::{
    ADDRESS_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
};

/// Largest file that is written or read, in bytes.
pub const MAX_CACHE_BYTES: u64 = 256 * 1024 * 1024;

/// What the file begins with; the last byte is the version of the format.
const MAGIC: [u8; 8] = *b"UMESHXD\x01";
/// [`MAGIC`], the length of what follows, its checksum.
const HEADER_BYTES: usize = 24;
const RESOURCES_PER_MESSAGE: usize = 256;
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why there is no last known state, or why it could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("cannot {action} {}: {error}; check its directory and the space on it", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// It is not what was written.
    #[error("the cache {} is damaged ({reason}) and is ignored; the server's answer replaces it", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        reason: &'static str,
    },
    /// Others could have written it.
    #[error("the cache {} has mode {mode:03o}, so others than its owner can write it, and is ignored; chmod 600 it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is larger than what is kept.
    #[error("the cache {} would have {bytes} bytes, more than {MAX_CACHE_BYTES}; subscribe on demand", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is of another cluster.
    #[error("the cache {} is of the cluster '{found}' and is ignored; the server's answer replaces it", .path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// The cluster.
        found: String,
    },
}

/// A state to keep.
#[derive(Debug, Default)]
pub struct Saved {
    /// The cluster that it is of.
    pub cluster: Arc<str>,
    /// What was asked for on demand.
    pub asked: Vec<Arc<str>>,
    /// The resources by type.
    pub resources: Vec<(&'static str, Resources)>,
}

/// A state that was kept.
#[derive(Debug, Default, PartialEq)]
pub struct Loaded {
    /// What was asked for on demand.
    pub asked: Vec<String>,
    /// What the server would have sent.
    pub responses: Vec<DeltaDiscoveryResponse>,
}

/// Replaces the file: whoever reads it sees the old state or the new one, also after a loss of power. Returns its
/// size in bytes.
///
/// # Errors
/// When the state is too large, or the file system refuses.
pub fn write(path: &Path, saved: &Saved) -> Result<u64, CacheError> {
    let content = encode(saved);
    let bytes = content.len() as u64;
    if bytes > MAX_CACHE_BYTES {
        return Err(CacheError::TooLarge {
            path: path.to_owned(),
            bytes,
        });
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(io_error("create the directory", directory))?;
    let temporary = path.with_extension("tmp");
    let written = write_new(&temporary, &content).map_err(io_error("write", &temporary));
    let renamed =
        written.and_then(|()| fs::rename(&temporary, path).map_err(io_error("replace", path)));
    if renamed.is_err() {
        // What failed is reported; the next attempt removes whatever this leaves behind.
        drop(fs::remove_file(&temporary));
    }
    renamed?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", directory))?;
    Ok(bytes)
}

/// Reads the file; `None` if there is none.
///
/// # Errors
/// When it is damaged, of another cluster, or the file system refuses.
pub fn read(path: &Path, cluster: &str) -> Result<Option<Loaded>, CacheError> {
    let content = match read_bounded(path)? {
        Some(content) => content,
        None => return Ok(None),
    };
    let damaged = |reason| CacheError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let mut payload = unseal(content).map_err(damaged)?;
    let head = DeltaDiscoveryRequest::decode_length_delimited(&mut payload)
        .map_err(|_| damaged("its first message cannot be read"))?;
    let found = head.node.unwrap_or_default().cluster;
    if found != cluster {
        return Err(CacheError::Cluster {
            path: path.to_owned(),
            found,
        });
    }
    let mut responses = Vec::new();
    while payload.has_remaining() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut payload)
            .map_err(|_| damaged("a message cannot be read"))?;
        responses.push(response);
    }
    Ok(Some(Loaded {
        asked: head.resource_names_subscribe,
        responses,
    }))
}

fn encode(saved: &Saved) -> Vec<u8> {
    let head = DeltaDiscoveryRequest {
        node: Some(Node {
            cluster: saved.cluster.to_string(),
            ..Node::default()
        }),
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: saved.asked.iter().map(|name| name.to_string()).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut content = vec![0; HEADER_BYTES];
    content.extend(head.encode_length_delimited_to_vec());
    for (url, resources) in &saved.resources {
        for chunk in resources.chunks(RESOURCES_PER_MESSAGE) {
            content.extend(response(url, chunk).encode_length_delimited_to_vec());
        }
    }
    let (length, checksum) = {
        let payload = &content[HEADER_BYTES..];
        (payload.len() as u64, xxh64(payload, 0))
    };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(length.to_be_bytes());
    header.extend(checksum.to_be_bytes());
    content[..HEADER_BYTES].copy_from_slice(&header);
    content
}

fn response(url: &str, resources: &[(Arc<str>, Held)]) -> DeltaDiscoveryResponse {
    let resources = resources.iter().map(|(name, held)| Resource {
        name: name.to_string(),
        version: held.version.to_string(),
        resource: Some((*held.content).clone()),
        ..Resource::default()
    });
    DeltaDiscoveryResponse {
        type_url: url.to_owned(),
        resources: resources.collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// Checks the header and takes it off.
fn unseal(content: Vec<u8>) -> Result<Bytes, &'static str> {
    let mut payload = Bytes::from(content);
    if payload.len() < HEADER_BYTES {
        return Err("it is too short");
    }
    let mut header = payload.split_to(HEADER_BYTES);
    let mut magic = [0; MAGIC.len()];
    header.copy_to_slice(&mut magic);
    if magic != MAGIC {
        return Err("it is no cache of this version");
    }
    if header.get_u64() != payload.len() as u64 {
        return Err("its length is not what it says");
    }
    if header.get_u64() != xxh64(&payload, 0) {
        return Err("its checksum does not match");
    }
    Ok(payload)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, CacheError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let metadata = file.metadata().map_err(io_error("inspect", path))?;
    let mode = metadata.mode() & 0o777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(CacheError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut content = Vec::new();
    file.take(MAX_CACHE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(io_error("read", path))?;
    if content.len() as u64 > MAX_CACHE_BYTES {
        return Err(CacheError::TooLarge {
            path: path.to_owned(),
            bytes: content.len() as u64,
        });
    }
    Ok(Some(content))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |error| CacheError::Io {
        action,
        path,
        error,
    }
}

#[cfg(test)]
mod tests;
