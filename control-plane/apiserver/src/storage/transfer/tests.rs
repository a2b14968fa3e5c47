use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::BufWriter,
    sync::Arc,
};

use super::*;
use crate::storage::{embedded::Embedded, etcd::tests::EtcdProcess};

/// Values as they are stored, and two that no object has.
async fn fill(store: &dyn Storage) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for index in 0..1203_u32 {
        let key = format!("{REGISTRY}core/pods/ns-{}/pod-{index:04}", index % 7);
        let text = format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"pod-{index:04}\",\"uid\":\"uid-{index}\",\"annotations\":{{\"text\":\"ünï\\\"\\n{}\"}}}}}}",
            "x".repeat((index % 40) as usize * 50)
        );
        all.insert(key, text.into_bytes());
    }
    all.insert(format!("{REGISTRY}other/\"quoted\"\u{1}"), b"{\"two\":\n\"lines\"}".to_vec());
    all.insert(format!("{REGISTRY}raw"), vec![0, 159, 146, 150]);
    for (key, value) in &all {
        store.create(key, Bytes::copy_from_slice(value)).await.unwrap();
    }
    store.create(BARRIER_KEY, "not moved".into()).await.unwrap();
    all
}

async fn contents(store: &dyn Storage) -> BTreeMap<String, Vec<u8>> {
    let page = store.list(Range { prefix: REGISTRY.to_owned(), ..Range::default() }).await.unwrap();
    page.items.iter().map(|stored| (stored.key.to_string(), stored.value.to_vec())).collect()
}

async fn exported(store: &dyn Storage, path: &Path) -> Summary {
    let mut out = BufWriter::new(File::create(path).unwrap());
    let mut seen = 0;
    let summary = export(store, &mut out, |objects| seen = objects).await.unwrap();
    assert_eq!(seen, summary.objects);
    summary
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_from_a_file_to_etcd_and_back_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let embedded = Embedded::open(path("one.redb")).unwrap();
    let all = fill(&embedded).await;
    let first = exported(&embedded, &path("first")).await;
    assert_eq!((first.objects, first.revision), (all.len() as u64, embedded.revision().await.unwrap()));

    let etcd = EtcdProcess::start();
    let shared = Arc::new(etcd.connect().await);
    let mut told = Vec::new();
    let moved = import(&*shared, &path("first"), |written, of| told.push((written, of))).await.unwrap();
    assert_eq!(moved, first);
    assert_eq!(told, [(1000, first.objects), (first.objects, first.objects)]);
    assert_eq!(contents(&*shared).await, all);
    let again = import(&*shared, &path("first"), |_, _| ()).await;
    assert!(matches!(again, Err(TransferError::NotEmpty { .. })), "{again:?}");

    exported(&*shared, &path("second")).await;
    let back = Embedded::create_at(path("two.redb"), first.revision).unwrap();
    import(&back, &path("second"), |_, _| ()).await.unwrap();
    assert_eq!(contents(&back).await, all);
    let revisions = back.list(Range { prefix: REGISTRY.to_owned(), ..Range::default() }).await.unwrap();
    assert!(revisions.items.iter().all(|stored| stored.revision > first.revision), "revisions go on");
    drop(back);
    assert_eq!(contents(&Embedded::open(path("two.redb")).unwrap()).await, all);
    let refused = Embedded::create_at(path("two.redb"), first.revision).map(drop);
    assert!(matches!(refused, Err(StorageError::Unavailable { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_empty_store_is_a_good_export() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("export");
    let empty = Embedded::open(folder.path().join("store.redb")).unwrap();
    let summary = exported(&empty, &path).await;
    assert_eq!(summary.objects, 0);
    assert_eq!(import(&empty, &path, |_, _| ()).await.unwrap(), summary);
}

#[tokio::test]
async fn a_corrupt_export_is_refused_with_its_line_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("export");
    let source = Embedded::open(folder.path().join("source.redb")).unwrap();
    for name in ["a", "b", "c"] {
        let key = format!("{REGISTRY}core/pods/default/{name}");
        source.create(&key, format!("{{\"metadata\":{{\"name\":\"{name}\"}}}}").into()).await.unwrap();
    }
    exported(&source, &path).await;
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    assert_eq!(lines.len(), 5);
    let long = format!("{}\n{}\n", lines[0], "x".repeat(LINE_BYTES_MAX + 1));
    let cases: Vec<(String, u64, &str)> = vec![
        (String::new(), 1, "cut off"),
        ("kind: Pod\n".to_owned(), 1, "no export"),
        (good.replacen(":1,", ":2,", 1), 1, "version 2"),
        (good[..good.len() - 1].to_owned(), 5, "within this line"),
        (lines[..4].join("\n") + "\n", 5, "without the line that ends"),
        (lines[..3].join("\n"), 3, "within this line"),
        (good.replace("\"name\":\"b\"", "\"name\":\"x\""), 5, "checksum"),
        (good.replace("\"name\":\"b\"", "\"name\":b"), 3, "no record"),
        (good.replace("\"value\"", "\"valve\""), 2, "no value"),
        (good.replace("default/b", "default/d"), 4, "cannot follow"),
        (good.replace("/registry/", "/elsewhere/"), 2, "cannot follow"),
        (good.replace("\"objects\":3", "\"objects\":2"), 5, "2 records were announced, 3 are here"),
        (format!("{good}x"), 5, "something follows"),
        (
            good.replace("{\"metadata\"", "{ \"metadata\"").replacen(
                "\"value\":{",
                "\"base64\":\"*\",\"x\":{",
                1,
            ),
            2,
            "no base64",
        ),
        (long, 2, "longer than"),
    ];
    for (text, line, why) in cases {
        fs::write(&path, &text).unwrap();
        let target = Embedded::open(folder.path().join("target.redb")).unwrap();
        match import(&target, &path, |_, _| ()).await {
            Err(error @ TransferError::Corrupt { line: at, .. }) => {
                assert_eq!(at, line, "{why}: {error}");
                assert!(error.to_string().contains(why), "{why}: {error}");
            }
            other => panic!("{why}: {other:?}"),
        }
        assert!(contents(&target).await.is_empty(), "{why}");
    }
}
