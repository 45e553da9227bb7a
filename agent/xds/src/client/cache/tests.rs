//! Tests of the cache: what is kept is found again, and nothing else is ever taken for it.
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::client::{
    batch::Batch,
    fixture::{addresses, of_policy, of_workload, policies, policy, workload},
    options::Subscription,
    session::Session,
};

fn saved(workloads: usize) -> Saved {
    let mut session = Session::new(Node::default(), "".into(), Subscription::OnDemand);
    let resources = (0..workloads).map(|number| {
        let wire = workload(&number.to_string(), [10, 0, 0, 1]);
        of_workload("7", wire)
    });
    for response in [
        addresses("n", resources.collect()),
        policies("n", vec![of_policy(policy("deny"))]),
    ] {
        let mut decoder = crate::decode::Decoder::new("".into());
        session.apply(Batch::decode(response, &mut decoder));
    }
    Saved {
        cluster: "east".into(),
        asked: vec!["/10.0.0.1".into()],
        resources: session.held().into(),
    }
}

#[test]
fn a_state_is_found_again_for_its_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub/state");
    assert_eq!(read(&path, "east").unwrap(), None);
    for workloads in [600, 3] {
        write(&path, &saved(workloads)).unwrap();
        let loaded = read(&path, "east").unwrap().unwrap();
        assert_eq!(loaded.asked, ["/10.0.0.1"]);
        let kept: usize = loaded.responses.iter().map(|it| it.resources.len()).sum();
        assert_eq!(kept, workloads + 1);
    }
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, FILE_MODE);
    let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1);
}

#[test]
fn what_a_crash_left_behind_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    fs::write(path.with_extension("tmp"), "half").unwrap();
    write(&path, &saved(1)).unwrap();
    assert!(read(&path, "east").unwrap().is_some());
}

#[test]
fn the_state_of_another_cluster_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    write(&path, &saved(1)).unwrap();
    let error = read(&path, "west").unwrap_err();
    assert!(matches!(error, CacheError::Cluster { .. }), "{error}");
}

#[test]
fn a_file_that_others_can_write_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    write(&path, &saved(1)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
    let error = read(&path, "east").unwrap_err();
    assert!(
        matches!(error, CacheError::Exposed { mode: 0o622, .. }),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let blocked = directory.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error = write(&blocked.join("state"), &saved(1)).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_file_is_told_from_a_whole_one(
        place in any::<prop::sample::Index>(),
        flipped in 1..=255u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let whole = encode(&saved(2));
        let mut changed = whole.clone();
        changed[place.index(whole.len())] ^= flipped;
        let mut longer = whole.clone();
        longer.push(flipped);
        for content in [&changed, &whole[..cut.index(whole.len())].to_vec(), &longer] {
            fs::write(&path, content).unwrap();
            let damaged = matches!(read(&path, "east"), Err(CacheError::Damaged { .. }));
            prop_assert!(damaged);
        }
    }

    #[test]
    fn no_bytes_behind_a_good_header_do_harm(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut content = MAGIC.to_vec();
        content.extend((payload.len() as u64).to_be_bytes());
        content.extend(xxh64(&payload, 0).to_be_bytes());
        content.extend(payload);
        fs::write(&path, content).unwrap();
        let none = !matches!(read(&path, "east"), Ok(Some(_)));
        prop_assert!(none);
    }
}
