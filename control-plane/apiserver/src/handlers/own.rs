//! What the server writes of itself, through the same path as a client's write: recorded for the server, and answered to
//! nobody.

use api::status::Status;
use serde_json::Value;

use super::{
    Target,
    create::{Create, place},
    update::Update,
};
use crate::{ownership::Writer, query::WriteOptions, security::Identity, state::State};

/// A change of one stored object by the server.
pub struct OwnUpdate<'a> {
    pub state: &'a State,
    pub user: &'a Identity,
    pub target: &'a Target,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Whether admission is asked.
    pub admits: bool,
}

impl OwnUpdate<'_> {
    /// Edits the object, again after a lost race; returns it as stored.
    ///
    /// # Errors
    /// As for a client; 404 where the object is not there.
    pub async fn run(&self, edit: &mut (dyn FnMut(&mut Value) + Send)) -> Result<Value, Status> {
        let (options, writer) = (WriteOptions::default(), Writer::server());
        let update = Update {
            state: self.state,
            user: self.user,
            target: self.target,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            options: &options,
            admits: self.admits,
            face: None,
            writer: &writer,
            conversions: None,
        };
        let mut transform = |old: &Value| {
            let mut new = old.clone();
            edit(&mut new);
            Ok(new)
        };
        update.run(&mut Vec::new(), &mut transform).await
    }
}

/// Creates an object; `false` where another server of the cluster was quicker.
///
/// # Errors
/// As for a client, but not that the object is there.
pub async fn create(
    state: &State,
    user: &Identity,
    target: &Target,
    namespace: &str,
    mut object: Value,
) -> Result<bool, Status> {
    place(target, namespace, &mut object)?;
    let (options, writer) = (WriteOptions::default(), Writer::server());
    let create = Create { state, user, target, namespace, options: &options, writer: &writer };
    match create.run(object, &mut Vec::new()).await {
        Ok(_) => Ok(true),
        Err(status) if status.reason == "AlreadyExists" => Ok(false),
        Err(status) => Err(status),
    }
}
