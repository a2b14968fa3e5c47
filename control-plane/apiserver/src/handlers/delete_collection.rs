//! DELETE of a collection: every object of the selection, each as its own deletion would go. Answers with what there was.

use api::status::Status;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Call, Target,
    delete::{Delete, Deleted, options},
    list::select,
};
use crate::{query::ListOptions, respond, server::body::Body};

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let selection = ListOptions::parse(&call.query, false)?;
    let options = options(call).await?;
    let accepted = call.accepted_whole()?;
    let namespace = call.info.namespace.clone();
    let page = select(&call.state.cache, target, &namespace, &selection).await?;
    let mut items: Vec<Value> = Vec::with_capacity(page.items.len());
    for object in &page.items {
        let meta = object.meta();
        let delete = Delete {
            state: &call.state,
            user: &call.user,
            target,
            namespace: &meta.namespace,
            name: &meta.name,
            options: &options,
            admits: true,
            is_collection: true,
        };
        match delete.run(&mut call.warnings).await {
            Ok(Deleted::Gone(object) | Deleted::Waiting(object)) => items.push(object),
            // Somebody else was quicker.
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": target.resource.list_kind(),
        "apiVersion": target.resource.group_version(),
        "metadata": {"resourceVersion": call.state.cache.revision().0.to_string()},
        "items": items,
    });
    Ok(respond::value(StatusCode::OK, accepted, &list))
}
