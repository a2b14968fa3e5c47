//! One webhook, parsed from its configuration, and all webhooks of a kind of configuration.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::{
    admission::{GROUP, policy::MatchConditions, rules::Rules},
    callout::Destination,
    registry::fields::*,
    storage::{Revision, cache::Cache, keys},
};

/// Without `timeoutSeconds`, which defaulting sets.
const TIMEOUT_DEFAULT_SECONDS: i64 = 10;

pub(super) struct Hook {
    /// Unique among all: `CONFIGURATION/NAME/N`.
    pub(super) id: String,
    pub(super) configuration: String,
    pub(super) name: String,
    pub(super) rules: Rules,
    pub(super) conditions: Option<MatchConditions>,
    pub(super) destination: Result<Destination, String>,
    pub(super) fails_open: bool,
    /// `None` where the configuration does not say; such a webhook gets no dry runs.
    pub(super) has_side_effects: Option<bool>,
    pub(super) timeout: Duration,
    /// `reinvocationPolicy: IfNeeded`.
    pub(super) is_asked_again: bool,
    /// Of AdmissionReview: the first in the list that this server speaks.
    pub(super) version: Option<&'static str>,
}

impl Hook {
    fn parse(configuration: &str, index: usize, webhook: &Value) -> Self {
        let name = text(webhook, "/name");
        let versions = items(webhook, "/admissionReviewVersions").iter().filter_map(Value::as_str);
        let seconds = at(webhook, "/timeoutSeconds").as_i64().unwrap_or(TIMEOUT_DEFAULT_SECONDS);
        Self {
            id: format!("{configuration}/{name}/{index}"),
            configuration: configuration.to_owned(),
            name: name.to_owned(),
            rules: Rules::of_webhook(webhook),
            conditions: MatchConditions::of_webhook(webhook),
            destination: Destination::of_client_config(at(webhook, "/clientConfig")),
            fails_open: text(webhook, "/failurePolicy") == "Ignore",
            has_side_effects: match text(webhook, "/sideEffects") {
                "" => None,
                "None" | "NoneOnDryRun" => Some(false),
                _ => Some(true),
            },
            timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(0).clamp(1, 30)),
            is_asked_again: text(webhook, "/reinvocationPolicy") == "IfNeeded",
            version: versions.into_iter().find_map(|version| match version {
                "v1" => Some("v1"),
                "v1beta1" => Some("v1beta1"),
                _ => None,
            }),
        }
    }
}

/// All webhooks of one kind of configuration.
pub(super) struct Source {
    prefix: String,
    parsed: ArcSwap<(Revision, Arc<[Hook]>)>,
}

impl Source {
    pub(super) fn new(plural: &str) -> Self {
        let parsed = (Revision(u64::MAX), Arc::default());
        Self { prefix: keys::resource_prefix(GROUP, plural), parsed: ArcSwap::from_pointee(parsed) }
    }

    /// As the cache shows them now.
    pub(super) fn hooks(&self, cache: &Cache) -> Arc<[Hook]> {
        // Read before the list: a write between the two is seen as news by the next call.
        let newest = cache.newest(&self.prefix);
        let parsed = self.parsed.load();
        if parsed.0 == newest {
            return Arc::clone(&parsed.1);
        }
        let mut hooks = Vec::new();
        for object in cache.list(&self.prefix).iter() {
            let value = object.value();
            let webhooks = items(&value, "/webhooks").iter().enumerate();
            hooks.extend(webhooks.map(|(index, webhook)| Hook::parse(&object.meta().name, index, webhook)));
        }
        let hooks: Arc<[Hook]> = hooks.into();
        self.parsed.store(Arc::new((newest, Arc::clone(&hooks))));
        hooks
    }
}
