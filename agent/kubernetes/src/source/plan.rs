//! How each kind is fetched: where, narrowed to what, and in which form.
use kube::api::{ListParams, Request, WatchParams};
use undermesh_control::resources::kinds::Kind;

/// Slices that Kubernetes makes of the pods of a Service with a selector. The mesh takes those pods from the pods
/// themselves, and so the largest and busiest part of the slices is not fetched at all.
const OTHER_SLICES: &str =
    "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";
/// A failed pod has no address and never runs again.
const LIVE_PODS: &str = "status.phase!=Failed";

/// How one kind is fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub kind: Kind,
    labels: Option<&'static str>,
    fields: Option<&'static str>,
    metadata_only: bool,
}

impl Plan {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            labels: (kind == Kind::EndpointSlice).then_some(OTHER_SLICES),
            fields: (kind == Kind::Pod).then_some(LIVE_PODS),
            metadata_only: matches!(kind, Kind::Namespace | Kind::Node | Kind::GatewayClass),
        }
    }

    /// Whether every cluster has the kind; others come with a CustomResourceDefinition.
    pub fn is_built_in(&self) -> bool {
        matches!(self.kind.group(), "" | "discovery.k8s.io")
    }

    /// A request for a page of the list.
    pub fn list(
        &self,
        version: &str,
        limit: Option<u32>,
        token: Option<String>,
    ) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
        let params = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.map(str::to_owned),
            limit,
            continue_token: token,
            ..ListParams::default()
        };
        let request = self.request(version);
        if self.metadata_only {
            request.list_metadata(&params)
        } else {
            request.list(&params)
        }
    }

    /// A request for the changes from a version on.
    pub fn watch(
        &self,
        version: &str,
        from: &str,
        seconds: u32,
    ) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.map(str::to_owned),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: false,
        };
        let request = self.request(version);
        if self.metadata_only {
            request.watch_metadata(&params, from)
        } else {
            request.watch(&params, from)
        }
    }

    fn request(&self, version: &str) -> Request {
        let (group, plural) = (self.kind.group(), self.kind.plural());
        if group.is_empty() {
            Request::new(format!("/api/{version}/{plural}"))
        } else {
            Request::new(format!("/apis/{group}/{version}/{plural}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(kind: Kind, version: &str) -> http::Request<Vec<u8>> {
        Plan::new(kind).list(version, Some(500), None).unwrap()
    }

    #[test]
    fn paths_name_group_version_and_plural() {
        let path = |kind, version| list(kind, version).uri().path().to_owned();
        assert_eq!(path(Kind::Pod, "v1"), "/api/v1/pods");
        assert_eq!(
            path(Kind::AuthorizationPolicy, "v1beta1"),
            "/apis/security.istio.io/v1beta1/authorizationpolicies"
        );
    }

    #[test]
    fn nodes_come_without_their_long_status() {
        let accept = |kind| list(kind, "v1").headers()[http::header::ACCEPT].clone();
        let text = accept(Kind::Node);
        assert!(text.to_str().unwrap().contains("PartialObjectMetadataList"));
    }

    #[test]
    fn failed_pods_and_made_slices_stay_away() {
        let query = |kind| {
            list(kind, "v1")
                .uri()
                .query()
                .unwrap_or_default()
                .to_owned()
        };
        assert!(query(Kind::Pod).contains("fieldSelector=status.phase%21%3DFailed"));
        assert!(query(Kind::EndpointSlice).contains("labelSelector=endpointslice"));
    }
}
