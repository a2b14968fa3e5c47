//! `seaway-server store`: a cluster's objects to a file and back, between the engines. The server must not run.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use apiserver::storage::{
    Storage,
    embedded::Embedded,
    etcd::Etcd,
    transfer::{self, Summary},
};

use crate::arguments::{ServerArguments, StoreCommand, StoreKind};

pub async fn run(server: &ServerArguments, command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Export { out } => export(server, &out).await,
        StoreCommand::Import { from } => import(server, &from).await,
    }
}

fn uses_etcd(server: &ServerArguments) -> bool {
    server.store == StoreKind::Etcd || !server.etcd_endpoint.is_empty()
}

async fn etcd(server: &ServerArguments) -> anyhow::Result<Arc<dyn Storage>> {
    if server.etcd_endpoint.is_empty() {
        bail!("--store etcd needs at least one --etcd-endpoint URL");
    }
    let store = Etcd::connect(&server.etcd_endpoint, None).await;
    Ok(Arc::new(
        store.with_context(|| format!("cannot connect to etcd at {}", server.etcd_endpoint.join(", ")))?,
    ))
}

async fn export(server: &ServerArguments, out: &Path) -> anyhow::Result<()> {
    let source = if uses_etcd(server) {
        etcd(server).await?
    } else {
        let path = server.data_dir.join("store.redb");
        if !fs::exists(&path)? {
            bail!("{} is not there: no store to export", path.display());
        }
        Arc::new(Embedded::open(&path)?)
    };
    if fs::exists(out)? {
        bail!("{} is there already; it is not overwritten", out.display());
    }
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let named = || format!("cannot write {}", partial.display());
    // Secrets are in it.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let mut writer = BufWriter::with_capacity(1 << 20, file.with_context(named)?);
    let told = |objects| eprint!("\r{objects} objects");
    let summary = transfer::export(&*source, &mut writer, told).await.with_context(named)?;
    writer.flush().and_then(|()| writer.get_ref().sync_all()).with_context(named)?;
    fs::rename(&partial, out).with_context(|| format!("cannot write {}", out.display()))?;
    let Summary { objects, revision } = summary;
    eprintln!("\r{objects} objects as of revision {} are in {}", revision.0, out.display());
    Ok(())
}

async fn import(server: &ServerArguments, from: &Path) -> anyhow::Result<()> {
    let found = transfer::verify(from)?;
    eprintln!("{} holds {} objects as of revision {}", from.display(), found.objects, found.revision.0);
    let target: Arc<dyn Storage> = if uses_etcd(server) {
        etcd(server).await?
    } else {
        let path = server.data_dir.join("store.redb");
        // A new store goes on counting revisions where the old one was; one that is there has its own.
        if fs::exists(&path)? {
            Arc::new(Embedded::open(&path)?)
        } else {
            Arc::new(Embedded::create_at(&path, found.revision)?)
        }
    };
    let told = |written, of| eprint!("\r{written} of {of} objects");
    transfer::import(&*target, from, told).await?;
    let revision = target.revision().await?;
    eprintln!("\r{} objects are in the store, which is at revision {}", found.objects, revision.0);
    if revision < found.revision {
        eprintln!(
            "resourceVersions are below those of the exported store ({}): clients that follow the API list anew",
            found.revision.0
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Command};

    async fn obey(line: &str) -> anyhow::Result<()> {
        let arguments = Arguments::try_parse_from(line.split(' '))?;
        match arguments.command {
            Some(Command::Store(command)) => run(&arguments.server, command.command).await,
            other => bail!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_store_is_exported_and_imported_by_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (one, two, file) = (at("one"), at("two"), at("export"));
        let missing = obey(&format!("seaway-server store export --data-dir {one} --out {file}")).await;
        assert!(missing.unwrap_err().to_string().contains("is not there"));
        let key = "/registry/core/pods/default/a";
        let store = Embedded::open(folder.path().join("one/store.redb")).unwrap();
        store.create(key, r#"{"metadata":{"name":"a","uid":"u"}}"#.into()).await.unwrap();
        let revision = store.revision().await.unwrap();
        drop(store);
        obey(&format!("seaway-server store export --data-dir {one} --out {file}")).await.unwrap();
        let again = obey(&format!("seaway-server store export --data-dir {one} --out {file}")).await;
        assert!(again.unwrap_err().to_string().contains("not overwritten"));
        obey(&format!("seaway-server store import --data-dir {two} --from {file}")).await.unwrap();
        let again = obey(&format!("seaway-server store import --data-dir {two} --from {file}")).await;
        assert!(again.unwrap_err().to_string().contains("not empty"));
        let store = Embedded::open(folder.path().join("two/store.redb")).unwrap();
        let moved = store.get(key).await.unwrap().unwrap();
        assert_eq!(moved.value, r#"{"metadata":{"name":"a","uid":"u"}}"#);
        assert!(moved.revision > revision);
    }
}
