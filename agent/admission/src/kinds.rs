//! Where an API server serves a kind.
use kube::{
    Client,
    api::{ApiResource, GroupVersionKind},
};
use undermesh_control::resources::kinds::Kind;

/// How a kind is asked for, in the version that is preferred of those that the cluster serves; nothing when it has no
/// such kind.
pub(crate) async fn served(client: &Client, kind: Kind) -> kube::Result<Option<ApiResource>> {
    let (group, plural) = (kind.group(), kind.plural());
    if group.is_empty() {
        let version = kind.versions().first().copied().unwrap_or_default();
        return Ok(Some(resource(kind, version)));
    }
    let groups = client.list_api_groups().await?;
    let Some(served) = groups.groups.into_iter().find(|it| it.name == group) else {
        return Ok(None);
    };
    let is_served = |version: &str| served.versions.iter().any(|it| it.version == version);
    for version in kind.versions().iter().filter(|version| is_served(version)) {
        let listed = client
            .list_api_group_resources(&format!("{group}/{version}"))
            .await?;
        if listed.resources.iter().any(|it| it.name == plural) {
            return Ok(Some(resource(kind, version)));
        }
    }
    Ok(None)
}

fn resource(kind: Kind, version: &str) -> ApiResource {
    let kind_name = GroupVersionKind::gvk(kind.group(), version, kind.name());
    ApiResource::from_gvk_with_plural(&kind_name, kind.plural())
}

/// An object as JSON, without the bookkeeping of its fields.
pub(crate) fn json(object: &kube::api::DynamicObject) -> serde_json::Value {
    let mut json = object.data.clone();
    let mut metadata = object.metadata.clone();
    metadata.managed_fields = None;
    if let (Some(map), Ok(metadata)) = (json.as_object_mut(), serde_json::to_value(metadata)) {
        map.insert("metadata".to_owned(), metadata);
    }
    json
}
