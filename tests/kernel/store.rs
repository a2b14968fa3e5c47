//! The embedded store of a real server on a real disk: a small tmpfs in a mount namespace of the server's own that fills
//! up and grows again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PostParams},
};
use tempfile::TempDir;

use crate::routing::binary;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server whose data folder is a tmpfs that nobody else sees.
struct Server {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl Server {
    /// Mounts `megabytes` in a new mount namespace and starts a server there.
    fn start(megabytes: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = port.expect("a free port").port();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("the data folder");
        let log = File::create(folder.path().join("log")).expect("a log");
        let script = "mount -t tmpfs -o size=$1m tmpfs \"$2\" && shift 2 && exec \"$@\"";
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(megabytes.to_string())
            .arg(&data)
            .arg(Self::run_script(folder.path(), &data, port))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("starting unshare");
        Self { child, folder, port }
    }

    /// A script, since the mount's own arguments come first on the command line.
    fn run_script(folder: &Path, data: &Path, port: u16) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join("run");
        let text = format!(
            "#!/bin/sh\nexec {} apiserver --data-dir {} --bind 127.0.0.1:{port}\n",
            binary("seaway-server").display(),
            data.display()
        );
        std::fs::write(&path, text).expect("the script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        path
    }

    /// The data folder as the server sees it.
    fn data(&self) -> PathBuf {
        let seen = self.folder.path().join("data");
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join("root")
            .join(seen.strip_prefix("/").expect("absolute"))
    }

    /// Gives the disk another size.
    fn resize(&self, megabytes: u32) {
        let status = Command::new("nsenter")
            .args(["--mount", "--target", &self.child.id().to_string(), "mount", "-o"])
            .arg(format!("remount,size={megabytes}m"))
            .arg(self.folder.path().join("data"))
            .status();
        assert!(status.expect("nsenter").success(), "the tmpfs was not mounted anew");
    }

    async fn client(&mut self) -> Client {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}\n{}", self.log());
            if let Some(client) = self.try_client().await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_client(&self) -> Option<Client> {
        let path = self.data().join("admin.kubeconfig");
        let config = kube::config::Kubeconfig::read_from(path).ok()?;
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.ok()?;
        assert_eq!(config.cluster_url.port_u16(), Some(self.port));
        let client = Client::try_from(config).ok()?;
        client.apiserver_version().await.ok()?;
        Some(client)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its mount namespace goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn large(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([("text".to_owned(), name.repeat(400_000 / name.len()))].into()),
        ..ConfigMap::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_gives_errors_and_nothing_that_was_acknowledged_is_lost() {
    let mut server = Server::start(24);
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let mut acknowledged = Vec::new();
    let refused = loop {
        assert!(acknowledged.len() < 200, "24 MB took {} MB", acknowledged.len() * 4 / 10);
        let name = format!("full-{:03}", acknowledged.len());
        match maps.create(&PostParams::default(), &large(&name)).await {
            Ok(_) => acknowledged.push(name),
            Err(kube::Error::Api(status)) => break status,
            Err(error) => panic!("no answer: {error}\n{}", server.log()),
        }
    };
    assert!(acknowledged.len() > 5, "{refused:?}");
    assert!(refused.code >= 500 && refused.message.contains("store.redb"), "{refused:?}");
    // Reads go on while the disk is full.
    assert_eq!(maps.get(&acknowledged[0]).await.expect("a read").data, large(&acknowledged[0]).data);

    server.resize(128);
    let made = maps.create(&PostParams::default(), &large("after")).await.expect("there is room again");
    assert_eq!(made.data, large("after").data);
    acknowledged.push("after".to_owned());
    let listed = maps.list(&ListParams::default()).await.expect("a list");
    let found: Vec<_> = listed.iter().filter_map(|map| map.metadata.name.clone()).collect();
    for name in &acknowledged {
        assert!(found.contains(name), "{name} is lost");
    }
    for map in
        listed.iter().filter(|map| map.metadata.name.as_ref().is_some_and(|name| name.starts_with("full-")))
    {
        let name = map.metadata.name.as_deref().expect("filtered by it");
        assert_eq!(map.data, large(name).data, "{name} is torn");
    }
}
