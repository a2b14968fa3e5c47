//! Volumes of a pod on this node: made before its sandbox, refreshed while it runs, unmounted before its object goes.
//!
//! Files from the API lie under the run directory, which is memory on a usual host, so that secrets do not reach a
//! disk and no mount per pod is needed; disk-backed emptyDirs lie under the state directory. Absent: CSI, network
//! file systems; a PersistentVolumeClaim works when its volume is a `hostPath` or `local` one.

pub mod atomic;
mod disk;
pub mod payload;
pub mod subpath;
mod token;
pub mod usage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, Volume};
use kube::api::Api;

use crate::downward::Facts;
use crate::env::Sources;
use crate::objects::{Kind, Objects};
use crate::pod;
use token::Token;

/// Pause after a token could not be renewed, while the old one is still good.
const REFRESH_RETRY: Duration = Duration::from_secs(30);

/// Where the volumes of a pod are on the host, by volume name.
pub type HostPaths = BTreeMap<String, PathBuf>;

/// Makes and removes the volumes of all pods of the node. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    pub client: kube::Client,
    pub objects: Objects,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// The tokens of one pod, kept by its worker between refreshes.
#[derive(Clone, Debug, Default)]
pub struct Held {
    tokens: BTreeMap<(Option<String>, i64), Token>,
}

/// What a successful preparation gives.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    pub paths: HostPaths,
    pub held: Held,
    /// When to refresh, without any change in the API: before a token ends.
    pub refresh_at: Option<Timestamp>,
}

