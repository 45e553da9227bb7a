//! What registration reads and writes through the Kubernetes API.
use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
        Preconditions,
    },
    core::GroupVersionKind,
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    entry::{API_GROUP, API_VERSION, Entry, Key},
    group::{GroupError, WorkloadGroup},
};

/// Longest wait for an answer of the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Who owns what is written.
const FIELD_MANAGER: &str = "undermesh-machines";
/// Objects in one page of a list.
const PAGE: u32 = 500;

/// Why the API server did not do something.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It does not answer.
    #[error("the API server does not answer")]
    Silent,
    /// It refuses, or cannot be reached.
    #[error("the API server: {0}")]
    Api(Box<kube::Error>),
    /// A group that cannot be used.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// An object has no JSON form, or another one than its kind has.
    #[error("an object of the API server cannot be read: {0}")]
    Form(#[from] serde_json::Error),
}

impl ClusterError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether somebody else was faster: the object has changed, has gone, or is there already.
    pub fn is_conflict(&self) -> bool {
        matches!(self.code(), Some(404 | 409))
    }
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// The cluster's API, narrowed to what is used here.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Works through `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// A group, if there is one of this name.
    ///
    /// # Errors
    /// When the API server does not tell, or the group cannot be used.
    pub async fn group(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<WorkloadGroup>, ClusterError> {
        let object = in_time(self.groups(namespace).get_opt(name)).await?;
        let object = object.map(serde_json::to_value).transpose()?;
        Ok(object
            .map(|object| WorkloadGroup::read(&object))
            .transpose()?)
    }

    /// Whether machines of a service account may exist: the account exists, and a group names it.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub async fn has_machines(&self, namespace: &str, account: &str) -> Result<bool, ClusterError> {
        if !self.has_account(namespace, account).await? {
            return Ok(false);
        }
        let groups = list(&self.groups(namespace)).await?;
        // A group that cannot be read gives no rights.
        let groups = groups
            .iter()
            .filter_map(|group| WorkloadGroup::read(group).ok());
        Ok(groups
            .into_iter()
            .any(|group| group.service_account == account))
    }

    /// Whether a service account exists.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub async fn has_account(&self, namespace: &str, account: &str) -> Result<bool, ClusterError> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let found = in_time(accounts.get_metadata_opt(account)).await?;
        Ok(found.is_some_and(|account| account.metadata.deletion_timestamp.is_none()))
    }

    /// Whether a machine of a service account is registered.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub async fn is_registered(
        &self,
        namespace: &str,
        account: &str,
    ) -> Result<bool, ClusterError> {
        let entries = list(&self.entries(namespace)).await?;
        let mut entries = entries.iter().map(Entry::read);
        Ok(entries.any(|entry| entry.group.is_some() && entry.service_account == account))
    }

    /// An entry, if it is there.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub async fn entry(&self, key: &Key) -> Result<Option<Entry>, ClusterError> {
        let found = in_time(self.entries(&key.namespace).get_opt(&key.name)).await?;
        let object = found.map(serde_json::to_value).transpose()?;
        Ok(object.as_ref().map(Entry::read))
    }

    /// All entries that were made of groups.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub async fn registered(&self) -> Result<Vec<Entry>, ClusterError> {
        let all = Api::all_with(self.client.clone(), &entries());
        let entries = list(&all).await?;
        let entries = entries.iter().map(Entry::read);
        Ok(entries.filter(|entry| entry.group.is_some()).collect())
    }

    /// Creates an entry.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create(&self, key: &Key, entry: Value) -> Result<(), ClusterError> {
        let object: DynamicObject = serde_json::from_value(entry)?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        in_time(self.entries(&key.namespace).create(&params, &object)).await?;
        Ok(())
    }

    /// Changes an entry by a merge patch.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn change(&self, key: &Key, patch: Value) -> Result<(), ClusterError> {
        let entries = self.entries(&key.namespace);
        in_time(entries.patch(&key.name, &params(), &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Changes an entry's status by a merge patch.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn change_status(&self, key: &Key, patch: Value) -> Result<(), ClusterError> {
        let entries = self.entries(&key.namespace);
        in_time(entries.patch_status(&key.name, &params(), &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Deletes an entry, if it is still the one that was seen.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete(&self, entry: &Entry) -> Result<(), ClusterError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(entry.uid.clone()),
                resource_version: Some(entry.resource_version.clone()),
            }),
            ..DeleteParams::default()
        };
        let entries = self.entries(&entry.key.namespace);
        in_time(entries.delete(&entry.key.name, &params)).await?;
        Ok(())
    }

    /// The node that has an address, if one has it.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub async fn node_at(&self, address: IpAddr) -> Result<Option<String>, ClusterError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = in_time(nodes.list(&params)).await?;
            let holder = page
                .items
                .into_iter()
                .find(|node| has_address(node, address));
            if let Some(holder) = holder {
                return Ok(Some(holder.metadata.name.unwrap_or_default()));
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params.continue_token = Some(token),
                _ => return Ok(None),
            }
        }
    }

    fn groups(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &groups())
    }

    fn entries(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &entries())
    }
}

fn has_address(node: &Node, address: IpAddr) -> bool {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let mut addresses = addresses.into_iter().flatten();
    addresses.any(|it| it.address.parse() == Ok(address))
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(API_GROUP, API_VERSION, kind), plural)
}

fn groups() -> ApiResource {
    resource("WorkloadGroup", "workloadgroups")
}

fn entries() -> ApiResource {
    resource("WorkloadEntry", "workloadentries")
}

/// All objects, page by page. A kind that the cluster does not have has none.
async fn list(api: &Api<DynamicObject>) -> Result<Vec<Value>, ClusterError> {
    let mut params = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = match in_time(api.list(&params)).await {
            Err(error) if error.code() == Some(404) => return Ok(objects),
            page => page?,
        };
        for object in page.items {
            objects.push(serde_json::to_value(object)?);
        }
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            _ => return Ok(objects),
        }
    }
}

/// An answer of the API server, if it comes in time.
pub(crate) async fn in_time<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ClusterError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ClusterError::Silent),
    }
}
