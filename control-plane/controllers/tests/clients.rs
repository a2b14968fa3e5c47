//! What operators are made of, the `kube` crate's reflector and controller, over TLS and across restarts of the server
//! and the loss of its history.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use apiserver::{Server, security::pki, server::listen};
use futures::StreamExt as _;
use k8s_openapi::{
    NamespaceResourceScope, api::core::v1::ConfigMap,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt as _,
        controller::{Action, Controller},
        reflector, watcher,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{config_at, eventually};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const MANAGER: &str = "widget-operator";

/// A kind of the test's own, typed as an operator would type it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Widget {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: WidgetSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<WidgetStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct WidgetSpec {
    size: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct WidgetStatus {
    size: String,
}

impl Widget {
    fn new(name: &str, size: &str) -> Self {
        Self {
            api_version: Self::api_version(&()).into_owned(),
            kind: Self::kind(&()).into_owned(),
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec: WidgetSpec { size: size.to_owned() },
            status: None,
        }
    }
}

impl Resource for Widget {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Widget".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "example.com".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "widgets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn definition() -> CustomResourceDefinition {
    let part = json!({"type": "object", "properties": {"size": {"type": "string"}}});
    let schema = json!({"type": "object", "properties": {"spec": part, "status": part}});
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema}}]},
    }))
    .unwrap()
}

