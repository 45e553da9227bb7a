//! The objects of a cluster, listed once.
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};
use undermesh_control::resources::{decode_json, kinds::Kind, strings::Strings};

use super::AnalyzeError;
use crate::{
    examine::{Examination, MAX_OBJECTS},
    kinds,
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
            list(client, kind, &resource, &strings, examination).await?;
        }
    }
    Ok(())
}

async fn list(
    client: &Client,
    kind: Kind,
    resource: &ApiResource,
    strings: &Strings,
    examination: &mut Examination,
) -> Result<(), AnalyzeError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut params = ListParams::default().limit(PAGE);
    if kind == Kind::EndpointSlice {
        params = params.labels(OTHER_SLICES);
    }
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|error| AnalyzeError::List {
                plural: kind.plural(),
                error: Box::new(error),
            })?;
        for object in &page.items {
            if examination.is_full() {
                return Err(AnalyzeError::TooMany(MAX_OBJECTS));
            }
            let json = kinds::json(object);
            examination.add(decode_json(kind, &json, strings));
        }
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(()),
        }
    }
}
