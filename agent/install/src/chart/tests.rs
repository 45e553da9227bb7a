//! The chart as a whole: complete, the same as with Helm, sound as Kubernetes objects, and no more privileged
//! than it says.
mod rights;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum as _;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        },
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Namespace, PodTemplateSpec, ResourceQuota, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde_json::{Value, json};

use super::*;

/// Everything that can be switched on.
const ALL: [&str; 4] = [
    "namespace.create=true",
    "podMonitor.enabled=true",
    "resourceQuota.enabled=true",
    "controller.istiodAlias=true",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart/undermesh")
}

fn rendered(profile: Profile, pairs: &[&str]) -> Vec<Manifest> {
    let mut overrides = Overrides::default();
    for pair in pairs {
        overrides.set(pair).unwrap();
    }
    let values = Values::new(profile, &overrides).unwrap();
    render(&values, "istio-system").unwrap()
}

fn typed<K: serde::de::DeserializeOwned>(manifests: &[Manifest], kind: &str, name: &str) -> K {
    let found = manifests
        .iter()
        .find(|it| it.kind().kind == kind && it.name() == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"));
    serde_json::from_value(serde_json::to_value(found.object()).unwrap()).unwrap()
}

/// Fields that a typed object does not have are lost on the way through it.
fn survives<K: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> bool {
    let typed: K = serde_json::from_value(object.clone()).unwrap();
    contains(&serde_json::to_value(typed).unwrap(), object)
}

fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(name, part)| {
            let empty = part.as_array().is_some_and(Vec::is_empty)
                || part.as_object().is_some_and(serde_json::Map::is_empty);
            empty || whole.get(name).is_some_and(|whole| contains(whole, part))
        }),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(a, b)| contains(a, b))
        }
        (Value::Number(whole), Value::Number(part)) => whole.as_f64() == part.as_f64(),
        (whole, part) => whole == part,
    }
}

#[test]
fn every_file_of_the_chart_is_known() {
    let known: BTreeSet<String> = TEMPLATES
        .iter()
        .chain(&CRDS)
        .chain(&PROFILES)
        .map(|file| file.name.to_owned())
        .collect();
    let mut found = BTreeSet::new();
    for part in ["templates", "crds", "profiles"] {
        for entry in fs::read_dir(folder().join(part)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // Helm's notes are no manifest.
            if name != "NOTES.txt" {
                found.insert(format!("{part}/{name}"));
            }
        }
    }
    assert_eq!(known, found, "list the files in chart.rs");
}

#[test]
fn the_chart_has_the_programs_version() {
    let text = fs::read_to_string(folder().join("Chart.yaml")).unwrap();
    let chart: Value = serde_norway::from_str(&text).unwrap();
    assert_eq!(chart["version"], VERSION);
    assert_eq!(chart["appVersion"], VERSION);
}

#[test]
fn the_schema_describes_every_value_and_no_other() {
    fn same(path: &str, value: &Value, schema: &Value) {
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        assert_eq!(schema["additionalProperties"], false, "{path}");
        let known: BTreeSet<_> = properties.keys().filter(|it| *it != "global").collect();
        let there: BTreeSet<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(known, there, "{path}");
        for (name, value) in value.as_object().unwrap() {
            same(&format!("{path}.{name}"), value, &properties[name]);
        }
    }
    let values: Value = serde_norway::from_str(VALUES.text).unwrap();
    let schema: Value = serde_json::from_str(SCHEMA.text).unwrap();
    same("", &values, &schema);
}

