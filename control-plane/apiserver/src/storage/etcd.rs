//! The store of several servers: etcd v3, 3.4 and newer.
//!
//! Keys live under [`PREFIX`]; revisions are etcd's own. Every write is a transaction that compares the key's modification
//! revision. A watch survives the loss of its connection: it is opened again after the last change that it delivered.
//! Deliberately absent: leases, and progress on request, which etcd before 3.4.25 may answer ahead of the events that it
//! speaks of.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, Identity,
    KeyValue, KvClient, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse,
};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Change, Page, Range, Revision, Scan, Storage, StorageError, Stored, VALUE_BYTES_MAX, WatchItem,
    WatchStream, keys,
};

/// Before every key.
pub const PREFIX: &str = "/seaway";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Keys in one request of a list.
const PAGE: usize = 500;
/// Above the largest page of the largest values.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Changes that wait for the reader of a watch; beyond it etcd keeps them.
const WATCH_BUFFER: usize = 1024;

/// Certificates for the connection, all PEM.
pub struct EtcdTls {
    pub ca_pem: String,
    /// Certificate and key of the client, where etcd wants them.
    pub client_pem: Option<(String, String)>,
}

/// A client of an etcd cluster. Clones share its connections.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    kv: KvClient,
    endpoints: Arc<str>,
}

impl Etcd {
    /// Connects and makes one request.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] names the endpoints when none answers.
    pub async fn connect(endpoints: &[String], tls: Option<EtcdTls>) -> Result<Self, StorageError> {
        let names: Arc<str> = endpoints.join(", ").into();
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEPALIVE, KEEPALIVE)
            .with_keep_alive_while_idle(true);
        if let Some(tls) = tls {
            let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca_pem));
            if let Some((certificate, key)) = tls.client_pem {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(config);
        }
        let client = within(&names, Client::connect(endpoints, Some(options))).await?;
        let kv = client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let etcd = Self { client, kv, endpoints: names };
        etcd.revision().await?;
        Ok(etcd)
    }

    async fn range(
        &self,
        key: Vec<u8>,
        options: GetOptions,
    ) -> Result<etcd_client::GetResponse, StorageError> {
        let mut kv = self.kv.clone();
        within(&self.endpoints, kv.get(key, Some(options))).await
    }

    /// Runs `then` when the key's modification revision is `expected`, 0 for a key that is not there; else returns what is
    /// there.
    async fn compare_and(
        &self,
        key: &str,
        expected: u64,
        then: TxnOp,
    ) -> Result<Result<Revision, Option<Stored>>, StorageError> {
        let full = full_key(key);
        let transaction = Txn::new()
            .when([Compare::mod_revision(full.clone(), CompareOp::Equal, expected.cast_signed())])
            .and_then([then])
            .or_else([TxnOp::get(full, None)]);
        let mut kv = self.kv.clone();
        let response = within(&self.endpoints, kv.txn(transaction)).await?;
        if response.succeeded() {
            return Ok(Ok(header_revision(response.header())));
        }
        let current = response.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs().into_iter().next(),
            _ => None,
        });
        Ok(Err(current.map(|found| stored(found, None))))
    }

    /// The oldest revision that can be read, once it is known that `requested` cannot.
    async fn compacted(&self, requested: Revision) -> StorageError {
        match self.oldest(requested).await {
            Ok(oldest) => StorageError::Compacted { requested, oldest },
            Err(error) => error,
        }
    }

    async fn oldest(&self, requested: Revision) -> Result<Revision, StorageError> {
        let options = WatchOptions::new().with_start_revision(requested.0.max(1).cast_signed());
        let mut client = self.client.watch_client();
        let told = async {
            let mut stream = client.watch(full_key(keys::REGISTRY), Some(options)).await?;
            while let Some(response) = stream.message().await? {
                if response.compact_revision() > 0 {
                    return Ok(Revision(response.compact_revision().cast_unsigned()));
                }
            }
            Err(Error::WatchError("etcd ended a watch without saying how far it compacted".to_owned()))
        };
        within(&self.endpoints, told).await
    }
}

#[async_trait]
impl Storage for Etcd {
    async fn revision(&self) -> Result<Revision, StorageError> {
        let options = GetOptions::new().with_count_only().with_limit(1);
        let response = self.range(full_key(keys::REGISTRY), options).await?;
        Ok(header_revision(response.header()))
    }

    async fn get(&self, key: &str) -> Result<Option<Stored>, StorageError> {
        let mut response = self.range(full_key(key), GetOptions::new()).await?;
        Ok(response.take_kvs().into_iter().next().map(|found| stored(found, None)))
    }

