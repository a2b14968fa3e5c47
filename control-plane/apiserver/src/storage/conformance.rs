//! The laws of [`Storage`] as tests that run over every engine: [`suite!`] makes one test of each law.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;

use super::{
    Change, Range, Revision, Storage, StorageError, Stored, VALUE_BYTES_MAX, WatchItem, WatchStream,
};

/// Tests of all laws for an engine; `$make` is an async expression that gives an empty store and what keeps it alive.
macro_rules! suite {
    ($make:expr, $($law:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $law() {
                let (store, _guard) = $make.await;
                crate::storage::conformance::$law(store).await;
            }
        )+
    };
    ($make:expr) => {
        crate::storage::conformance::suite!(
            $make,
            revisions_grow_with_every_write,
            creating_a_key_that_is_there_fails_and_changes_nothing,
            updates_and_deletions_need_the_expected_revision,
            a_list_is_ordered_and_pages_add_up,
            a_scan_yields_what_a_list_does,
            reading_in_the_past_shows_exactly_that_state,
            reading_the_future_fails,
            compaction_ends_reading_the_past_and_keeps_the_present,
            a_watch_delivers_history_and_what_follows_with_the_versions_before,
            a_watch_sees_only_its_prefix,
            a_watch_from_a_compacted_revision_fails,
            watches_begun_amid_writes_miss_nothing,
            of_concurrent_creations_one_succeeds,
            concurrent_increments_are_never_lost,
            values_above_the_limit_are_refused,
            a_list_of_many_megabytes_is_whole,
        );
    };
}
pub(super) use suite;

const PODS: &str = "/registry/core/pods/";
const DEADLINE: Duration = Duration::from_secs(20);

type Store = Arc<dyn Storage>;

