use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use futures::StreamExt;
use proptest::prelude::*;

use super::*;
use crate::storage::{WatchItem, conformance};

async fn empty() -> (Arc<dyn Storage>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(Embedded::open(folder.path().join("store.redb")).unwrap()), folder)
}

conformance::suite!(empty());

fn pod(name: &str) -> String {
    format!("/registry/core/pods/{name}")
}

fn all(at: Option<Revision>) -> Range {
    Range { prefix: "/registry/".to_owned(), at, ..Range::default() }
}

#[tokio::test]
async fn history_and_watches_resume_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    let first = store.create(&pod("a"), "1".into()).await.unwrap();
    let second = store.update(&pod("a"), first, "2".into()).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), second);
    assert_eq!(store.list(all(Some(first))).await.unwrap().items[0].value, "1");
    let mut stream = store.watch("/registry/", first).await.unwrap();
    let Some(Ok(WatchItem::Change(change))) = stream.next().await else { panic!("no change") };
    assert_eq!((change.revision, change.previous.unwrap().value), (second, "1".into()));
    assert_eq!(stream.next().await.unwrap().unwrap(), WatchItem::Progress(second));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_ended_with_an_error() {
    let hub = Hub::new(Revision(1));
    let (receiver, published) = hub.subscribe("/registry/");
    for revision in 2..100_000 {
        let key = pod("a").into();
        hub.publish(&[crate::storage::Change {
            key,
            revision: Revision(revision),
            value: Some(Bytes::new()),
            previous: None,
        }]);
    }
    let mut stream = hub::stream(futures::stream::empty().boxed(), receiver, published, published);
    let mut seen = 1;
    let end = loop {
        match stream.next().await {
            Some(Ok(WatchItem::Change(change))) => {
                seen += 1;
                assert_eq!(change.revision.0, seen);
            }
            Some(Ok(WatchItem::Progress(_))) => {}
            other => break other,
        }
    };
    assert!(seen > 1);
    assert!(matches!(end, Some(Err(StorageError::Lagged))), "{end:?}");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_store_that_is_open_is_not_opened_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _store = Embedded::open(&path).unwrap();
    let Err(error) = Embedded::open(&path) else { panic!("it opened") };
    assert!(
        matches!(&error, StorageError::Unavailable { detail } if detail.contains("another process")),
        "{error}"
    );
}

/// A store with some data, closed.
async fn filled(path: &Path) {
    let store = Embedded::open(path).unwrap();
    for index in 0..200 {
        store.create(&pod(&format!("p{index}")), vec![b'x'; 3000].into()).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_damaged_is_named_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.redb");
    filled(&good).await;
    let whole = fs::read(&good).unwrap();
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("garbage".into(), b"kind: Pod\n".repeat(5000)),
        ("zeroes".into(), vec![0; whole.len()]),
    ];
    for part in [1, 100, 4096, 10_000, whole.len() / 2, whole.len() - 1] {
        cases.push((format!("cut to {part}"), whole[..part].to_vec()));
    }
    for at in [3, 70, 5000, whole.len() / 3] {
        let mut holed = whole.clone();
        for byte in holed.iter_mut().skip(at).take(20_000) {
            *byte = !*byte;
        }
        cases.push((format!("overwritten at {at}"), holed));
    }
    for (case, content) in cases {
        let path = folder.path().join("damaged.redb");
        fs::write(&path, &content).unwrap();
        let Err(error) = Embedded::open(&path) else { panic!("{case}: it opened") };
        let StorageError::Damaged { detail } = &error else { panic!("{case}: {error}") };
        assert!(detail.contains(path.to_str().unwrap()) && detail.contains("backup"), "{case}: {detail}");
        assert_eq!(fs::read(&path).unwrap(), content, "{case}: the file changed");
    }
    Embedded::open(&good).unwrap();
}