    async fn scan(&self, prefix: &str) -> Result<Scan, StorageError> {
        let first = Range { prefix: prefix.to_owned(), limit: Some(PAGE), ..Range::default() };
        let page = self.list(first).await?;
        let revision = page.revision;
        let source = self.clone();
        let prefix = prefix.to_owned();
        let batches = stream::try_unfold(Some(page), move |page| {
            let next = page.as_ref().filter(|page| page.remaining > 0).and_then(|page| {
                let start = format!("{}\0", page.items.last()?.key);
                let prefix = prefix.clone();
                Some(Range { prefix, start: Some(start), limit: Some(PAGE), at: Some(revision) })
            });
            let source = source.clone();
            async move {
                let Some(page) = page.filter(|page| !page.items.is_empty()) else { return Ok(None) };
                let following = match next {
                    Some(range) => Some(source.list(range).await?),
                    None => None,
                };
                Ok(Some((page.items, following)))
            }
        });
        Ok(Scan { revision, batches: batches.boxed() })
    }

    async fn list(&self, range: Range) -> Result<Page, StorageError> {
        let end = keys::prefix_end(&format!("{PREFIX}{}", range.prefix)).unwrap_or_else(|| vec![0]);
        let start =
            range.start.as_deref().filter(|start| *start > range.prefix.as_str()).unwrap_or(&range.prefix);
        let mut next = full_key(start);
        let mut at = range.at;
        let mut items = Vec::new();
        loop {
            let wanted = range.limit.map_or(PAGE, |limit| PAGE.min(limit - items.len()));
            // etcd takes a limit of 0 for none.
            let limit = i64::try_from(wanted.max(1)).expect("a page is small");
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if let Some(at) = at {
                options = options.with_revision(at.0.cast_signed());
            }
            let mut response = match self.range(next.clone(), options).await {
                Err(StorageError::Compacted { .. }) => {
                    return Err(self.compacted(at.unwrap_or_default()).await);
                }
                Err(StorageError::Future { .. }) => {
                    let current = self.revision().await?;
                    return Err(StorageError::Future { requested: at.unwrap_or_default(), current });
                }
                other => other?,
            };
            let revision = *at.get_or_insert(header_revision(response.header()));
            let count = usize::try_from(response.count()).unwrap_or_default();
            let found: Vec<_> = response.take_kvs().into_iter().take(wanted).collect();
            let remaining = (count - found.len()) as u64;
            let last = found.last().map(|found| found.key().to_vec());
            items.extend(found.into_iter().map(|found| stored(found, None)));
            match last {
                Some(mut last) if remaining > 0 && range.limit.is_none_or(|limit| items.len() < limit) => {
                    last.push(0);
                    next = last;
                }
                _ => return Ok(Page { items, revision, remaining }),
            }
        }
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision, StorageError> {
        check_size(key, &value)?;
        let put = TxnOp::put(full_key(key), value, None);
        let outcome = self.compare_and(key, 0, put).await?;
        outcome.map_err(|_| StorageError::Exists { key: key.to_owned() })
    }

    async fn update(&self, key: &str, expected: Revision, value: Bytes) -> Result<Revision, StorageError> {
        check_size(key, &value)?;
        check_expected(key, expected)?;
        let put = TxnOp::put(full_key(key), value, None);
        let outcome = self.compare_and(key, expected.0, put).await?;
        outcome.map_err(|current| StorageError::Conflict { key: key.to_owned(), current })
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision, StorageError> {
        check_expected(key, expected)?;
        let delete = TxnOp::delete(full_key(key), None);
        let outcome = self.compare_and(key, expected.0, delete).await?;
        outcome.map_err(|current| StorageError::Conflict { key: key.to_owned(), current })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StorageError> {
        if after.0 == 0 {
            return Err(self.compacted(after).await);
        }
        // A watch tells of a compacted start only later; a read tells at once.
        let options = GetOptions::new().with_count_only().with_revision(after.0.cast_signed());
        match self.range(full_key(keys::REGISTRY), options).await {
            Err(StorageError::Compacted { .. }) => return Err(self.compacted(after).await),
            // From a revision to come there is nothing to miss.
            Ok(_) | Err(StorageError::Future { .. }) => {}
            Err(error) => return Err(error),
        }
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        let follower =
            Follower { client: self.client.clone(), prefix: full_key(prefix), position: after, sender };
        tokio::spawn(follower.run());
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        let mut kv = self.kv.clone();
        match within(&self.endpoints, kv.compact(revision.0.cast_signed(), None)).await {
            Ok(_) | Err(StorageError::Compacted { .. }) => Ok(()),
            Err(StorageError::Future { .. }) => {
                let current = self.revision().await?;
                Err(StorageError::Future { requested: revision, current })
            }
            Err(error) => Err(error),
        }
    }
}

/// One watch: opens etcd's stream, again where it breaks, until its reader is gone.
struct Follower {
    client: Client,
    prefix: Vec<u8>,
    /// The newest change that was delivered.
    position: Revision,
    sender: mpsc::Sender<Result<WatchItem, StorageError>>,
}

impl Follower {
    async fn run(mut self) {
        let mut wait = RETRY_FIRST;
        while !self.sender.is_closed() {
            let began = self.position;
            match self.follow().await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "etcd's watch broke; opening it again"),
            }
            if self.position > began {
                wait = RETRY_FIRST;
            }
            tokio::select! {
                () = self.sender.closed() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Delivers until the watch is over for good (`Ok`) or its stream breaks.
    async fn follow(&mut self) -> Result<(), Error> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision((self.position.0 + 1).cast_signed())
            .with_prev_key()
            .with_progress_notify();
        let mut client = self.client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opened = tokio::select! {
            () = self.sender.closed() => return Ok(()),
            opened = tokio::time::timeout(REQUEST_TIMEOUT, client.watch(self.prefix.clone(), Some(options))) => opened,
        };
        let mut stream =
            opened.map_err(|_| Error::WatchError("etcd did not answer in time".to_owned()))??;
        loop {
            let message = tokio::select! {
                () = self.sender.closed() => return Ok(()),
                message = stream.message() => message?,
            };
            let Some(response) = message else {
                return Err(Error::WatchError("etcd ended the stream".to_owned()));
            };
            if response.compact_revision() > 0 {
                let oldest = Revision(response.compact_revision().cast_unsigned());
                let error = StorageError::Compacted { requested: self.position, oldest };
                // A reader that is gone needs no error.
                drop(self.sender.send(Err(error)).await);
                return Ok(());
            }
            if response.canceled() {
                return Err(Error::WatchError(format!("etcd ended the watch: {}", response.cancel_reason())));
            }
            if !self.deliver(&response).await {
                return Ok(());
            }
        }
    }

    /// False when the watch is over.
    async fn deliver(&mut self, response: &WatchResponse) -> bool {
        for event in response.events() {
            let Some(found) = event.kv() else { continue };
            let item = match change(found, event.event_type(), event.prev_kv()) {
                Some(change) => {
                    self.position = change.revision;
                    Ok(WatchItem::Change(change))
                }
                // Compaction took the version before; without it the event cannot be told.
                None => Err(StorageError::Compacted {
                    requested: self.position,
                    oldest: Revision(found.mod_revision().cast_unsigned()),
                }),
            };
            let over = item.is_err();
            if self.sender.send(item).await.is_err() || over {
                return false;
            }
        }
        if response.events().is_empty() && !response.created() {
            let revision = header_revision(response.header());
            if revision > self.position {
                self.position = revision;
                return self.sender.send(Ok(WatchItem::Progress(revision))).await.is_ok();
            }
        }
        true
    }
}

fn change(found: &KeyValue, kind: EventType, previous: Option<&KeyValue>) -> Option<Change> {
    let key = short_key(found.key())?;
    let created = kind == EventType::Put && found.create_revision() == found.mod_revision();
    if previous.is_none() && !created {
        return None;
    }
    let previous = previous.map(|previous| stored(previous.clone(), Some(key.clone())));
    let value = (kind == EventType::Put).then(|| Bytes::copy_from_slice(found.value()));
    Some(Change { key, revision: Revision(found.mod_revision().cast_unsigned()), value, previous })
}

fn stored(found: KeyValue, key: Option<Arc<str>>) -> Stored {
    let revision = Revision(found.mod_revision().cast_unsigned());
    let (full, value) = found.into_key_value();
    let key = key.or_else(|| short_key(&full)).unwrap_or_else(|| String::from_utf8_lossy(&full).into());
    Stored { key, value: value.into(), revision }
}

fn full_key(key: &str) -> Vec<u8> {
    [PREFIX.as_bytes(), key.as_bytes()].concat()
}

fn short_key(full: &[u8]) -> Option<Arc<str>> {
    std::str::from_utf8(full).ok()?.strip_prefix(PREFIX).map(Arc::from)
}

fn header_revision(header: Option<&ResponseHeader>) -> Revision {
    Revision(header.map_or(0, ResponseHeader::revision).cast_unsigned())
}

fn check_size(key: &str, value: &Bytes) -> Result<(), StorageError> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(StorageError::TooLarge { key: key.to_owned(), size: value.len(), limit: VALUE_BYTES_MAX })
}

/// Revision 0 is no version's, but etcd would take it for a key that is not there.
fn check_expected(key: &str, expected: Revision) -> Result<(), StorageError> {
    if expected.0 > 0 { Ok(()) } else { Err(StorageError::Conflict { key: key.to_owned(), current: None }) }
}

/// A call with a limit on its time and its errors in our words. What of the revisions the caller asked for is filled in by
/// the caller.
async fn within<T>(endpoints: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, StorageError> {
    let unavailable =
        |detail: String| StorageError::Unavailable { detail: format!("etcd at {endpoints}: {detail}") };
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Err(_) => Err(unavailable(format!("no answer in {} s", REQUEST_TIMEOUT.as_secs()))),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let text = error.to_string();
            let none = Revision(0);
            Err(if text.contains("has been compacted") {
                StorageError::Compacted { requested: none, oldest: none }
            } else if text.contains("is a future revision") {
                StorageError::Future { requested: none, current: none }
            } else {
                unavailable(text)
            })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
