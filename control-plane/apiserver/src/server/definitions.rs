//! The CustomResourceDefinitions that a cluster has from its first second: the kinds of `projectcalico.org`.
//!
//! One that is missing is made at every start. One that a Seaway wrote and nobody changed since is brought up to date. Any
//! other wins over ours and is left as it is: a Calico's own, or one of ours that somebody edited. An annotation records
//! which generation we wrote and of what; deleting the definition's annotation, or editing its spec, takes it over.

use anyhow::Context as _;
use api::{meta, status::Status};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::{
    handlers::{
        Target,
        own::{self, OwnUpdate},
    },
    security::{GROUP_MASTERS, Identity},
    state::State,
};

/// `GENERATION DIGEST`: the generation that was written, and what was written.
const WRITTEN: &str = "seaway.dev/written";
const AT_ONCE: usize = 16;

/// Makes what is missing and updates what is ours; returns when all of it is there.
pub(super) async fn install(state: &State) -> anyhow::Result<()> {
    let user = Identity::internal("system:apiserver", &[GROUP_MASTERS]);
    let target = state
        .kinds
        .of_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
        .context("no resource for CustomResourceDefinition")?;
    let installation = Installation { state, user: &user, target: &target };
    stream::iter(calico::definitions::all())
        .map(|definition| async {
            let name = meta::name(&definition).to_owned();
            installation
                .ensure(definition)
                .await
                .map_err(|status| anyhow::anyhow!("{name}: {}", status.message))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

struct Installation<'a> {
    state: &'a State,
    user: &'a Identity,
    target: &'a Target,
}

impl Installation<'_> {
    async fn ensure(&self, mut wanted: Value) -> Result<(), Status> {
        let digest = digest(&wanted["spec"]);
        let name = meta::name(&wanted).to_owned();
        let Some(stored) = self.state.cache.get(&self.target.key("", &name)) else {
            wanted["metadata"]["annotations"] = json!({ WRITTEN: written(1, &digest) });
            return own::create(self.state, self.user, self.target, "", wanted).await.map(drop);
        };
        let stored = self.target.value(&stored);
        let generation = meta::generation(&stored);
        let mark = stored["metadata"]["annotations"][WRITTEN].as_str().unwrap_or_default();
        match mark.split_once(' ') {
            Some((of, _)) if of != generation.to_string() => {
                warn!(definition = name, "the definition was changed by somebody: it is left as it is");
                Ok(())
            }
            Some((_, of)) if of == digest => Ok(()),
            Some(_) => self.update(&name, &wanted, &digest).await,
            None => {
                info!(definition = name, "the definition is not ours: it is left as it is");
                Ok(())
            }
        }
    }

    async fn update(&self, name: &str, wanted: &Value, digest: &str) -> Result<(), Status> {
        let update = OwnUpdate {
            state: self.state,
            user: self.user,
            target: self.target,
            subresource: "",
            namespace: "",
            name,
            admits: true,
        };
        let stored = update
            .run(&mut |object| {
                object["spec"] = wanted["spec"].clone();
                let mark = written(meta::generation(object) + 1, digest);
                object["metadata"]["annotations"][WRITTEN] = mark.into();
            })
            .await?;
        info!(definition = name, "the definition is brought up to date");
        let mark = written(meta::generation(&stored), digest);
        if stored["metadata"]["annotations"][WRITTEN] == *mark {
            return Ok(());
        }
        // What was written differed in nothing but its spelling.
        update
            .run(&mut |object| object["metadata"]["annotations"][WRITTEN] = mark.clone().into())
            .await
            .map(drop)
    }
}

fn written(generation: i64, digest: &str) -> String {
    format!("{generation} {digest}")
}

fn digest(spec: &Value) -> String {
    let digest = Sha256::digest(spec.to_string());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
