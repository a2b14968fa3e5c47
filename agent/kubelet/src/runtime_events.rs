//! Starts and ends of containers as they happen: from CRI's event stream, or from containerd's own event service where
//! CRI has none (before containerd 1.7).

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use k8s_cri::v1 as cri_api;
use prost::Message;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::cri::Runtime;

/// The containerd namespace of CRI.
const NAMESPACE: &str = "k8s.io";
const RECONNECT: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The container or sandbox changed in some way.
    Changed(String),
    Exited(String),
    /// The stream began anew: what happened meanwhile is not known.
    Gap,
}

/// Sends events until the receiver is gone.
pub async fn watch(runtime: Runtime, channel: Channel, events: mpsc::UnboundedSender<Event>) {
    while !events.is_closed() {
        let result = match runtime.container_events().await {
            Ok(stream) => from_cri(stream, &events).await,
            Err(error) if error.code == tonic::Code::Unimplemented => {
                from_containerd(channel.clone(), &events).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "no events from the container runtime, will reconnect");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn from_cri(
    mut stream: tonic::Streaming<cri_api::ContainerEventResponse>,
    events: &mpsc::UnboundedSender<Event>,
) -> crate::cri::Result<()> {
    let _ = events.send(Event::Gap);
    while let Some(event) = stream.message().await? {
        let stopped = cri_api::ContainerEventType::ContainerStoppedEvent as i32;
        let id = event.container_id;
        let event =
            if event.container_event_type == stopped { Event::Exited(id) } else { Event::Changed(id) };
        if events.send(event).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn from_containerd(channel: Channel, events: &mpsc::UnboundedSender<Event>) -> crate::cri::Result<()> {
    let filters = ["/tasks/start", "/tasks/exit", "/tasks/oom"]
        .map(|topic| format!("namespace=={NAMESPACE},topic==\"{topic}\""));
    let request = SubscribeRequest { filters: filters.to_vec() };
    let mut stream = EventsClient::new(channel).subscribe(request).await?.into_inner();
    let _ = events.send(Event::Gap);
    while let Some(envelope) = stream.message().await? {
        let Some(event) = envelope.event.and_then(|any| decode(&any.type_url, &any.value)) else { continue };
        if events.send(event).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn decode(type_url: &str, value: &[u8]) -> Option<Event> {
    match type_url.rsplit('/').next()? {
        "containerd.events.TaskExit" => {
            let exit = TaskExit::decode(value).ok()?;
            // The end of an exec'd process has an id of its own.
            Some(if exit.id == exit.container_id {
                Event::Exited(exit.container_id)
            } else {
                return None;
            })
        }
        "containerd.events.TaskStart" => Some(Event::Changed(TaskStart::decode(value).ok()?.container_id)),
        "containerd.events.TaskOOM" => Some(Event::Changed(TaskOom::decode(value).ok()?.container_id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_container_itself_counts() {
        let of = |id: &str| {
            let exit = TaskExit { container_id: "c".into(), id: id.into(), ..Default::default() };
            decode("containerd.events.TaskExit", &exit.encode_to_vec())
        };
        assert_eq!(of("c"), Some(Event::Exited("c".into())));
        assert_eq!(of("exec-1"), None);
        assert_eq!(decode("types.containerd.io/other", &[]), None);
        assert_eq!(decode("containerd.events.TaskExit", &[0xff]), None);
    }
}
