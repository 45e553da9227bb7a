//! Tests of following a directory on a real file system.
use std::{fs, os::unix::fs::symlink, time::Duration};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Long enough for a loaded machine; every wait ends at the event it waits for.
const PATIENCE: Duration = Duration::from_secs(20);

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

fn open(path: &Path) -> (DirectorySource, Snapshot) {
    DirectorySource::open(path, Settings::default()).unwrap()
}

async fn next(source: &mut DirectorySource) -> Snapshot {
    timeout(PATIENCE, source.next())
        .await
        .expect("a change in time")
        .unwrap()
}

fn port(snapshot: &Snapshot) -> u16 {
    snapshot.builder.services[0].ports[0].port
}

#[test]
fn reads_manifests_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("sub")).unwrap();
    fs::create_dir(path.join(".git")).unwrap();
    for name in ["a.yaml", "b.yml", "sub/c.json"] {
        let object = name.replace(['.', '/'], "-");
        fs::write(path.join(name), namespace(&object)).unwrap();
    }
    for name in [
        "n.txt",
        "n.yaml~",
        ".n.yaml.swp",
        ".hidden.yaml",
        "#n.yaml#",
        ".git/n.yaml",
        "README",
    ] {
        fs::write(path.join(name), namespace("wrong")).unwrap();
    }
    symlink("..", path.join("sub/loop")).unwrap();
    let (_, snapshot) = open(path);
    assert_eq!(
        snapshot.counts,
        BTreeMap::from([("Namespace".to_owned(), 3)])
    );
    assert_eq!(snapshot.diagnostics, []);
}

#[test]
fn a_missing_directory_is_named_in_the_error() {
    let error = DirectorySource::open("/nonexistent/config", Settings::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read the configuration directory /nonexistent/config: ")
    );
    assert!(
        error
            .to_string()
            .ends_with("; check that it exists and may be read")
    );
}

#[test]
fn files_that_are_too_large_or_no_text_are_reported() {
    let directory = TempDir::new().unwrap();
    fs::write(
        directory.path().join("large.yaml"),
        vec![b'#'; MAX_FILE_BYTES as usize + 1],
    )
    .unwrap();
    fs::write(directory.path().join("binary.yaml"), b"a: \xff\n").unwrap();
    fs::write(directory.path().join("good.yaml"), namespace("good")).unwrap();
    let (_, snapshot) = open(directory.path());
    let messages: Vec<String> = snapshot
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        messages,
        [
            "binary.yaml: not text: byte 3 is not UTF-8; save the file as UTF-8",
            "large.yaml: not read: larger than 8 MiB; split it into several files",
        ]
    );
    assert_eq!(snapshot.counts.len(), 1);
}

#[tokio::test]
async fn follows_files_that_are_made_written_renamed_and_removed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut source, first) = open(path);
    assert_eq!(first.builder.services, []);

    fs::write(path.join("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(port(&next(&mut source).await), 1);

    fs::write(path.join("a.yaml"), service("a", 2)).unwrap();
    assert_eq!(port(&next(&mut source).await), 2);

    fs::write(path.join(".a.yaml.tmp"), service("a", 3)).unwrap();
    fs::rename(path.join(".a.yaml.tmp"), path.join("a.yaml")).unwrap();
    assert_eq!(port(&next(&mut source).await), 3);

    fs::create_dir_all(path.join("sub/sub")).unwrap();
    fs::write(path.join("sub/sub/b.yaml"), namespace("b")).unwrap();
    assert_eq!(next(&mut source).await.counts.len(), 2);

    fs::write(
        path.join("sub/sub/b.yaml"),
        format!("{}---\n{}", namespace("b"), namespace("c")),
    )
    .unwrap();
    assert_eq!(next(&mut source).await.counts["Namespace"], 2);

    fs::remove_file(path.join("a.yaml")).unwrap();
    assert_eq!(next(&mut source).await.builder.services, []);
}

#[tokio::test]
async fn follows_the_link_of_a_mounted_config_map() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    for (version, port) in [("..v1", 1), ("..v2", 2)] {
        fs::create_dir(path.join(version)).unwrap();
        fs::write(path.join(version).join("a.yaml"), service("a", port)).unwrap();
    }
    symlink("..v1", path.join("..data")).unwrap();
    symlink("..data/a.yaml", path.join("a.yaml")).unwrap();
    let (mut source, first) = open(path);
    assert_eq!(port(&first), 1);
    assert_eq!(first.diagnostics, []);

    symlink("..v2", path.join("..data_tmp")).unwrap();
    fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    fs::remove_dir_all(path.join("..v1")).unwrap();
    assert_eq!(port(&next(&mut source).await), 2);
}

