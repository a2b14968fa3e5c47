//! Which resources the API serves, at their preferred versions.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use kube::core::{ApiResource, GroupVersion};

/// One resource that the API serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Group, version, kind and plural.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// The verbs it answers to.
    pub verbs: BTreeSet<String>,
}

/// What could be discovered, and what could not.
#[derive(Debug, Default)]
pub struct Discovered {
    /// The resources, subresources left out.
    pub served: Vec<Served>,
    /// Groups whose resources are unknown, with the reason.
    pub failures: Vec<String>,
}

/// Asks the API for all its resources. Fails only if the list of groups itself cannot be had.
pub async fn discover(client: &Client) -> kube::Result<Discovered> {
    let mut discovered = Discovered::default();
    let core = client.list_core_api_resources("v1").await?;
    discovered.add("", "v1", core);
    for group in client.list_api_groups().await?.groups {
        let Some(preferred) = group.preferred_version.as_ref().or(group.versions.first()) else { continue };
        // A resource may exist in an older version of its group only.
        let others = group.versions.iter().filter(|version| version.version != preferred.version);
        let mut seen = BTreeSet::new();
        for version in std::iter::once(preferred).chain(others) {
            match client.list_api_group_resources(&version.group_version).await {
                Ok(mut list) => {
                    list.resources.retain(|resource| seen.insert(resource.name.clone()));
                    discovered.add(&group.name, &version.version, list);
                }
                Err(error) => discovered.failures.push(format!("{}: {error}", version.group_version)),
            }
        }
    }
    Ok(discovered)
}

impl Discovered {
    fn add(&mut self, group: &str, version: &str, list: APIResourceList) {
        for resource in list.resources.into_iter().filter(|resource| !resource.name.contains('/')) {
            let group = resource.group.filter(|group| !group.is_empty()).unwrap_or_else(|| group.to_owned());
            let version =
                resource.version.filter(|version| !version.is_empty()).unwrap_or_else(|| version.to_owned());
            self.served.push(Served {
                resource: ApiResource {
                    api_version: GroupVersion::gv(&group, &version).api_version(),
                    group,
                    version,
                    kind: resource.kind,
                    plural: resource.name,
                },
                namespaced: resource.namespaced,
                verbs: resource.verbs.into_iter().collect(),
            });
        }
    }
}