/// Runs against the program that `HELM` names, or else `helm` on the PATH; says so when there is none.
#[test]
fn helm_renders_the_same() {
    let helm = env::var_os("HELM").unwrap_or_else(|| "helm".into());
    if Command::new(&helm).arg("version").output().is_err() {
        eprintln!("skipped: there is no helm; name one with HELM");
        return;
    }
    let changes: [&[&str]; 3] = [
        &[],
        &ALL,
        &[
            "image.tag=\"9.9\"",
            "node.caAddress=https://ca.example:443",
            "node.cni.enabled=false",
            "node.seLinuxOptions={type: spc_t}",
            "node.nodeSelector={disk: ssd}",
            "controller.webhook.enabled=false",
            "controller.tolerations=[{key: a, operator: Exists}]",
            "controller.extraArgs=[--one, \"--two=é\\\"\"]",
            "node.extraEnv=[{name: A, value: \"1\"}]",
            "image.pullSecrets=[{name: registry}]",
            "mesh.network=north",
            "namespace.create=true",
        ],
    ];
    for profile in Profile::value_variants() {
        for change in changes {
            let theirs = by_helm(&helm, *profile, change);
            let ours: BTreeMap<String, Value> = rendered(*profile, change)
                .iter()
                .map(|it| (it.to_string(), serde_json::to_value(it.object()).unwrap()))
                .collect();
            assert_eq!(ours, theirs, "{profile} {change:?}");
        }
    }
}

fn by_helm(helm: &std::ffi::OsStr, profile: Profile, pairs: &[&str]) -> BTreeMap<String, Value> {
    let folder = folder();
    let mut command = Command::new(helm);
    command
        .args(["template", "undermesh", "--namespace", "istio-system"])
        .arg(&folder);
    let file = folder.join(format!("profiles/{profile}.yaml"));
    if file.exists() {
        command.arg("--values").arg(file);
    }
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap();
        let value: Value = serde_norway::from_str(value).unwrap();
        command.arg("--set-json").arg(format!("{name}={value}"));
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    manifest::read(&text)
        .unwrap()
        .iter()
        .map(|it| {
            let mut object = serde_json::to_value(it.object()).unwrap();
            // The one difference that is meant.
            let manager = &mut object["metadata"]["labels"]["app.kubernetes.io/managed-by"];
            assert_eq!(*manager, "Helm");
            *manager = json!(MANAGED_BY);
            (it.to_string(), object)
        })
        .collect()
}

#[test]
fn every_object_has_only_fields_that_kubernetes_knows() {
    for profile in Profile::value_variants() {
        let mut manifests = rendered(*profile, &ALL);
        manifests.extend(definitions().unwrap());
        for manifest in &manifests {
            let object = serde_json::to_value(manifest.object()).unwrap();
            let sound = match manifest.kind().kind {
                "Namespace" => survives::<Namespace>(&object),
                "ResourceQuota" => survives::<ResourceQuota>(&object),
                "ServiceAccount" => survives::<ServiceAccount>(&object),
                "ClusterRole" => survives::<ClusterRole>(&object),
                "ClusterRoleBinding" => survives::<ClusterRoleBinding>(&object),
                "Role" => survives::<Role>(&object),
                "RoleBinding" => survives::<RoleBinding>(&object),
                "Service" => survives::<Service>(&object),
                "PodDisruptionBudget" => survives::<PodDisruptionBudget>(&object),
                "Deployment" => survives::<Deployment>(&object),
                "DaemonSet" => survives::<DaemonSet>(&object),
                "ValidatingAdmissionPolicy" => survives::<ValidatingAdmissionPolicy>(&object),
                "ValidatingAdmissionPolicyBinding" => {
                    survives::<ValidatingAdmissionPolicyBinding>(&object)
                }
                "ValidatingWebhookConfiguration" => {
                    survives::<ValidatingWebhookConfiguration>(&object)
                }
                "CustomResourceDefinition" => survives::<CustomResourceDefinition>(&object),
                // The Prometheus operator's; its types are not Kubernetes's own.
                "PodMonitor" => object["spec"]["podMetricsEndpoints"].is_array(),
                other => panic!("{other} is not checked"),
            };
            assert!(sound, "{manifest} has a field that is not known");
            let labels = manifest.object().metadata.labels.as_ref().unwrap();
            assert_eq!(
                labels["app.kubernetes.io/part-of"], "undermesh",
                "{manifest}"
            );
        }
    }
}