impl Volumes {
    /// The pod's directory on disk; it outlives a restart of the kubelet.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.state_dir.join("pods").join(uid)
    }

    fn memory_dir(&self, uid: &str) -> PathBuf {
        self.run_dir.join("pods").join(uid)
    }

    /// Where the emptyDir of that name is.
    pub fn empty_dir(&self, uid: &str, name: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes/empty-dir").join(name)
    }

    /// Makes all volumes, or brings those from the API up to date. May be repeated. The error is the sentence of a
    /// `FailedMount` event.
    pub async fn prepare(&self, pod: &Pod, facts: &Facts, mut held: Held) -> Result<Prepared, String> {
        let uid = pod::uid(pod);
        let spec = pod.spec.clone().unwrap_or_default();
        let mut paths = HostPaths::new();
        let mut refresh_at: Option<Timestamp> = None;
        disk::make_dir(&self.pod_dir(uid), 0o750).map_err(|error| error.to_string())?;
        for volume in used(&spec) {
            let failed =
                |why: String| format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name);
            if payload::is_from_api(volume) {
                let directory = self.memory_dir(uid).join("volumes").join(&volume.name);
                let next =
                    self.write_api(pod, &spec, volume, facts, &mut held, &directory).await.map_err(failed)?;
                refresh_at = [refresh_at, next].into_iter().flatten().min();
                paths.insert(volume.name.clone(), directory);
            } else {
                let path = self.place(pod, &spec, volume).await.map_err(failed)?;
                paths.insert(volume.name.clone(), path);
            }
        }
        Ok(Prepared { paths, held, refresh_at })
    }

    async fn write_api(
        &self,
        pod: &Pod,
        spec: &PodSpec,
        volume: &Volume,
        facts: &Facts,
        held: &mut Held,
        directory: &Path,
    ) -> Result<Option<Timestamp>, String> {
        let now = Timestamp::now();
        let sources = self.sources(pod, payload::references(volume)).await?;
        let mut tokens = payload::Tokens::new();
        let mut refresh_at: Option<Timestamp> = None;
        for request in payload::token_requests(volume) {
            let token = match held.tokens.get(&request) {
                Some(token) if token.refresh_at > now => token.clone(),
                old => match token::request(&self.client, pod, &request, now).await {
                    Ok(token) => token,
                    Err(error) => match old {
                        // The old one is good for a while yet.
                        Some(old) if old.expires_at > now => {
                            let refresh_at = now + REFRESH_RETRY;
                            Token { refresh_at, ..old.clone() }
                        }
                        _ => return Err(format!("failed to fetch token: {error}")),
                    },
                },
            };
            refresh_at = Some(refresh_at.map_or(token.refresh_at, |at| at.min(token.refresh_at)));
            tokens.insert(request.clone(), token.value.clone());
            held.tokens.insert(request, token);
        }
        let files = payload::files(pod, volume, facts, &sources, &tokens)?;
        let group = fs_group(spec);
        let directory = directory.to_owned();
        blocking(move || {
            disk::make_dir(&directory, 0o755)?;
            atomic::write(&directory, &files, group, now).map(drop)
        })
        .await?;
        Ok(refresh_at)
    }

    /// Objects by name, of the pod's namespace.
    pub async fn sources(&self, pod: &Pod, references: Vec<(Kind, String)>) -> Result<Sources, String> {
        let mut sources = Sources::new();
        for (kind, name) in references {
            let payload = self
                .objects
                .get(pod::uid(pod), kind, pod::namespace(pod), &name)
                .await
                .map_err(|error| format!("failed to get {} {name}: {error}", kind.as_str()))?;
            sources.insert((kind, name), payload);
        }
        Ok(sources)
    }

    async fn place(&self, pod: &Pod, spec: &PodSpec, volume: &Volume) -> Result<PathBuf, String> {
        if let Some(source) = &volume.empty_dir {
            let path = self.empty_dir(pod::uid(pod), &volume.name);
            let (at, source, group) = (path.clone(), source.clone(), fs_group(spec));
            blocking(move || disk::empty_dir(&at, &source, group)).await?;
            return Ok(path);
        }
        if let Some(source) = &volume.host_path {
            let source = source.clone();
            let path = PathBuf::from(&source.path);
            blocking(move || disk::host_path(&source)).await?;
            return Ok(path);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.claimed(pod::namespace(pod), &source.claim_name).await;
        }
        Err("volumes of this kind are not supported by this kubelet".to_owned())
    }

    async fn claimed(&self, namespace: &str, claim: &str) -> Result<PathBuf, String> {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        let claim = claims.get(claim).await.map_err(|error| error.to_string())?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let name = claim.spec.and_then(|spec| spec.volume_name).filter(|_| bound);
        let name = name.ok_or("the PersistentVolumeClaim is not bound yet")?;
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let spec = volumes.get(&name).await.map_err(|error| error.to_string())?.spec.unwrap_or_default();
        let path = spec.host_path.map(|source| source.path).or_else(|| spec.local.map(|source| source.path));
        let path = PathBuf::from(path.ok_or("only hostPath and local PersistentVolumes are supported")?);
        if !path.exists() {
            return Err(format!("path {} of PersistentVolume {name} does not exist", path.display()));
        }
        Ok(path)
    }

    /// Unmounts and removes the volumes; what is kept of the pod's containers stays until [`Self::remove`].
    pub async fn unmount(&self, uid: &str) -> Result<(), String> {
        self.objects.release(uid);
        let directories = [self.pod_dir(uid).join("volumes"), self.memory_dir(uid)];
        blocking(move || directories.iter().try_for_each(|directory| disk::remove(directory))).await
    }

    /// Unmounts and removes everything of the pod.
    pub async fn remove(&self, uid: &str) -> Result<(), String> {
        self.objects.release(uid);
        let directories = [self.pod_dir(uid), self.memory_dir(uid)];
        blocking(move || directories.iter().try_for_each(|directory| disk::remove(directory))).await
    }

    /// UIDs of pods that have a directory here.
    pub fn known_uids(&self) -> Vec<String> {
        let of = |root: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        let mut uids = of(&self.state_dir);
        uids.extend(of(&self.run_dir));
        uids.sort_unstable();
        uids.dedup();
        uids
    }
}

pub fn fs_group(spec: &PodSpec) -> Option<u32> {
    let group = spec.security_context.as_ref().and_then(|context| context.fs_group)?;
    u32::try_from(group).ok()
}

/// Volumes that some container mounts; upstream leaves the others alone too.
fn used(spec: &PodSpec) -> impl Iterator<Item = &Volume> {
    let entries = pod::entries(spec);
    spec.volumes.iter().flatten().filter(move |volume| {
        entries.iter().any(|entry| {
            entry.container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name)
        })
    })
}

async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(format!("file work was broken off: {error}")),
    }
}