/// What is wrong with a [`Disk`].
#[derive(Debug, Default)]
struct Faults {
    full: AtomicBool,
    /// Writes arrive, but the disk does not say so.
    sync_fails: AtomicBool,
    /// The next write panics.
    panics: AtomicBool,
}

#[derive(Debug)]
struct Disk {
    file: fs::File,
    faults: Arc<Faults>,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        assert!(!self.faults.panics.swap(false, Ordering::SeqCst), "as the engine does about broken pages");
        if self.faults.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        if self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk does not answer"));
        }
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write_all_at(data, offset)
    }
}

/// A store on a [`Disk`] that is well until its faults say otherwise.
fn on_disk(path: &Path) -> (Embedded, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let of_disk = faults.clone();
    let opener = move |path: &Path| {
        let file = fs::File::options().read(true).write(true).open(path)?;
        redb::Database::builder().create_with_backend(Disk { file, faults: of_disk.clone() })
    };
    let file = TableFile::open_with(path, Box::new(opener)).unwrap();
    (Embedded::with_file(file).unwrap(), faults)
}

#[tokio::test]
async fn a_write_whose_fate_was_unknown_reaches_watchers_if_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, faults) = on_disk(&path);
    let first = store.create(&pod("a"), "1".into()).await.unwrap();
    let mut stream = store.watch("/registry/", first).await.unwrap();
    for round in 0..5 {
        faults.sync_fails.store(true, Ordering::SeqCst);
        assert!(store.create(&pod(&format!("unknown-{round}")), "1".into()).await.is_err());
        faults.sync_fails.store(false, Ordering::SeqCst);
        store.create(&pod(&format!("known-{round}")), "1".into()).await.unwrap();
    }
    let items = store.list(all(None)).await.unwrap().items;
    let mut expected: Vec<_> = items.iter().map(|item| (item.revision, item.key.to_string())).collect();
    expected.sort();
    let mut seen = vec![(first, pod("a"))];
    for change in conformance::changes(&mut stream, expected.len() - 1).await {
        seen.push((change.revision, change.key.to_string()));
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_full_disk_fails_writes_and_the_store_recovers_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, faults) = on_disk(&path);
    let first = store.create(&pod("a"), "1".into()).await.unwrap();
    let mut stream = store.watch("/registry/", first).await.unwrap();
    faults.full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = store.create(&pod("b"), "1".into()).await.unwrap_err();
        assert!(
            matches!(&error, StorageError::Unavailable { detail } if detail.contains("store.redb")),
            "{error}"
        );
        assert_eq!(error.to_string().matches("unavailable").count(), 1, "{error}");
    }
    faults.full.store(false, Ordering::SeqCst);
    let second = store.create(&pod("c"), "1".into()).await.unwrap();
    assert!(second > first);
    let items = store.list(all(None)).await.unwrap().items;
    let keys: Vec<_> = items.iter().map(|item| item.key.as_ref()).collect();
    assert_eq!(keys, [pod("a"), pod("c")]);
    let seen = conformance::changes(&mut stream, 1).await;
    assert_eq!((seen[0].key.as_ref(), seen[0].revision), (pod("c").as_str(), second));
    drop(store);
    assert_eq!(Embedded::open(&path).unwrap().revision().await.unwrap(), second);
}

#[tokio::test]
async fn a_panic_of_the_engine_fails_one_write_and_the_writer_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, faults) = on_disk(&path);
    store.create(&pod("a"), "1".into()).await.unwrap();
    faults.panics.store(true, Ordering::SeqCst);
    let error = store.create(&pod("b"), "1".into()).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Unavailable { detail } if detail.contains("impossible")),
        "{error}"
    );
    let second = store.create(&pod("c"), "1".into()).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), second);
    let keys: Vec<_> = store.list(all(None)).await.unwrap().items.into_iter().map(|item| item.key).collect();
    assert!(keys.contains(&pod("a").into()) && keys.contains(&pod("c").into()), "{keys:?}");
}