/// A server on an address; a port that an earlier one listened on can be taken again at once.
struct Serving {
    server: Arc<Server>,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    async fn start(folder: &TempDir, address: &str) -> Self {
        let listener = eventually("the port is free", async || {
            listen::bind(address.parse().unwrap()).await.map_err(|error| error.to_string())
        })
        .await;
        let address = listener.local_addr().unwrap();
        let (config, stop) = (config_at(folder, address), CancellationToken::new());
        let server = eventually("the store is free", async || {
            Server::start(config.clone(), stop.clone()).await.map_err(|error| format!("{error:#}"))
        })
        .await;
        let server = Arc::new(server);
        let task = tokio::spawn({
            let server = Arc::clone(&server);
            async move { server.serve(vec![listener]).await }
        });
        Self { server, address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// A client as an operator would have one: from a kubeconfig, over TLS.
    async fn client(&self, folder: &TempDir) -> Client {
        let path = folder.path().join("operator.kubeconfig");
        let url = format!("https://{}", self.address);
        pki::issue_kubeconfig(folder.path(), &pki::client_spec("operator", "system:masters"), &url, &path)
            .unwrap();
        let kubeconfig = Kubeconfig::read_from(&path).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        Client::try_from(config).unwrap()
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

/// Keeps a ConfigMap of the same name for every Widget, and says so in its status.
async fn reconcile(widget: Arc<Widget>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let name = widget.name_any();
    let size = &widget.spec.size;
    let desired = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [widget.controller_owner_ref(&()).unwrap()]},
        "data": {"size": size}});
    let maps = Api::<ConfigMap>::namespaced((*client).clone(), "default");
    maps.patch(&name, &apply(), &Patch::Apply(&desired)).await?;
    let status = json!({"apiVersion": "example.com/v1", "kind": "Widget", "status": {"size": size}});
    let widgets = Api::<Widget>::namespaced((*client).clone(), "default");
    widgets.patch_status(&name, &apply(), &Patch::Apply(&status)).await?;
    Ok(Action::await_change())
}

/// A reflector and how many lists it was made of.
fn reflect(
    client: &Client,
    config: watcher::Config,
) -> (reflector::Store<Widget>, Arc<AtomicUsize>, JoinHandle<()>) {
    let (reader, writer) = reflector::store();
    let lists = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lists);
    let api = Api::<Widget>::namespaced(client.clone(), "default");
    let events = watcher(api, config).default_backoff().inspect(move |event| {
        if matches!(event, Ok(watcher::Event::Init)) {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let task = tokio::spawn(reflector(writer, events).for_each(|_| std::future::ready(())));
    (reader, lists, task)
}

/// Names and sizes of what a reflector holds.
fn held(store: &reflector::Store<Widget>) -> Vec<(String, String)> {
    let mut held: Vec<_> =
        store.state().iter().map(|widget| (widget.name_any(), widget.spec.size.clone())).collect();
    held.sort();
    held
}

async fn shows(store: &reflector::Store<Widget>, wanted: &[(&str, &str)]) {
    eventually("the reflector to show it", async || {
        let held = held(store);
        let is_same =
            held.iter().map(|(name, size)| (name.as_str(), size.as_str())).eq(wanted.iter().copied());
        if is_same { Ok(()) } else { Err(held) }
    })
    .await;
}

/// Waits until the operator did its work for a Widget.
async fn done(client: &Client, name: &str, size: &str) {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let widgets = Api::<Widget>::namespaced(client.clone(), "default");
    eventually("the operator's ConfigMap and status", async || {
        let map = maps.get_opt(name).await.map_err(|error| error.to_string())?;
        let widget = widgets.get_opt(name).await.map_err(|error| error.to_string())?;
        let data = map.and_then(|map| map.data?.get("size").cloned());
        let status = widget.and_then(|widget| Some(widget.status?.size));
        if data.as_deref() == Some(size) && status.as_deref() == Some(size) {
            Ok(())
        } else {
            Err(format!("{data:?} {status:?}"))
        }
    })
    .await;
}

async fn set_size(client: &Client, name: &str, size: &str) {
    let widgets = Api::<Widget>::namespaced(client.clone(), "default");
    let patch = Patch::Merge(json!({"spec": {"size": size}}));
    eventually("the write", async || {
        widgets.patch(name, &PatchParams::default(), &patch).await.map_err(|error| error.to_string())
    })
    .await;
}

async fn define(client: &Client) {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let applied =
        definitions.patch("widgets.example.com", &apply(), &Patch::Apply(&definition())).await.unwrap();
    assert!(applied.uid().is_some());
    let established = kube::runtime::conditions::is_crd_established();
    let waiting = kube::runtime::wait::await_condition(definitions, "widgets.example.com", established);
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it is served in time").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_works_on_over_restarts_and_lost_history() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start(&folder, "127.0.0.1:0").await;
    let address = serving.address.to_string();
    let client = serving.client(&folder).await;
    define(&client).await;
    let widgets = Api::<Widget>::namespaced(client.clone(), "default");
    let (listed, lists, first) = reflect(&client, watcher::Config::default());
    let (streamed, streams, second) = reflect(&client, watcher::Config::default().streaming_lists());
    let owned = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let operator = Controller::new(widgets.clone(), watcher::Config::default())
        .owns(owned.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(100)), Arc::new(client.clone()));
    let operator = tokio::spawn(operator.for_each(|_| std::future::ready(())));

    for name in ["a", "b", "c"] {
        widgets.create(&PostParams::default(), &Widget::new(name, "small")).await.unwrap();
        done(&client, name, "small").await;
    }
    for store in [&listed, &streamed] {
        shows(store, &[("a", "small"), ("b", "small"), ("c", "small")]).await;
    }
    owned.delete("a", &DeleteParams::default()).await.unwrap();
    done(&client, "a", "small").await;

    serving.stop().await;
    let serving = Serving::start(&folder, &address).await;
    set_size(&client, "a", "large").await;
    done(&client, "a", "large").await;
    for store in [&listed, &streamed] {
        shows(store, &[("a", "large"), ("b", "small"), ("c", "small")]).await;
    }

    // While nobody watches, things change, and what happened is forgotten.
    serving.stop().await;
    let before = (lists.load(Ordering::SeqCst), streams.load(Ordering::SeqCst));
    let hidden = Serving::start(&folder, "127.0.0.1:0").await;
    let unseen = hidden.client(&folder).await;
    set_size(&unseen, "b", "huge").await;
    let gone = Api::<Widget>::namespaced(unseen.clone(), "default");
    gone.delete("c", &DeleteParams::default()).await.unwrap();
    let cache = hidden.server.cache();
    cache.storage().compact(cache.revision()).await.unwrap();
    hidden.stop().await;

    let serving = Serving::start(&folder, &address).await;
    done(&client, "b", "huge").await;
    for store in [&listed, &streamed] {
        shows(store, &[("a", "large"), ("b", "huge")]).await;
    }
    assert!(lists.load(Ordering::SeqCst) > before.0, "410 makes it list again");
    assert!(streams.load(Ordering::SeqCst) > before.1, "410 makes it stream the list again");
    for task in [first, second, operator] {
        task.abort();
    }
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_manager_applied_is_a_conflict_that_can_be_forced() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start(&folder, "127.0.0.1:0").await;
    let client = serving.client(&folder).await;
    define(&client).await;
    let widgets = Api::<Widget>::namespaced(client, "default");
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    widgets.patch("a", &one, &Patch::Apply(&Widget::new("a", "small"))).await.unwrap();
    let large = Patch::Apply(Widget::new("a", "large"));
    match widgets.patch("a", &two, &large).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
            assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"one\": .spec.size");
        }
        other => panic!("expected a conflict, got {other:?}"),
    }
    let forced = widgets.patch("a", &two.clone().force(), &large).await.unwrap();
    assert_eq!(forced.spec.size, "large");
    let dry = widgets
        .patch("b", &PatchParams { dry_run: true, ..one }, &Patch::Apply(&Widget::new("b", "x")))
        .await;
    assert_eq!(dry.unwrap().name_any(), "b");
    assert!(widgets.get_opt("b").await.unwrap().is_none());
    serving.stop().await;
}