fn pod(name: &str) -> String {
    format!("{PODS}{name}")
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn all(prefix: &str) -> Range {
    Range { prefix: prefix.to_owned(), ..Range::default() }
}

async fn contents(store: &Store, at: Option<Revision>) -> BTreeMap<String, (u64, Bytes)> {
    let page = store.list(Range { at, ..all(PODS) }).await.unwrap();
    page.items.into_iter().map(|item| (item.key.to_string(), (item.revision.0, item.value))).collect()
}

/// The next `count` changes of a watch.
pub(super) async fn changes(stream: &mut WatchStream, count: usize) -> Vec<Change> {
    let mut changes = Vec::new();
    let collect = async {
        while changes.len() < count {
            match stream.next().await {
                Some(Ok(WatchItem::Change(change))) => changes.push(change),
                Some(Ok(WatchItem::Progress(_))) => {}
                other => panic!("the watch ended after {} changes: {other:?}", changes.len()),
            }
        }
    };
    assert!(tokio::time::timeout(DEADLINE, collect).await.is_ok(), "the watch is silent");
    changes
}

pub(super) async fn revisions_grow_with_every_write(store: Store) {
    let before = store.revision().await.unwrap();
    assert!(before.0 > 0);
    let created = store.create(&pod("a"), bytes("1")).await.unwrap();
    let updated = store.update(&pod("a"), created, bytes("2")).await.unwrap();
    let other = store.create(&pod("b"), bytes("1")).await.unwrap();
    let deleted = store.delete(&pod("a"), updated).await.unwrap();
    let order = [before, created, updated, other, deleted];
    assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
    assert_eq!(store.revision().await.unwrap(), deleted);
    assert_eq!(store.get(&pod("a")).await.unwrap(), None);
    let stored = Stored { key: pod("b").into(), value: bytes("1"), revision: other };
    assert_eq!(store.get(&pod("b")).await.unwrap(), Some(stored));
}

pub(super) async fn creating_a_key_that_is_there_fails_and_changes_nothing(store: Store) {
    let created = store.create(&pod("a"), bytes("1")).await.unwrap();
    let refused = store.create(&pod("a"), bytes("2")).await;
    assert!(matches!(&refused, Err(StorageError::Exists { key }) if *key == pod("a")), "{refused:?}");
    assert_eq!(store.revision().await.unwrap(), created);
    assert_eq!(store.get(&pod("a")).await.unwrap().unwrap().value, "1");
}

pub(super) async fn updates_and_deletions_need_the_expected_revision(store: Store) {
    let created = store.create(&pod("a"), bytes("1")).await.unwrap();
    let updated = store.update(&pod("a"), created, bytes("2")).await.unwrap();
    let there = Some(Stored { key: pod("a").into(), value: bytes("2"), revision: updated });
    for wrong in [created, Revision(0), Revision(updated.0 + 1)] {
        let refused =
            [store.update(&pod("a"), wrong, bytes("3")).await, store.delete(&pod("a"), wrong).await];
        for refused in refused {
            let Err(StorageError::Conflict { current, .. }) = refused else { panic!("{refused:?}") };
            // An expectation that no version can have may be refused without a look.
            assert!(current == there || (wrong.0 == 0 && current.is_none()), "{current:?}");
        }
    }
    assert_eq!(store.revision().await.unwrap(), updated);
    for expected in [Revision(0), updated] {
        let absent = store.update(&pod("none"), expected, bytes("1")).await;
        assert!(matches!(absent, Err(StorageError::Conflict { current: None, .. })), "{absent:?}");
        let absent = store.delete(&pod("none"), expected).await;
        assert!(matches!(absent, Err(StorageError::Conflict { current: None, .. })), "{absent:?}");
    }
    store.delete(&pod("a"), updated).await.unwrap();
    let again = store.create(&pod("a"), bytes("4")).await.unwrap();
    assert!(again > updated);
}

pub(super) async fn a_list_is_ordered_and_pages_add_up(store: Store) {
    let names = ["ns/c", "ns/a", "ns2/a", "ns/b", "ns/a0"];
    for name in names {
        store.create(&pod(name), bytes(name)).await.unwrap();
    }
    store.create("/registry/core/podsx/ns/a", bytes("x")).await.unwrap();
    store.create("/registry/core/pod/ns/a", bytes("x")).await.unwrap();
    let revision = store.revision().await.unwrap();
    let mut start = None;
    let mut seen = Vec::new();
    for remaining in [3, 1, 0] {
        let page = store.list(Range { start, limit: Some(2), ..all(PODS) }).await.unwrap();
        assert_eq!((page.revision, page.remaining), (revision, remaining));
        start = page.items.last().map(|item| format!("{}\0", item.key));
        seen.extend(page.items.into_iter().map(|item| item.key.to_string()));
    }
    assert_eq!(seen, ["ns/a", "ns/a0", "ns/b", "ns/c", "ns2/a"].map(pod));
    let namespace = store.list(all(&pod("ns/"))).await.unwrap();
    assert_eq!((namespace.items.len(), namespace.remaining), (4, 0));
    assert!(store.list(all("/registry/none/")).await.unwrap().items.is_empty());
}

pub(super) async fn a_scan_yields_what_a_list_does(store: Store) {
    let empty = store.scan(PODS).await.unwrap();
    assert_eq!(empty.revision, store.revision().await.unwrap());
    assert_eq!(empty.batches.collect::<Vec<_>>().await.len(), 0);
    let writes = (0..1100).map(|index| {
        let store = store.clone();
        async move { store.create(&pod(&format!("p{index:04}")), bytes(&"x".repeat(600))).await.unwrap() }
    });
    futures::stream::iter(writes).buffer_unordered(64).collect::<Vec<_>>().await;
    store.create("/registry/core/podsx/ns/a", bytes("x")).await.unwrap();
    let page = store.list(all(PODS)).await.unwrap();
    let scan = store.scan(PODS).await.unwrap();
    assert_eq!(scan.revision, page.revision);
    // What is written while it goes on is not in it.
    let key = pod("p0000");
    let first = store.get(&key).await.unwrap().unwrap().revision;
    store.update(&key, first, bytes("newer")).await.unwrap();
    store.create(&pod("p9999"), bytes("newer")).await.unwrap();
    let batches: Vec<Vec<Stored>> = scan.batches.map(Result::unwrap).collect().await;
    assert!(batches.len() > 1 && batches.iter().all(|batch| !batch.is_empty()), "{} batches", batches.len());
    assert!(batches.concat() == page.items);
    // One that nobody finishes ends.
    drop(store.scan(PODS).await.unwrap());
    assert_eq!(store.list(all(PODS)).await.unwrap().items.len(), 1101);
}

pub(super) async fn reading_in_the_past_shows_exactly_that_state(store: Store) {
    let mut states = vec![(store.revision().await.unwrap(), BTreeMap::new())];
    let mut model: BTreeMap<String, (u64, Bytes)> = BTreeMap::new();
    for step in 0..30u32 {
        let key = pod(&format!("p{}", step % 7));
        let value = bytes(&step.to_string());
        let revision = match model.get(&key) {
            None => store.create(&key, value.clone()).await.unwrap(),
            Some((at, _)) if step % 3 == 0 => {
                let revision = store.delete(&key, Revision(*at)).await.unwrap();
                model.remove(&key);
                states.push((revision, model.clone()));
                continue;
            }
            Some((at, _)) => store.update(&key, Revision(*at), value.clone()).await.unwrap(),
        };
        model.insert(key, (revision.0, value));
        states.push((revision, model.clone()));
    }
    for (revision, state) in &states {
        assert_eq!(&contents(&store, Some(*revision)).await, state, "at {revision:?}");
    }
    let (revision, state) = &states[states.len() / 2];
    let keys: Vec<_> = state.keys().cloned().collect();
    let range = Range { at: Some(*revision), start: Some(keys[1].clone()), limit: Some(1), ..all(PODS) };
    let page = store.list(range).await.unwrap();
    assert_eq!(page.items[0].key.as_ref(), keys[1]);
    assert_eq!((page.revision, page.remaining), (*revision, keys.len() as u64 - 2));
}

pub(super) async fn reading_the_future_fails(store: Store) {
    let revision = store.create(&pod("a"), bytes("1")).await.unwrap();
    let requested = Revision(revision.0 + 5);
    let refused = store.list(Range { at: Some(requested), ..all(PODS) }).await;
    let Err(StorageError::Future { requested: told, current }) = refused else { panic!("{refused:?}") };
    assert_eq!((told, current), (requested, revision));
    let refused = store.compact(requested).await;
    assert!(matches!(refused, Err(StorageError::Future { .. })), "{refused:?}");
}

pub(super) async fn compaction_ends_reading_the_past_and_keeps_the_present(store: Store) {
    let first = store.create(&pod("a"), bytes("1")).await.unwrap();
    let second = store.update(&pod("a"), first, bytes("2")).await.unwrap();
    let third = store.create(&pod("b"), bytes("3")).await.unwrap();
    store.compact(second).await.unwrap();
    // A second time, as another server would.
    store.compact(second).await.unwrap();
    let refused = store.list(Range { at: Some(first), ..all(PODS) }).await;
    let Err(StorageError::Compacted { requested, oldest }) = refused else { panic!("{refused:?}") };
    assert_eq!((requested, oldest), (first, second));
    assert_eq!(contents(&store, Some(second)).await.len(), 1);
    assert_eq!(contents(&store, Some(third)).await.len(), 2);
    assert_eq!(contents(&store, None).await[&pod("a")], (second.0, bytes("2")));
}

pub(super) async fn a_watch_delivers_history_and_what_follows_with_the_versions_before(store: Store) {
    let begin = store.revision().await.unwrap();
    let created = store.create(&pod("a"), bytes("1")).await.unwrap();
    let updated = store.update(&pod("a"), created, bytes("2")).await.unwrap();
    let mut from_begin = store.watch(PODS, begin).await.unwrap();
    let mut from_created = store.watch(PODS, created).await.unwrap();
    let deleted = store.delete(&pod("a"), updated).await.unwrap();
    let again = store.create(&pod("a"), bytes("3")).await.unwrap();
    let version = |value: &str, revision| Stored { key: pod("a").into(), value: bytes(value), revision };
    let change = |revision, value: Option<&str>, previous| Change {
        key: pod("a").into(),
        revision,
        value: value.map(bytes),
        previous,
    };
    let expected = [
        change(created, Some("1"), None),
        change(updated, Some("2"), Some(version("1", created))),
        change(deleted, None, Some(version("2", updated))),
        change(again, Some("3"), None),
    ];
    assert_eq!(changes(&mut from_begin, 4).await, expected);
    assert_eq!(changes(&mut from_created, 3).await, expected[1..]);
}

pub(super) async fn a_watch_sees_only_its_prefix(store: Store) {
    let begin = store.revision().await.unwrap();
    let mut stream = store.watch(&pod("ns/"), begin).await.unwrap();
    for key in [pod("ns2/a"), pod("n"), "/registry/core/podsx/ns/a".to_owned(), pod("ns/a")] {
        store.create(&key, bytes("1")).await.unwrap();
    }
    let seen = changes(&mut stream, 1).await;
    assert_eq!(seen[0].key.as_ref(), pod("ns/a"));
}

pub(super) async fn a_watch_from_a_compacted_revision_fails(store: Store) {
    let first = store.create(&pod("a"), bytes("1")).await.unwrap();
    let second = store.update(&pod("a"), first, bytes("2")).await.unwrap();
    let third = store.update(&pod("a"), second, bytes("3")).await.unwrap();
    store.compact(second).await.unwrap();
    for requested in [Revision(0), Revision(1), first] {
        let refused = store.watch(PODS, requested).await.map(drop);
        let Err(StorageError::Compacted { oldest, .. }) = refused else {
            panic!("{requested:?}: {refused:?}")
        };
        assert_eq!(oldest, second);
    }
    let mut stream = store.watch(PODS, second).await.unwrap();
    assert_eq!(changes(&mut stream, 1).await[0].revision, third);
}

pub(super) async fn watches_begun_amid_writes_miss_nothing(store: Store) {
    const WRITES: usize = 120;
    let begin = store.revision().await.unwrap();
    let mut writers = Vec::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for step in 0..WRITES / 4 {
                store.create(&pod(&format!("w{writer}-{step:03}")), bytes("1")).await.unwrap();
            }
        }));
    }
    let mut streams = Vec::new();
    let mut after = begin;
    while writers.iter().any(|writer| !writer.is_finished()) {
        streams.push((after, store.watch(PODS, after).await.unwrap()));
        after = store.revision().await.unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut stream = store.watch(PODS, begin).await.unwrap();
    let whole: Vec<_> =
        changes(&mut stream, WRITES).await.into_iter().map(|change| change.revision).collect();
    assert!(whole.is_sorted_by(|a, b| a < b));
    assert!(streams.len() > 1);
    for (after, mut stream) in streams {
        let expected: Vec<_> = whole.iter().copied().filter(|revision| *revision > after).collect();
        let seen: Vec<_> =
            changes(&mut stream, expected.len()).await.into_iter().map(|change| change.revision).collect();
        assert_eq!(seen, expected, "after {after:?}");
    }
}