const CHILD_PATH: &str = "SEAWAY_TEST_STORE";
const WRITERS: u64 = 8;
const KEYS_OF_WRITER: u64 = 6;
const KILLS: usize = 100;

/// A value that says which write made it, in every part.
fn value_of(write: u64) -> Bytes {
    format!("{write:020};").repeat(100).into()
}

/// The write that made a value.
fn write_of(value: &[u8]) -> u64 {
    let write = std::str::from_utf8(&value[..20]).unwrap().parse().unwrap();
    assert_eq!(value, value_of(write), "a torn value");
    write
}

/// Growing, over restarts of the process too.
fn next_write() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// Creates, updates and deletes keys of its own, and prints each write once it is acknowledged.
async fn write_on(store: &Embedded, writer: u64, steps: u64) {
    for step in 0..steps {
        let key = pod(&format!("w{writer}-{}", step % KEYS_OF_WRITER));
        let write = next_write();
        let (word, written) = match store.get(&key).await.unwrap() {
            None => ("stored", store.create(&key, value_of(write)).await),
            Some(stored) if write.is_multiple_of(5) => ("deleted", store.delete(&key, stored.revision).await),
            Some(stored) => ("stored", store.update(&key, stored.revision, value_of(write)).await),
        };
        println!("\nacknowledged {word} {key} {write} {}", written.unwrap().0);
    }
}

/// Also the process that the next test kills: with a path in the environment it writes on and on, and compacts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_at_once_are_all_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let told = std::env::var_os(CHILD_PATH).map(PathBuf::from);
    let steps = if told.is_some() { u64::MAX } else { 20 };
    let store = Embedded::open(told.unwrap_or(folder.path().join("store.redb"))).unwrap();
    store.compact(store.revision().await.unwrap()).await.unwrap();
    futures::future::join_all((0..WRITERS).map(|writer| write_on(&store, writer, steps))).await;
    assert_eq!(store.revision().await.unwrap(), Revision(1 + WRITERS * 20));
}

/// What was acknowledged of a key last: a write that stored or deleted it.
type Acknowledged = BTreeMap<String, (bool, u64, u64)>;

/// Starts a writer, kills it after so many acknowledgements.
fn write_and_kill(path: &Path, count: usize, acknowledged: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "storage::embedded::tests::writers_at_once_are_all_acknowledged"])
        .env(CHILD_PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // A line may be cut by the kill; the write it would have named is then not counted.
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["acknowledged", word, key, write, revision] = words.as_slice() {
            let entry = (*word == "stored", write.parse().unwrap(), revision.parse().unwrap());
            acknowledged.insert((*key).to_owned(), entry);
            seen += 1;
        }
        if seen == count {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= count, "the child ended by itself after {seen} writes");
}

#[tokio::test]
async fn acknowledged_writes_survive_a_hundred_times_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut acknowledged = Acknowledged::new();
    for round in 1..=KILLS {
        write_and_kill(&path, 1 + round * 7 % 40, &mut acknowledged);
        let store = Embedded::open(&path).unwrap();
        let page = store.list(all(None)).await.unwrap();
        let kept: BTreeMap<_, _> = page
            .items
            .iter()
            .map(|item| (item.key.to_string(), (write_of(&item.value), item.revision.0)))
            .collect();
        for (key, (stored, write, revision)) in &mut acknowledged {
            // A newer write may stand that was on its way when the process died.
            match kept.get(key) {
                Some((of, at)) if of == write => assert!(*stored && at == revision, "round {round}: {key}"),
                Some((of, at)) => {
                    assert!(of > write && at > revision, "round {round}: {key} went back");
                    (*stored, *write, *revision) = (true, *of, *at);
                }
                None if *stored => {
                    let deleted = store.changed(key, Revision(*revision)).await;
                    assert!(deleted, "round {round}: write {write} of {key} is lost");
                    *stored = false;
                }
                None => {}
            }
        }
        assert!(kept.values().all(|(_, at)| *at <= page.revision.0), "round {round}");
    }
}

