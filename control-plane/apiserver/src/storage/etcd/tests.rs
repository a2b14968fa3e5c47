use std::{
    fs::File,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use super::*;
use crate::storage::conformance;

/// An etcd of a test's own; ended when dropped.
pub(crate) struct EtcdProcess {
    child: Child,
    pub(crate) endpoint: String,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl EtcdProcess {
    /// Starts etcd on ports that are free now; on others when somebody took them in between.
    pub(crate) fn start() -> Self {
        for _ in 0..5 {
            if let Some(process) = Self::try_start() {
                return process;
            }
        }
        panic!("etcd ended five times as it started");
    }

    /// `None` when the process ends before it listens.
    fn try_start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (client, peer) = (free_port(), free_port());
        let (endpoint, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let data = folder.path().join("data").display().to_string();
        let arguments: Vec<String> = [
            ("--name", "test".to_owned()),
            ("--data-dir", data),
            ("--listen-client-urls", endpoint.clone()),
            ("--advertise-client-urls", endpoint.clone()),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("test={peer}")),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        let mut child = spawn(&arguments, &folder);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", client)).is_err() {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(std::time::Instant::now() < deadline, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, endpoint, arguments, folder })
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.arguments, &self.folder);
    }

    /// A client, once the process answers.
    pub(crate) async fn connect(&self) -> Etcd {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            match Etcd::connect(std::slice::from_ref(&self.endpoint), None).await {
                Ok(etcd) => return etcd,
                Err(error) if tokio::time::Instant::now() > deadline => {
                    let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                    panic!("{error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

fn spawn(arguments: &[String], folder: &tempfile::TempDir) -> Child {
    let log = File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
    Command::new("etcd").args(arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap_or_else(|error| {
        panic!("etcd does not start ({error}); on Debian: apt-get install etcd-server")
    })
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn empty() -> (Arc<dyn Storage>, EtcdProcess) {
    let process = EtcdProcess::start();
    (Arc::new(process.connect().await), process)
}

conformance::suite!(empty());

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let Err(error) = Etcd::connect(std::slice::from_ref(&endpoint), None).await else {
        panic!("it connected")
    };
    assert!(matches!(error, StorageError::Unavailable { .. }));
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_over_a_restart_of_etcd() {
    let mut process = EtcdProcess::start();
    let etcd = process.connect().await;
    let begin = etcd.revision().await.unwrap();
    let mut stream = etcd.watch("/registry/", begin).await.unwrap();
    let first = etcd.create("/registry/core/pods/a", "1".into()).await.unwrap();
    let next = async |stream: &mut WatchStream| {
        let item = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        match item.expect("the watch is silent").unwrap().unwrap() {
            WatchItem::Change(change) => change.revision,
            WatchItem::Progress(revision) => panic!("progress {revision:?} instead of a change"),
        }
    };
    assert_eq!(next(&mut stream).await, first);
    process.restart();
    let other = process.connect().await;
    let second = other.create("/registry/core/pods/b", "1".into()).await.unwrap();
    assert_eq!(next(&mut stream).await, second);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = etcd.get("/registry/core/pods/b").await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
}