#[test]
fn a_profile_has_what_it_promises() {
    let names = |profile, pairs: &[&str]| -> BTreeSet<String> {
        let workloads =
            |it: &&Manifest| matches!(it.kind().kind, "Deployment" | "DaemonSet" | "Service");
        rendered(profile, pairs)
            .iter()
            .filter(workloads)
            .map(ToString::to_string)
            .collect()
    };
    let set =
        |names: &[&str]| -> BTreeSet<String> { names.iter().map(|it| (*it).to_owned()).collect() };
    let controller = "Deployment istio-system/undermesh-controller";
    let node = "DaemonSet istio-system/undermesh-node";
    let service = "Service istio-system/undermesh";
    assert_eq!(
        names(Profile::Default, &[]),
        set(&[controller, node, service])
    );
    assert_eq!(names(Profile::Demo, &[]), set(&[controller, node, service]));
    assert_eq!(names(Profile::Istiod, &[]), set(&[node]));
    assert_eq!(
        names(Profile::Ztunnel, &[]),
        set(&[controller, service, "Service istio-system/istiod"])
    );
}

#[test]
fn istiod_trusts_the_account_that_the_nodes_use_under_it() {
    let set: DaemonSet = typed(
        &rendered(Profile::Istiod, &[]),
        "DaemonSet",
        "undermesh-node",
    );
    let pod = set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name.as_deref(), Some("ztunnel"));
    let args = pod.containers[0].args.clone().unwrap();
    assert!(args.contains(&"--control-plane=https://istiod.istio-system.svc:15012".to_owned()));
}

#[test]
fn webhook_authorities_are_left_to_the_controller() {
    let hook: ValidatingWebhookConfiguration = typed(
        &rendered(Profile::Default, &[]),
        "ValidatingWebhookConfiguration",
        "undermesh",
    );
    for hook in hook.webhooks.unwrap() {
        assert_eq!(hook.client_config.ca_bundle, None);
    }
}

fn templates(manifests: &[Manifest]) -> [PodTemplateSpec; 2] {
    let deployment: Deployment = typed(manifests, "Deployment", "undermesh-controller");
    let set: DaemonSet = typed(manifests, "DaemonSet", "undermesh-node");
    [
        deployment.spec.unwrap().template,
        set.spec.unwrap().template,
    ]
}

#[test]
fn pods_are_confined_as_far_as_their_work_allows() {
    let pods = templates(&rendered(
        Profile::Default,
        &["image.repository=example.test/mesh", "image.tag=\"7\""],
    ));
    for template in &pods {
        let labels = template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        assert_eq!(labels["istio.io/dataplane-mode"], "none");
        let pod = template.spec.as_ref().unwrap();
        assert!(
            pod.priority_class_name
                .as_deref()
                .unwrap()
                .starts_with("system-")
        );
        assert_eq!(
            (pod.host_network, pod.host_pid, pod.host_ipc),
            (None, None, None)
        );
        let context = pod.security_context.as_ref().unwrap();
        assert_eq!(
            context.seccomp_profile.as_ref().unwrap().type_,
            "RuntimeDefault"
        );
        let all = pod
            .containers
            .iter()
            .chain(pod.init_containers.iter().flatten());
        for container in all {
            assert_eq!(container.image.as_deref(), Some("example.test/mesh:7"));
            assert!(container.readiness_probe.is_some());
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.privileged, Some(false));
            assert_eq!(context.read_only_root_filesystem, Some(true));
            let drop = context
                .capabilities
                .as_ref()
                .unwrap()
                .drop
                .as_ref()
                .unwrap();
            assert_eq!(*drop, ["ALL"]);
            assert!(
                container
                    .resources
                    .as_ref()
                    .unwrap()
                    .limits
                    .as_ref()
                    .unwrap()
                    .contains_key("memory")
            );
        }
    }
    let [controller, node] = pods.map(|it| it.spec.unwrap());
    let context = controller.containers[0].security_context.as_ref().unwrap();
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.capabilities.as_ref().unwrap().add, None);
    assert_eq!(
        controller.security_context.unwrap().run_as_non_root,
        Some(true)
    );
    assert_eq!(controller.volumes, None);

    let capabilities = node.containers[0]
        .security_context
        .clone()
        .unwrap()
        .capabilities
        .unwrap();
    assert_eq!(
        capabilities.add.unwrap(),
        ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "DAC_OVERRIDE"]
    );
    let host: BTreeSet<String> = node
        .volumes
        .unwrap()
        .into_iter()
        .filter_map(|volume| Some(volume.host_path?.path))
        .collect();
    let wanted = [
        "/etc/cni/net.d",
        "/opt/cni/bin",
        "/proc",
        "/run/netns",
        "/run/undermesh",
        "/sys/fs/bpf",
        "/sys/fs/cgroup",
    ];
    assert_eq!(host, wanted.map(str::to_owned).into());
}

