//! In which version the cluster serves a kind, if at all.
use kube::Client;

use super::plan::Plan;

/// The version to use; `None` when the API server says that it has no such kind.
///
/// A kind counts as absent only by an answer that lists what there is. An error is no such answer: objects that
/// are known are never given up for it.
pub(super) async fn version(client: &Client, plan: &Plan) -> kube::Result<Option<String>> {
    let known = plan.kind.versions();
    if plan.is_built_in() {
        return Ok(known.first().map(|&version| version.to_owned()));
    }
    let group = plan.kind.group();
    let groups = client.list_api_groups().await?;
    let Some(served) = groups.groups.into_iter().find(|it| it.name == group) else {
        return Ok(None);
    };
    let is_served = |version: &str| served.versions.iter().any(|it| it.version == version);
    for version in known.iter().filter(|version| is_served(version)) {
        let resources = client
            .list_api_group_resources(&format!("{group}/{version}"))
            .await?;
        let plural = plan.kind.plural();
        if resources.resources.iter().any(|it| it.name == plural) {
            return Ok(Some((*version).to_owned()));
        }
    }
    Ok(None)
}
