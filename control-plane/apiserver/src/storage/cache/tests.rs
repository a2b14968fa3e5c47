use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use futures::StreamExt;
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::watch as latest;

use super::*;
use crate::storage::{Change, Page, Scan, Stored, WatchStream, embedded::Embedded, etcd::tests::EtcdProcess};

const PODS: &str = "/registry/core/pods/";
const DEADLINE: Duration = Duration::from_secs(20);

fn pod_key(name: &str) -> String {
    keys::object_key("", "pods", Some("default"), name)
}

fn pod(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": { "l": label } },
    })
}

fn embedded(folder: &Path) -> Arc<Embedded> {
    Arc::new(Embedded::open(folder.join("store.redb")).unwrap())
}

async fn empty() -> (Arc<Cache>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Cache::start(embedded(folder.path())).await.unwrap(), folder)
}

/// Waits until the tasks that hold the store have ended with the cache, then gives the folder's store anew.
async fn reopened(cache: Arc<Cache>, folder: &Path) -> Arc<Cache> {
    drop(cache);
    let deadline = Instant::now() + DEADLINE;
    let store = loop {
        match Embedded::open(folder.join("store.redb")) {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    Cache::start(Arc::new(store)).await.unwrap()
}

async fn next_event(watch: &mut Watch) -> Arc<Event> {
    match tokio::time::timeout(DEADLINE, watch.next()).await.expect("the watch is silent").unwrap().unwrap() {
        Delivery::Event(event) => event,
        Delivery::Bookmark(revision) => panic!("bookmark {revision:?} instead of an event"),
    }
}

fn version(object: &Object) -> String {
    object.value()["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_writer_reads_its_own_writes() {
    let (cache, _folder) = empty().await;
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    assert!(Arc::ptr_eq(&made, &cache.get(&pod_key("a")).unwrap()));
    assert_eq!(version(&made), made.revision().0.to_string());
    let changed = cache.update(&pod_key("a"), made.revision(), pod("a", "2")).await.unwrap();
    let snapshot = cache.list(PODS);
    assert_eq!(snapshot.iter().map(|object| object.meta().label("l")).collect::<Vec<_>>(), [Some("2")]);
    assert_eq!(snapshot.revision, changed.revision());
    let deleted = cache.delete(&pod_key("a"), changed.revision()).await.unwrap();
    assert!(cache.get(&pod_key("a")).is_none());
    assert!(cache.list(PODS).is_empty() && cache.list(PODS).revision >= deleted);
    assert_eq!(snapshot.len(), 1, "a snapshot stays as it was");
}

#[tokio::test]
async fn the_resource_version_that_a_client_sends_is_not_stored() {
    let (cache, _folder) = empty().await;
    let mut value = pod("a", "1");
    value["metadata"]["resourceVersion"] = json!("12345");
    let made = cache.create(&pod_key("a"), value).await.unwrap();
    let stored = cache.storage().get(&pod_key("a")).await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&stored.value).unwrap(), pod("a", "1"));
    assert_eq!(version(&made), stored.revision.0.to_string());
}

#[tokio::test]
async fn writing_what_is_there_changes_nothing() {
    let (cache, _folder) = empty().await;
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let mut same = pod("a", "1");
    same["metadata"]["resourceVersion"] = json!(version(&made));
    let again = cache.update(&pod_key("a"), made.revision(), same).await.unwrap();
    assert_eq!(again.revision(), made.revision());
    assert_eq!(cache.storage().revision().await.unwrap(), made.revision());
}

#[tokio::test]
async fn after_a_conflict_the_cache_shows_what_was_in_the_way() {
    let (cache, _folder) = empty().await;
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let encoded = serde_json::to_vec(&pod("a", "2")).unwrap();
    let other = cache.storage().update(&pod_key("a"), made.revision(), encoded.into()).await.unwrap();
    let refused = cache.update(&pod_key("a"), made.revision(), pod("a", "3")).await.unwrap_err();
    assert!(matches!(refused, StorageError::Conflict { .. }), "{refused}");
    assert_eq!(cache.get(&pod_key("a")).unwrap().revision(), other);
    assert!(matches!(cache.create(&pod_key("a"), pod("a", "1")).await, Err(StorageError::Exists { .. })));
}

#[tokio::test]
async fn a_value_without_metadata_is_refused() {
    let (cache, _folder) = empty().await;
    assert!(matches!(cache.create(&pod_key("a"), json!({})).await, Err(StorageError::Damaged { .. })));
}

#[tokio::test]
async fn a_watch_tells_additions_changes_and_deletions_with_the_versions_before() {
    let (cache, _folder) = empty().await;
    let mut live = cache.watch(PODS, None).unwrap();
    let begin = cache.revision();
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let changed = cache.update(&pod_key("a"), made.revision(), pod("a", "2")).await.unwrap();
    cache.create("/registry/core/services/default/a", pod("a", "1")).await.unwrap();
    let deleted = cache.delete(&pod_key("a"), changed.revision()).await.unwrap();
    let mut resumed = cache.watch(PODS, Some(begin)).unwrap();
    for watch in [&mut live, &mut resumed] {
        let added = next_event(watch).await;
        assert_eq!((added.kind, added.revision), (EventKind::Added, made.revision()));
        assert!(added.previous.is_none());
        let modified = next_event(watch).await;
        assert_eq!((modified.kind, modified.revision), (EventKind::Modified, changed.revision()));
        assert_eq!(modified.previous.as_ref().unwrap().meta().label("l"), Some("1"));
        let gone = next_event(watch).await;
        assert_eq!((gone.kind, gone.revision), (EventKind::Deleted, deleted));
        assert_eq!(version(&gone.object), deleted.0.to_string());
        assert_eq!(gone.object.meta().label("l"), Some("2"));
        assert_eq!(version(gone.previous.as_ref().unwrap()), changed.revision().0.to_string());
    }
    let mut from_made = cache.watch(PODS, Some(made.revision())).unwrap();
    assert_eq!(next_event(&mut from_made).await.revision, changed.revision());
}

#[tokio::test]
async fn watchers_share_one_encoding() {
    let (cache, _folder) = empty().await;
    let mut watches = [cache.watch(PODS, None).unwrap(), cache.watch(PODS, None).unwrap()];
    cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let [one, two] = &mut watches;
    assert!(Arc::ptr_eq(&next_event(one).await, &next_event(two).await));
}

#[tokio::test]
async fn a_watch_of_a_namespace_sees_only_that() {
    let (cache, _folder) = empty().await;
    let mut watch = cache.watch(&keys::list_prefix("", "pods", Some("default")), None).unwrap();
    cache.create(&keys::object_key("", "pods", Some("default2"), "x"), pod("x", "1")).await.unwrap();
    cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    assert_eq!(next_event(&mut watch).await.object.meta().name, "a");
}

#[tokio::test]
async fn bookmarks_come_after_what_they_speak_of() {
    let (cache, _folder) = empty().await;
    let mut watch = cache.watch(PODS, None).unwrap().with_bookmarks_every(Duration::from_millis(5));
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let other = cache.create("/registry/core/services/default/a", pod("a", "1")).await.unwrap();
    let mut seen = false;
    let reached = async {
        loop {
            match watch.next().await.unwrap().unwrap() {
                Delivery::Event(event) => {
                    assert_eq!(event.revision, made.revision());
                    seen = true;
                }
                Delivery::Bookmark(revision) => {
                    assert!(seen || revision < made.revision());
                    if revision >= other.revision() {
                        break;
                    }
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, reached).await.unwrap();
    assert!(matches!(watch.event_or_bookmark(), Ok(Delivery::Bookmark(at)) if at >= other.revision()));
}

#[tokio::test]
async fn a_revision_to_come_is_waited_for_and_then_refused() {
    let (cache, _folder) = empty().await;
    let ahead = Revision(cache.revision().0 + 1);
    let refused = cache.wait_for(ahead, Duration::from_millis(1)).await;
    assert!(
        matches!(refused, Err(StorageError::Future { requested, .. }) if requested == ahead),
        "{refused:?}"
    );
    let waiting = cache.clone();
    let waiting = tokio::spawn(async move { waiting.wait_for(ahead, DEADLINE).await });
    cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_past_can_be_listed_from_memory_and_after_a_restart() {
    let (cache, folder) = empty().await;
    let mut states = vec![(cache.revision(), Vec::new())];
    let a = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    states.push((a.revision(), vec![(pod_key("a"), version(&a))]));
    let b = cache.create(&pod_key("b"), pod("b", "1")).await.unwrap();
    states.push((b.revision(), vec![(pod_key("a"), version(&a)), (pod_key("b"), version(&b))]));
    let c = cache.update(&pod_key("a"), a.revision(), pod("a", "2")).await.unwrap();
    states.push((c.revision(), vec![(pod_key("a"), version(&c)), (pod_key("b"), version(&b))]));
    let deleted = cache.delete(&pod_key("a"), c.revision()).await.unwrap();
    states.push((deleted, vec![(pod_key("b"), version(&b))]));
    let check = async |cache: &Cache| {
        for (revision, expected) in &states {
            let snapshot = cache.list_at(PODS, *revision).await.unwrap();
            let seen: Vec<_> =
                snapshot.iter().map(|object| (object.key().to_string(), version(object))).collect();
            assert_eq!((&seen, snapshot.revision), (expected, *revision));
        }
    };
    check(&cache).await;
    let cache = reopened(cache, folder.path()).await;
    check(&cache).await;
    let mut watch = cache.resume(PODS, states[0].0).await.unwrap();
    let mut events = Vec::new();
    for revision in [a.revision(), b.revision(), c.revision(), deleted] {
        let event = next_event(&mut watch).await;
        assert_eq!(event.revision, revision);
        events.push(event);
    }
    let [made, _, changed, gone] = &events[..] else { panic!("four events") };
    for (before, event) in [(made, changed), (changed, gone)] {
        let previous = event.previous.as_ref().unwrap();
        assert!(Arc::ptr_eq(&before.object, previous), "a version is held once");
    }
    let compact_at = b.revision();
    cache.storage().compact(compact_at).await.unwrap();
    let cache = reopened(cache, folder.path()).await;
    let refused = cache.resume(PODS, a.revision()).await.map(drop);
    assert!(
        matches!(refused, Err(StorageError::Compacted { oldest, .. }) if oldest == compact_at),
        "{refused:?}"
    );
    assert!(matches!(cache.list_at(PODS, a.revision()).await, Err(StorageError::Compacted { .. })));
    assert_eq!(cache.list_at(PODS, c.revision()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_follower_is_current_when_it_is_asked() {
    let (cache, _folder) = empty().await;
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let mut follower = Follower::new(cache.clone(), PODS.to_owned());
    let mut known = BTreeMap::new();
    let mut resets = 0;
    let mut take = |step| match step {
        Step::Reset(snapshot) => {
            resets += 1;
            known = snapshot.iter().map(|object| (object.meta().name.clone(), object.revision())).collect();
        }
        Step::Event(event) if event.is_deletion() => drop(known.remove(&event.object.meta().name)),
        Step::Event(event) => drop(known.insert(event.object.meta().name.clone(), event.revision)),
    };
    follower.catch_up(&mut take);
    let other = cache.create(&pod_key("b"), pod("b", "1")).await.unwrap();
    cache.delete(&pod_key("a"), made.revision()).await.unwrap();
    follower.catch_up(&mut take);
    follower.catch_up(&mut take);
    assert_eq!(known, BTreeMap::from([("b".to_owned(), other.revision())]));
    assert_eq!(resets, 1);
}

/// Events of one pod at revisions `from..until`.
fn events(from: u64, until: u64) -> impl Iterator<Item = Arc<Event>> {
    let object = |revision| {
        let stored = serde_json::to_vec(&pod("a", "1")).unwrap();
        Arc::new(Object::new(pod_key("a").into(), Revision(revision), &stored).unwrap())
    };
    (from..until).map(move |revision| {
        let previous = (revision > from).then(|| object(revision - 1));
        let (kind, object, revision) = (EventKind::Modified, object(revision), Revision(revision));
        Arc::new(Event { kind, object, previous, revision })
    })
}

#[test]
fn history_is_kept_for_a_while_and_a_start_before_it_is_refused() {
    let resource = Resource::new(PODS, Revision(1));
    let begin = Instant::now();
    for event in events(2, 1000) {
        let at = begin + Duration::from_millis(event.revision.0 * 10);
        resource.apply(&[event], at);
    }
    assert_eq!(resource.watch(PODS, Some(Revision(1))).unwrap().0.len(), 998, "all is younger than 75 s");
    for event in events(1000, 1010) {
        resource.apply(&[event], begin + Duration::from_secs(400));
    }
    let refused = resource.watch(PODS, Some(Revision(1))).map(drop);
    let Err(StorageError::Compacted { oldest, .. }) = refused else { panic!("{refused:?}") };
    assert!(oldest > Revision(1) && oldest < Revision(1000));
    assert!(resource.watch(PODS, Some(Revision(oldest.0 - 1))).is_err());
    assert_eq!(resource.watch(PODS, Some(oldest)).unwrap().0.len() as u64, 1009 - oldest.0);
}

#[tokio::test]
async fn changes_that_come_together_are_events_one_after_the_other() {
    let (cache, _folder) = empty().await;
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let mut watch = cache.watch(PODS, Some(made.revision())).unwrap();
    let stored = |label: &str, revision| {
        let value = serde_json::to_vec(&pod("a", label)).unwrap().into();
        Stored { key: pod_key("a").into(), value, revision: Revision(revision) }
    };
    let change = |value: Option<Stored>, previous: Option<Stored>, revision| Change {
        key: pod_key("a").into(),
        revision: Revision(revision),
        value: value.map(|stored| stored.value),
        previous,
    };
    let first = Stored { revision: made.revision(), ..stored("1", 0) };
    let at = made.revision().0;
    let mut groups = feed::Groups::default();
    for change in [
        change(Some(stored("2", at + 1)), Some(first), at + 1),
        change(Some(stored("3", at + 2)), Some(stored("2", at + 1)), at + 2),
        change(None, Some(stored("3", at + 2)), at + 3),
        change(Some(stored("4", at + 4)), None, at + 4),
    ] {
        groups.add(&cache, &change);
    }
    groups.apply();
    let mut last = made;
    for (kind, label) in [
        (EventKind::Modified, "2"),
        (EventKind::Modified, "3"),
        (EventKind::Deleted, "3"),
        (EventKind::Added, "4"),
    ] {
        let event = watch.try_next().unwrap().expect("all are there");
        assert_eq!(
            (event.kind, event.object.value()["metadata"]["labels"]["l"].as_str()),
            (kind, Some(label))
        );
        assert_eq!(event.revision, event.object.revision());
        let previous = (kind != EventKind::Added).then_some(&last);
        let same = event.previous.as_ref().zip(previous).is_none_or(|(one, other)| Arc::ptr_eq(one, other));
        assert!(
            same && event.previous.is_some() == previous.is_some(),
            "{kind:?}: the version before is shared"
        );
        last = Arc::clone(&event.object);
    }
    assert!(watch.try_next().unwrap().is_none());
    assert!(Arc::ptr_eq(&cache.get(&pod_key("a")).unwrap(), &last));
}

#[tokio::test]
async fn a_slow_watcher_is_ended_after_what_it_could_hold() {
    let resource = Resource::new(PODS, Revision(1));
    let (backlog, receiver) = resource.watch(PODS, None).unwrap();
    let most = resource::WATCHER_BACKLOG_MAX as u64;
    for event in events(2, most + 10) {
        resource.apply(&[event], Instant::now());
    }
    let applied = latest::Sender::new(Revision(1)).subscribe();
    let mut watch = Watch { backlog, receiver, applied, after: Revision(1), bookmarks: None, ended: false };
    for revision in 2..most + 2 {
        assert_eq!(next_event(&mut watch).await.revision, Revision(revision));
    }
    assert!(matches!(watch.next().await, Some(Err(StorageError::Lagged))));
    assert!(watch.next().await.is_none());
}

/// A store whose watches can be cut, and whose history can be lost.
struct Flaky {
    store: Arc<Embedded>,
    cut: Mutex<CancellationToken>,
    lost: AtomicBool,
}

#[async_trait]
impl Storage for Flaky {
    async fn revision(&self) -> Result<Revision, StorageError> {
        self.store.revision().await
    }
    async fn get(&self, key: &str) -> Result<Option<Stored>, StorageError> {
        self.store.get(key).await
    }
    async fn list(&self, range: Range) -> Result<Page, StorageError> {
        self.store.list(range).await
    }
    async fn scan(&self, prefix: &str) -> Result<Scan, StorageError> {
        self.store.scan(prefix).await
    }
    async fn create(&self, key: &str, value: Bytes) -> Result<Revision, StorageError> {
        self.store.create(key, value).await
    }
    async fn update(&self, key: &str, expected: Revision, value: Bytes) -> Result<Revision, StorageError> {
        self.store.update(key, expected, value).await
    }
    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision, StorageError> {
        self.store.delete(key, expected).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StorageError> {
        let newest = self.store.revision().await?;
        if self.lost.load(Ordering::SeqCst) && after < newest {
            return Err(StorageError::Compacted { requested: after, oldest: newest });
        }
        let cut = self.cut.lock().unwrap().clone();
        let stream = self.store.watch(prefix, after).await?;
        let end = futures::stream::iter([Err(StorageError::Lagged)]);
        Ok(stream.take_until(cut.cancelled_owned()).chain(end).boxed())
    }
    async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        self.store.compact(revision).await
    }
}

impl Flaky {
    /// Ends all watches, does something that they then miss, and lets them come back.
    async fn cut_while(&self, missed: impl Future<Output = ()>) {
        let old = std::mem::replace(&mut *self.cut.lock().unwrap(), CancellationToken::new());
        missed.await;
        old.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_stores_watch_breaks_the_cache_goes_on_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let cut = Mutex::new(CancellationToken::new());
    let flaky = Arc::new(Flaky { store: embedded(folder.path()), cut, lost: AtomicBool::new(false) });
    let cache = Cache::start(flaky.clone()).await.unwrap();
    let mut watch = cache.watch(PODS, None).unwrap();
    for index in 0..20 {
        flaky.cut_while(async {}).await;
        let name = format!("p{index:02}");
        let made = cache.create(&pod_key(&name), pod(&name, "1")).await.unwrap();
        assert_eq!(next_event(&mut watch).await.revision, made.revision());
    }
    assert_eq!(cache.list(PODS).len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_stores_history_is_lost_the_cache_is_right_and_watchers_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cut = Mutex::new(CancellationToken::new());
    let flaky = Arc::new(Flaky { store: embedded(folder.path()), cut, lost: AtomicBool::new(false) });
    let cache = Cache::start(flaky.clone()).await.unwrap();
    let made = cache.create(&pod_key("a"), pod("a", "1")).await.unwrap();
    let mut watch = cache.watch(PODS, Some(made.revision())).unwrap();
    flaky.lost.store(true, Ordering::SeqCst);
    // The old streams are cut before the writes, so that the feed cannot see them.
    flaky.cut.lock().unwrap().cancel();
    let mut last = made.revision();
    for index in 0..50 {
        let encoded = serde_json::to_vec(&pod("x", "1")).unwrap();
        last = flaky.store.create(&pod_key(&format!("x{index}")), encoded.into()).await.unwrap();
    }
    last = last.max(flaky.store.delete(&pod_key("a"), made.revision()).await.unwrap());
    *flaky.cut.lock().unwrap() = CancellationToken::new();
    cache.wait_for(last, DEADLINE).await.unwrap();
    assert_eq!(cache.list(PODS).len(), 50);
    assert!(cache.get(&pod_key("a")).is_none());
    let end = tokio::time::timeout(DEADLINE, async {
        loop {
            if let Some(Err(error)) = watch.next().await {
                break error;
            }
        }
    });
    assert!(matches!(end.await, Ok(StorageError::Lagged)));
    let refused = cache.watch(PODS, Some(made.revision())).map(drop);
    assert!(matches!(refused, Err(StorageError::Compacted { .. })), "{refused:?}");
    let next = cache.create(&pod_key("n"), pod("n", "1")).await.unwrap();
    assert_eq!(cache.list(PODS).revision, next.revision());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_share_etcd_see_each_others_writes_when_they_ask_for_the_newest() {
    let etcd = EtcdProcess::start();
    let one = Cache::start(Arc::new(etcd.connect().await)).await.unwrap();
    let two = Cache::start(Arc::new(etcd.connect().await)).await.unwrap();
    for index in 0..20 {
        let name = format!("p{index:02}");
        let made = one.create(&pod_key(&name), pod(&name, "1")).await.unwrap();
        assert!(two.fresh().await.unwrap() >= made.revision());
        let seen = two.get(&pod_key(&name)).unwrap();
        assert_eq!(seen.json(), made.json());
        let changed = two.update(&pod_key(&name), seen.revision(), pod(&name, "2")).await.unwrap();
        let stale = one.update(&pod_key(&name), made.revision(), pod(&name, "3")).await;
        assert!(matches!(stale, Err(StorageError::Conflict { .. })), "{stale:?}");
        assert_eq!(one.get(&pod_key(&name)).unwrap().revision(), changed.revision());
    }
    let foreign = etcd_client::Client::connect([&etcd.endpoint], None).await.unwrap();
    foreign.kv_client().put("/elsewhere", "x", None).await.unwrap();
    one.fresh().await.unwrap();
}

/// What a scan finds of a label, and what the index finds.
fn by_label(resource: &Resource, value: &str) -> [Vec<(Arc<str>, Revision)>; 2] {
    let value_of: ValueOf = Arc::new(|object: &Object| object.meta().label("l").map(Box::from));
    let (found, _) = resource.objects_by(&IndexKey::Label("l".to_owned()), value, &value_of);
    let chosen = |objects: ObjectMap| {
        let objects = objects.iter_from("").filter(|object| object.meta().label("l") == Some(value));
        objects.map(|object| (object.key().clone(), object.revision())).collect()
    };
    [chosen(resource.objects().0), chosen(found)]
}

/// The number, and what becomes of the object: a label, no label, or none at all.
fn index_steps() -> impl Strategy<Value = Vec<(u32, Option<Option<u8>>)>> {
    prop::collection::vec(
        (0..300u32, prop::option::weighted(0.7, prop::option::weighted(0.9, 0..5u8))),
        1..400,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn an_index_finds_what_a_scan_finds(steps in index_steps(), built_after in 0..400usize) {
        let resource = Resource::new(PODS, Revision(1));
        let all = (0..300).map(|number| (number, Some(Some((number % 5) as u8))));
        let mut revision = 1;
        for (step, (number, fate)) in all.chain(steps).enumerate() {
            revision += 1;
            let key: Arc<str> = pod_key(&format!("{number:03}")).into();
            let previous = resource.get(&key);
            let event = match (fate, &previous) {
                (None, None) => continue,
                (None, Some(last)) => {
                    let object = Arc::new(last.deleted_at(Revision(revision)));
                    Event { kind: EventKind::Deleted, object, previous, revision: Revision(revision) }
                }
                (Some(label), _) => {
                    let mut value = pod("x", "");
                    value["metadata"]["labels"] = label.map_or(Value::Null, |label| json!({"l": label.to_string()}));
                    let stored = serde_json::to_vec(&value).unwrap();
                    let object = Arc::new(Object::new(key, Revision(revision), &stored).unwrap());
                    Event { kind: EventKind::Modified, object, previous, revision: Revision(revision) }
                }
            };
            resource.apply(&[Arc::new(event)], Instant::now());
            if step >= 300 + built_after || step % 50 == 0 {
                for value in ["0", "1", "4", "9"] {
                    let [scanned, indexed] = by_label(&resource, value);
                    prop_assert_eq!(scanned, indexed, "step {}, value {}", step, value);
                }
            }
        }
        by_label(&resource, "3");
        let [scanned, indexed] = by_label(&resource, "3");
        prop_assert_eq!(scanned, indexed);
        let value_of: ValueOf = Arc::new(|_: &Object| None);
        let (found, _) = resource.objects_by(&IndexKey::Label("l".to_owned()), "3", &value_of);
        prop_assert!(found.len() < 256, "the index is used: {} objects", found.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_object_map_equals_a_tree_map(steps in prop::collection::vec((0..400u32, any::<bool>()), 1..900)) {
        let mut map = ObjectMap::default();
        let mut model = BTreeMap::new();
        let mut snapshots = Vec::new();
        for (step, (key, insert)) in steps.into_iter().enumerate() {
            let key: Arc<str> = format!("{key:03}").into();
            if insert {
                let object = Arc::new(Object::new(key.clone(), Revision(step as u64), b"{\"metadata\":{}}").unwrap());
                let before = map.insert(object.clone());
                prop_assert_eq!(before.map(|object| object.revision()), model.insert(key, object.revision()));
            } else {
                prop_assert_eq!(map.remove(&key).map(|object| object.revision()), model.remove(&key));
            }
            if step % 97 == 0 {
                snapshots.push((map.clone(), model.clone()));
            }
        }
        snapshots.push((map, model));
        for (map, model) in snapshots {
            prop_assert_eq!(map.len(), model.len());
            for start in ["", "000", "123", "399", "4"] {
                let seen: Vec<_> = map.iter_from(start).map(|o| (o.key().clone(), o.revision())).collect();
                let expected = model.range::<str, _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded));
                let expected: Vec<_> = expected.map(|(key, revision)| (key.clone(), *revision)).collect();
                prop_assert_eq!(map.rank(start), model.len() - expected.len());
                prop_assert_eq!(seen, expected);
                for end in ["", "000", "200", "4"] {
                    let seen: Vec<_> = map.range(start, Some(end)).map(|o| o.key().clone()).collect();
                    let expected = model.keys().filter(|key| (start..end).contains(&&***key)).cloned();
                    prop_assert_eq!(seen, expected.collect::<Vec<_>>());
                }
            }
            for (key, revision) in &model {
                prop_assert_eq!(map.get(key).unwrap().revision(), *revision);
            }
        }
    }
}
