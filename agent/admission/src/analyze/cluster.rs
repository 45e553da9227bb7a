//! The objects of a cluster, listed once.
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use undermesh_control::{
    resources::{decode_json, kinds::Kind, metadata::Origin, strings::Strings},
    value::Value,
};

use super::AnalyzeError;
use crate::{
    examine::{Examination, MAX_OBJECTS},
    kinds, network,
};

/// Objects in a page of a list.
const PAGE: u32 = 500;
/// Slices that Kubernetes makes of the pods of a Service; the mesh takes those pods from the pods themselves.
const OTHER_SLICES: &str =
    "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";

/// Reads all objects of the kinds that are used. A kind that the cluster does not have has no objects.
pub(super) async fn read(
    client: &Client,
    examination: &mut Examination,
) -> Result<(), AnalyzeError> {
    let strings = Strings::default();
    for &kind in Kind::ALL {
        let served = kinds::served(client, kind).await;
        let served = served.map_err(|error| AnalyzeError::Discovery(Box::new(error)))?;
        if let Some(resource) = served {
            let mut params = ListParams::default();
            if kind == Kind::EndpointSlice {
                params = params.labels(OTHER_SLICES);
            }
            list(client, &resource, kind.plural(), params, |object| {
                let has_room = !examination.is_full();
                if has_room {
                    examination.add(decode_json(kind, &kinds::json(object), &strings));
                }
                has_room
            })
            .await?;
        }
    }
    network_policies(client, examination).await
}

async fn network_policies(
    client: &Client,
    examination: &mut Examination,
) -> Result<(), AnalyzeError> {
    let kind = GroupVersionKind::gvk(network::GROUP, network::VERSION, network::KIND);
    let resource = ApiResource::from_gvk_with_plural(&kind, network::PLURAL);
    let params = ListParams::default();
    list(client, &resource, network::PLURAL, params, |object| {
        // One that is beyond what is read of any object is none that an API server would take.
        if let Ok(value) = Value::from_json(&kinds::json(object)) {
            examination.add_network_policy(&value, &Origin::Cluster);
        }
        !examination.is_full()
    })
    .await
}

/// Hands every object of a kind to `take`, until that says that it can take no more.
async fn list(
    client: &Client,
    resource: &ApiResource,
    plural: &'static str,
    params: ListParams,
    mut take: impl FnMut(&DynamicObject) -> bool,
) -> Result<(), AnalyzeError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut params = params.limit(PAGE);
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|error| AnalyzeError::List {
                plural,
                error: Box::new(error),
            })?;
        for object in &page.items {
            if !take(object) {
                return Err(AnalyzeError::TooMany(MAX_OBJECTS));
            }
        }
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(()),
        }
    }
}