impl Embedded {
    /// Whether what is left of history tells of a change of a key after a revision.
    async fn changed(&self, key: &str, after: Revision) -> bool {
        let key = key.to_owned();
        let read = move |tables: &records::Tables| {
            let (newest, oldest) = tables.revisions()?;
            Ok(!tables.changes(&key, after.max(oldest), newest)?.is_empty())
        };
        self.read(read).await.unwrap()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create { key: u8, value: u8 },
    Update { key: u8, value: u8, stale: bool },
    Delete { key: u8, stale: bool },
    Compact { back: u8 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12u8, any::<u8>()).prop_map(|(key, value)| Step::Create { key, value }),
        4 => (0..12u8, any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(key, value, stale)| Step::Update { key, value, stale }),
        3 => (0..12u8, prop::bool::weighted(0.2)).prop_map(|(key, stale)| Step::Delete { key, stale }),
        1 => (0..10u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

type Model = BTreeMap<String, (Revision, Vec<u8>)>;

/// Runs the steps on a store and on a map, comparing every answer and at the end every state that can be read.
async fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut store = Some(Embedded::open(&path).unwrap());
    let mut model = Model::new();
    let mut states = vec![(Revision(1), model.clone())];
    let mut oldest = Revision(1);
    for step in steps {
        let current = store.as_ref().unwrap();
        let newest = states.last().unwrap().0;
        let key = match &step {
            Step::Create { key, .. } | Step::Update { key, .. } | Step::Delete { key, .. } => {
                pod(&format!("k{key}"))
            }
            Step::Compact { .. } | Step::Restart => String::new(),
        };
        let there = model.get(&key).map(|(revision, _)| *revision);
        let expected = |stale: bool| match there {
            Some(revision) if !stale => revision,
            _ => Revision(newest.0 + 1),
        };
        let (outcome, value, succeeds) = match step {
            Step::Create { value, .. } => {
                (current.create(&key, vec![value].into()).await, Some(value), there.is_none())
            }
            Step::Update { value, stale, .. } => {
                let outcome = current.update(&key, expected(stale), vec![value].into()).await;
                (outcome, Some(value), there.is_some() && !stale)
            }
            Step::Delete { stale, .. } => {
                (current.delete(&key, expected(stale)).await, None, there.is_some() && !stale)
            }
            Step::Compact { back } => {
                let at = Revision(newest.0.saturating_sub(back.into()).max(1));
                current.compact(at).await.unwrap();
                oldest = oldest.max(at);
                continue;
            }
            Step::Restart => {
                drop(store.take());
                store = Some(Embedded::open(&path).unwrap());
                continue;
            }
        };
        assert_eq!(outcome.is_ok(), succeeds, "{outcome:?}");
        if let Ok(revision) = outcome {
            assert_eq!(revision.0, newest.0 + 1);
            match value {
                Some(value) => drop(model.insert(key, (revision, vec![value]))),
                None => drop(model.remove(&key)),
            }
            states.push((revision, model.clone()));
        }
    }
    check_states(&store.unwrap(), states, oldest).await;
}

/// Every state can be read as it was, but for those before `oldest`.
async fn check_states(store: &Embedded, states: Vec<(Revision, Model)>, oldest: Revision) {
    for (revision, state) in states {
        match store.list(all(Some(revision))).await {
            Ok(page) => {
                let seen: Model = page
                    .items
                    .into_iter()
                    .map(|item| (item.key.to_string(), (item.revision, item.value.to_vec())))
                    .collect();
                assert_eq!(seen, state, "at {revision:?}");
                assert!(revision >= oldest);
            }
            Err(error) => {
                assert!(
                    matches!(error, StorageError::Compacted { .. }) && revision < oldest,
                    "{revision:?}: {error}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_operations_leave_the_store_equal_to_a_map(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