#[test]
fn what_binds_is_applied_after_what_it_binds() {
    let order: Vec<&str> = rendered(Profile::Default, &ALL)
        .iter()
        .map(|it| it.kind().kind)
        .collect();
    let place = |kind| order.iter().position(|it| *it == kind).unwrap();
    for (first, then) in [
        ("Namespace", "ServiceAccount"),
        ("ServiceAccount", "Deployment"),
        ("ClusterRole", "ClusterRoleBinding"),
        ("ClusterRoleBinding", "Deployment"),
        ("Service", "DaemonSet"),
        ("Deployment", "DaemonSet"),
        ("DaemonSet", "ValidatingWebhookConfiguration"),
    ] {
        assert!(place(first) < place(then), "{first} {then}");
    }
}

#[test]
fn definitions_serve_the_versions_that_manifests_are_written_in() {
    let read = |manifest: &Manifest| -> CustomResourceDefinition {
        serde_json::from_value(serde_json::to_value(manifest.object()).unwrap()).unwrap()
    };
    for definition in definitions().unwrap().iter().map(read) {
        let spec = definition.spec;
        assert_eq!(
            definition.metadata.name.unwrap(),
            format!("{}.{}", spec.names.plural, spec.group)
        );
        let versions: Vec<&str> = spec.versions.iter().map(|it| it.name.as_str()).collect();
        let wanted: &[&str] = match spec.group.as_str() {
            "security.istio.io" => &["v1", "v1beta1"],
            _ => &["v1", "v1beta1", "v1alpha3"],
        };
        assert_eq!(versions, wanted);
        assert_eq!(spec.versions.iter().filter(|it| it.storage).count(), 1);
        for version in spec.versions {
            assert!(version.served && version.subresources.unwrap().status.is_some());
            let schema =
                serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap();
            structural("", &schema);
        }
    }
}

/// The rules of the Kubernetes documentation, "Specifying a structural schema", as far as the files use them;
/// and what is not described is kept, so that validation sees it.
fn structural(path: &str, schema: &Value) {
    let kind = schema["type"]
        .as_str()
        .unwrap_or_else(|| panic!("{path} has no type"));
    let properties = schema["properties"].as_object();
    assert!(
        properties.is_none() || schema.get("additionalProperties").is_none(),
        "{path}"
    );
    if kind == "object" && !path.is_empty() && schema.get("additionalProperties").is_none() {
        assert_eq!(
            schema["x-kubernetes-preserve-unknown-fields"], true,
            "{path}"
        );
    }
    for (name, schema) in properties.into_iter().flatten() {
        structural(&format!("{path}.{name}"), schema);
    }
    if let Some(schema) = schema.get("additionalProperties") {
        structural(&format!("{path}.*"), schema);
    }
    if kind == "array" {
        structural(&format!("{path}[]"), &schema["items"]);
    }
}

#[test]
fn values_reach_their_places_whatever_is_in_them() {
    let hostile = "a\"b: {{ .Values.x }}\n- c";
    let mut overrides = Overrides::default();
    overrides
        .set(&format!("log.level={}", json!(hostile)))
        .unwrap();
    overrides
        .set(&format!("node.extraArgs={}", json!([hostile])))
        .unwrap();
    let values = Values::new(Profile::Default, &overrides).unwrap();
    let manifests = render(&values, "istio-system").unwrap();
    let [_, node] = templates(&manifests);
    let container = node.spec.unwrap().containers.remove(0);
    assert_eq!(container.args.unwrap().last().unwrap(), hostile);
    let level = container
        .env
        .unwrap()
        .into_iter()
        .find(|it| it.name == "UNDERMESH_LOG_LEVEL");
    assert_eq!(level.unwrap().value.unwrap(), hostile);
}