pub(super) async fn of_concurrent_creations_one_succeeds(store: Store) {
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move { store.create(&pod("a"), bytes(&task.to_string())).await })
        })
        .collect();
    let mut created = Vec::new();
    for (task, outcome) in futures::future::join_all(tasks).await.into_iter().enumerate() {
        match outcome.unwrap() {
            Ok(revision) => created.push((task, revision)),
            Err(error) => assert!(matches!(error, StorageError::Exists { .. }), "{error:?}"),
        }
    }
    let [(task, revision)] = created[..] else { panic!("{created:?}") };
    let stored = store.get(&pod("a")).await.unwrap().unwrap();
    assert_eq!((stored.value, stored.revision), (bytes(&task.to_string()), revision));
}

pub(super) async fn concurrent_increments_are_never_lost(store: Store) {
    const TASKS: u32 = 6;
    const STEPS: u32 = 20;
    store.create(&pod("counter"), bytes("0")).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut stored = store.get(&pod("counter")).await.unwrap().unwrap();
                for _ in 0..STEPS {
                    loop {
                        let count: u32 = std::str::from_utf8(&stored.value).unwrap().parse().unwrap();
                        let next = bytes(&(count + 1).to_string());
                        match store.update(&pod("counter"), stored.revision, next.clone()).await {
                            Ok(revision) => {
                                stored = Stored { key: stored.key, value: next, revision };
                                break;
                            }
                            Err(StorageError::Conflict { current: Some(current), .. }) => stored = current,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let stored = store.get(&pod("counter")).await.unwrap().unwrap();
    assert_eq!(stored.value, (TASKS * STEPS).to_string());
}

pub(super) async fn values_above_the_limit_are_refused(store: Store) {
    let largest = Bytes::from(vec![b'x'; VALUE_BYTES_MAX]);
    let created = store.create(&pod("a"), largest.clone()).await.unwrap();
    let above = Bytes::from(vec![b'x'; VALUE_BYTES_MAX + 1]);
    let refused =
        [store.create(&pod("b"), above.clone()).await, store.update(&pod("a"), created, above).await];
    for refused in refused {
        assert!(matches!(refused, Err(StorageError::TooLarge { .. })), "{refused:?}");
    }
    assert_eq!(store.get(&pod("a")).await.unwrap().unwrap().value, largest);
}

pub(super) async fn a_list_of_many_megabytes_is_whole(store: Store) {
    let value = Bytes::from(vec![b'y'; 400_000]);
    for index in 0..20 {
        store.create(&pod(&format!("big-{index:02}")), value.clone()).await.unwrap();
    }
    let page = store.list(all(PODS)).await.unwrap();
    assert_eq!((page.items.len(), page.remaining), (20, 0));
    assert!(page.items.iter().all(|item| item.value == value));
}