#[tokio::test]
async fn follows_a_directory_that_is_itself_a_link() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    for (version, port) in [("v1", 1), ("v2", 2)] {
        fs::create_dir(path.join(version)).unwrap();
        fs::write(path.join(version).join("a.yaml"), service("a", port)).unwrap();
    }
    symlink("v1", path.join("current")).unwrap();
    let (mut source, first) = open(&path.join("current"));
    assert_eq!(port(&first), 1);

    symlink("v2", path.join("next")).unwrap();
    fs::rename(path.join("next"), path.join("current")).unwrap();
    assert_eq!(port(&next(&mut source).await), 2);

    fs::write(path.join("v2/a.yaml"), service("a", 3)).unwrap();
    assert_eq!(port(&next(&mut source).await), 3);
}

#[tokio::test]
async fn follows_files_that_are_linked_from_elsewhere() {
    let elsewhere = TempDir::new().unwrap();
    let directory = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("real.yaml"), service("a", 1)).unwrap();
    symlink(
        elsewhere.path().join("real.yaml"),
        directory.path().join("a.yaml"),
    )
    .unwrap();
    let (mut source, first) = open(directory.path());
    assert_eq!(port(&first), 1);
    fs::write(elsewhere.path().join("real.yaml"), service("a", 2)).unwrap();
    assert_eq!(port(&next(&mut source).await), 2);
}

#[tokio::test]
async fn a_file_that_goes_bad_keeps_its_objects_until_it_is_good_again() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, service("a", 1)).unwrap();
    let (mut source, _) = open(directory.path());

    fs::write(&file, "kind: [").unwrap();
    let bad = next(&mut source).await;
    assert_eq!(port(&bad), 1);
    assert_eq!(bad.diagnostics.len(), 2);

    fs::write(&file, service("a", 2)).unwrap();
    let good = next(&mut source).await;
    assert_eq!(port(&good), 2);
    assert_eq!(good.diagnostics, []);
}

#[tokio::test]
async fn a_directory_that_vanishes_is_an_error_and_is_taken_up_when_it_is_back() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("config");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 1)).unwrap();
    let (mut source, _) = open(&path);

    fs::rename(&path, parent.path().join("away")).unwrap();
    let error = timeout(PATIENCE, source.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Directory { .. }), "{error}");

    fs::create_dir(parent.path().join("new")).unwrap();
    fs::write(parent.path().join("new/a.yaml"), service("a", 2)).unwrap();
    fs::rename(parent.path().join("new"), &path).unwrap();
    assert_eq!(port(&next(&mut source).await), 2);
}

#[tokio::test]
async fn nothing_is_lost_when_waiting_is_given_up() {
    let directory = TempDir::new().unwrap();
    let (mut source, _) = open(directory.path());
    fs::write(directory.path().join("a.yaml"), service("a", 1)).unwrap();
    // Gives up in each of the stages: before the event, in the burst, while reading.
    let mut snapshot = None;
    for wait in (0..).map(|round| Duration::from_millis(20 * round)) {
        if let Ok(found) = timeout(wait, source.next()).await {
            snapshot = Some(found.unwrap());
            break;
        }
    }
    assert_eq!(port(&snapshot.unwrap()), 1);
}

#[tokio::test]
async fn changes_without_effect_are_not_announced() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), service("a", 1)).unwrap();
    let (mut source, _) = open(directory.path());
    fs::write(directory.path().join("notes.txt"), "x").unwrap();
    fs::write(directory.path().join("a.yaml"), service("a", 1)).unwrap();
    let quiet = timeout(Duration::from_millis(700), source.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    fs::write(directory.path().join("a.yaml"), service("a", 2)).unwrap();
    assert_eq!(port(&next(&mut source).await), 2);
}
