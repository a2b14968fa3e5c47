//! Who holds which node port, among all servers of a store: a record for each port, made before the Service that holds it
//! is stored. Of several servers that choose the same port one makes it. Records are the server's own: no API shows them.
//!
//! A server that dies between a record and its Service leaves the record behind; whoever wants the port next takes it over.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::service::Refusal;
use crate::{
    registry::{
        fields::{at, text},
        service_ip::{held_ports, owner, parent},
    },
    state::State,
    storage::{Revision, StorageError, cache::Cache, keys},
};

/// Between two looks at the Services.
const INTERVAL: Duration = Duration::from_secs(180);
/// A write takes no longer: a record that is older and whose Service does not hold the port was left behind.
const WRITE_SECONDS_MAX: i64 = 120;
/// A port that others are quicker to take this often is theirs.
const ATTEMPTS_MAX: usize = 5;

/// The key of a port's record.
pub(super) fn key(port: u16) -> String {
    keys::object_key("ranges", "servicenodeports", None, &port.to_string())
}

fn record(port: u16, service: &Value, created: &str) -> Value {
    let metadata = at(service, "/metadata");
    json!({
        "metadata": {"name": port.to_string(), "creationTimestamp": created},
        "spec": {
            "parentRef": {"resource": "services", "namespace": metadata["namespace"], "name": metadata["name"]},
            "uid": metadata["uid"],
        },
    })
}

/// Makes the record of a port; its key and revision where it was not there before.
pub(super) async fn take(
    cache: &Cache,
    port: u16,
    service: &Value,
    now: jiff::Timestamp,
) -> Result<Option<(String, Revision)>, Refusal> {
    let key = key(port);
    let wanted = record(port, service, &api::time::format_seconds(now));
    for _ in 0..ATTEMPTS_MAX {
        let written = match cache.get(&key) {
            None => cache.create(&key, wanted.clone()).await,
            Some(known) => {
                let value = known.value();
                if at(&value, "/spec") == at(&wanted, "/spec") {
                    return Ok(None);
                }
                if !is_left_behind(cache, port, &value, now) {
                    return Err(Refusal::Taken);
                }
                cache.update(&key, known.revision(), wanted.clone()).await
            }
        };
        match written {
            Ok(stored) => return Ok(Some((key, stored.revision()))),
            Err(
                StorageError::Exists { .. } | StorageError::Conflict { .. } | StorageError::NotFound { .. },
            ) => {
                cache.fresh().await.map_err(Refusal::Storage)?;
            }
            Err(error) => return Err(Refusal::Storage(error)),
        }
    }
    Err(Refusal::Taken)
}

fn is_left_behind(cache: &Cache, port: u16, record: &Value, now: jiff::Timestamp) -> bool {
    let created = text(record, "/metadata/creationTimestamp").parse::<jiff::Timestamp>();
    if created.is_ok_and(|created| now.as_second() - created.as_second() < WRITE_SECONDS_MAX) {
        return false;
    }
    let holder = parent(record);
    let (namespace, name) = holder.split_once('/').unwrap_or(("", &holder));
    let service = cache.get(&keys::object_key("", "services", Some(namespace), name));
    service.is_none_or(|service| !held_ports(&service.value()).contains(&port))
}

/// Makes the records that stored Services lack, until the server stops: of a store that was written before there were any,
/// and of writes that took back what a later one relied on.
pub async fn keep(state: Arc<State>) {
    let prefix = keys::resource_prefix("", "services");
    let mut seen = None;
    loop {
        let newest = state.cache.newest(&prefix);
        if seen != Some(newest) {
            match complete(&state.cache, &prefix).await {
                Ok(()) => seen = Some(newest),
                Err(error) => tracing::warn!(%error, "node ports are not recorded; trying again"),
            }
        }
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn complete(cache: &Cache, services: &str) -> Result<(), StorageError> {
    for service in cache.list(services).iter() {
        let service = service.value();
        for port in held_ports(&service) {
            match take(cache, port, &service, jiff::Timestamp::now()).await {
                Ok(_) => {}
                Err(Refusal::Taken) => {
                    tracing::warn!(
                        port,
                        service = owner(&service),
                        "another Service holds this node port too"
                    );
                }
                Err(Refusal::Storage(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::embedded::Embedded;

    fn service(name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": name, "uid": name},
            "spec": {"ports": [{"port": 80, "nodePort": 30_001}]},
        })
    }

    /// Two servers on one store.
    async fn two() -> (Arc<Cache>, Arc<Cache>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(folder.path().join("store.redb")).unwrap());
        let one = Cache::start(Arc::clone(&store) as _).await.unwrap();
        (one, Cache::start(store as _).await.unwrap(), folder)
    }

    #[tokio::test]
    async fn of_several_servers_one_gets_a_port() {
        let (one, two, _folder) = two().await;
        let now = jiff::Timestamp::now();
        let (web, db) = (service("web"), service("db"));
        let (first, second) = tokio::join!(take(&one, 30_001, &web, now), take(&two, 30_001, &db, now));
        assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "{first:?} {second:?}");
        let (winner, loser) = if first.is_ok() { (&web, &db) } else { (&db, &web) };
        two.fresh().await.unwrap();
        assert!(matches!(take(&two, 30_001, winner, now).await, Ok(None)), "it has it already");
        assert!(matches!(take(&two, 30_001, loser, now).await, Err(Refusal::Taken)));
    }

    #[tokio::test]
    async fn a_record_whose_service_never_came_is_taken_over() {
        let (one, _two, _folder) = two().await;
        let now = jiff::Timestamp::now();
        take(&one, 30_001, &service("web"), now).await.unwrap();
        let later = now + jiff::SignedDuration::from_secs(WRITE_SECONDS_MAX);
        assert!(
            matches!(take(&one, 30_001, &service("db"), now).await, Err(Refusal::Taken)),
            "it may come yet"
        );
        assert!(matches!(take(&one, 30_001, &service("db"), later).await, Ok(Some(_))));
        let prefix = keys::resource_prefix("", "services");
        let key = keys::object_key("", "services", Some("a"), "db");
        one.create(&key, service("db")).await.unwrap();
        let much_later = later + jiff::SignedDuration::from_secs(WRITE_SECONDS_MAX);
        assert!(
            matches!(take(&one, 30_001, &service("web"), much_later).await, Err(Refusal::Taken)),
            "it came"
        );
        let known = one.get(&super::key(30_001)).unwrap();
        one.delete(known.key(), known.revision()).await.unwrap();
        complete(&one, &prefix).await.unwrap();
        assert_eq!(parent(&one.get(&super::key(30_001)).unwrap().value()), "a/db", "what is lacking is made");
    }
}
