//! A pod: a place with an IPv4 and an IPv6 address behind its node's bridge, and a name in the mesh.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::{Place, Result};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, for tests that hold in each.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An IPv4 and an IPv6 address of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of `family`.
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// What a pod is called and whose identity it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name, and the value of its label `app`.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// The service it answers for: the value of its label `service`.
    pub service: Option<String>,
    /// The uid of its object, when it has one; its cgroup is then named as kubelet names it.
    pub uid: Option<String>,
}

impl PodSpec {
    /// A pod whose service account has the pod's own name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            service: None,
            uid: None,
        }
    }

    /// The same pod as one endpoint of `service`.
    #[must_use]
    pub fn behind(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    /// The same pod with the uid of its object.
    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// The SPIFFE identity that the mesh gives the pod.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.namespace, self.service_account
        )
    }
}

/// A pod on a node.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    node: String,
    addresses: Addresses,
    place: Place,
}

impl Pod {
    pub(crate) fn new(spec: PodSpec, node: &str, addresses: Addresses, place: Place) -> Self {
        Self {
            spec,
            node: node.to_owned(),
            addresses,
            place,
        }
    }

    /// Its names.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its address of `family`.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.addresses.of(family)
    }

    /// Both its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Takes the pod's network away, as a runtime does when a pod dies: its link goes, its namespace
    /// is let go of.
    ///
    /// # Errors
    /// When there is no link to take.
    pub fn lose_network(&self) -> Result<()> {
        self.place.netns().ip("link del eth0")?;
        self.place.netns().release();
        Ok(())
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
